# SPDX-License-Identifier: Apache-2.0
"""The tools that tests and example stand on: what can be told without starting a server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from devtools import (
    brokers,
    debian_root,
    environment,
    folders,
    machine,
    port_mapper,
    ports,
    postgresql,
    process,
    rabbitmq,
    servers,
)
from devtools.cluster import Cluster
from devtools.steps import StepFailed

if TYPE_CHECKING:
    from pathlib import Path

    AnyServer = servers.RabbitMQ | servers.PostgreSQL | servers.Redis


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a bare Python."""
    monkeypatch.setattr(servers, "find_scripts", lambda: None)
    monkeypatch.setattr(servers, "find_programs", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("nothing_installed")
class TestMissingPackages:
    def test_all_are_named(self) -> None:
        venv, *others = servers.find_missing()
        assert re.fullmatch(r"python3\.\d+-venv", venv)
        assert others == ["rabbitmq-server", "postgresql"]

    def test_what_only_tests_run_is_asked_for_by_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.which", lambda program, path=None: None)
        assert {*servers.TOOLS} <= {*servers.find_missing(tools=True)}
        assert not {*servers.TOOLS} & {*servers.find_missing()}
        monkeypatch.setattr("shutil.which", lambda program, path=None: f"/usr/bin/{program}")
        assert not {*servers.TOOLS} & {*servers.find_missing(tools=True)}

    def test_servers_that_are_not_needed_are_not_asked_for(self) -> None:
        missing = servers.find_missing(rabbitmq=False, postgresql=False)
        assert len(missing) == 1

    def test_redis_is_asked_for_by_the_peer_that_needs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(servers, "find_redis", lambda: None)
        assert servers.find_missing(redis=True)[-1] == "redis-server"
        assert "redis-server" not in servers.find_missing()

    def test_without_apt_the_message_names_the_packages_and_the_way_around(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("shutil.which", lambda program: None)
        with pytest.raises(StepFailed, match=r"rabbitmq-server postgresql(.|\n)*CARROT_BROKER_URL"):
            machine.prepare_machine(rabbitmq=True, postgresql=True, log=tmp_path / "log")
        with pytest.raises(StepFailed, match="packages hold: redis-server") as told:
            machine.install(["redis-server"], log=tmp_path / "log")
        assert "CARROT_BROKER_URL" not in str(told.value)

    def test_without_root_and_sudo_the_message_is_a_command_for_the_administrator(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        monkeypatch.setattr("shutil.which", {"apt-get": "/usr/bin/apt-get"}.get)
        with pytest.raises(
            StepFailed, match=r"apt-get install --yes .* rabbitmq-server postgresql"
        ):
            machine.prepare_machine(rabbitmq=True, postgresql=True, log=tmp_path / "log")


def test_a_complete_machine_needs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "find_missing", lambda **_: [])
    monkeypatch.setattr(machine, "run_quietly", lambda *_, **__: pytest.fail("ran something"))
    machine.prepare_machine(rabbitmq=True, postgresql=True, log=tmp_path / "log")


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CANDIDATES", [20_001, 20_002])
    monkeypatch.setattr(ports, "is_free", lambda port: port == 20_002)
    assert ports.free_port() == 20_002


def test_where_no_port_is_free_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(OSError, match="no free port"):
        ports.free_port()


def test_no_client_can_be_given_the_port_of_a_stopped_server() -> None:
    """Linux gives outgoing connections ports from 32768 on; one could connect to itself."""
    assert max(ports.CANDIDATES) < 32_768


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        (rabbitmq.RabbitMQ, "amqp"),
        (postgresql.PostgreSQL, "postgres"),
        (servers.Redis, "redis"),
    ],
)
class TestUrl:
    @pytest.fixture(autouse=True)
    def _stay_who_we_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)

    def test_names_user_password_port_and_space(
        self, kind: type[AnyServer], scheme: str, tmp_path: Path
    ) -> None:
        url = urlsplit(kind(tmp_path / "server", port=12345).url)
        assert (url.scheme, url.hostname, url.port) == (scheme, "127.0.0.1", 12345)
        # Redis has neither, but a number in the place of a name.
        named = ("", "/0") if kind is servers.Redis else ("carrot", "/carrot")
        assert (url.username, url.path) == named
        assert url.password is not None
        assert len(url.password) == 32

    def test_is_the_same_for_a_later_server_on_the_folder(
        self, kind: type[AnyServer], scheme: str, tmp_path: Path
    ) -> None:
        first, second = (kind(tmp_path / "server", port=12345) for _ in range(2))
        assert first.url == second.url
        assert first.url != kind(tmp_path / "other", port=12345).url

    def test_keeps_the_password_to_its_owner(
        self, kind: type[AnyServer], scheme: str, tmp_path: Path
    ) -> None:
        server = kind(tmp_path / "server")
        assert server.url
        files = [path for path in server.folder.rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_a_temporary_folder_can_be_passed_through_and_is_deleted() -> None:
    with folders.temporary_folder() as folder:
        (folder / "file").touch()
        assert folder.stat().st_mode & 0o777 == 0o711
    assert not folder.exists()


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree\n")
    assert process.tail(log, 2) == "    two\n    three"
    assert "no log" in process.tail(tmp_path / "none")


def test_programs_of_the_environment_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    variables = environment.environment_variables(MORE="1")
    assert variables["PATH"] == f"{environment.VENV / 'bin'}:/usr/bin"
    assert variables["MORE"] == "1"


def test_further_configuration_follows_the_nodes_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rabbitmq, "find_scripts", lambda: tmp_path)
    monkeypatch.setattr(rabbitmq, "Process", lambda *_, **__: None)
    monkeypatch.setattr(port_mapper.PortMapper, "start", lambda *_, **__: None)
    for further in ("", "listeners.tcp = none\n"):
        server = rabbitmq.RabbitMQ(tmp_path / "server", configuration=further)
        server.folder.mkdir(exist_ok=True)
        server._launch()
        written = (server.folder / "rabbitmq.conf").read_text()
        assert written.startswith("default_vhost = carrot\n")
        assert written.endswith(f"vm_memory_high_watermark.relative = 0.6\n{further}")


