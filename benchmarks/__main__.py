# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: has everything in place that is needed, then measures.

What this interpreter lacks is installed into the checkout's virtual environment, and the run goes
on there. CARROT_BROKER_URL and CARROT_DATABASE_URL name servers to use; where they are not set,
private ones are started for the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks import options
from devtools.environment import (
    PYTHON,
    TOP,
    environment_variables,
    prepare_environment,
)
from devtools.machine import prepare_machine
from devtools.servers import PostgreSQL, RabbitMQ, ServerError, temporary_folder
from devtools.steps import StepFailed, say, step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from devtools.server import Server

#: What else is measured than tasks and messages: sub-commands, each a package of its own.
OTHERS = ("growth", "idle", "latency", "pages")
NEEDED = ("celery", "django", "django_celery_results", "pika", "psycopg", "twisted", "txaio")


def main(arguments: Sequence[str]) -> int:
    """Prepare, measure, tidy up; return the exit status."""
    if arguments[:1] and arguments[0] in OTHERS:
        return _other(arguments)
    given = options.parse(arguments)
    broker_url = os.environ.get("CARROT_BROKER_URL")
    postgres_url = os.environ.get("CARROT_DATABASE_URL")
    use_postgres = given.of_tasks and "postgres" in given.databases
    with temporary_folder("carrot-benchmark-") as folder, ExitStack() as servers:
        log = folder / "preparation.log"
        try:
            # The charts are of tasks and messages alone.
            if not all(map(find_spec, (*NEEDED, "matplotlib"))):
                return _in_the_environment(arguments, log)
            prepare_machine(
                rabbitmq=not broker_url, postgresql=use_postgres and not postgres_url, log=log
            )
            if not broker_url:
                broker_url = _start(RabbitMQ(folder / "rabbitmq"), servers)
            if use_postgres and not postgres_url:
                postgres_url = _start(PostgreSQL(folder / "postgresql"), servers)
        except (StepFailed, ServerError) as error:
            say(str(error))
            return 1
        # Only now: these imports need the packages.
        from benchmarks.bench import run
        from benchmarks.preparation import prepare_peers
        from benchmarks.report import Report

        report = Report(options=given, facts={})
        report.options = prepare_peers(report, log)
        return run(report, broker_url=broker_url, postgres_url=postgres_url, folder=folder)


def _in_the_environment(arguments: Sequence[str], log: Path) -> int:
    prepare_environment("postgres,benchmark", log=log)
    command = [str(PYTHON), "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=TOP, env=environment_variables(), check=False).returncode


def _other(arguments: Sequence[str]) -> int:
    """Run a sub-command."""
    if not all(map(find_spec, NEEDED)):
        with temporary_folder("carrot-benchmark-") as folder:
            return _in_the_environment(arguments, folder / "preparation.log")
    measure = import_module(f"benchmarks.{arguments[0]}.__main__").main
    return int(measure(arguments[1:]))


def _start(server: Server, servers: ExitStack) -> str:
    with step(f"Starting a private {server.label}"):
        servers.enter_context(server)
    return server.url


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
