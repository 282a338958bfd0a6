#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs what this repository has to offer, on a machine that may have nothing but Python.

    python3 run.py example [arguments of index_stdlib]   the example, end to end; with --keep,
                                                         service and monitor stay up
    python3 run.py test    [arguments of pytest]         the linters and all tests
    python3 run.py bench   [arguments of the benchmark]  the benchmark
    python3 run.py chaos   [arguments of the chaos run]  faults of every kind; is anything lost?
    python3 run.py brokers [--help]                      the tests on several RabbitMQ versions,
                                                         with classic and with quorum queues
    python3 run.py coverage [tests]                      lines and branches that the unit tests, or
                                                         the named ones, never reach
    python3 run.py lint                                  ruff and mypy
    python3 run.py docs                                  the documentation as HTML, in build/docs
    python3 run.py package                               sdist and wheel, the same bytes each time
    python3 run.py openapi                               writes the description of the JSON API
    python3 run.py screenshots                           takes the pictures of the monitor anew
    python3 run.py stops   [--times 50]                  stops services in every state, many times

What is missing is installed: RabbitMQ and PostgreSQL from the distribution (as root or with
sudo), everything else into .venv; for `brokers`, further Debian releases with their RabbitMQ into
the user's cache (as root). Private servers are started on free ports and stopped in the
end. CARROT_BROKER_URL and CARROT_DATABASE_URL name servers to use instead.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from devtools import brokers, package
from devtools.environment import PYTHON, TOP, VENV, environment_variables, prepare_environment
from devtools.machine import prepare_machine
from devtools.ports import free_port
from devtools.process import ServerError, tail
from devtools.servers import PostgreSQL, RabbitMQ, temporary_folder
from devtools.steps import StepFailed, run_quietly, say, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from devtools.server import Server

    Parts = Mapping[str, tuple[Sequence[str], Mapping[str, str]]]
    """Command and environment of each program, by its name in the summary."""

BROKER, DATABASE = "CARROT_BROKER_URL", "CARROT_DATABASE_URL"
INTEGRATION_TESTS = "tests/integration"
#: Of these, what goes on PostgreSQL into another lane than the rest, so that all last as long.
APART = tuple(
    f"{INTEGRATION_TESTS}/test_{name}.py"
    for name in ("flows", "limits", "rolling_upgrade", "pgbouncer", "recipes")
)
OTHER_TESTS = ("tests/contract", "tests/acceptance")
LINTERS = {
    "ruff check": [str(VENV / "bin" / "ruff"), "check", "."],
    "ruff format": [str(VENV / "bin" / "ruff"), "format", "--check", "."],
    "mypy": [str(PYTHON), "-m", "mypy"],
}
#: What `docs` makes.
HTML = TOP / "build" / "docs"
#: What `coverage` makes.
MEASURED = TOP / "build" / "coverage" / "html"
DOCUMENTATION = [
    *(str(PYTHON), "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"),
    *("-c", str(TOP / "docs"), "-d", str(TOP / "build" / "doctrees"), str(TOP), str(HTML)),
]
SECONDS_TO_DRAIN = 60
#: pytest's exit status where tests were run, and some have failed.
TESTS_FAILED = 1
#: Option of the example: service and monitor stay up when its work is done.
KEEP = "--keep"


def run_example(arguments: Sequence[str], log: Path) -> int:
    """Index Python's standard library: one task for each of its files."""
    keep = KEEP in arguments
    arguments = [one for one in arguments if one != KEEP]
    prepare_machine(rabbitmq=BROKER not in os.environ, postgresql=False, log=log)
    prepare_environment("", log=log)
    folder = TOP / "example"
    manage = [str(PYTHON), str(folder / "manage.py")]
    with temporary_folder() as scratch, ExitStack() as servers:
        variables = environment_variables(EXAMPLE_DATABASE=str(scratch / "example.sqlite3"))
        if BROKER not in os.environ:
            variables[BROKER] = started(servers, RabbitMQ(scratch / "rabbitmq"))
        with step("Creating the database's tables"):
            run_quietly([*manage, "migrate"], log=log, environment=variables)
        web: list[str] = []
        if keep:
            port, password = free_port(), secrets.token_urlsafe(9)
            web = [f"--web=tcp:{port}:interface=127.0.0.1"]
            user = ["createsuperuser", "--noinput", "--username=admin", "--email=admin@localhost"]
            with step("Making a user for the monitor"):
                run_quietly(
                    [*manage, *user],
                    log=log,
                    environment={**variables, "DJANGO_SUPERUSER_PASSWORD": password},
                )
        with service(folder, scratch, variables, web) as is_running:
            say("==> manage.py index_stdlib")
            command = [*manage, "index_stdlib", *arguments]
            status = run(command, variables, folder=folder, go_on=is_running)
            if keep and not status:
                say(f"\nThe monitor: http://127.0.0.1:{port}/   user admin, password {password}")
                say("Service, broker and monitor run until Ctrl-C.")
                wait_for_the_user(is_running)
            return status


