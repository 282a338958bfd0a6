# SPDX-License-Identifier: Apache-2.0
"""A backlog is drained: how fast, at what cost, and with how much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.idle.footprint import Memory
from benchmarks.measures import check_rows
from benchmarks.watching import watch

if TYPE_CHECKING:
    from benchmarks.stage import Stage
    from benchmarks.systems import Deployment

PROBE = "benchmarks.growth.probe"
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, kw_only=True)
class Drain:
    """What one backlog has cost."""

    tasks: int
    seconds: float
    """From the first task's start to the last row final."""
    cpu: float
    """CPU seconds of all processes of the service in that time."""
    database_cpu: float
    broker_cpu: float
    memory: float
    """Most MB that were seen, RSS."""

    @property
    def per_second(self) -> float:
        return self.tasks / self.seconds

    def per_10_000(self, seconds: float) -> float:
        """CPU seconds for 10,000 tasks."""
        return seconds / self.tasks * 10_000


def drain(site: Deployment, servers: Stage, tasks: int, *, keep: bool = False) -> Drain:
    """Publish a backlog, have it drained, and look whether all is there.

    Args:
        site: deployed, with its tables.
        servers: it uses these.
        tasks: how many.
        keep: leave the rows in the table.

    Raises:
        BenchmarkFailed: something was lost.
    """
    site.tidy_up()
    first = site.run(PROBE, "publish", tasks)["first"]
    site.queues.expect(site.queue, tasks)
    memory = [0.0]
    with site.watcher(PROBE, first, tasks) as watcher:
        before = _servers_cpu(servers)
        with site.service(keep_lines=False) as service:
            times = watch(
                service,
                lambda: watcher.poll() is not None,
                site.log_tail,
                look=lambda: memory.append(Memory.of(service.pid).rss),
                seconds=SECONDS_BETWEEN_LOOKS,
            )
            after = _servers_cpu(servers)
            result = site.result(watcher)
    site.queues.expect(site.queue, 0)
    check_rows(result, tasks, site)
    if not keep:
        site.run(PROBE, "forget", first)
    begin, end = result["first_start"], result["end"]
    return Drain(
        tasks=tasks,
        seconds=end - begin,
        cpu=times.between(begin, end) or 0.0,
        database_cpu=after[0] - before[0],
        broker_cpu=after[1] - before[1],
        memory=max(memory),
    )


def _servers_cpu(servers: Stage) -> tuple[float, float]:
    return servers.database.cpu_seconds() or 0.0, servers.broker.cpu_seconds() or 0.0
