# SPDX-License-Identifier: Apache-2.0
"""The run: all measures, in turns, on servers that are up."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import facts
from benchmarks.broker import Broker
from benchmarks.consumers import CONSUMERS, SLOW, Consumer
from benchmarks.databases import Database, Postgres, Sqlite
from benchmarks.failure import BenchmarkFailed
from benchmarks.measures import NO_DATABASE, Bench, Sample
from benchmarks.options import OF_MESSAGES
from benchmarks.report import Report, label_of, text_of, write_json
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
    "consume": "call a callback with {n:,} messages",
    "handle": "call a handler with {n:,} messages",
}


class What(NamedTuple):
    """What is measured."""

    measure: str
    database: str
    """Its key; or that there is none."""
    system: str


Measure = Callable[[int, int], Sample]
"""From the number of tasks or messages, and that of the round."""


def run(options: Options, *, broker_url: str, postgres_url: str | None, folder: Path) -> int:
    """Measure, print the tables, and return the exit status: 1 if anything was lost."""
    report = Report(options=options, facts=facts.gather())
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(broker_url))
        report.facts["RabbitMQ"] = broker.version
        databases: dict[str, Database] = {}
        for key in options.databases if options.of_tasks else ():
            database = Sqlite(folder) if key == "sqlite" else Postgres(postgres_url or "")
            databases[key] = stack.enter_context(database)
            report.facts |= database.facts()
        with step("Creating databases and tables"):
            measures = {
                **_deploy(options, broker, databases, folder, stack),
                **_deploy_consumers(options, broker, folder, stack),
            }
        plan = list(_plan(options))
        for number, (round_number, what) in enumerate(plan, 1):
            tasks = _tasks(options, what)
            where = label_of(what.measure, what.system)
            if what.database != NO_DATABASE:
                where += f" on {databases[what.database].label}"
            title = TITLES[what.measure].format(n=tasks)
            title = f"[{number}/{len(plan)}] Round {round_number}: {where}: {title}"
            try:
                with step(title):
                    sample = measures[what](tasks, round_number)
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
) -> dict[What, Measure]:
    """Give each system of tasks a database of each kind; beside other runs, if need be."""
    run_name = f"carrot_benchmark_{secrets.token_hex(3)}"
    measures: dict[What, Measure] = {}
    for key, database in databases.items():
        for system in (one for one in SYSTEMS if one in options.systems):
            name = f"{run_name}_{system}_{key}"
            deployment = Deployment(
                SYSTEMS[system],
                database=database.create(name),
                broker=broker.url,
                queue=name,
                concurrency=options.concurrency,
                folder=folder,
            )
            bench = Bench(deployment, broker, database)
            stack.callback(bench.tidy_up)
            for measure in options.measures:
                measures[What(measure, key, system)] = partial(bench.measure, measure)
    return measures


def _deploy_consumers(
    options: Options, broker: Broker, folder: Path, stack: ExitStack
) -> dict[What, Measure]:
    """Give each consumer of messages a queue."""
    run_name = f"carrot_benchmark_{secrets.token_hex(3)}"
    measures: dict[What, Measure] = {}
    for measure in (one for one in options.measures if one in OF_MESSAGES):
        for key in options.systems_of(measure):
            queue = f"{run_name}_{key}_{measure}"
            system = CONSUMERS[measure, key]
            consumer = Consumer(system, measure=measure, broker=broker, queue=queue, folder=folder)
            stack.callback(consumer.tidy_up)
            measures[What(measure, NO_DATABASE, key)] = consumer.measure
    return measures


def _plan(options: Options) -> Iterator[tuple[int, What]]:
    """Yield what each round measures: the systems side by side, in changing order."""
    databases = dict.fromkeys(OF_MESSAGES, (NO_DATABASE,))
    for number in range(1, options.rounds + 1):
        for measure in options.measures:
            systems = options.systems_of(measure)
            for database in databases.get(measure, options.databases):
                for system in systems if number % 2 else reversed(systems):
                    yield number, What(measure, database, system)


def _tasks(options: Options, what: What) -> int:
    if what.measure in OF_MESSAGES:
        slow = (what.measure, what.system) in SLOW
        return options.slow_messages if slow else options.messages
    if what.measure == "publish":
        return options.single_tasks
    return options.tasks if what.system == "carrot" else options.peer_tasks