def wait_for_the_user(go_on: Callable[[], bool]) -> None:
    """Until Ctrl-C, or as long as `go_on` says."""
    with suppress(KeyboardInterrupt):
        while go_on():
            time.sleep(0.2)


def run_tests(arguments: Sequence[str], log: Path) -> int:
    """Run the linters and all tests, or one pytest with the given arguments."""
    prepare_machine(
        rabbitmq=BROKER not in os.environ,
        postgresql=DATABASE not in os.environ,
        tools=True,
        log=log,
    )
    prepare_environment("docs,postgres,test", log=log)
    # With CI set, a server that cannot be reached fails a test instead of skipping it.
    variables = environment_variables(CI=os.environ.get("CI", "true"))
    pytest = [str(PYTHON), "-m", "pytest"]
    if arguments:
        return run([*pytest, *arguments], variables)
    sqlite = {**variables, "CARROT_TEST_DATABASE": "sqlite"}
    postgres = {**variables, "CARROT_TEST_DATABASE": "postgres"}
    # What does not depend on the database is tested with SQLite only.
    each, either = [*pytest, "-m", "not once"], [*pytest, "-m", "once"]

    def remembered(name: str, command: Sequence[str]) -> Sequence[str]:
        # Each part knows its own failures.
        return [*command, "-o", f"cache_dir=.pytest_cache/{name.replace(' ', '-')}"]

    lanes: list[Parts] = [
        {
            **{name: (command, variables) for name, command in LINTERS.items()},
            "documentation": (DOCUMENTATION, variables),
            "unit tests": ([*pytest, "tests/unit"], variables),
            "browser tests": ([*each, "tests/browser"], postgres),
            "others on PostgreSQL": ([*each, *OTHER_TESTS], postgres),
        },
        {"others on SQLite": ([*pytest, *OTHER_TESTS], sqlite)},
        {"integration, either": ([*either, INTEGRATION_TESTS], sqlite)},
        {
            "integration, SQLite": ([*each, INTEGRATION_TESTS], sqlite),
            "more, PostgreSQL": ([*each, *APART], postgres),
        },
        {
            "integration, PostgreSQL": (
                [*each, INTEGRATION_TESTS, *(f"--ignore={file}" for file in APART)],
                postgres,
            )
        },
    ]
    lanes = [
        {
            name: (remembered(name, command) if "pytest" in command else command, environment)
            for name, (command, environment) in lane.items()
        }
        for lane in lanes
    ]
    if BROKER in os.environ:
        # They would use the same queues.
        lanes = [{name: part for lane in lanes for name, part in lane.items()}]
    # More lanes than processors: but for the first, each waits for servers half of its time.
    return run_lanes(*lanes)


def run_benchmark(arguments: Sequence[str], log: Path) -> int:
    """Run the benchmark beside its peers."""
    prepare_machine(
        rabbitmq=BROKER not in os.environ, postgresql=DATABASE not in os.environ, log=log
    )
    prepare_environment("postgres,benchmark", log=log)
    variables = environment_variables()
    with temporary_folder() as scratch, ExitStack() as servers:
        if BROKER not in os.environ:
            variables[BROKER] = started(servers, RabbitMQ(scratch / "rabbitmq"))
        if DATABASE not in os.environ:
            variables[DATABASE] = started(servers, PostgreSQL(scratch / "postgresql"))
        return run([str(PYTHON), "-m", "benchmarks", *arguments], variables)


def run_chaos(arguments: Sequence[str], log: Path) -> int:
    """Run tasks under faults of every kind, and check that nothing is lost."""
    # It stops and kills its servers: those of others are never used.
    prepare_machine(rabbitmq=True, postgresql=True, log=log)
    prepare_environment("postgres,test", log=log)
    return run([str(PYTHON), "-m", "tests.chaos", *arguments], environment_variables())


def run_brokers(arguments: Sequence[str], log: Path) -> int:
    """Run the tests that meet a broker on each RabbitMQ with each type of queue."""
    options, rest = brokers.parse(arguments)
    prepare_machine(rabbitmq=brokers.HERE in options.broker, postgresql=False, log=log)
    prepare_environment("postgres,test", log=log)
    pytest = [str(PYTHON), "-m", "pytest", *brokers.files(rest)]
    parts = {}
    for name, more in brokers.combinations(options, log=log).items():
        variables = environment_variables(CI=os.environ.get("CI", "true"), **more)
        variables.pop(BROKER, None)
        parts[name] = (pytest, variables)
    return run_lanes(parts)


