# SPDX-License-Identifier: Apache-2.0
"""`python3 run.py bench growth`: does it stay fast and small while everything else grows?

Parts: ``rows`` (of earlier tasks in the table), ``backlog``, ``workers`` (processes),
``schedules``, ``queues`` and ``handlers`` of one service. What is compared is measured in turns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import SYSTEMS
from benchmarks.failure import BenchmarkFailed, attempted
from benchmarks.growth.drains import PROBE, Drain, drain
from benchmarks.idle.footprint import Memory, precise_cpu_seconds
from benchmarks.markdown import spread, table
from benchmarks.stage import Stage, parser, perform
from devtools.steps import say, step

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from benchmarks.systems import Deployment, System

PARTS = ("rows", "backlog", "workers", "schedules", "queues", "handlers")
#: How much there is of each; the first number is what the others are compared with.
COUNTS = {
    "rows": [0, 1000, 100_000, 1_000_000],
    "backlog": [10_000, 1000, 100_000],
    "workers": [1, 2, 4],
    "schedules": [0, 10_000],
    "queues": [1, 200],
    "handlers": [1, 1000],
}
#: Rates and costs may be so far from those that they are compared with.
WITHIN = 0.1
#: Seconds that a service gets to come to rest: each queue may consume anew, with another prefetch.
REST = 20.0
#: What a service's log says of each queue; and for how long that is waited for.
CONSUMED = "Consuming queue"
SECONDS_TO_CONSUME = 120.0
DRAIN_HEAD = (
    *("tasks a second: median (min-max)", "CPU s for 10,000", "database's", "broker's"),
    *("RSS, MB", "by the clock", "by CPU"),
)
COUNT_HEAD = ("start, s", "idle CPU, %", "database's, %", "RSS, MB", "threads")
LEGEND = """\
CPU: seconds for 10,000 tasks, of all processes of the service; the database's and the broker's from
the service's start on. Compared: with the first line, the clock's rate and the CPU time of service
and database together; met: not worse by more than 10 percent."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print; the exit status is 1 if anything was lost."""
    return perform(_parse(arguments), _measure, text_of)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    result = parser(
        "growth",
        "Drains with many rows, long backlogs, several processes; many schedules, queues and "
        "handlers.",
    )
    result.add_argument(
        "--part", choices=PARTS, action="append", help="leave the others out; may be repeated"
    )
    result.add_argument("--tasks", type=int, default=10_000, metavar="N", help="of a drain")
    for name, numbers in COUNTS.items():
        result.add_argument(
            f"--{name}", type=int, nargs="+", default=numbers, metavar="N", help="how many, in turn"
        )
    result.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="how long nothing is done"
    )
    return result.parse_args(arguments)


def _measure(given: argparse.Namespace, servers: Stage) -> list[str]:
    """A table of each part."""
    texts = []
    for part in given.part or PARTS:
        with attempted(part, servers.failures):
            texts.append(MEASURES[part](given, servers))
            say(texts[-1])
    return texts


def text_of(texts: Sequence[str]) -> str:
    """All tables once more."""
    return "\n\n".join(["", *texts, LEGEND])


def system(*options: str, scheduler: bool = False) -> System:
    """The service, with more options."""
    service = [
        part.replace("benchmarks.site_carrot", "benchmarks.site_growth")
        for part in SYSTEMS["carrot"].service
        if not (scheduler and part == "--no-scheduler")
    ]
    return replace(SYSTEMS["carrot"], site="benchmarks.site_growth", service=(*service, *options))


def _site(
    given: argparse.Namespace, servers: Stage, kind: System, rows: int, **more: str
) -> Deployment:
    site = servers.deploy(kind, name="growth", concurrency=given.concurrency, variables=more)
    with step(f"Making tables with {rows:,} rows"):
        site.run(PROBE, "fill", rows)
    return site


# Drains


