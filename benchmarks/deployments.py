# SPDX-License-Identifier: Apache-2.0
"""Has a queue, and where need be a database, for each system of each measure."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.catalogue import MEASURES
from benchmarks.consumers import CONSUMERS, RAW, Consumer
from benchmarks.contestants import SYSTEMS
from benchmarks.failure import attempted
from benchmarks.measures import NO_DATABASE, Bench, Sample
from benchmarks.report import label_of
from benchmarks.systems import Deployment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from benchmarks.broker import Broker
    from benchmarks.databases import Database
    from benchmarks.options import Options
    from benchmarks.queues import Queues
    from benchmarks.report import Report


class What(NamedTuple):
    """What is measured."""

    measure: str
    database: str
    """Its key; or that there is none."""
    system: str


Measuring = Callable[[int, int], Sample]
"""From the number of tasks or messages, and that of the round."""


class Deployments:
    """Everything that is measured, on servers that are up.

    Args:
        options: what is measured.
        report: is told what cannot be deployed.
        broker: one for all,
        redis: but for those who have another; None: they take no part.
        databases: by their keys.
        folder: for files.
        stack: what tidies up.
    """

    def __init__(
        self,
        options: Options,
        report: Report,
        broker: Broker,
        redis: Queues | None,
        databases: Mapping[str, Database],
        folder: Path,
        stack: ExitStack,
    ) -> None:
        self._options = options
        self._report = report
        self._broker = broker
        self._redis = redis
        self._databases = databases
        self._folder = folder
        self._stack = stack
        # Beside other runs, if need be.
        self._name = f"carrot_benchmark_{secrets.token_hex(3)}"
        self.measures: dict[What, Measuring] = {}

    def deploy(self) -> None:
        """Give each system a queue, and a database of each kind where it needs one."""
        for measure in self._options.measures:
            if MEASURES[measure].of_messages:
                for system in self._options.systems_of(measure):
                    self._deploy_consumer(measure, system)
        for database in self._databases:
            wanted: dict[str, list[str]] = {}
            for measure in self._options.measures:
                if not MEASURES[measure].of_messages:
                    for system in self._options.systems_of(measure, database):
                        wanted.setdefault(system, []).append(measure)
            for system, measures in wanted.items():
                title = f"{label_of(system, self._options)} on {self._databases[database].label}"
                with attempted(title, self._report.failures):
                    self._deploy(system, database, measures)

    def _deploy(self, key: str, database: str, measures: list[str]) -> None:
        server = self._databases[database]
        system = SYSTEMS["carrot" if key == "raw" else key]
        queues = self._redis if system.on_redis else self._broker
        assert queues is not None
        name = f"{self._name}_{key}_{database}".replace("-", "_")
        deployment = Deployment(
            system,
            database=server.create(name),
            queues=queues,
            queue=name,
            concurrency=self._options.concurrency,
            folder=self._folder,
            workers=self._options.workers,
        )
        bench = Bench(deployment, server)
        self._stack.callback(deployment.tidy_up)
        for measure in measures:
            what = What(measure, database, key)
            if key != "raw":
                self.measures[what] = partial(bench.measure, measure)
                continue
            # It consumes what carrot-twisted has published.
            self.measures[what] = Consumer(
                RAW,
                measure=measure,
                broker=self._broker,
                queue=name,
                folder=self._folder,
                fill=bench.fill,
                database=server.label,
            ).measure

    def _deploy_consumer(self, measure: str, key: str) -> None:
        title = f"{label_of(key, self._options, measure)}: {measure}"
        with attempted(title, self._report.failures):
            consumer = Consumer(
                CONSUMERS[measure, key],
                measure=measure,
                broker=self._broker,
                queue=f"{self._name}_{key}_{measure}",
                folder=self._folder,
            )
            self._stack.callback(consumer.tidy_up)
            self.measures[What(measure, NO_DATABASE, key)] = consumer.measure