def run_stops(arguments: Sequence[str], log: Path) -> int:
    """Stop services in every state, many times, on both databases."""
    prepare_machine(rabbitmq=True, postgresql=True, log=log)
    prepare_environment("postgres,test", log=log)
    command = [str(PYTHON), "-m", "tests.stops", *arguments]
    return run_lanes(
        {
            f"stops on {label}": (command, environment_variables(CARROT_TEST_DATABASE=kind))
            for label, kind in (("SQLite", "sqlite"), ("PostgreSQL", "postgres"))
        }
    )


def measure_coverage(arguments: Sequence[str], log: Path) -> int:
    """Tell what the unit tests, or those that are named, never reach; the former have a floor."""
    prepare_machine(
        rabbitmq=bool(arguments) and BROKER not in os.environ,
        postgresql=bool(arguments) and DATABASE not in os.environ,
        tools=bool(arguments),
        log=log,
    )
    prepare_environment("postgres,test", log=log)
    variables = environment_variables(CI=os.environ.get("CI", "true"))
    coverage = [str(PYTHON), "-m", "coverage"]
    tests, no_floor = arguments or ["tests/unit"], ["--fail-under=0"]
    # Each process has written a file of its own.
    if run([*coverage, "erase"], variables):
        return 1
    status = run_lanes(
        {
            "tests": ([*coverage, "run", "-m", "pytest", *tests], variables),
            "files of all processes": ([*coverage, "combine", "--quiet"], variables),
            "pages": ([*coverage, "html", "--quiet", *no_floor], variables),
            "coverage": ([*coverage, "report", *(no_floor if arguments else [])], variables),
        }
    )
    say(f"\nLine by line: {MEASURED / 'index.html'}")
    return status


def run_screenshots(arguments: Sequence[str], log: Path) -> int:
    """Take the pictures of the monitor that README and docs show."""
    prepare_machine(rabbitmq=False, postgresql=False, tools=True, log=log)
    prepare_environment("postgres,test", log=log)
    command = [str(PYTHON), "-m", "pytest", "tests/browser/screenshots.py", *arguments]
    return run(command, environment_variables(CI="true"))


def run_linters(arguments: Sequence[str], log: Path) -> int:
    """Run ruff and mypy."""
    if arguments:
        raise StepFailed("lint takes no arguments: it always looks at everything")
    prepare_machine(rabbitmq=False, postgresql=False, log=log)
    prepare_environment("postgres,test", log=log)
    variables = environment_variables()
    parts = {name: (command, variables) for name, command in LINTERS.items()}
    return run_lanes(parts)


def build_documentation(_arguments: Sequence[str], log: Path) -> int:
    """Write what is made from code into its page, and all pages as HTML; a warning is an error."""
    prepare_environment("docs,postgres,test", log=log)
    variables = environment_variables(DJANGO_SETTINGS_MODULE="tests.settings")
    status = run([str(PYTHON), "-m", "devtools.settings_page"], variables)
    if not status:
        status = run(DOCUMENTATION, variables)
    if not status:
        say(f"\nThe documentation: {HTML / 'docs' / 'index.html'}")
    return status


def build_package(_arguments: Sequence[str], log: Path) -> int:
    """Build what is released."""
    prepare_environment("test", log=log)
    package.release(log)
    return 0


def write_openapi(_arguments: Sequence[str], log: Path) -> int:
    """Write the description of the JSON API from its code."""
    prepare_environment("postgres,test", log=log)
    variables = environment_variables(DJANGO_SETTINGS_MODULE="tests.settings")
    return run([str(PYTHON), "-m", "devtools.openapi"], variables)


COMMANDS: dict[str, Callable[[Sequence[str], Path], int]] = {
    "example": run_example,
    "test": run_tests,
    "bench": run_benchmark,
    "chaos": run_chaos,
    "brokers": run_brokers,
    "coverage": measure_coverage,
    "lint": run_linters,
    "docs": build_documentation,
    "package": build_package,
    "screenshots": run_screenshots,
    "openapi": write_openapi,
    "stops": run_stops,
}


def started(servers: ExitStack, server: Server) -> str:
    """Start a server that is stopped with the stack; return its URL."""
    with step(f"Starting a private {server.label} on port {server.port}"):
        servers.enter_context(server)
    return server.url


