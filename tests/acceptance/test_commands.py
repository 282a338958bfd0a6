# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot``, ``carrot_daemon`` and ``carrot_send``, as their operator sees them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.processes import start_of
from carrot_twisted.service.pid_file import PidFile
from carrot_twisted.utilities import publish_message
from devtools.ports import free_port
from tests.conftest import Broker, same_servers
from tests.processes import REPOSITORY, TWISTD, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.nursery import Nursery

Ledger = Callable[[], list[str]]

RUNNING, DEAD, NOT_RUNNING, UNKNOWN = 0, 1, 3, 4
CONFIGURATION = 78
#: What a mistake, or a stop with nothing to wait for, may take.
SOON = 8.0


class Manage:
    """Runs commands of ``manage.py`` in a project; knows the daemons that they start."""

    def __init__(self, folder: Path, environment: dict[str, str], nursery: Nursery) -> None:
        self.folder = folder
        self._nursery = nursery
        self._outputs = (folder / f"output-{number}" for number in itertools.count())
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        (folder / "manage.py").write_text(
            "import sys\nfrom django.core.management import execute_from_command_line\n"
            "execute_from_command_line(sys.argv)\n"
        )
        self.processes: list[subprocess.Popen[str]] = []

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command, as a shell does."""
        process = subprocess.Popen(
            [sys.executable, str(self.folder / "manage.py"), *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def __call__(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run a command; its exit status, and all that it printed."""
        script, output = self.folder / "manage.py", next(self._outputs)
        child = self._nursery.run_script(
            script, arguments, {**self.environment, **environment}, output
        )
        try:
            return child.wait(45), output.read_text()
        finally:
            child.kill()

    def daemon(self, mode: str, *options: str, name: str = "pid", **env: str) -> tuple[int, str]:
        """Run ``carrot_daemon``, with files in the project's folder."""
        # Relative: from the current folder.
        files = (f"--pidfile={name}", f"--logfile={name}.log")
        return self("carrot_daemon", mode, *files, *options, **env)

    def pid(self, name: str = "pid") -> int:
        return int((self.folder / name).read_text())

    def log(self, name: str = "pid") -> str:
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        """Nothing that was started outlives the test."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for path in self.folder.glob("pid*"):
            pid_file = PidFile(str(path))
            with suppress(ValueError, ProcessLookupError):
                if not pid_file.take() and (pid := pid_file.read()):
                    os.kill(pid, signal.SIGKILL)
            pid_file.release()


@pytest.fixture
def manage(served: None, broker_url: str, tmp_path: Path, nursery: Nursery) -> Iterator[Manage]:
    runner = Manage(
        tmp_path,
        {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            **same_servers(broker_url),
            "CARROT_TEST_LEDGER": str(tmp_path / "ledger"),
            "PYTHONPATH": str(REPOSITORY),
        },
        nursery,
    )
    yield runner
    runner.end()


def mistaken(folder: Path, lines: str) -> dict[str, str]:
    """The environment of a project whose settings end with these lines."""
    (folder / "mistaken.py").write_text(f"from tests.settings import *\n{lines}\n")
    return {"DJANGO_SETTINGS_MODULE": "mistaken"}


def row_of(log: MessageLog) -> MessageLog:
    return MessageLog.objects.get(pk=log.pk)


def wait_for_status(log: MessageLog, status: str) -> None:
    wait_until(lambda: row_of(log).status == status, 30, f"{log.pk} is {row_of(log).status}")


# start, status, stop


@pytest.mark.defect(38, 39)
def test_a_daemon_starts_works_tells_its_state_and_stops(manage: Manage, ledger: Ledger) -> None:
    status, output = manage.daemon("start")
    assert status == 0, output
    pid = manage.pid()
    assert f"carrot is running, pid {pid}" in output
    # Success means: it consumes.
    log = manage.log()
    assert "Consuming queue default" in log
    assert "Consuming queue other" in log
    row = publish_message(tasks.effect, "by a daemon")
    wait_for_status(row, MessageLog.COMPLETED)
    assert ledger() == ["by a daemon"]

    status, output = manage.daemon("status")
    assert (status, f"carrot is running, pid {pid}, since 20" in output) == (RUNNING, True)
    status, output = manage.daemon("start")
    assert (status, f"PidExists: carrot is running already, pid {pid}" in output) == (1, True)

    status, output = manage.daemon("stop")
    assert (status, f"carrot, pid {pid}, has stopped" in output) == (0, True)
    wait_until(lambda: not start_of(pid), SOON)
    assert "Stopped; 1 tasks were run" in manage.log()
    assert sorted(path.name for path in manage.folder.glob("pid*")) == ["pid.log"]


@pytest.mark.once
def test_a_daemon_with_several_workers_has_one_pid_file_and_one_log(manage: Manage) -> None:
    status, output = manage.daemon("start", "--workers=2")
    assert status == 0, output
    pid = manage.pid()
    assert f"carrot is running, pid {pid}" in output
    log = manage.log()
    for number in (1, 2):
        assert f"[worker {number}] [carrot_twisted.service.subscription" in log
    row = publish_message(tasks.noop)
    wait_for_status(row, MessageLog.COMPLETED)
    status, output = manage.daemon("stop")
    assert (status, f"carrot, pid {pid}, has stopped" in output) == (0, True)
    assert manage.log().count("carrot_twisted.carrot_service#info] Stopped;") == 2


@pytest.mark.defect(38)
@pytest.mark.once
def test_what_does_not_run_is_told(manage: Manage) -> None:
    status, output = manage.daemon("status")
    assert (status, "carrot is not running: there is no pid file" in output) == (NOT_RUNNING, True)
    status, output = manage.daemon("stop")
    assert (status, "carrot is not running: there is no pid file" in output) == (0, True)
    assert not (manage.folder / "pid").exists()


@pytest.mark.defect(38)
def test_a_restart_makes_another_process(manage: Manage) -> None:
    status, output = manage.daemon("restart")
    assert (status, "carrot is not running" in output) == (0, True)
    first = manage.pid()
    status, output = manage.daemon("restart")
    assert status == 0, output
    second = manage.pid()
    assert second != first
    assert f"carrot, pid {first}, has stopped.\ncarrot is running, pid {second}" in output
    row = publish_message(tasks.echo)
    wait_for_status(row, MessageLog.COMPLETED)


@pytest.mark.once
def test_a_mistake_leaves_the_service_that_runs_as_it_is(manage: Manage) -> None:
    manage.daemon("start")
    pid = manage.pid()
    environment = mistaken(manage.folder, "CARROT['queuess'] = []")
    status, output = manage.daemon("restart", **environment)
    assert status == 1
    assert "Did you mean 'queues'?" in output
    assert "Nothing was stopped or started" in output
    assert manage.daemon("status") == (RUNNING, manage.daemon("status")[1])
    assert manage.pid() == pid
    # It can be stopped all the same.
    status, _ = manage.daemon("stop", **environment)
    assert status == 0


@pytest.mark.once
def test_several_daemons_do_not_know_of_each_other(manage: Manage) -> None:
    assert manage.daemon("start", "--queue=default", name="pid-a")[0] == 0
    assert manage.daemon("start", "--queue=other", name="pid-b")[0] == 0
    assert "queue other" not in manage.log("pid-a")
    assert manage.daemon("stop", name="pid-a")[0] == 0
    assert manage.daemon("status", name="pid-a")[0] == NOT_RUNNING
    assert manage.daemon("status", name="pid-b")[0] == RUNNING
    assert manage.daemon("stop", name="pid-b")[0] == 0


@pytest.mark.once
def test_of_two_starts_at_the_same_moment_one_wins(manage: Manage) -> None:
    files = ("--pidfile=pid", "--logfile=pid.log")
    both = [manage.begin("carrot_daemon", "start", *files) for _ in range(2)]
    outputs = [process.communicate(timeout=45)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], outputs
    loser = next(text for text, process in zip(outputs, both, strict=True) if process.returncode)
    assert "PidExists: carrot is running already" in loser
    assert manage.log().count("carrot starts as worker") == 1
    assert manage.daemon("status")[0] == RUNNING


# What start tells


@pytest.mark.defect(38)
@pytest.mark.once
def test_a_start_without_broker_tells_that_it_goes_on_trying(
    manage: Manage, broker_url: str
) -> None:
    nobody = f"amqp://u:hush@127.0.0.1:{free_port()}/"
    status, output = manage.daemon("start", "--timeout=2", CARROT_BROKER_URL=nobody)
    pid = manage.pid()
    assert status == 1
    assert f"carrot runs (pid {pid}) and goes on trying, but after 2 s it does not" in output
    assert "ConnectionRefusedError" in output, "its last log lines"
    assert str(manage.folder / "pid.log") in output
    assert f"carrot_daemon stop --pidfile={manage.folder / 'pid'}" in output
    assert "hush" not in output
    assert manage.daemon("status")[0] == RUNNING
    assert manage.daemon("stop")[0] == 0


@pytest.mark.defect(38)
@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "lines", "told"),
    [
        ((), "CARROT['queuess'] = []", "Did you mean 'queues'?"),
        (("--consumer-class=tests.project.NoClass",), "", "tests.project.NoClass"),
        (("--consumer-class=tests.project.tasks.echo",), "", "is not a subclass of"),
        (("--consumer-class=failing.Failing",), "", "ZeroDivisionError"),
        (("--consumer-class=failing.Leaving",), "", "SystemExit: 3"),
        # As by a segmentation fault, or for want of memory: before it has said a word to twistd.
        (("--consumer-class=failing.Killed",), "", "carrot did not start"),
        (("--queue=defualt",), "", "Known queues: default, other"),
        ((), "CARROT['task_modules'] = ['no_such_module']", "'no_such_module'"),
        ((), "DEBUG = Flase", "Flase"),
        # Known only when it has become a daemon.
        (
            (),
            "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'empty'}}",
            "Run: python manage.py migrate",
        ),
    ],
    ids=[
        "setting",
        "no class",
        "no consumer",
        "fails",
        "leaves",
        "killed",
        "queue",
        "module",
        "no Python",
        "tables",
    ],
)
def test_a_start_that_cannot_work_fails_within_seconds_and_says_why(
    manage: Manage, options: tuple[str, ...], lines: str, told: str
) -> None:
    (manage.folder / "failing.py").write_text(
        "import os, sys\n"
        "from carrot_twisted.consumer import Consumer\n"
        "class Failing(Consumer):\n    def __init__(self, *args, **kwargs):\n        1 / 0\n"
        "class Leaving(Consumer):\n    def __init__(self, *args, **kwargs):\n        sys.exit(3)\n"
        "class Killed(Consumer):\n    def __init__(self, *args, **kwargs):\n        os.abort()\n"
    )
    begin = time.monotonic()
    status, output = manage.daemon("start", *options, **mistaken(manage.folder, lines))
    assert time.monotonic() - begin < SOON
    assert status == 1
    assert told in output
    assert manage.daemon("status")[0] == NOT_RUNNING
    assert not (manage.folder / "pid").exists()


# Pid files


@pytest.mark.defect(38)
@pytest.mark.once
def test_a_pid_file_that_a_killed_service_left_behind_is_recognised(manage: Manage) -> None:
    manage.daemon("start")
    for mode in ("stop", "start"):
        pid = manage.pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: manage.daemon("status")[0] != RUNNING, SOON)
        status, output = manage.daemon("status")
        assert (status, f"process {pid} left the pid file" in output) == (DEAD, True)
        status, output = manage.daemon(mode)
        assert status == 0, output
        assert f"left behind by process {pid}" in output or f"process {pid} left" in output
        if mode == "stop":
            assert not (manage.folder / "pid").exists()
            assert manage.daemon("start")[0] == 0
    assert manage.daemon("stop")[0] == 0


@pytest.mark.once
def test_another_program_that_got_the_number_is_left_alone(manage: Manage) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        (manage.folder / "pid").write_text(f"{other.pid}\n")
        assert manage.daemon("status")[0] == DEAD
        for arguments in (("stop",), ("stop", "--hard")):
            (manage.folder / "pid").write_text(f"{other.pid}\n")
            status, output = manage.daemon(*arguments)
            assert (status, "carrot is not running" in output) == (0, True)
            assert not (manage.folder / "pid").exists()
        (manage.folder / "pid").write_text(f"{other.pid}\n")
        status, output = manage.daemon("start")
        assert (status, f"left behind by process {other.pid}" in output) == (0, True)
        assert manage.pid() != other.pid
        assert manage.daemon("stop")[0] == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.once
def test_a_file_that_is_no_pid_file_is_not_touched(manage: Manage) -> None:
    file = manage.folder / "pid"
    file.write_text("the only copy of my thesis")
    for mode in ("start", "stop", "status"):
        status, output = manage.daemon(mode)
        assert (status, "is it the right --pidfile?" in output) == (UNKNOWN, True)
    assert file.read_text() == "the only copy of my thesis"
    file.unlink()


@pytest.mark.once
def test_a_process_that_a_task_left_behind_does_not_count_as_the_service(
    manage: Manage, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manage.folder / "forking.py").write_text(
        "import os, time\nfrom tests.project.tasks import ledger\n"
        "def leave_a_child():\n"
        "    child = os.fork()\n"
        "    if not child:\n        time.sleep(60)\n        os._exit(0)\n"
        "    ledger(str(child))\n"
    )
    monkeypatch.syspath_prepend(str(manage.folder))
    assert manage.daemon("start")[0] == 0
    row = publish_message("forking.leave_a_child")
    wait_for_status(row, MessageLog.COMPLETED)
    child = int(ledger()[0])
    try:
        os.kill(manage.pid(), signal.SIGKILL)
        wait_until(lambda: manage.daemon("status")[0] == DEAD, SOON)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


# stop while a task runs


def busy(manage: Manage) -> tuple[MessageLog, Path]:
    """A daemon with a task that runs until a file appears."""
    assert manage.daemon("start")[0] == 0
    file = manage.folder / "file"
    row = publish_message(tasks.wait_for_file, str(file), 120)
    wait_for_status(row, MessageLog.IN_PROGRESS)
    return row, file


@pytest.mark.defect(16, 38, 39)
def test_a_stop_waits_for_the_running_task(manage: Manage, ledger: Ledger) -> None:
    row, file = busy(manage)
    stop = manage.begin("carrot_daemon", "stop", "--pidfile=pid", "--logfile=pid.log")
    wait_until(lambda: "1 tasks are still running" in manage.log())
    assert stop.poll() is None
    assert manage.daemon("status")[0] == RUNNING
    file.touch()
    assert "has stopped" in stop.communicate(timeout=SOON)[0]
    assert stop.returncode == 0
    assert (row_of(row).status, row_of(row).attempts) == (MessageLog.COMPLETED, 1)
    assert ledger() == ["saw the file"]
    # One signal: a second one would have cut the task off.
    assert manage.log().count("Stopping on request") == 1


@pytest.mark.defect(38)
@pytest.mark.once
def test_a_stop_has_a_limit(manage: Manage) -> None:
    row, file = busy(manage)
    pid = manage.pid()
    status, output = manage.daemon("stop", "--timeout=1")
    assert status == 1
    assert f"carrot, pid {pid}, is still there after 1 s" in output
    assert f"stop --hard --pidfile={manage.folder / 'pid'}" in output
    file.touch()
    wait_until(lambda: manage.daemon("status")[0] == NOT_RUNNING, SOON)
    assert row_of(row).status == MessageLog.COMPLETED


def test_a_hard_stop_kills_and_the_task_runs_again(manage: Manage, ledger: Ledger) -> None:
    row, file = busy(manage)
    begin = time.monotonic()
    status, output = manage.daemon("stop", "--hard")
    assert time.monotonic() - begin < SOON
    assert (status, "was killed. Tasks that it was running will run again" in output) == (0, True)
    assert "Stopping on request" not in manage.log()
    assert not (manage.folder / "pid").exists()
    file.touch()
    assert manage.daemon("start")[0] == 0
    wait_for_status(row, MessageLog.COMPLETED)
    assert row_of(row).attempts == 2
    assert ledger() == ["saw the file"]


# Options


@pytest.mark.defect(38)
@pytest.mark.once
@pytest.mark.parametrize("command", ["carrot_daemon", "twistd"])
def test_a_consumer_class_may_be_named_for_all_queues(
    manage: Manage, ledger: Ledger, command: str
) -> None:
    (manage.folder / "mine.py").write_text(
        "from carrot_twisted.consumer import Consumer\n"
        "from tests.project.tasks import ledger\n"
        "class Mine(Consumer):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        self.add_failure_callback(self.note)\n"
        "    def note(self, log, exception):\n"
        "        ledger(f'{self.queue}: {exception}')\n"
    )
    if command == "twistd":
        done = subprocess.run(
            [TWISTD, "--pidfile=pid", "--logfile=pid.log", "carrot", "--consumer-class=mine.Mine"],
            cwd=manage.folder,
            env=manage.environment,
            timeout=45,
            check=False,
        )
        assert done.returncode == 0
    else:
        assert manage.daemon("start", "--consumer-class=mine.Mine")[0] == 0
    for queue in ("default", "other"):
        row = publish_message(tasks.fail, f"on {queue}", queue=queue)
        wait_for_status(row, MessageLog.FAILED)
    assert ledger() == ["default: on default", "other: on other"]
    # The lock is twistd's, too: this command knows a service that was started without it.
    assert manage.daemon("status")[0] == RUNNING
    assert manage.daemon("stop")[0] == 0


@pytest.mark.once
def test_a_file_that_a_task_makes_has_the_mode_that_it_has_in_the_foreground(
    manage: Manage,
) -> None:
    before = os.umask(0o022)
    try:
        start = manage.begin("carrot_daemon", "start", "--pidfile=pid", "--logfile=pid.log")
    finally:
        os.umask(before)
    # The daemon does not keep the terminal's pipe open.
    start.communicate(timeout=45)
    assert start.returncode == 0
    row = publish_message(tasks.effect, "a line")
    wait_for_status(row, MessageLog.COMPLETED)
    assert (manage.folder / "ledger").stat().st_mode & 0o777 == 0o777 & ~0o022


# systemd


@pytest.mark.once
def test_systemd_is_told_when_the_service_is_ready_and_when_it_stops(manage: Manage) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = f"@carrot-test-{os.getpid()}"
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(30)
        service = subprocess.Popen(
            [TWISTD, "-n", "--pidfile=", "--logfile=twistd.log", "carrot"],
            cwd=manage.folder,
            env={**manage.environment, "NOTIFY_SOCKET": address},
        )
        try:
            assert systemd.recv(1000).startswith(b"STATUS=Starting")
            told = systemd.recv(1000)
            while told.startswith(b"STATUS="):
                told = systemd.recv(1000)
            assert told == b"READY=1\nSTATUS=Consuming from all queues"
            assert "Consuming queue other" in (manage.folder / "twistd.log").read_text()
            service.terminate()
            assert systemd.recv(1000).startswith(b"STOPPING=1\n")
            assert service.wait(SOON) == 0
        finally:
            service.kill()
            service.wait()


# manage.py carrot


@pytest.mark.defect(16, 37, 39)
@pytest.mark.once
def test_in_the_foreground_sigterm_lets_tasks_end_and_the_status_is_0(manage: Manage) -> None:
    service = manage.begin("carrot", "--logfile=carrot.log", "--loglevel=INFO")
    log = manage.folder / "carrot.log"
    wait_until(lambda: log.exists() and "Consuming queue other" in log.read_text())
    file = manage.folder / "file"
    row = publish_message(tasks.wait_for_file, str(file))
    wait_for_status(row, MessageLog.IN_PROGRESS)
    service.terminate()
    wait_until(lambda: "1 tasks are still running" in log.read_text())
    file.touch()
    output, _ = service.communicate(timeout=SOON)
    assert (service.returncode, output) == (0, "")
    assert row_of(row).status == MessageLog.COMPLETED
    # No pid file in this mode.
    assert sorted(manage.folder.glob("*pid*")) == []


@pytest.mark.once
def test_a_closed_terminal_lets_tasks_end(manage: Manage) -> None:
    service = manage.begin("carrot", "--logfile=carrot.log")
    log = manage.folder / "carrot.log"
    wait_until(lambda: log.exists() and "Consuming queue other" in log.read_text())
    file = manage.folder / "file"
    row = publish_message(tasks.wait_for_file, str(file))
    wait_for_status(row, MessageLog.IN_PROGRESS)
    service.send_signal(signal.SIGHUP)
    wait_until(lambda: "1 tasks are still running" in log.read_text())
    # The shell sends one, and the terminal another: that is no second request.
    service.send_signal(signal.SIGHUP)
    file.touch()
    service.communicate(timeout=SOON)
    assert service.returncode == 0
    assert (row_of(row).status, row_of(row).attempts) == (MessageLog.COMPLETED, 1)


@pytest.mark.defect(37)
@pytest.mark.once
def test_a_closed_pipe_does_not_keep_the_service_from_ending(manage: Manage) -> None:
    # With its buffer, as usual: what is left in it at the end has nowhere to go.
    service = manage.begin("carrot", PYTHONUNBUFFERED="")
    assert service.stdout is not None
    while "Consuming queue other" not in (line := service.stdout.readline()):
        assert line, "it has ended"
    service.stdout.close()
    row = publish_message(tasks.echo)
    wait_for_status(row, MessageLog.COMPLETED)
    service.terminate()
    assert service.wait(SOON) == 0


@pytest.mark.defect(37)
@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "lines", "told"),
    [
        ((), "CARROT['queuess'] = []", "Did you mean 'queues'?"),
        (("--consumer-class=tests.project.tasks.echo",), "", "is not a subclass of"),
        (("--queue=defualt",), "", "Known queues: default, other"),
    ],
    ids=["setting", "consumer", "queue"],
)
def test_a_mistake_ends_the_foreground_service_with_78(
    manage: Manage, options: tuple[str, ...], lines: str, told: str
) -> None:
    begin = time.monotonic()
    status, output = manage("carrot", *options, **mistaken(manage.folder, lines))
    assert time.monotonic() - begin < SOON
    assert (status, told in output) == (CONFIGURATION, True)


@pytest.mark.once
def test_options_of_django_keep_working(manage: Manage) -> None:
    elsewhere = manage.folder / "elsewhere"
    elsewhere.mkdir()
    mistaken(elsewhere, "CARROT['shutdown_timeout'] = -1")
    status, output = manage("carrot", "--settings=mistaken", f"--pythonpath={elsewhere}")
    assert (status, "'shutdown_timeout'" in output) == (CONFIGURATION, True)


# manage.py carrot_send


def test_what_is_sent_is_run(manage: Manage, broker: Broker) -> None:
    status, output = manage(
        "carrot_send",
        "tests.project.tasks.echo",
        "one",
        "--kwarg=name=Ada Lovelace",
        "--queue=other",
        "--priority=3",
    )
    assert status == 0
    log = MessageLog.objects.get()
    assert output.splitlines()[-1] == str(log.pk)
    assert log.confirmed_at is not None
    assert broker.depth("other") == 1
    assert manage.daemon("start")[0] == 0
    wait_for_status(log, MessageLog.COMPLETED)
    assert "Ada Lovelace" in (row_of(log).output or "")


@pytest.mark.once
def test_what_is_sent_without_broker_is_kept(manage: Manage) -> None:
    nobody = f"amqp://u:hush@127.0.0.1:{free_port()}/"
    status, output = manage("carrot_send", "tests.project.tasks.echo", CARROT_BROKER_URL=nobody)
    log = MessageLog.objects.get()
    assert status == 0
    assert str(log.pk) in output.splitlines()
    assert "kept in the database, and a running service will send it" in output
    assert manage.daemon("start")[0] == 0
    wait_for_status(log, MessageLog.COMPLETED)


@pytest.mark.once
def test_bad_input_is_told_with_a_remedy(manage: Manage) -> None:
    for arguments, told in (
        (["no.such.task"], "Give the dotted path of a function, such as myapp.tasks.greet"),
        (["tests.project.tasks.echo", "--queue=nowhere"], "Known queues: default, other"),
        (["tests.project.tasks.echo", "--json", "abc"], "quotation marks of its own: '\"abc\"'"),
    ):
        status, output = manage("carrot_send", *arguments)
        assert (status, told in output, "Traceback" in output) == (1, True, False), output
    assert not MessageLog.objects.exists()


@pytest.mark.once
def test_a_hook_that_does_not_return_keeps_no_fresh_process_from_taking_over(
    manage: Manage, ledger: Ledger
) -> None:
    """Nobody sends a signal here, whose handler would see to it that the stop has an end."""
    consumer = {"CARROT_TEST_CONSUMER": "tests.stops.holding.StuckInReactor"}
    consumer["CARROT_TEST_GATE"] = str(manage.folder / "gate")
    options = ("--max-tasks=1", "--shutdown-timeout=0.2")
    status, output = manage.daemon("start", *options, **consumer)
    assert status == 0, output
    first = manage.pid()
    for key in ("one", "two"):
        row = publish_message(tasks.effect, key)
        wait_for_status(row, MessageLog.COMPLETED)
        wait_until(lambda: "The stop is held up by code that does not return" in manage.log(), 30)
        (manage.folder / "gate").touch()
    assert ledger() == ["one", "two"]
    wait_until(lambda: manage.daemon("status")[0] == RUNNING)
    assert manage.pid() != first
    assert manage.daemon("stop")[0] == 0


@pytest.mark.once
def test_a_daemon_that_has_run_enough_tasks_starts_its_successor(
    manage: Manage, ledger: Ledger
) -> None:
    status, output = manage.daemon("start", "--max-tasks=5", "--concurrency=1")
    assert status == 0, output
    first = manage.pid()
    rows = [publish_message(tasks.effect, str(number), 0.05) for number in range(8)]
    for row in rows:
        wait_for_status(row, MessageLog.COMPLETED)
    assert sorted(ledger()) == [str(number) for number in range(8)]
    wait_until(lambda: manage.daemon("status")[0] == RUNNING)
    assert manage.pid() != first
    assert "--max-tasks=5" in manage.log()
    # A stop that was asked for is the end of it.
    status, output = manage.daemon("stop")
    assert status == 0, output
    assert manage.daemon("status")[0] == NOT_RUNNING