@pytest.fixture
def other_root(tmp_path: Path) -> Path:
    """A system with a RabbitMQ."""
    root = tmp_path / "root"
    (root / "usr/lib/rabbitmq/lib/rabbitmq_server-4.0.5").mkdir(parents=True)
    return root


class TestAnotherRoot:
    def test_its_version_is_known_without_running_it(
        self, other_root: Path, tmp_path: Path
    ) -> None:
        assert rabbitmq.version_of(other_root) == "4.0.5"
        assert rabbitmq.version_of(tmp_path) is None

    def test_programs_run_in_it_and_find_the_nodes_folder(
        self, other_root: Path, tmp_path: Path
    ) -> None:
        server = rabbitmq.RabbitMQ(tmp_path / "server", root=other_root)
        command = server.command("epmd", "-x")
        assert command[:2] == ["unshare", "--mount"]
        assert command[-4:] == [str(other_root), str(server.folder), "epmd", "-x"]
        assert server.environment["HOME"] == "/srv"
        assert str(tmp_path) not in " ".join(server.environment.values())

    def test_one_without_rabbitmq_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(process.ServerError, match="no RabbitMQ in"):
            rabbitmq.RabbitMQ(tmp_path / "server", root=tmp_path).ctl("status")

    @pytest.mark.parametrize(
        ("system", "user", "told"),
        [("fedora", 0, "this system is no Debian"), ("debian", 1000, "as root or with sudo")],
    )
    def test_where_it_cannot_be_made_the_reason_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, user: int, told: str
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": system})
        monkeypatch.setattr("os.geteuid", lambda: user)
        with pytest.raises(StepFailed, match=f"'trixie' cannot be had here: .*{told}"):
            debian_root.debian_root("trixie", log=tmp_path / "log")

    def test_one_that_was_made_is_used_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other_root: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        place = tmp_path / "carrot-twisted" / "debian"
        place.mkdir(parents=True)
        other_root.rename(place / "trixie")
        assert debian_root.debian_root("trixie", log=tmp_path / "log") == place / "trixie"


class TestBrokers:
    def test_each_is_tested_with_each_type_of_queue(self, other_root: Path, tmp_path: Path) -> None:
        options, rest = brokers.parse(["--broker", str(other_root), "--database=postgres", "-x"])
        runs = brokers.combinations(options, log=tmp_path / "log")
        assert list(runs) == ["RabbitMQ 4.0.5, classic", "RabbitMQ 4.0.5, quorum"]
        assert runs["RabbitMQ 4.0.5, quorum"] == {
            "CARROT_TEST_RABBITMQ": str(other_root),
            "CARROT_TEST_QUEUE_TYPE": "quorum",
            "CARROT_TEST_DATABASE": "postgres",
        }
        assert brokers.files(rest) == [*brokers.TESTS, "-x"]

    def test_named_tests_take_the_place_of_the_usual_ones(self) -> None:
        named = ["tests/contract/test_publishing_contract.py::test_it", "-x"]
        assert brokers.files(named) == named

    def test_the_usual_tests_exist(self) -> None:
        assert [path for path in brokers.TESTS if not (environment.TOP / path).exists()] == []

    def test_a_root_without_rabbitmq_is_told(self, tmp_path: Path) -> None:
        options, _ = brokers.parse(["--broker", f"{tmp_path}/"])
        with pytest.raises(StepFailed, match="no RabbitMQ in"):
            brokers.combinations(options, log=tmp_path / "log")


def test_the_nodes_of_a_cluster_share_user_password_cookie_and_port_mapper(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, size=3)
    cluster._share_secrets()
    assert len({node.password for node in cluster.nodes}) == 1
    assert len({(node.folder / ".erlang.cookie").read_text() for node in cluster.nodes}) == 1
    assert len({node.environment["ERL_EPMD_PORT"] for node in cluster.nodes}) == 1
    assert len({node.node for node in cluster.nodes}) == 3
    url = urlsplit(cluster.url)
    assert url.netloc.count("127.0.0.1:") == 3