@contextmanager
def service(
    folder: Path, scratch: Path, variables: Mapping[str, str], options: Sequence[str]
) -> Iterator[Callable[[], bool]]:
    """Run `twistd carrot` in the example's folder; it must still run in the end, and drain."""
    log = scratch / "service.log"
    command = [str(VENV / "bin" / "twistd"), "--nodaemon", f"--pidfile={scratch / 'twistd.pid'}"]
    carrot = ["carrot", "--settings=library.settings", *options]
    say(f"==> twistd -n {' '.join(carrot)}")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *carrot],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        yield lambda: process.poll() is None
        with step("Stopping the service"):
            process.terminate()
            status = process.wait(SECONDS_TO_DRAIN)
            if status:
                raise StepFailed(f"The service ended with status {status}. Its log:\n{tail(log)}")
    finally:
        process.kill()
        process.wait()


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    folder: Path = TOP,
    output: IO[bytes] | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Run a program as long as `go_on` says; return its exit status.

    Its output goes to the user's terminal, or to the open file `output`.
    """
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdout=output, stderr=output and subprocess.STDOUT
    )
    try:
        while process.poll() is None and go_on():
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    except KeyboardInterrupt:
        # Ctrl-C went to the program too: let it tidy up.
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
        process.kill()
        process.wait()
    return process.returncode


class Lane:
    """Programs that run one after the other, and what became of each."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.summary: list[str] = []
        #: Of parts that have failed, their exit statuses.
        self.failed: dict[str, int] = {}
        self._passed = 0

    @property
    def passed(self) -> bool:
        """Whether every part was run and ended well."""
        return self._passed == len(self.parts)

    @property
    def cut(self) -> bool:
        """Whether some of its parts were not run."""
        return self._passed + len(self.failed) < len(self.parts)

    def run(self, go_on: Callable[[], bool], output: IO[bytes] | None = None) -> None:
        """Run them all, as long as `go_on` says."""
        for name, (command, variables) in self.parts.items():
            if not go_on():
                return
            if output is None:
                say(f"\n==> {name}")
            begin = time.monotonic()
            status = run(command, variables, output=output, go_on=go_on)
            self._passed += status == 0
            if status:
                self.failed[name] = status
            outcome = f"FAILED with status {status}" if status else "passed"
            self.summary.append(f"    {name:24} {outcome} ({time.monotonic() - begin:.0f} s)")


def run_lanes(first: Parts, *others: Parts) -> int:
    """Run lanes at the same time, then sum up; return 1 if any part failed, else 0.

    The first lane has the terminal; what another one says is shown when that one has ended.
    """
    stopping = threading.Event()
    front = Lane(first)
    with ExitStack() as stack:
        behind = []
        for parts in others:
            lane = Lane(parts)
            output = stack.enter_context(tempfile.TemporaryFile())
            thread = threading.Thread(target=lane.run, args=(lambda: not stopping.is_set(), output))
            stack.callback(thread.join)
            stack.callback(stopping.set)
            thread.start()
            behind.append((lane, output, thread))
        front.run(lambda: True)
        for lane, output, thread in behind:
            with step(f"Waiting for {', '.join(lane.parts)}"):
                thread.join()
            output.seek(0)
            say(output.read().decode(errors="replace"))
    lanes = [front, *(lane for lane, _, _ in behind)]
    last = Lane(_failed_tests(lanes))
    last.run(lambda: True)
    lanes.append(last)
    say("\n==> Summary")
    for lane in lanes:
        for line in lane.summary:
            say(line)
    # What has failed must have passed by itself.
    left = sum(len(lane.failed) for lane in lanes[:-1]) - len(last.parts)
    return 0 if last.passed and not left and not any(lane.cut for lane in lanes) else 1


def _failed_tests(lanes: Sequence[Lane]) -> Parts:
    """Tests that have failed beside others, to be run once more by themselves.

    Many have a limit of time, and the machine has less of it for each when several lanes run. What
    fails by itself, too, has failed.
    """
    return {
        f"{name}, alone": ([*lane.parts[name][0], "--last-failed"], lane.parts[name][1])
        for lane in lanes
        for name, status in lane.failed.items()
        if status == TESTS_FAILED and any(map(_is_cache, lane.parts[name][0]))
    }


def _is_cache(word: str) -> bool:
    """Of a part's command: it knows its own failures."""
    return word.startswith("cache_dir=")


def main(arguments: Sequence[str]) -> int:
    """Find the command and run it; tell failures in plain words."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the machine may well have an older one
        say(
            f"This needs Python 3.11 or newer, and {sys.executable} is older: install one, "
            "for example the package python3.11, and start run.py with it."
        )
        return 1
    if not arguments or arguments[0] not in COMMANDS:
        say((__doc__ or "").strip())
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    descriptor, name = tempfile.mkstemp(prefix="carrot-run-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    trouble = ""
    try:
        return COMMANDS[arguments[0]](arguments[1:], log)
    except (StepFailed, ServerError) as error:
        trouble = str(error)
        say(trouble)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if name not in trouble:
            log.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