def _rows(given: argparse.Namespace, servers: Stage) -> str:
    """The same backlog, with more and more rows of earlier tasks in the table."""
    sites = {count: _site(given, servers, system(), count) for count in given.rows}

    def measure(count: int) -> Drain:
        return drain(sites[count], servers, given.tasks)

    return _drains("Rows in the table", given, given.rows, measure)


def _backlog(given: argparse.Namespace, servers: Stage) -> str:
    """Longer and longer backlogs."""
    site = _site(given, servers, system(), 0)
    return _drains("Backlog", given, given.backlog, lambda tasks: drain(site, servers, tasks))


def _workers(given: argparse.Namespace, servers: Stage) -> str:
    """Several processes."""
    sites = {
        count: _site(given, servers, system(f"--workers={count}"), 0) for count in given.workers
    }

    def measure(count: int) -> Drain:
        return drain(sites[count], servers, given.tasks * count)

    return _drains("Processes", given, given.workers, measure)


def _drains(
    title: str, given: argparse.Namespace, counts: Sequence[int], measure: Callable[[int], Drain]
) -> str:
    found: dict[int, list[Drain]] = {count: [] for count in counts}
    for number in range(1, given.rounds + 1):
        for count in counts if number % 2 else reversed(counts):
            with step(f"Round {number}: {title.lower()}: {count:,}"):
                one = measure(count)
            say(f"    {one.per_second:,.0f} per second, {one.per_10_000(one.cpu):.2f} s")
            found[count].append(one)
    first = found[counts[0]]
    rows = [(f"{count:,}", *_cells(runs, first)) for count, runs in found.items()]
    return table((title, *DRAIN_HEAD), rows)


def _cells(runs: Sequence[Drain], first: Sequence[Drain]) -> tuple[str, ...]:
    rates = [one.per_second for one in runs]
    costs = [
        median(one.per_10_000(getattr(one, name)) for one in runs)
        for name in ("cpu", "database_cpu", "broker_cpu")
    ]
    return (
        spread(rates),
        *(f"{cost:.2f}" for cost in costs),
        f"{max(one.memory for one in runs):.0f}",
        compared(median(rates) / median(one.per_second for one in first), at_least=True),
        compared(median(map(_cost, runs)) / median(map(_cost, first)), at_least=False),
    )


def _cost(one: Drain) -> float:
    return one.per_10_000(one.cpu + one.database_cpu)


def compared(ratio: float, *, at_least: bool) -> str:
    """How many times as much, and whether that is as little worse as is promised."""
    met = ratio >= 1 - WITHIN if at_least else ratio <= 1 + WITHIN
    return f"{ratio:.2f}: {'met' if met else 'NOT MET'}"


# Services with much to look after


@dataclass(frozen=True, kw_only=True)
class Rest:
    """A service that has nothing to do."""

    start: float
    """Seconds until its first task had started, and all queues were consumed."""
    cpu: float
    database_cpu: float
    memory: Memory

    def cells(self) -> tuple[str, ...]:
        return (
            *(f"{value:.2f}" for value in (self.start, self.cpu, self.database_cpu)),
            f"{self.memory.rss:.0f}",
            f"{self.memory.threads:,}",
        )


def _rest(
    given: argparse.Namespace,
    servers: Stage,
    site: Deployment,
    work: Callable[[], dict[str, Any]],
    tasks: int = 1,
    consumed: int = 1,
) -> tuple[Rest, dict[str, Any]]:
    """Look at a service that has run its first tasks, then have it work.

    Args:
        given: the options.
        servers: it uses these.
        site: deployed, and started for the first time.
        work: has it work; returns what came of it.
        tasks: that wait for its start.
        consumed: of how many queues it tells that it consumes them.
    """
    first = site.run(PROBE, "publish", tasks)["first"]
    begin = time.time()
    with site.service(keep_lines=False) as service:
        site.run(PROBE, "watch", first, tasks)
        while site.log.read_text(errors="replace").count(CONSUMED) < consumed:
            if time.time() - begin > SECONDS_TO_CONSUME:
                raise BenchmarkFailed(f"not all queues are consumed. {site.log_tail()}")
            time.sleep(0.1)
        start = time.time() - begin
        time.sleep(REST)
        cpu, database, clock = _look(service.pid, servers)
        time.sleep(given.seconds)
        cpu, database, clock = (
            now - then
            for now, then in zip(_look(service.pid, servers), (cpu, database, clock), strict=True)
        )
        rest = Rest(
            start=start,
            cpu=cpu / clock * 100,
            database_cpu=database / clock * 100,
            memory=Memory.of(service.pid),
        )
        before = precise_cpu_seconds(service.pid)
        result = work()
        result["cpu"] = precise_cpu_seconds(service.pid) - before
    return rest, result


