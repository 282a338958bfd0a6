# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot`` as whoever operates it sees it: options, mistakes, signals, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction

from carrot_twisted import publisher
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import create_message, publish_many, publish_message
from devtools.ports import free_port
from tests.conftest import Broker, current_database_url
from tests.processes import REPOSITORY, TWISTD, ServiceProcess, constants, run_to_end, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import PostgreSQL, RabbitMQ
    from tests.processes import Launch

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

CONFIGURATION = 78
#: A stop with nothing to wait for.
SOON = 8.0


@pytest.fixture(scope="session")
def broker_url(private_broker: RabbitMQ) -> str:
    """Some of these tests stop the broker."""
    return private_broker.url


@pytest.fixture
def fragile(private_broker: RabbitMQ) -> Iterator[RabbitMQ]:
    """The broker, well again after the test."""
    yield private_broker
    private_broker.resume()
    private_broker.start()


def twistd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a ``twistd`` that ends by itself, or becomes a daemon."""
    return run_to_end(
        [str(TWISTD), *arguments], {"DJANGO_SETTINGS_MODULE": "", **environment}, seconds=30
    )


def write_project(folder: Path, settings: str, **modules: str) -> dict[str, str]:
    """A project with these lines at the end of its settings; the environment that finds it."""
    (folder / "mistaken.py").write_text(f"from tests.settings import *\n{settings}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}


def row_of(log: MessageLog) -> MessageLog:
    return MessageLog.objects.get(pk=log.pk)


def wait_for_status(log: MessageLog, status: str, seconds: float = 30.0) -> None:
    wait_until(lambda: row_of(log).status == status, seconds, f"{log.pk} is {row_of(log).status}")


def ends_soon(service: ServiceProcess, seconds: float = SOON) -> int:
    """The exit status of a service that has no reason to take long."""
    try:
        return service.ends(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there after {seconds:g} s:\n{service.log}")


# Mistakes

MISTAKES = {
    "app not installed": ("INSTALLED_APPS = []", ["Add 'carrot_twisted' to INSTALLED_APPS"]),
    "settings need a variable": ("import os; os.environ['NO_SUCH']", ["NO_SUCH"]),
    "settings with a typing error": ("DEBUG = Flase", ["Flase"]),
    "settings that are no Python": ("CARROT = {", ["mistaken.py"]),
    "CARROT is a list": ("CARROT = []", ["Write CARROT = {"]),
    "broker URL": ("CARROT['default_broker'] = 'http://u:hush@host/'", ["amqp://user:password@"]),
    "unknown key": ("CARROT['queuess'] = []", ["'queuess'", "Did you mean 'queues'?"]),
    "unknown key of a queue": (
        "CARROT['queues'] = [{'name': 'default', 'concurency': 2}]",
        ["'concurency'", "Did you mean 'concurrency'?"],
    ),
    "nothing to consume": (
        "CARROT['queues'] = [{'name': 'default', 'consumable': False}]",
        ["'consumable': True", "--queue"],
    ),
    "task module is missing": (
        "CARROT['task_modules'] = ['no_such_module']",
        ["'no_such_module'", "Mend the module or take it out of the list"],
    ),
    "task module fails": (
        "CARROT['task_modules'] = ['broken_tasks']",
        ["'broken_tasks'", "ZeroDivisionError", "Mend the module"],
    ),
    "task module leaves": (
        "CARROT['task_modules'] = ['leaving_tasks']",
        ["'leaving_tasks'", "SystemExit", "Mend the module"],
    ),
    "consumer class is missing": (
        "CARROT['queues'] = [{'name': 'default', 'consumer_class': 'tests.project.NoClass'}]",
        ["'tests.project.NoClass'", "subclass of carrot_twisted.consumer.Consumer"],
    ),
    "consumer class is none": (
        "CARROT['queues'] = [{'name': 'default', 'consumer_class': 'tests.project.tasks.echo'}]",
        ["'tests.project.tasks.echo'", "carrot_twisted.consumer.Consumer"],
    ),
    "app that is missing": (
        "INSTALLED_APPS.append('no_such_app')",
        ["no_such_app"],
    ),
    "two mistakes": (
        "CARROT['shutdown_timeout'] = -1; CARROT['lease'] = 'long'",
        ["'shutdown_timeout'", "'lease'"],
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_configuration_mistake_ends_the_service_at_once(
    tmp_path: Path, launch: Launch, mistake: str
) -> None:
    settings, remedies = MISTAKES[mistake]
    environment = write_project(
        tmp_path,
        settings,
        broken_tasks="1 / 0",
        leaving_tasks="raise SystemExit(0)",
    )
    service = ServiceProcess(tmp_path / "service", (), environment, "mistaken", launch=launch)
    try:
        status = ends_soon(service)
    finally:
        service.kill()
    for remedy in remedies:
        assert remedy in service.log
    assert "hush" not in service.log
    assert status == CONFIGURATION
    # Left behind, it would stop the next start, once its number belongs to another process.
    assert not (tmp_path / "service" / "pid").exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "settings", "remedies"),
    [
        ((), "no.such.settings", ["'no.such.settings'", "folder of manage.py", "PYTHONPATH"]),
        (("--queue=defualt",), "tests.settings", ["called defualt", "Known queues: default"]),
        ((), "tests.settings", ["tables", "Run: python manage.py migrate"]),
    ],
    ids=["settings", "queue", "tables"],
)
def test_so_does_what_is_missing(
    tmp_path: Path, launch: Launch, options: tuple[str, ...], settings: str, remedies: list[str]
) -> None:
    environment = {"CARROT_DATABASE_URL": f"sqlite://{tmp_path / 'empty.sqlite3'}"}
    service = ServiceProcess(tmp_path / "service", options, environment, settings, launch=launch)
    try:
        status = ends_soon(service)
    finally:
        service.kill()
    for remedy in remedies:
        assert remedy in service.log
    assert status == CONFIGURATION
    assert not (tmp_path / "service" / "pid").exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--concurrency=0", "must be 1 or more"),
        ("--concurrency=many", "many"),
        ("--shutdown-timeout=-1", "must be more than 0"),
        ("--shutdown-timeout=nan", "must be"),
        ("--loglevel=loud", "must be one of debug, info, warning, error, critical"),
        ("--no-such-option", "no-such-option"),
        ("--queue", "--queue"),
        ("", "twistd carrot --settings=proj.settings"),
    ],
)
def test_a_usage_error_says_what_is_wrong(tmp_path: Path, option: str, told: str) -> None:
    arguments = [option, "--settings=tests.settings"] if option else []
    if option == "--queue":
        arguments.reverse()
    done = twistd("-n", f"--pidfile={tmp_path / 'pid'}", "carrot", *arguments)
    # Below the help text, where it is seen.
    assert told.removeprefix("--") in done.stdout[-400:]
    assert "Traceback" not in done.stdout
    assert done.returncode == 1
    assert not (tmp_path / "pid").exists()


@pytest.mark.once
def test_the_settings_may_come_from_the_environment(tmp_path: Path) -> None:
    environment = write_project(tmp_path, "INSTALLED_APPS = []")
    done = twistd(
        "-n",
        f"--pidfile={tmp_path / 'pid'}",
        "carrot",
        **environment,
        DJANGO_SETTINGS_MODULE="mistaken",
    )
    assert "Add 'carrot_twisted' to INSTALLED_APPS" in done.stdout
    assert done.returncode == CONFIGURATION


@pytest.mark.once
def test_help_names_every_option() -> None:
    done = twistd("carrot", "--help")
    assert done.returncode == 0
    for option in ("settings", "queue", "concurrency", "shutdown-timeout", "no-scheduler"):
        assert f"--{option}" in done.stdout
    assert "--loglevel" in done.stdout


# What is logged


@pytest.mark.once
def test_the_log_level_has_effect(start_service: StartService) -> None:
    quiet = start_service("--loglevel=error", wait=False)
    done = publish_message(tasks.echo)
    wait_for_status(done, MessageLog.COMPLETED)
    assert quiet.stop() == 0
    assert "carrot starts" not in quiet.log
    assert "Connected to" not in quiet.log

    talkative = start_service("--loglevel=debug")
    assert talkative.stop() == 0
    for line in ("carrot starts as worker", "Connected to", "Consuming queue", "Stopped; 0 tasks"):
        assert line in talkative.log


@pytest.mark.once
@pytest.mark.parametrize("state", ["well", "password", "virtual host", "away"])
@pytest.mark.defect(29)
def test_no_log_line_shows_the_password(
    start_service: StartService, private_broker: RabbitMQ, state: str
) -> None:
    url = private_broker.url
    password = url.partition("@")[0].rpartition(":")[2]
    wrong = "not-the-password"
    url, told = {
        "well": (url, "Consuming queue default"),
        "password": (url.replace(password, wrong), "user 'carrot' or its password is refused"),
        "virtual host": (f"{url}-no", "virtual host 'carrot-no': does it exist"),
        "away": (f"amqp://carrot:{wrong}@127.0.0.1:{free_port()}/", "ConnectionRefusedError"),
    }[state]
    service = start_service("--loglevel=debug", wait=False, CARROT_BROKER_URL=url)
    service.wait_for(told)
    assert service.stop(SOON) == 0
    assert password not in service.log
    assert wrong not in service.log


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["starting", "idle", "busy"])
def test_a_signal_ends_the_service_with_status_0(
    start_service: StartService, number: int, moment: str, ledger: Ledger, tmp_path: Path
) -> None:
    service = start_service(wait=False)
    service.wait_for("carrot starts as worker")
    if moment != "starting":
        service.wait_for("Consuming queue default")
    file = tmp_path / "file"
    if moment == "busy":
        row = publish_message(tasks.wait_for_file, str(file))
        wait_for_status(row, MessageLog.IN_PROGRESS)
    service.signal(number)
    if moment == "busy":
        service.wait_for("tasks are still running")
        # A task that is published meanwhile waits for the next service.
        late = publish_message(tasks.echo)
        assert publisher.flush(10)
        file.touch()
    assert ends_soon(service) == 0
    if moment == "busy":
        assert row_of(row).status == MessageLog.COMPLETED
        assert row_of(row).attempts == 1
        assert ledger() == ["saw the file"]
        assert row_of(late).status == MessageLog.PUBLISHED
        assert row_of(late).attempts == 0
        assert "Stopped; 1 tasks were run" in service.log
    assert not Worker.objects.exists()
    assert "Traceback" not in service.log
    assert not (service.log_path.parent / "pid").exists()


@pytest.mark.once
def test_a_signal_ends_a_service_that_reaches_nobody(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    service = ServiceProcess(
        tmp_path / "service",
        (),
        {
            "CARROT_BROKER_URL": f"amqp://u:hush@{nobody}/",
            "CARROT_DATABASE_URL": f"postgres://u:hush@{nobody}/none",
        },
    )
    try:
        service.wait_for("The database cannot be reached")
        service.signal()
        assert ends_soon(service) == 0
    finally:
        service.kill()
    assert "hush" not in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize("state", ["away", "silent"])
def test_a_signal_ends_a_service_whose_broker_is_gone(
    start_service: StartService, fragile: RabbitMQ, state: str, tmp_path: Path
) -> None:
    service = start_service()
    file = tmp_path / "file"
    row = publish_message(tasks.wait_for_file, str(file))
    wait_for_status(row, MessageLog.IN_PROGRESS)
    if state == "away":
        fragile.stop()
        service.wait_for("Lost the connection")
    else:
        fragile.pause()
    service.signal()
    service.wait_for("tasks are still running")
    file.touch()
    assert ends_soon(service, 12) == 0
    # The result is in the database, although nobody took the acknowledgement.
    assert row_of(row).status == MessageLog.COMPLETED

    fragile.resume()
    fragile.start()
    again = start_service()
    client = Broker(fragile.url)
    wait_until(lambda: client.depth("default") == 0)
    client.connection.close()
    assert again.stop() == 0
    assert row_of(row).attempts == 1


@pytest.mark.only("postgres")
def test_a_signal_ends_a_service_whose_database_is_stuck(start_service: StartService) -> None:
    """A lock on the table, as of a migration that takes long."""
    service = start_service("--shutdown-timeout=2")
    row = publish_message(tasks.echo)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {MessageLog._meta.db_table} IN ACCESS EXCLUSIVE MODE")
        assert not publisher.flush(0.5)
        service.signal()
        assert ends_soon(service, 12) == 0
    again = start_service()
    wait_for_status(row, MessageLog.COMPLETED)
    assert again.stop() == 0


@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_a_task_that_does_not_end_holds_up_a_stop_only_so_long(
    start_service: StartService, ledger: Ledger, tmp_path: Path, how: str
) -> None:
    service = start_service(f"--shutdown-timeout={1 if how == 'timeout' else 60}")
    file = tmp_path / "file"
    row = publish_message(tasks.wait_for_file, str(file), 300)
    wait_for_status(row, MessageLog.IN_PROGRESS)
    start = time.monotonic()
    service.signal()
    service.wait_for("1 tasks are still running")
    if how == "second signal":
        service.signal()
    assert ends_soon(service) == 0
    if how == "timeout":
        assert time.monotonic() - start >= 1
    assert "1 tasks did not end in time" in service.log
    assert "the database was in" not in service.log
    assert "Traceback" not in service.log
    left = row_of(row)
    assert left.status == MessageLog.PUBLISHED
    assert left.confirmed_at is None
    assert not Worker.objects.exists()
    assert ledger() == []

    file.touch()
    again = start_service()
    wait_for_status(row, MessageLog.COMPLETED)
    assert row_of(row).attempts == 2
    assert row_of(row).crashes == 0
    assert ledger() == ["saw the file"]
    assert again.stop() == 0


def test_threads_that_tasks_leave_behind_do_not_hold_up_the_end(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = write_project(
        tmp_path,
        "",
        stubborn=(
            "import threading, time\n"
            "from asgiref.sync import sync_to_async\n"
            "def leave_a_thread():\n"
            "    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()\n"
            "async def wait_in_an_executor():\n"
            "    await sync_to_async(time.sleep, thread_sensitive=False)(60)\n"
        ),
    )
    environment |= constants({"service.process_end.LAST_MOMENT": 0.5})
    monkeypatch.syspath_prepend(str(tmp_path))
    service = start_service("--shutdown-timeout=1", **environment)
    left = publish_message("stubborn.leave_a_thread")
    wait_for_status(left, MessageLog.COMPLETED)
    service.signal()
    assert ends_soon(service) == 0

    service = start_service("--shutdown-timeout=1", **environment)
    stuck = publish_message("stubborn.wait_in_an_executor")
    wait_for_status(stuck, MessageLog.IN_PROGRESS)
    service.signal()
    assert ends_soon(service) == 0
    assert row_of(stuck).status == MessageLog.PUBLISHED


def test_what_has_not_begun_is_given_back_untouched(
    start_service: StartService, ledger: Ledger
) -> None:
    count = 400
    service = start_service()
    rows = publish_many(
        create_message(tasks.effect, task_args=[str(n), 0.03]) for n in range(count)
    )
    wait_until(lambda: len(ledger()) > 40)
    service.signal()
    assert ends_soon(service) == 0

    done = MessageLog.objects.filter(status=MessageLog.COMPLETED)
    waiting = MessageLog.objects.filter(status=MessageLog.PUBLISHED)
    assert done.count() + waiting.count() == count
    assert waiting.count() > 100
    assert len(ledger()) == done.count()
    assert set(done.values_list("attempts", flat=True)) == {1}
    assert set(waiting.values_list("attempts", flat=True)) == {0}

    again = start_service("--concurrency=20")
    wait_until(lambda: done.count() == count, what=f"{waiting.count()} left")
    assert again.stop() == 0
    assert Counter(ledger()) == Counter({str(n): 1 for n in range(count)})
    assert {row_of(row).attempts for row in rows[::20]} == {1}


# Servers that come later


def test_the_service_may_be_started_before_its_servers(
    request: pytest.FixtureRequest, start_service: StartService, fragile: RabbitMQ
) -> None:
    row = publish_message(tasks.echo)
    assert publisher.flush(10)
    server: PostgreSQL | None = None
    if connection.vendor == "postgresql":
        if "CARROT_DATABASE_URL" in os.environ:
            pytest.skip("the given database cannot be stopped")
        server = request.getfixturevalue("postgres")
    fragile.stop()
    if server:
        connections.close_all()
        server.stop()
    try:
        service = start_service(wait=False)
        if server:
            service.wait_for("The database cannot be reached")
            server.start()
        service.wait_for("No connection to")
        fragile.start()
        service.wait_for("Consuming queue default")
    finally:
        if server:
            server.start()
    wait_for_status(row, MessageLog.COMPLETED)
    assert service.stop() == 0


# As a daemon


@pytest.fixture
def daemon(served: None, broker_url: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start ``twistd carrot`` as a daemon; ended after the test, whatever happens."""
    pid_file = tmp_path / "pid"

    def start(settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return twistd(
            f"--pidfile={pid_file}",
            f"--logfile={tmp_path / 'log'}",
            "carrot",
            f"--settings={settings}",
            CARROT_BROKER_URL=broker_url,
            CARROT_DATABASE_URL=current_database_url(),
            CARROT_TEST_LEDGER=str(tmp_path / "ledger"),
            **environment,
        )

    yield start
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_a_daemon_runs_tasks_and_ends_by_sigterm(
    daemon: Callable[..., Any], ledger: Ledger, tmp_path: Path
) -> None:
    started = daemon("tests.settings")
    assert started.returncode == 0, started.stdout
    assert started.stdout == ""
    pid_file = tmp_path / "pid"
    pid = int(pid_file.read_text())
    row = publish_message(tasks.effect, "by a daemon")
    wait_for_status(row, MessageLog.COMPLETED)
    assert ledger() == ["by a daemon"]
    second = daemon("tests.settings")
    assert second.returncode != 0
    assert str(pid) in second.stdout

    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pid_file.exists(), SOON)
    assert "Stopped; 1 tasks were run" in (tmp_path / "log").read_text()
    assert not Worker.objects.exists()


@pytest.mark.once
@pytest.mark.parametrize("mistake", ["app not installed", "unknown key", "task module is missing"])
def test_a_mistake_of_a_daemon_is_told_at_the_terminal(
    daemon: Callable[..., Any], tmp_path: Path, mistake: str
) -> None:
    settings, remedies = MISTAKES[mistake]
    environment = write_project(tmp_path, settings)
    done = daemon("mistaken", **environment)
    assert done.returncode != 0
    for remedy in remedies:
        assert remedy in done.stdout
    # The command that was typed ends a moment before the daemon.
    wait_until(lambda: not (tmp_path / "pid").exists(), SOON)
