# SPDX-License-Identifier: Apache-2.0
"""A backlog is drained: how fast, at what cost, and with how much memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import processes
from benchmarks.failure import BenchmarkFailed
from benchmarks.idle.footprint import Memory, family
from benchmarks.probe import READY

if TYPE_CHECKING:
    import subprocess

    from benchmarks.stage import Site, Stage
    from devtools.process import Process

PROBE = "benchmarks.growth.probe"
SECONDS_BETWEEN_SAMPLES = 0.1


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


def drain(site: Site, servers: Stage, tasks: int, *, keep: bool = False) -> Drain:
    """Publish a backlog, have it drained, and look whether all is there.

    Args:
        site: deployed, with its tables.
        servers: it uses these.
        tasks: how many.
        keep: leave the rows in the table.

    Raises:
        BenchmarkFailed: something was lost.
    """
    servers.broker.delete(site.queue)
    first = site.run(PROBE, "publish", tasks)["first"]
    servers.broker.expect(site.queue, tasks)
    with site.module(PROBE, "watch", first, tasks) as watcher:
        assert watcher.stdout is not None
        if watcher.stdout.readline().decode().strip() != READY:
            site.result(watcher)
        before = _servers_cpu(servers)
        with site.service(keep_lines=False) as service:
            samples, memory = _watch(watcher, service, site)
            after = _servers_cpu(servers)
            result = site.result(watcher)
    servers.broker.expect(site.queue, 0)
    if not result["rows"] == result["succeeded"] == tasks:
        raise BenchmarkFailed(
            f"of {tasks:,} tasks {result['rows']:,} have a row, {result['succeeded']:,} succeeded"
        )
    if not keep:
        site.run(PROBE, "forget", first)
    begin, end = result["first_start"], result["end"]
    cpu = processes.interpolate(samples, end) - processes.interpolate(samples, begin)
    return Drain(
        tasks=tasks,
        seconds=end - begin,
        cpu=cpu,
        database_cpu=after[0] - before[0],
        broker_cpu=after[1] - before[1],
        memory=memory,
    )


def _watch(
    watcher: subprocess.Popen[bytes], service: Process, site: Site
) -> tuple[list[tuple[float, float]], float]:
    """CPU time of the service by time, and the most memory, until the watcher has seen the end."""
    samples = []
    memory = 0.0
    while watcher.poll() is None:
        if not service.running:
            raise BenchmarkFailed(f"the service ended by itself. {site.log_tail()}")
        cpu = sum(processes.cpu_seconds(pid) or 0.0 for pid in family(service.pid))
        samples.append((time.time(), cpu))
        memory = max(memory, Memory.of(service.pid).rss)
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return samples, memory


def _servers_cpu(servers: Stage) -> tuple[float, float]:
    return servers.database.cpu_seconds() or 0.0, servers.broker.cpu_seconds() or 0.0
