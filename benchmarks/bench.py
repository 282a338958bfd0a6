# SPDX-License-Identifier: Apache-2.0
"""The run: all measures, in turns, on servers that are up."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import facts
from benchmarks.broker import Broker
from benchmarks.databases import Database, Postgres, Sqlite
from benchmarks.failure import BenchmarkFailed
from benchmarks.measures import Bench
from benchmarks.report import Report, text_of, write_json
from benchmarks.systems import SYSTEMS, Deployment
from devtools.steps import say, step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.options import Options

TITLES = {
    "publish": "publish {n:,} tasks one by one",
    "publish_many": "publish {n:,} tasks in one go",
    "drain": "drain {n:,} tasks",
    "drain_logs": "drain {n:,} tasks with two log lines each",
}


def run(options: Options, *, broker_url: str, postgres_url: str | None, folder: Path) -> int:
    """Measure, print the tables, and return the exit status: 1 if anything was lost."""
    report = Report(options=options, facts=facts.gather())
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(broker_url))
        report.facts["RabbitMQ"] = broker.version
        databases: dict[str, Database] = {}
        for key in options.databases:
            database = Sqlite(folder) if key == "sqlite" else Postgres(postgres_url or "")
            databases[key] = stack.enter_context(database)
            report.facts |= database.facts()
        benches = _deploy(options, broker, databases, folder, stack)
        plan = list(_plan(options))
        for number, (round_number, key, measure, system) in enumerate(plan, 1):
            tasks = _tasks(options, measure, system)
            what = TITLES[measure].format(n=tasks)
            where = f"{SYSTEMS[system].label} on {databases[key].label}"
            title = f"[{number}/{len(plan)}] Round {round_number}: {where}: {what}"
            try:
                with step(title):
                    sample = benches[system, key].measure(measure, tasks, round_number)
            except BenchmarkFailed as error:
                report.failures.append(f"{title}: {error}")
                say(f"    FAILED: {error}")
            else:
                report.samples.append(sample)
                say(f"    {sample.per_second:,.0f} per second")
    say(text_of(report))
    if options.json:
        write_json(report, options.json)
    return 1 if report.failures else 0


def _deploy(
    options: Options,
    broker: Broker,
    databases: dict[str, Database],
    folder: Path,
    stack: ExitStack,
) -> dict[tuple[str, str], Bench]:
    """Give each system a database of each kind; beside other runs, if need be."""
    run_name = f"carrot_benchmark_{secrets.token_hex(3)}"
    benches = {}
    with step("Creating databases and tables"):
        for key, database in databases.items():
            for system in options.systems:
                name = f"{run_name}_{system}_{key}"
                deployment = Deployment(
                    SYSTEMS[system],
                    database=database.create(name),
                    broker=broker.url,
                    queue=name,
                    concurrency=options.concurrency,
                    folder=folder,
                )
                benches[system, key] = Bench(deployment, broker, database)
                stack.callback(benches[system, key].tidy_up)
    return benches


def _plan(options: Options) -> Iterator[tuple[int, str, str, str]]:
    """Yield (round, database, measure, system): the systems side by side, in changing order."""
    for number in range(1, options.rounds + 1):
        systems = options.systems if number % 2 else tuple(reversed(options.systems))
        for database in options.databases:
            for measure in options.measures:
                for system in systems:
                    # Celery has no call that publishes many tasks.
                    if (measure, system) != ("publish_many", "celery"):
                        yield number, database, measure, system


def _tasks(options: Options, measure: str, system: str) -> int:
    if measure == "publish":
        return options.single_tasks
    return options.tasks if system == "carrot" else options.peer_tasks
