# SPDX-License-Identifier: Apache-2.0
"""The run: all measures, in turns, on servers that are up."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import charts, facts
from benchmarks.broker import Broker
from benchmarks.catalogue import MEASURES
from benchmarks.contestants import SYSTEMS
from benchmarks.databases import Database, Postgres, Sqlite
from benchmarks.deployments import Deployments, What
from benchmarks.failure import attempted
from benchmarks.measures import NO_DATABASE
from benchmarks.redis import Redis
from benchmarks.report import label_of
from benchmarks.tables import text_of, write_json
from devtools.steps import say, step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.options import Options
    from benchmarks.report import Report
    from benchmarks.servers import Servers


def run(report: Report, servers: Servers) -> int:
    """Measure, print the tables, and return the exit status: 1 if anything failed or was lost."""
    options = report.options
    report.facts |= facts.gather()
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(servers.broker_url or ""))
        report.facts |= broker.facts()
        redis = None
        if any(system.on_redis for system in SYSTEMS.values() if system.key in options.taking_part):
            redis = stack.enter_context(Redis(servers.start_redis()))
            report.facts |= redis.facts()
        databases: dict[str, Database] = {}
        for key in options.databases if options.of_tasks else ():
            database = (
                Sqlite(servers.folder) if key == "sqlite" else Postgres(servers.postgres_url or "")
            )
            databases[key] = stack.enter_context(database)
            report.facts |= database.facts()
        deployments = Deployments(options, report, broker, redis, databases, servers.folder, stack)
        with step("Creating databases and tables"):
            deployments.deploy()
        measures = deployments.measures
        begin = time.monotonic()
        plan = [(number, what) for number, what in _plan(options) if what in measures]
        for number, (round_number, what) in enumerate(plan, 1):
            tasks = options.number_of(what.measure, what.system)
            where = label_of(what.system, options, what.measure)
            if what.database != NO_DATABASE:
                where += f" on {databases[what.database].label}"
            title = MEASURES[what.measure].title.format(n=tasks)
            title = f"[{number}/{len(plan)}] Round {round_number}: {where}: {title}"
            with attempted(title, report.failures), step(title):
                sample = measures[what](tasks, round_number)
                report.samples.append(sample)
                say(f"    {sample.per_second:,.0f} per second")
        report.facts["measured in"] = f"{(time.monotonic() - begin) / 60:.1f} minutes"
    report.facts |= facts.load()
    say(text_of(report))
    if options.json:
        write_json(report, options.json)
    if options.charts:
        for file in charts.draw(report, options.charts):
            say(f"Written: {file}")
    return 1 if report.failures else 0


def _plan(options: Options) -> Iterator[tuple[int, What]]:
    """Yield what each round measures: the systems side by side, in changing order."""
    for number in range(1, options.rounds + 1):
        for measure in options.measures:
            of_messages = MEASURES[measure].of_messages
            for database in (NO_DATABASE,) if of_messages else options.databases:
                systems = options.systems_of(measure, database)
                for system in systems if number % 2 else reversed(systems):
                    yield number, What(measure, database, system)
