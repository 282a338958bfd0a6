# SPDX-License-Identifier: Apache-2.0
"""The measures. Each starts with an empty queue and tables, and ends by looking for losses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import MEASURES
from benchmarks.failure import BenchmarkFailed
from benchmarks.watching import watch

if TYPE_CHECKING:
    from benchmarks.catalogue import Measure
    from benchmarks.databases import Database
    from benchmarks.systems import Deployment

#: In the place of its name, where a database has no part in it: messages of others have no row.
NO_DATABASE = "-"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One number of one round, with what it cost."""

    system: str
    database: str
    measure: str
    round_number: int
    tasks: int
    """Or messages."""
    seconds: float
    """Until the broker has confirmed all; or from the start of the first task to the last row
    final, of the first call to the last one."""
    cpu: float | None
    """CPU seconds of that process, and of those that it has started, in that time."""
    caller_seconds: float | None = None
    """How long the caller of single publishes waited."""
    bare_insert_seconds: float | None = None
    """How long it waited for as many inserts of a bare row."""
    seconds_with_start: float | None = None
    """From the start of the service's process to the last row final."""
    cpu_with_start: float | None = None
    database_cpu: float | None = None
    broker_cpu: float | None = None
    repeats: int | None = None
    """How often a task was started again."""

    @property
    def per_second(self) -> float:
        return self.tasks / self.seconds


class Bench:
    """One deployed system, between its servers."""

    def __init__(self, deployment: Deployment, database: Database) -> None:
        self._deployment = deployment
        self._database = database
        deployment.step("prepare")

    def measure(self, measure: str, tasks: int, round_number: int) -> Sample:
        """Take one sample.

        Raises:
            BenchmarkFailed: something was lost, or there is no result.
        """
        self._deployment.tidy_up()
        if measure in ("publish", "publish_many"):
            values = self._publish(measure, MEASURES[measure].task, tasks)
        else:
            values = self._drain(MEASURES[measure], tasks)
        return Sample(
            system=self._deployment.system.key,
            database=self._database.label,
            measure=measure,
            round_number=round_number,
            **values,
        )

    def _publish(self, step: str, task: str, tasks: int) -> dict[str, Any]:
        result = self._deployment.step(step, task, tasks)
        if result["rows"] != result["expected_rows"]:
            raise BenchmarkFailed(
                f"{result['rows']:,} rows are confirmed of {result['expected_rows']:,} published"
            )
        if self._deployment.system.has_queue:
            self._deployment.queues.expect(self._deployment.queue, result["messages"])
        return result["values"]  # type: ignore[no-any-return]

    def fill(self, tasks: int) -> None:
        """Publish a backlog of tasks that do nothing."""
        self._publish("fill", "no_op", tasks)

    def _drain(self, measure: Measure, published: int) -> dict[str, Any]:
        self._publish("fill", measure.task, published)
        deployment = self._deployment
        tasks = published * measure.rows
        with deployment.watcher(deployment.system.probe, tasks) as watcher:
            servers = self._servers_cpu()
            begin = time.time()
            with deployment.service(
                keep_lines=measure.task == "ten_lines", concurrency=measure.threads
            ) as service:
                times = watch(service, lambda: watcher.poll() is not None, deployment.log_tail)
                costs = [
                    None if before is None or after is None else after - before
                    for before, after in zip(servers, self._servers_cpu(), strict=True)
                ]
                result = deployment.result(watcher)
                check_rows(result, tasks, deployment)
        # Only now is everything acknowledged: what was not has come back into the queue.
        deployment.queues.expect(deployment.queue, 0)
        first, end = result["first_start"], result["end"]
        return {
            "tasks": tasks,
            "seconds": end - first,
            "cpu": times.between(first, end),
            "seconds_with_start": end - begin,
            "cpu_with_start": times.until(end),
            "database_cpu": costs[0],
            "broker_cpu": costs[1],
            "repeats": result["repeats"],
        }

    def _servers_cpu(self) -> tuple[float | None, float | None]:
        return self._database.cpu_seconds(), self._deployment.queues.cpu_seconds()


def check_rows(result: dict[str, Any], tasks: int, deployment: Deployment) -> None:
    """Raise unless each task has its row and has succeeded."""
    if not result["rows"] == result["succeeded"] == tasks or result["first_start"] is None:
        raise BenchmarkFailed(
            f"of {tasks:,} tasks {result['rows']:,} have a row, {result['final']:,} have ended "
            f"and {result['succeeded']:,} have succeeded. {deployment.log_tail()}"
        )