def _look(pid: int, servers: Stage) -> tuple[float, float, float]:
    return precise_cpu_seconds(pid), servers.database.cpu_seconds() or 0.0, time.monotonic()


def _schedules(given: argparse.Namespace, servers: Stage) -> str:
    """Schedules that are not due; then all of them are, in one moment."""
    rows = []
    for count in given.schedules:
        site = _site(given, servers, system(scheduler=True), 0)
        site.run(PROBE, "schedule", count)
        with step(f"{count:,} schedules: nothing is due, then all of them"):
            rest, found = _rest(given, servers, site, lambda site=site: site.run(PROBE, "due"))  # type: ignore[misc]
        _check(found["rows"], count)
        per_10_000 = found["cpu"] / count * 10_000 if count else 0.0
        worked = (f"{found['published']:.1f}", f"{found['ended']:.1f}", f"{per_10_000:.1f}")
        rows.append((f"{count:,}", *rest.cells(), *worked))
        site.tidy_up()
    head = ("all published after, s", "all ended after, s", "CPU s for 10,000 runs")
    return table(("Schedules", *COUNT_HEAD, *head), rows)


def _queues(given: argparse.Namespace, servers: Stage) -> str:
    """Queues in one service."""
    rows = []
    for count in given.queues:
        site = _site(given, servers, system(), 0, BENCHMARK_QUEUES=str(count))

        def work(site: Deployment = site) -> dict[str, Any]:
            first = site.run(PROBE, "publish", given.tasks)["first"]
            return site.run(PROBE, "watch", first, given.tasks)

        with step(f"{count:,} queues in one service"):
            rest, found = _rest(given, servers, site, work, tasks=count, consumed=count)
        _check(found["succeeded"], given.tasks)
        rows.append((f"{count:,}", *rest.cells(), f"{found['cpu'] / given.tasks * 10_000:.2f}"))
        names = (f"{site.queue}.{number}" if number else site.queue for number in range(count))
        servers.broker.delete_all(names)
    return table(("Queues", *COUNT_HEAD, "CPU s for 10,000 tasks"), rows)


def _handlers(given: argparse.Namespace, servers: Stage) -> str:
    """Message handlers in one service, each with its queues."""
    rows = []
    for count in given.handlers:
        site = _site(given, servers, system(), 0, BENCHMARK_HANDLERS=str(count))
        each = max(1, given.tasks // count)

        def work(site: Deployment = site, each: int = each) -> dict[str, Any]:
            return site.run(PROBE, "send", each)

        with step(f"{count:,} handlers in one service"):
            rest, found = _rest(given, servers, site, work, consumed=count + 1)
        _check(found["rows"], each * count)
        cost = found["cpu"] / found["rows"] * 10_000
        rows.append((f"{count:,}", *rest.cells(), f"{cost:.2f}"))
        handled = (f"{site.queue}.handled.{number}" for number in range(count))
        servers.broker.delete_all([site.queue, *handled])
    return table(("Handlers", *COUNT_HEAD, "CPU s for 10,000 messages"), rows)


def _check(found: int, expected: int) -> None:
    if found != expected:
        raise BenchmarkFailed(f"{found:,} instead of {expected:,} came to their end")


MEASURES = {
    "rows": _rows,
    "backlog": _backlog,
    "workers": _workers,
    "schedules": _schedules,
    "queues": _queues,
    "handlers": _handlers,
}
