# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot``'s command line, and a ``makeService`` that does nothing but remember it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.python import usage
from twisted.python.reflect import namedAny
from twisted.python.usage import UsageError

from carrot_twisted import tap
from carrot_twisted.carrot_service import CarrotService
from carrot_twisted.service import following, json_log
from carrot_twisted.tap import Options, makeService
from carrot_twisted.workers_service import WorkersService

REPOSITORY = Path(tap.__file__).parents[1]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    # txaio's level is the whole process's.
    monkeypatch.setattr(tap, "set_global_log_level", lambda level: None)
    # Nobody starts the service that would close the copy.
    monkeypatch.setattr(os, "dup", lambda descriptor: descriptor)


def parse(*arguments: str, twistd: usage.Options | None = None) -> Options:
    options = Options()
    options.parent = twistd
    options.parseOptions(arguments)
    return options


def test_the_settings_module_is_all_that_is_needed() -> None:
    options = parse("--settings=proj.settings")
    assert dict(options) == {
        "settings": "proj.settings",
        "queues": [],
        "concurrency": None,
        "no-scheduler": 0,
        "shutdown-timeout": None,
        "loglevel": "info",
        "log-format": "text",
        "consumer-class": None,
        "max-tasks": None,
        "max-memory": None,
        "web": None,
        "workers": 1,
        "http": None,
        "callback": None,
        "callback_queues": None,
        "queue-name": None,
        "exchange": None,
        "exchanges": None,
        "routing_keys": [],
        "bindings": None,
        "prefetch-count": None,
        "on-error": None,
        "log": None,
    }


def test_everything_can_be_said() -> None:
    options = parse(
        "-s",
        "proj.settings",
        "--queue",
        "mail",
        "-q",
        "other",
        "--concurrency=3",
        "--no-scheduler",
        "--shutdown-timeout=2.5",
        "--loglevel=WARNING",
        "--consumer-class=app.Mine",
        "--max-tasks=1000",
        "--max-memory=512",
    )
    assert options["queues"] == ["mail", "other"]
    assert (options["concurrency"], options["shutdown-timeout"]) == (3, 2.5)
    assert (options["no-scheduler"], options["loglevel"]) == (1, "warn")
    assert options["consumer-class"] == "app.Mine"
    assert (options["max-tasks"], options["max-memory"]) == (1000, 512)


def test_two_command_lines_do_not_share_their_queues() -> None:
    parse("-s", "x", "-q", "mail")
    assert parse("-s", "x")["queues"] == []


def test_the_settings_module_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "env.settings")
    assert parse()["settings"] == "env.settings"
    assert parse("--settings=proj.settings")["settings"] == "proj.settings"


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error", "critical"])
def test_each_level_is_one_that_txaio_knows(level: str) -> None:
    from txaio.interfaces import log_levels

    assert parse("-s", "x", "-l", level)["loglevel"] in log_levels


