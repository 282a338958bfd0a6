# SPDX-License-Identifier: Apache-2.0
"""The commands of ``manage.py`` as far as they go without a service; pid file and notices."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command, load_command_class
from django.core.management.base import CommandError, CommandParser
from django.db import OperationalError

from carrot_twisted import publisher
from carrot_twisted.management.commands import carrot, carrot_daemon
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import Message
from carrot_twisted.service.notify import Notifier
from carrot_twisted.service.pid_file import PidFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.conftest import RecordingPublisher


def service_options(*arguments: str) -> Any:
    """What ``twistd carrot`` would get from this command line of ``manage.py carrot``."""
    command = carrot.Command()
    parsed = command.create_parser("manage.py", "carrot").parse_args(arguments)
    return command.configuration(vars(parsed)).subOptions


# manage.py carrot


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")


def test_the_service_gets_the_settings_that_django_uses() -> None:
    options = service_options()
    assert options["settings"] == "tests.settings"
    # manage.py has set up the import path; the current folder has no business there.
    assert options.folder is None


def test_without_options_the_service_is_that_of_twistd() -> None:
    options = service_options()
    assert (options["queues"], options["concurrency"]) == ([], None)
    assert (options["shutdown-timeout"], options["consumer-class"]) == (None, None)
    assert (options["loglevel"], options["no-scheduler"]) == ("info", 0)
    assert options.parent["pidfile"] == ""


def test_each_option_reaches_the_service(tmp_path: Path) -> None:
    options = service_options(
        "--queue=a",
        "--queue=b",
        "--concurrency=3",
        "--shutdown-timeout=2.5",
        "--consumer-class=app.Mine",
        "--no-scheduler",
        "--loglevel=DEBUG",
        "-l",
        str(tmp_path / "log"),
    )
    assert (options["queues"], options["concurrency"]) == (["a", "b"], 3)
    assert (options["shutdown-timeout"], options["consumer-class"]) == (2.5, "app.Mine")
    assert (options["loglevel"], options["no-scheduler"]) == ("debug", 1)
    assert options.parent["logfile"] == str(tmp_path / "log")


@pytest.mark.defect(37)
@pytest.mark.parametrize("level", ["debug", "Info", "WARNING", "error", "CRITICAL"])
def test_a_level_may_be_written_in_any_case(level: str) -> None:
    assert service_options(f"--loglevel={level}")["loglevel"] in level.lower()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--loglevel=loud", "--loglevel: must be one of debug, info, warning"),
        ("--concurrency=0", "--concurrency: must be 1 or more"),
        ("--shutdown-timeout=nan", "--shutdown-timeout: must be more than 0"),
        ("--logfile=/no/such/folder/log", "Name another one with --logfile"),
    ],
)
def test_a_mistake_in_an_option_is_told(option: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        call_command("carrot", option)


def test_a_mistake_in_a_call_is_told() -> None:
    with pytest.raises(CommandError, match="must be 1 or more"):
        call_command("carrot", concurrency=-1)


# manage.py carrot_daemon


@pytest.mark.defect(38)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--no-scheduler"], "required: start|stop|restart|status".replace("|", r"\|")),
        (["begin"], "invalid choice: 'begin'"),
        (["start", "--hard"], "--hard goes with stop and restart, not with start"),
        (["status", "--hard"], "--hard goes with stop and restart, not with status"),
        (["start", "--timeout=0"], "--timeout: must be more than 0"),
        (["start", "--logfile=-"], "A daemon has no standard output"),
    ],
)
def test_a_command_line_without_sense_is_a_usage_error(arguments: list[str], told: str) -> None:
    with pytest.raises(CommandError, match=told):
        call_command("carrot_daemon", *arguments)


def test_the_documented_paths_are_the_defaults() -> None:
    command = carrot_daemon.Command()
    parsed = command.create_parser("manage.py", "carrot_daemon").parse_args(["start"])
    assert (parsed.logfile, parsed.pidfile) == ("/var/log/carrot.log", "/var/run/carrot.pid")
    assert (parsed.run_scheduler, parsed.force) == (True, False)


@pytest.mark.parametrize("option", ["logfile", "pidfile"])
def test_a_path_that_cannot_be_written_is_told_before_anything_is_started(
    tmp_path: Path, option: str
) -> None:
    paths = {"logfile": str(tmp_path / "log"), "pidfile": str(tmp_path / "pid")}
    paths[option] = str(tmp_path / "no such folder" / "file")
    with pytest.raises(CommandError, match=f"Name another one with --{option}"):
        call_command("carrot_daemon", "start", **paths)
    assert not (tmp_path / "pid").exists()


@pytest.fixture
def command(tmp_path: Path) -> carrot_daemon.Command:
    """The command with a pid file of its own."""
    made = carrot_daemon.Command()
    made.pid_file = PidFile(str(tmp_path / "pid"))
    return made


def test_the_documented_methods_read_write_and_delete_the_pid(
    command: carrot_daemon.Command,
) -> None:
    assert command.pid is None
    assert command.pid_file.take(create=True)
    command.write_pid(12345)
    assert command.pid == 12345
    command.write_pid(7)
    assert command.pid == 7
    command.delete_pid()
    assert not Path(command.pid_file.path).exists()


def test_a_start_that_was_cut_off_before_it_wrote_a_pid_is_told(
    command: carrot_daemon.Command,
) -> None:
    Path(command.pid_file.path).touch()
    with pytest.raises(carrot_daemon.MissingPid, match="a start that was cut off left the pid"):
        command.stop()
    assert not Path(command.pid_file.path).exists()


def test_the_documented_exceptions_are_raised(
    command: carrot_daemon.Command, tmp_path: Path
) -> None:
    with pytest.raises(carrot_daemon.MissingPid, match="carrot is not running"):
        command.stop()
    service = PidFile(command.pid_file.path)
    assert service.take(create=True)
    service.write(os.getpid())
    with pytest.raises(carrot_daemon.PidExists, match=f"pid {os.getpid()}"):
        call_command("carrot_daemon", "start", pidfile=service.path, logfile=str(tmp_path / "log"))
    service.release()


@pytest.mark.parametrize("text", ["hello", "-1", "0", "12 13"])
def test_a_file_that_holds_no_pid_is_left_as_it_is(
    command: carrot_daemon.Command, text: str
) -> None:
    path = Path(command.pid_file.path)
    path.write_text(text)
    with pytest.raises(CommandError, match="is it the right --pidfile") as caught:
        command.stop()
    assert not isinstance(caught.value, carrot_daemon.MissingPid)
    assert path.read_text() == text


# The pid file


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PidFile]:
    """A pid file that is held, as by a running service."""
    held = PidFile(str(tmp_path / "pid"))
    assert held.take(create=True)
    yield held
    held.release()


def test_a_pid_file_is_held_by_one_only(service: PidFile) -> None:
    other = PidFile(service.path)
    assert not other.take()
    assert not other.take(create=True)
    service.release()
    assert other.take(create=True)


def test_whoever_waits_for_the_end_asks_the_file_of_the_beginning(service: PidFile) -> None:
    waiting = PidFile(service.path)
    assert not waiting.take()
    service.remove()
    # Removed, but its process has not ended.
    assert not waiting.take()
    service.release()
    assert waiting.take()


def test_a_file_that_was_removed_is_not_held_by_mistake(service: PidFile) -> None:
    late = PidFile(service.path)
    assert not late.take(create=True)
    service.remove()
    service.release()
    assert late.take(create=True)
    third = PidFile(service.path)
    assert not third.take(create=True)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_trap_in_its_place_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    """In a folder where others may write, such as /tmp."""
    victim, path = tmp_path / "victim", tmp_path / "pid"
    victim.write_text("1\n")
    if kind == "link":
        path.symlink_to(victim)
    else:
        os.mkfifo(path)
    pid_file = PidFile(str(path))
    for call in (pid_file.take, lambda: pid_file.take(create=True), pid_file.read):
        with pytest.raises(OSError, match="it is"):
            call()
    assert victim.read_text() == "1\n"


def test_a_link_laid_over_a_held_file_is_not_taken_for_it(service: PidFile) -> None:
    path = Path(service.path)
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")
    service.remove()
    assert path.is_symlink()


def test_another_ones_file_is_not_removed(service: PidFile) -> None:
    Path(service.path).unlink()
    Path(service.path).write_text("1\n")
    service.remove()
    assert Path(service.path).read_text() == "1\n"


def test_looking_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PidFile(str(tmp_path / "pid")).take()
    assert PidFile(str(tmp_path / "pid")).read() is None


# Notices


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_notices_arrive_as_systemd_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    address = str(tmp_path / "s") if kind == "path" else f"@carrot-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notifier = Notifier()
        notifier.tell(READY="1", STATUS="Works")
        assert systemd.recv(100) == b"READY=1\nSTATUS=Works"
        # A file's name may be no text.
        assert notifier.tell(STATUS="no file \udcff")
        assert systemd.recv(100) == b"STATUS=no file \\udcff"
    # A program that a task starts does not speak for the service.
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.tell(STOPPING="1")  # nobody listens any more: no error


def test_without_a_listener_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().tell(READY="1")


# manage.py carrot_send


def sent() -> tuple[list[Any], dict[str, Any]]:
    """Arguments of the one message that there is."""
    log = MessageLog.objects.get()
    return json.loads(log.task_args), json.loads(log.content)


@pytest.mark.django_db(transaction=True)
class TestSend:
    def test_arguments_are_texts(self, handed_over: RecordingPublisher) -> None:
        call_command("carrot_send", "tests.project.tasks.echo", "1", "-2", "b c")
        assert sent() == (["1", "-2", "b c"], {})
        assert len(handed_over.rows) == 1

    def test_there_may_be_none(self) -> None:
        call_command("carrot_send", "tests.project.tasks.echo")
        assert sent() == ([], {})

    def test_a_database_that_cannot_take_it_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise OperationalError("no such table: carrot_twisted_messagelog")

        monkeypatch.setattr(Message, "publish", refuse)
        with pytest.raises(CommandError, match=r"No row was written: no such table.* migrate"):
            call_command("carrot_send", "tests.project.tasks.echo")

    def test_a_row_that_is_gone_already_was_sent(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As with a failure callback that deletes the log and publishes again."""

        def flush(_: float) -> bool:
            MessageLog.objects.all().delete()
            return True

        monkeypatch.setattr(publisher, "flush", flush)
        call_command("carrot_send", "tests.project.tasks.echo")
        assert capsys.readouterr().err == ""

    def test_code_may_name_them(self) -> None:
        call_command("carrot_send", "tests.project.tasks.echo", job_args=["1"])
        assert sent() == (["1"], {})

    def test_keyword_arguments_queue_and_priority(self) -> None:
        call_command(
            "carrot_send",
            "tests.project.tasks.echo",
            "--kwarg=name=a=b",
            "--kwarg=queue=",
            "--queue=other",
            "--priority=7",
        )
        assert sent() == ([], {"name": "a=b", "queue": ""})
        log = MessageLog.objects.get()
        assert (log.queue, log.priority) == ("other", 7)

    def test_with_json_they_are_values(self) -> None:
        call_command(
            "carrot_send", "tests.project.tasks.echo", '{"a": [1, null]}', "--json", "--kwarg=x=2.5"
        )
        assert sent() == ([{"a": [1, None]}], {"x": 2.5})

    def test_the_id_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("carrot_send", "tests.project.tasks.echo")
        printed = capsys.readouterr()
        assert printed.out == f"{MessageLog.objects.get().pk}\n"
        # Nobody confirms in this test.
        assert "kept in the database, and a running service will send it" in printed.err

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["no.such.task"], "no.such.*Give the dotted path of a function"),
            (["tests.project.tasks.nothing"], "nothing.*Give the dotted path of a function"),
            (["echo"], "Give the dotted path of a function"),
            (["tests.project.tasks.echo", "--queue=nowhere"], "Known queues: default, other"),
            (["tests.project.tasks.echo", "--priority=256"], "255"),
            (["tests.project.tasks.echo", "--priority=high"], "--priority"),
            (["tests.project.tasks.echo", "--kwarg=x"], "not of the form name=value"),
            (["tests.project.tasks.echo", "--kwarg=a b=x"], "not of the form name=value"),
            (["tests.project.tasks.echo", "--json", "abc"], "marks of its own: '\"abc\"'"),
            (["tests.project.tasks.echo", "--json", "NaN"], "cannot be sent as JSON"),
            (["tests.project.tasks.echo", "--json", "[" * 100_000], "is no JSON"),
        ],
    )
    def test_a_mistake_is_told_and_leaves_no_row(self, arguments: list[str], told: str) -> None:
        with pytest.raises(CommandError, match=told):
            call_command("carrot_send", *arguments)
        assert not MessageLog.objects.exists()


# The documentation


@pytest.mark.parametrize("name", ["carrot", "carrot_daemon", "carrot_send"])
def test_the_documentation_tells_of_each_option(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    section = text.partition(f"## manage.py {name}\n")[2].partition("\n## ")[0]
    command: Any = load_command_class("carrot_twisted", name)
    parser = CommandParser()
    command.add_arguments(parser)
    inherited = CommandParser()
    if name == "carrot_daemon":
        carrot.Command().add_arguments(inherited)
    known = {option for action in inherited._actions for option in action.option_strings}
    options = {option for action in parser._actions for option in action.option_strings}
    missing = [option for option in options - known if f"`{option}" not in section]
    assert not missing
