# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: has everything in place that is needed, then measures.

What this interpreter lacks is installed into the checkout's virtual environment, and the run goes
on there.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks import options
from benchmarks.servers import running
from devtools.environment import (
    PYTHON,
    TOP,
    environment_variables,
    prepare_environment,
)
from devtools.servers import ServerError, temporary_folder
from devtools.steps import StepFailed, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.options import Options

#: What else is measured than tasks and messages: sub-commands, each a package of its own.
OTHERS = ("growth", "idle", "latency", "pages")
#: matplotlib draws the charts.
NEEDED = (
    *("celery", "django", "django_celery_results", "matplotlib", "pika"),
    *("psycopg", "twisted", "txaio"),
)


def main(arguments: Sequence[str]) -> int:
    """Prepare, measure, tidy up; return the exit status."""
    other = arguments[0] if arguments and arguments[0] in OTHERS else None
    # A mistake is told before anything is installed.
    given = None if other else options.parse(arguments)
    try:
        if not all(map(find_spec, NEEDED)):
            return _in_the_environment(arguments)
        if given is not None:
            return _tasks_and_messages(given)
        return int(import_module(f"benchmarks.{other}.__main__").main(arguments[1:]))
    except (StepFailed, ServerError) as error:
        say(str(error))
        return 1


def _in_the_environment(arguments: Sequence[str]) -> int:
    with temporary_folder("carrot-benchmark-") as folder:
        prepare_environment("postgres,benchmark", log=folder / "preparation.log")
    command = [str(PYTHON), "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=TOP, env=environment_variables(), check=False).returncode


def _tasks_and_messages(given: Options) -> int:
    # Only now: these imports need the packages.
    from benchmarks.bench import run
    from benchmarks.preparation import left_out
    from benchmarks.report import Report

    with running(postgres=given.of_tasks and "postgres" in given.databases) as servers:
        report = Report(options=given, facts={})
        missing = left_out(
            given.taking_part, log=servers.log, facts=report.facts, failures=report.failures
        )
        systems = tuple(system for system in given.systems if system not in missing)
        report.options = replace(given, systems=systems)
        return run(report, servers)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
