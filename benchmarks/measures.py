# SPDX-License-Identifier: Apache-2.0
"""The measures. Each starts with an empty queue and tables, and ends by looking for losses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import processes
from benchmarks.catalogue import MEASURES
from benchmarks.failure import BenchmarkFailed
from benchmarks.probe import READY

if TYPE_CHECKING:
    import subprocess

    from benchmarks.broker import Broker
    from benchmarks.catalogue import Measure
    from benchmarks.databases import Database
    from benchmarks.systems import Deployment
    from devtools.process import Process

SECONDS_BETWEEN_SAMPLES = 0.05
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

    def __init__(self, deployment: Deployment, broker: Broker, database: Database) -> None:
        self._deployment = deployment
        self._broker = broker
        self._database = database
        deployment.step("prepare")

    def measure(self, measure: str, tasks: int, round_number: int) -> Sample:
        """Take one sample.

        Raises:
            BenchmarkFailed: something was lost, or there is no result.
        """
        self.tidy_up()
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

    def tidy_up(self) -> None:
        """Leave nothing in the broker."""
        self._broker.delete(self._deployment.queue)

    def _publish(self, step: str, task: str, tasks: int) -> dict[str, Any]:
        result = self._deployment.step(step, task, tasks)
        if result["rows"] != result["expected_rows"]:
            raise BenchmarkFailed(
                f"{result['rows']:,} rows are confirmed of {result['expected_rows']:,} published"
            )
        if self._deployment.system.has_queue:
            self._broker.expect(self._deployment.queue, result["messages"])
        return result["values"]  # type: ignore[no-any-return]

    def fill(self, tasks: int) -> None:
        """Publish a backlog of tasks that do nothing."""
        self._publish("fill", "no_op", tasks)

    def _drain(self, measure: Measure, published: int) -> dict[str, Any]:
        self._publish("fill", measure.task, published)
        deployment = self._deployment
        tasks = published * measure.rows
        with deployment.probe("watch", tasks) as watcher:
            assert watcher.stdout is not None
            # Its imports are over, and leave the processors to the service.
            if watcher.stdout.readline().decode().strip() != READY:
                deployment.result(watcher)
            servers = self._servers_cpu()
            begin = time.time()
            with deployment.service(
                keep_lines=measure.task == "ten_lines", concurrency=measure.threads
            ) as service:
                samples = self._watch(watcher, service)
                costs = [
                    None if before is None or after is None else after - before
                    for before, after in zip(servers, self._servers_cpu(), strict=True)
                ]
                result = deployment.result(watcher)
                check_rows(result, tasks, deployment)
        # Only now is everything acknowledged: what was not has come back into the queue.
        self._broker.expect(deployment.queue, 0)
        first, end = result["first_start"], result["end"]
        at_end = processes.interpolate(samples, end) if samples else None
        return {
            "tasks": tasks,
            "seconds": end - first,
            "cpu": at_end - processes.interpolate(samples, first) if at_end is not None else None,
            "seconds_with_start": end - begin,
            "cpu_with_start": at_end,
            "database_cpu": costs[0],
            "broker_cpu": costs[1],
            "repeats": result["repeats"],
        }

    def _watch(
        self, watcher: subprocess.Popen[bytes], service: Process
    ) -> list[tuple[float, float]]:
        """Note the service's CPU time until the watcher has seen the end."""
        samples = []
        family = processes.Family(service.pid)
        while watcher.poll() is None:
            if not service.running:
                raise BenchmarkFailed(f"the service ended by itself. {self._deployment.log_tail()}")
            cpu = family.cpu_seconds()
            if cpu is not None:
                samples.append((time.time(), cpu))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        return samples

    def _servers_cpu(self) -> tuple[float | None, float | None]:
        return self._database.cpu_seconds(), self._broker.cpu_seconds()


def check_rows(result: dict[str, Any], tasks: int, deployment: Deployment) -> None:
    """Raise unless each task has its row and has succeeded."""
    if not result["rows"] == result["succeeded"] == tasks or result["first_start"] is None:
        raise BenchmarkFailed(
            f"of {tasks:,} tasks {result['rows']:,} have a row, {result['final']:,} have ended "
            f"and {result['succeeded']:,} have succeeded. {deployment.log_tail()}"
        )
