#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs what this repository has to offer, on a machine that may have nothing but Python.

    python3 run.py example [arguments of index_stdlib]   the example, end to end
    python3 run.py test    [arguments of pytest]         the linters and all tests
    python3 run.py bench   [arguments of the benchmark]  the benchmark
    python3 run.py lint                                  ruff and mypy
    python3 run.py stops   [--times 50]                  stops services in every state, many times

What is missing is installed: RabbitMQ and PostgreSQL from the distribution (as root or with
sudo), everything else into .venv. Private servers are started on free ports and stopped in the
end. CARROT_BROKER_URL and CARROT_DATABASE_URL name servers to use instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from devtools.environment import PYTHON, TOP, VENV, environment_variables, prepare_environment
from devtools.machine import prepare_machine
from devtools.process import ServerError, tail
from devtools.servers import PostgreSQL, RabbitMQ, temporary_folder
from devtools.steps import StepFailed, run_quietly, say, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from devtools.server import Server

BROKER, DATABASE = "CARROT_BROKER_URL", "CARROT_DATABASE_URL"
SERVED_TESTS = ("tests/contract", "tests/integration", "tests/acceptance")
LINTERS = {
    "ruff check": [str(VENV / "bin" / "ruff"), "check", "."],
    "ruff format": [str(VENV / "bin" / "ruff"), "format", "--check", "."],
    "mypy": [str(PYTHON), "-m", "mypy"],
}
SECONDS_TO_DRAIN = 60


def run_example(arguments: Sequence[str], log: Path) -> int:
    """Index Python's standard library: one task for each of its files."""
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
        with service(folder, scratch, variables) as is_running:
            say("==> manage.py index_stdlib")
            command = [*manage, "index_stdlib", *arguments]
            return run(command, variables, folder=folder, go_on=is_running)


def run_tests(arguments: Sequence[str], log: Path) -> int:
    """Run the linters and all tests, or one pytest with the given arguments."""
    prepare_machine(
        rabbitmq=BROKER not in os.environ, postgresql=DATABASE not in os.environ, log=log
    )
    prepare_environment("postgres,test", log=log)
    # With CI set, a server that cannot be reached fails a test instead of skipping it.
    variables = environment_variables(CI=os.environ.get("CI", "true"))
    pytest = [str(PYTHON), "-m", "pytest"]
    if arguments:
        return run([*pytest, *arguments], variables)
    sqlite = {**variables, "CARROT_TEST_DATABASE": "sqlite"}
    postgres = {**variables, "CARROT_TEST_DATABASE": "postgres"}
    return run_parts(
        {
            **{name: (command, variables) for name, command in LINTERS.items()},
            "unit tests": ([*pytest, "tests/unit"], variables),
            "tests on SQLite": ([*pytest, *SERVED_TESTS], sqlite),
            "tests on PostgreSQL": ([*pytest, "-m", "not once", *SERVED_TESTS], postgres),
        }
    )


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


def run_stops(arguments: Sequence[str], log: Path) -> int:
    """Stop services in every state, many times, on both databases."""
    prepare_machine(rabbitmq=True, postgresql=True, log=log)
    prepare_environment("postgres,test", log=log)
    command = [str(PYTHON), "-m", "tests.stops", *arguments]
    return run_parts(
        {
            f"stops on {label}": (command, environment_variables(CARROT_TEST_DATABASE=kind))
            for label, kind in (("SQLite", "sqlite"), ("PostgreSQL", "postgres"))
        }
    )


def run_linters(arguments: Sequence[str], log: Path) -> int:
    """Run ruff and mypy."""
    if arguments:
        raise StepFailed("lint takes no arguments: it always looks at everything")
    prepare_machine(rabbitmq=False, postgresql=False, log=log)
    prepare_environment("postgres,test", log=log)
    variables = environment_variables()
    return run_parts({name: (command, variables) for name, command in LINTERS.items()})


COMMANDS: dict[str, Callable[[Sequence[str], Path], int]] = {
    "example": run_example,
    "test": run_tests,
    "bench": run_benchmark,
    "lint": run_linters,
    "stops": run_stops,
}


def started(servers: ExitStack, server: Server) -> str:
    """Start a server that is stopped with the stack; return its URL."""
    with step(f"Starting a private {server.label} on port {server.port}"):
        servers.enter_context(server)
    return server.url


@contextmanager
def service(
    folder: Path, scratch: Path, variables: Mapping[str, str]
) -> Iterator[Callable[[], bool]]:
    """Run `twistd carrot` in the example's folder; it must still run in the end, and drain."""
    log = scratch / "service.log"
    command = [str(VENV / "bin" / "twistd"), "--nodaemon", f"--pidfile={scratch / 'twistd.pid'}"]
    say("==> twistd -n carrot --settings=library.settings")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "carrot", "--settings=library.settings"],
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
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Run a program at the user's terminal, as long as `go_on` says; return its exit status."""
    process = subprocess.Popen(command, cwd=folder, env=variables)
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


def run_parts(parts: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> int:
    """Run one program after the other, then sum up; return 1 if any failed, else 0."""
    summary = []
    failed = 0
    for name, (command, variables) in parts.items():
        say(f"\n==> {name}")
        begin = time.monotonic()
        status = run(command, variables)
        failed += status != 0
        outcome = f"FAILED with status {status}" if status else "passed"
        summary.append(f"    {name:20} {outcome} ({time.monotonic() - begin:.0f} s)")
    say("\n==> Summary")
    for line in summary:
        say(line)
    return 1 if failed else 0


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