@pytest.mark.parametrize(
    ("endpoint", "third"),
    [
        ("tcp:9090:interface=127.0.0.1", "tcp:9092:interface=127.0.0.1"),
        ("tcp:port=9090", "tcp:port=9092"),
        ("tcp:0", "tcp:0"),
        ("unix:/run/carrot", "unix:/run/carrot"),
    ],
)
def test_several_processes_serve_their_health_at_ports_of_their_own(
    endpoint: str, third: str
) -> None:
    assert tap.port_of(endpoint, 1) == endpoint
    assert tap.port_of(endpoint, 3) == third


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "twistd carrot --settings=proj.settings"),
        (["-s", ""], "twistd carrot --settings=proj.settings"),
        (["-s", "x", "--concurrency=0"], "1 or more"),
        (["-s", "x", "--concurrency=-1"], "1 or more"),
        (["-s", "x", "--concurrency=many"], "many"),
        (["-s", "x", "--concurrency=1.5"], "1.5"),
        (["-s", "x", "--shutdown-timeout=0"], "more than 0"),
        (["-s", "x", "--shutdown-timeout=-1"], "more than 0"),
        (["-s", "x", "--shutdown-timeout=nan"], "more than 0"),
        (["-s", "x", "--shutdown-timeout=inf"], "less than a hundred years"),
        (["-s", "x", "--shutdown-timeout=1e300"], "less than a hundred years"),
        (["-s", "x", "--shutdown-timeout=soon"], "soon"),
        (["-s", "x", "--max-tasks=0"], "1 or more"),
        (["-s", "x", "--max-memory=much"], "much"),
        (["-s", "x", "--loglevel=loud"], "one of debug, info, warning, error, critical"),
        (["-s", "x", "--queues=a"], "queues"),
        (["-s", "x", "stray"], "Wrong number of arguments"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse(*arguments)


def test_the_help_tells_of_each_option() -> None:
    text = str(Options())
    for name in ("settings", "queue", "concurrency", "no-scheduler", "shutdown-timeout"):
        assert f"--{name}" in text
    for name in ("loglevel", "consumer-class", "max-tasks", "max-memory"):
        assert f"--{name}" in text
    assert "manage.py" in text


def test_the_service_remembers_what_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    service = makeService(
        parse("-s", "proj.settings", "-q", "mail", "-c", "3", "--consumer-class=app.Mine")
    )
    assert isinstance(service, CarrotService)
    assert service.name == "carrot"
    assert service._settings_module == "proj.settings"
    given = {"queues": ("mail",), "concurrency": 3, "shutdown_timeout": None}
    given["consumer_class"] = "app.Mine"
    assert service._options.items() >= given.items()
    assert service._folder == str(tmp_path)


@pytest.mark.parametrize(("arguments", "wanted"), [((), True), (("--no-scheduler",), False)])
def test_schedules_are_published_unless_it_is_told_not_to(
    arguments: tuple[str, ...], wanted: bool
) -> None:
    service = makeService(parse("-s", "x", *arguments))
    assert isinstance(service, CarrotService)
    assert service._options["scheduler"] is wanted


@pytest.mark.parametrize("nodaemon", [True, False])
def test_it_knows_whether_twistd_stays_in_the_foreground(nodaemon: bool) -> None:
    twistd = usage.Options()
    twistd["nodaemon"] = nodaemon
    twistd["logfile"] = "-"
    options = parse("-s", "x", twistd=twistd)
    service = makeService(options)
    assert isinstance(service, CarrotService)
    assert service._nodaemon is nodaemon


@pytest.mark.parametrize(
    ("number", "kind", "web"),
    [
        (None, WorkersService, None),
        ("1", CarrotService, "tcp:8080"),
        ("2", CarrotService, None),
    ],
)
def test_several_workers_are_watched_over_and_the_first_one_serves_the_pages(
    number: str | None, kind: type, web: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number is not None:
        monkeypatch.setenv(following.NUMBER, number)
    arguments = ("--settings=x", "--workers=2", "--web=tcp:8080")
    service = makeService(parse(*arguments))
    assert type(service) is kind
    if isinstance(service, WorkersService):
        assert (service._count, service._arguments) == (2, arguments)
    else:
        assert service._web_endpoint == web
    assert following.NUMBER not in os.environ


def twistd_with(pid_file: Path) -> usage.Options:
    """twistd's own options."""
    twistd = usage.Options()
    twistd.update(nodaemon=True, pidfile=str(pid_file), chroot=None)
    return twistd


def test_the_pid_file_of_twistd_is_held_from_the_beginning(tmp_path: Path) -> None:
    """twistd looks, and writes later: two that are started at once would both go on."""
    first, second = (parse("-s", "x", twistd=twistd_with(tmp_path / "pid")) for _ in range(2))
    service = makeService(first)
    with pytest.raises(SystemExit, match=f"carrot runs already, as process {os.getpid()}"):
        makeService(second)
    assert service._pid_file is not None
    service._pid_file.release()
    other = makeService(second)._pid_file
    assert other is not None
    assert other.read() == os.getpid()
    other.release()


def test_twistd_does_not_touch_the_pid_file_itself(tmp_path: Path) -> None:
    """It believes the number in it, removes the file that another one holds, and follows links."""
    twistd = twistd_with(tmp_path / "pid")
    assert parse("-s", "x", twistd=twistd).pid_path == str(tmp_path / "pid")
    assert twistd["pidfile"] == ""
    below = twistd_with(tmp_path / "pid")
    below["chroot"] = str(tmp_path)
    # There its path means another file.
    assert parse("-s", "x", twistd=below).pid_path == ""
    assert below["pidfile"] == str(tmp_path / "pid")


@pytest.mark.parametrize("left", ["", "\n", "999999999\n", str(os.getpid()), "1"])
def test_whatever_number_was_left_behind_the_service_starts(tmp_path: Path, left: str) -> None:
    """Stale, empty, or of another program that lives: only the lock counts."""
    path = tmp_path / "pid"
    path.write_text(left)
    held = makeService(parse("-s", "x", twistd=twistd_with(path)))._pid_file
    assert held is not None
    held.release()


def test_a_file_that_is_no_pid_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("my thesis")
    with pytest.raises(SystemExit, match="is it the right --pidfile"):
        makeService(parse("-s", "x", twistd=twistd_with(path)))
    assert path.read_text() == "my thesis"


def test_a_trap_in_the_place_of_the_pid_file_is_told(tmp_path: Path) -> None:
    victim, link, pipe = (tmp_path / name for name in ("victim", "link", "pipe"))
    victim.write_text("")
    link.symlink_to(victim)
    os.mkfifo(pipe)
    for path, told in ((link, "symbolic link"), (pipe, "no regular file"), (tmp_path, "directory")):
        with pytest.raises(SystemExit, match=told):
            makeService(parse("-s", "x", twistd=twistd_with(path)))
    assert victim.read_text() == ""


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    twistd = twistd_with(tmp_path / "pid")
    twistd["logfile"] = str(tmp_path / "no such folder" / "log")
    with pytest.raises(SystemExit, match=r"log file .* cannot be written as user \d+"):
        makeService(parse("-s", "x", twistd=twistd))
    assert not (tmp_path / "pid").exists()


def test_a_named_pipe_in_the_place_of_the_log_is_told_and_not_waited_for(tmp_path: Path) -> None:
    twistd = twistd_with(tmp_path / "pid")
    twistd["logfile"] = str(tmp_path / "log")
    os.mkfifo(twistd["logfile"])
    with pytest.raises(SystemExit, match=r"log file .* cannot be written"):
        makeService(parse("-s", "x", twistd=twistd))


def test_a_pid_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    options = parse("-s", "x", twistd=twistd_with(tmp_path / "no such folder" / "pid"))
    with pytest.raises(SystemExit, match="another --pidfile"):
        makeService(options)


def test_make_service_touches_neither_django_nor_the_reactor() -> None:
    """It runs as root, before twistd becomes a daemon. Told by a process of its own."""
    program = (
        "import sys\n"
        "from carrot_twisted.tap import Options, makeService\n"
        "options = Options()\n"
        "options.parseOptions(['--settings=no.such.settings', '-q', 'a'])\n"
        "makeService(options)\n"
        "names = {'django', 'pika', 'twisted.internet.reactor', 'carrot_twisted.conf'}\n"
        "import threading\n"
        "print(sorted(names & set(sys.modules)), threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 1\n"


def test_the_log_as_json_goes_where_twistds_would(tmp_path: Path) -> None:
    twistd = twistd_with(tmp_path / "pid")
    twistd["logfile"] = str(tmp_path / "log")
    options = parse("-s", "x", "--log-format=json", twistd=twistd)
    # twistd does so when it has read all of its options.
    twistd["logger"] = namedAny(twistd["logger"])
    service = makeService(options)
    assert twistd["logger"] is json_log.observer
    assert isinstance(service, CarrotService)
    assert (service._log_file, json_log.path) == (twistd["logfile"], twistd["logfile"])
    assert service._pid_file is not None
    service._pid_file.release()


@pytest.mark.parametrize(
    ("twistds", "refused"),
    [
        ({"logger": following.PLAIN_LOG}, False),
        ({"logger": "a.b"}, True),
        ({"syslog": True}, True),
    ],
)
def test_a_log_of_somebody_elses_is_not_made_json(
    tmp_path: Path, twistds: dict[str, Any], refused: bool
) -> None:
    """That of a worker is: whoever started it reads its lines."""
    twistd = twistd_with(tmp_path / "pid")
    twistd.update(twistds)
    if refused:
        with pytest.raises(usage.UsageError, match="--log-format=json goes to a file"):
            parse("-s", "x", "--log-format=json", twistd=twistd)
    else:
        parse("-s", "x", "--log-format=json", twistd=twistd)
        assert namedAny(twistd["logger"]) is json_log.observer


class TestCallback:
    def test_it_alone_is_enough_without_a_django_project(self) -> None:
        options = parse("--callback=app.calls:back")
        assert options.consume == {"callback": "app.calls:back"}
        assert makeService(options)._settings_module is None

    def test_queue_exchange_and_keys_make_a_binding(self) -> None:
        options = parse(
            *("--callback=a:b", "--queue-name=mine", "--exchange=events", "--concurrency=2"),
            *("--routing-key=x.*", "--routing-key=y", "--prefetch-count=5", "--on-error=archive"),
            "--log=all",
        )
        assert options.consume == {
            "callback": "a:b",
            "queues": {"mine": {}},
            "bindings": [{"exchange": "events", "routing_keys": ["x.*", "y"], "queue": "mine"}],
            "concurrency": 2,
            "prefetch_count": 5,
            "on_error": "archive",
            "log": "all",
        }

    def test_a_queue_alone_is_bound_to_nothing_and_a_key_is_one_of_amq_topic(self) -> None:
        assert parse("--callback=a:b", "--queue-name=q").consume == {
            "callback": "a:b",
            "queues": {"q": {}},
        }
        assert parse("--callback=a:b", "--routing-key=k").consume == {
            "callback": "a:b",
            "bindings": [{"exchange": "amq.topic", "routing_keys": ["k"]}],
        }

    def test_all_can_be_said_in_json_also_in_files(self, tmp_path: Path) -> None:
        file = tmp_path / "queues.json"
        file.write_text('{"one": {"durable": true}}')
        options = parse(
            "--callback=a:b",
            '--bindings=[{"exchange": "e", "queue": "one"}]',
            f"--queues=@{file}",
            '--exchanges={"e": {}}',
        )
        assert options.consume == {
            "callback": "a:b",
            "bindings": [{"exchange": "e", "queue": "one"}],
            "queues": {"one": {"durable": True}},
            "exchanges": {"e": {}},
        }

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--callback=a:b", "--queue=q"], "--queue is for tasks"),
            (["--callback=a:b", "--no-scheduler"], "--no-scheduler is for tasks"),
            (["--callback=a:b", "--web=tcp:80"], "--web is for tasks"),
            (["-s", "x", "--queue-name=q"], "--queue-name needs a --callback"),
            (["-s", "x", "--routing-key=q"], "--routing-key needs a --callback"),
            (["-s", "x", "--log=all"], "--log needs a --callback"),
            (["--callback=a:b", "--bindings=[]", "--exchange=e"], "--bindings, or --exchange"),
            (["--callback=a:b", "--queues={}", "--queue-name=e"], "--queues, or --queue-name"),
            (["--callback=a:b", "--bindings={"], "must be JSON"),
            (["--callback=a:b", "--queues={"], "must be JSON"),
            (["--callback=a:b", "--queues=@/nowhere"], "cannot be read"),
            (["--callback=a:b", "--prefetch-count=x"], "x"),
        ],
    )
    def test_what_makes_no_sense_is_told(self, arguments: list[str], text: str) -> None:
        with pytest.raises(UsageError, match=text):
            parse(*arguments)
