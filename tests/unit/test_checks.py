# SPDX-License-Identifier: Apache-2.0
"""``manage.py check``, and the same question asked by the service before it starts."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from carrot_twisted import checks
from carrot_twisted.exceptions import CarrotConfigException

if TYPE_CHECKING:
    from pathlib import Path

SAFE_SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": ":memory:",
    "OPTIONS": {"transaction_mode": "IMMEDIATE"},
}
Databases = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def databases(monkeypatch: pytest.MonkeyPatch) -> Databases:
    """What ``settings.DATABASES`` holds. (Django warns of a test that sets it in earnest.)"""
    value: Databases = {"default": SAFE_SQLITE}

    class Settings:
        DATABASES = value
        USE_TZ = True

    monkeypatch.setattr(checks, "settings", Settings)
    return value


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module ``carrot_probe`` that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "carrot_probe", raising=False)
    return tmp_path / "carrot_probe.py"


def found() -> dict[str, str]:
    """Messages by number."""
    return {
        str(m.id).removeprefix("carrot_twisted."): f"{m.msg} {m.hint}"
        for m in checks.check_carrot()
    }


def test_a_sound_project_is_told_nothing() -> None:
    assert checks.check_carrot() == []
    checks.require()


def test_mistakes_of_the_setting_are_errors_with_hint_and_number(settings: Any) -> None:
    settings.CARROT = {"queues": [5], "lease": 0}
    told = checks.check_carrot()
    assert [m.id for m in told] == ["carrot_twisted.E004", "carrot_twisted.E006"]
    assert all(m.is_serious() and m.hint for m in told)


# Django 6.1 asks the database what it can do.
@pytest.mark.django_db
def test_manage_py_check_fails_with_them(settings: Any) -> None:
    settings.CARROT = {"task_modules": ["no.such.module"], "default_broker": "nonsense"}
    with pytest.raises(SystemCheckError, match=r"\(carrot_twisted\.E003\).*\n.*HINT: Give a URL"):
        call_command("check")


# Django 6.1 asks the database what it can do.
@pytest.mark.django_db
def test_manage_py_check_passes_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("check")
    assert "no issues" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (None, "ModuleNotFoundError"),
        ("1 +", "SyntaxError"),
        ("raise ValueError('broken')", "ValueError: broken"),
        ("import nowhere_at_all", "nowhere_at_all"),
    ],
)
def test_e007_a_task_module_that_cannot_be_imported(
    settings: Any, module: Path, source: str | None, text: str
) -> None:
    if source is not None:
        module.write_text(source)
    settings.CARROT = {"task_modules": ["tests.project.tasks", "carrot_probe"]}
    told = found()
    assert told.keys() == {"E007"}
    assert "'carrot_probe', which cannot be imported" in told["E007"]
    assert text in told["E007"]
    assert "take it out of the list" in told["E007"]


def test_e008_a_consumer_class_that_cannot_be_imported(settings: Any) -> None:
    settings.CARROT = {
        "queues": [{"name": "q", "consumer_class": "tests.project.no_such.Consumer"}]
    }
    told = found()
    assert told.keys() == {"E008"}
    assert "Queue 'q'" in told["E008"]
    assert "subclass of carrot_twisted.consumer.Consumer" in told["E008"]


@pytest.mark.parametrize("path", ["tests.project.tasks.noop", "pathlib.Path", "os.sep"])
def test_e008_a_consumer_class_that_is_no_consumer(settings: Any, path: str) -> None:
    """The service would refuse it at its start: the check shall say so before."""
    settings.CARROT = {"queues": [{"name": "q", "consumer_class": path}]}
    assert found().keys() == {"E008"}


def test_a_consumer_class_of_the_project_is_accepted(settings: Any, module: Path) -> None:
    module.write_text(
        "from carrot_twisted.consumer import Consumer\nclass Mine(Consumer):\n    pass\n"
    )
    settings.CARROT = {"queues": [{"name": "q", "consumer_class": "carrot_probe.Mine"}]}
    assert checks.check_carrot() == []


def test_e011_files_that_tls_cannot_use(settings: Any, tmp_path: Path) -> None:
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "me")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, SHA256())
    )
    (tmp_path / "pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    for file, private, encryption in (
        ("key", key, NoEncryption()),
        ("other", other, NoEncryption()),
        ("encrypted", key, BestAvailableEncryption(b"x")),
    ):
        (tmp_path / file).write_bytes(
            private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        )
    missing, pem = str(tmp_path / "no-such"), str(tmp_path / "pem")

    def told(**files: str) -> str:
        settings.CARROT = {
            "default_broker": {"secure": True, "password": "s3cr3t", **files},
            "queues": [{"name": "one"}, {"name": "two"}],
        }
        messages = found()
        assert messages.keys() <= {"E011"}
        return messages.get("E011", "")

    assert told(ca_file=pem, certificate_file=pem, key_file=str(tmp_path / "key")) == ""
    assert f"ca_file {missing!r} cannot be used: [Errno 2]" in told(ca_file=missing)
    assert f"ca_file {str(tmp_path / 'key')!r} cannot" in told(ca_file=str(tmp_path / "key"))
    assert f"certificate_file {missing!r} cannot" in told(certificate_file=missing)
    assert f"certificate_file {pem!r} cannot" in told(certificate_file=pem)
    both = {"certificate_file": pem}
    assert f"with key_file {missing!r} cannot" in told(**both, key_file=missing)
    assert "KEY_VALUES_MISMATCH" in told(**both, key_file=str(tmp_path / "other"))
    assert "key is encrypted" in told(**both, key_file=str(tmp_path / "encrypted"))


def test_e012_signing_without_a_secret_key(settings: Any) -> None:
    settings.SECRET_KEY = ""
    settings.CARROT = {"queues": [{"name": "q", "signing": "publish"}]}
    told = found()
    assert told.keys() == {"E012"}
    assert "messages cannot be signed" in told["E012"]
    settings.CARROT = {}
    assert found() == {}


@pytest.mark.parametrize(
    ("hook", "warned"),
    [("serializer = None", True), ("get_message_log = None", True), ("fail = None", False)],
)
def test_w003_signatures_where_others_publish(
    settings: Any, module: Path, hook: str, warned: bool
) -> None:
    """Their messages would never run."""
    module.write_text(
        f"from carrot_twisted.consumer import Consumer\nclass Mine(Consumer):\n    {hook}\n"
    )
    queue = {"name": "q", "consumer_class": "carrot_probe.Mine"}
    settings.CARROT = {"signing": True, "queues": [queue]}
    told = found()
    assert told.keys() == ({"W003"} if warned else set())
    if warned:
        assert "'signing': False" in told["W003"]
    for signing in (False, "publish"):
        settings.CARROT = {"signing": True, "queues": [{**queue, "signing": signing}]}
        assert found() == {}


def test_e010_times_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carrot_twisted.checks.settings.USE_TZ", False)
    told = found()
    assert told.keys() == {"E010"}
    assert "Set USE_TZ = True" in told["E010"]


@pytest.mark.parametrize(
    "options", [None, {}, {"transaction_mode": "DEFERRED"}, {"timeout": 20}], ids=repr
)
def test_w001_an_sqlite_database_that_would_lock_up(
    databases: Databases, options: dict[str, Any] | None
) -> None:
    databases["log"] = {"ENGINE": "django.db.backends.sqlite3"}
    if options is not None:
        databases["log"]["OPTIONS"] = options
    told = found()
    assert told.keys() == {"W001"}
    assert "SQLite database 'log'" in told["W001"]
    assert "'transaction_mode': 'IMMEDIATE'" in told["W001"]


def test_other_databases_may_be_of_any_kind(databases: Databases) -> None:
    databases["shop"] = {"ENGINE": "django.db.backends.mysql"}
    assert checks.check_carrot() == []


def test_e018_tasks_in_a_database_that_lacks_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "mysql")
    monkeypatch.setitem(connections["default"].settings_dict, "ENGINE", "our.mariadb")
    told = found()
    assert told.keys() == {"E018"}
    assert "kept in database 'default', of our.mariadb" in told["E018"]
    with pytest.raises(CarrotConfigException, match="PostgreSQL, or in SQLite"):
        checks.require()


@pytest.mark.parametrize("engine", ["django.db.backends.postgresql", "app.gis.postgis"])
def test_w002_a_postgresql_database_that_is_connected_to_for_each_task(
    databases: Databases, engine: str
) -> None:
    databases["log"] = {"ENGINE": engine}
    told = found()
    assert told.keys() == {"W002"}
    assert "PostgreSQL database 'log'" in told["W002"]
    assert "CONN_HEALTH_CHECKS" in told["W002"]
    databases["log"]["CONN_MAX_AGE"] = 0
    assert found() == told


@pytest.mark.parametrize(
    "change", [{"CONN_MAX_AGE": 60}, {"CONN_MAX_AGE": None}, {"OPTIONS": {"pool": True}}], ids=repr
)
def test_connections_that_are_kept_are_not_warned_of(
    databases: Databases, change: dict[str, Any]
) -> None:
    databases["default"] = {"ENGINE": "django.db.backends.postgresql", **change}
    assert checks.check_carrot() == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no.such.decorator", "cannot be imported: ModuleNotFoundError"),
        ("tests.project.tasks.no_such", "cannot be imported: ImportError"),
        ("os.sep", "cannot be called"),
        ("carrot_probe.f", "cannot be imported: SystemExit"),
    ],
)
def test_e009_a_decorator_of_the_monitor_that_is_none(
    settings: Any, module: Path, path: str, text: str
) -> None:
    module.write_text("raise SystemExit(3)")
    settings.CARROT = {
        "monitor_authentication": ["django.contrib.auth.decorators.login_required", path]
    }
    told = found()
    assert told.keys() == {"E009"}
    assert f"CARROT['monitor_authentication'] names {path!r}, which {text}" in told["E009"]
    assert "Give dotted paths of decorators for views" in told["E009"]


def test_the_service_starts_with_a_warning_and_refuses_an_error(
    settings: Any, databases: Databases
) -> None:
    databases["default"] = {"ENGINE": "django.db.backends.sqlite3"}
    checks.require()
    settings.CARROT = {"task_modules": ["no.such"], "queues": [{"name": "q"}]}
    with pytest.raises(CarrotConfigException) as caught:
        checks.require()
    (line,) = str(caught.value).splitlines()
    assert line.startswith("carrot_twisted.E007: CARROT['task_modules'] names 'no.such'")
    assert line.endswith("Mend the module or take it out of the list.")


def test_a_task_module_that_wants_to_end_the_process_is_a_mistake_like_others(
    settings: Any, module: Path
) -> None:
    """A script named by mistake, with ``sys.exit()`` at its end."""
    module.write_text("raise SystemExit(3)")
    settings.CARROT = {"task_modules": ["carrot_probe"]}
    assert found().keys() == {"E007"}
