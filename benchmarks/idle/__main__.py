# SPDX-License-Identifier: Apache-2.0
"""`python3 run.py bench idle`: memory, CPU time of a service with nothing to do, and its start.

Each round measures each system once, the first one changing from round to round.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.contestants import SYSTEMS
from benchmarks.failure import BenchmarkFailed
from benchmarks.idle.footprint import Memory, cpu_seconds
from benchmarks.stage import Site, Stage, stage, table
from devtools.servers import ServerError
from devtools.steps import StepFailed, say, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devtools.process import Process

KEYS = ("carrot", "celery")
#: What is promised: percent of one processor, and times the memory of Celery's threads.
IDLE_CPU, MEMORY = 0.2, 1.2
#: Seconds that a service gets to come to rest.
REST = 3.0
SECONDS_BETWEEN_LOOKS = 0.1
COLUMNS: tuple[tuple[str, Callable[[Footprint], float]], ...] = (
    ("start, s", lambda one: one.start),
    ("CPU s of it", lambda one: one.start_cpu),
    ("idle CPU, %", lambda one: one.idle_cpu),
    ("database's, %", lambda one: one.database_cpu),
    ("transactions a minute", lambda one: one.transactions),
    ("RSS idle, MB", lambda one: one.idle.rss),
    ("PSS idle, MB", lambda one: one.idle.pss),
    ("threads", lambda one: one.idle.threads),
    ("RSS loaded, MB", lambda one: one.loaded.rss),
    ("PSS loaded, MB", lambda one: one.loaded.pss),
)
LEGEND = """\
Start: from the start of the process to that of its first task, which waits for it. Idle: it waits
for tasks, and there are none; CPU in percent of one processor. Transactions: of its database, on
PostgreSQL. Loaded: the most that was seen while it drained a backlog. PSS leaves others their share
of memory that is shared. Medians."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one run of one system has found."""

    system: str
    start: float
    start_cpu: float
    idle_cpu: float
    database_cpu: float
    transactions: float
    idle: Memory
    loaded: Memory


def main(arguments: Sequence[str]) -> int:
    """Measure, print; the exit status is 1 if anything was lost."""
    given = _parse(arguments)
    failures: list[str] = []
    try:
        with stage(given.database) as servers:
            found = list(_measure(given, servers, failures))
            known = servers.facts()
    except (StepFailed, ServerError) as error:
        say(str(error))
        return 1
    say(text_of(found))
    say("\n".join(f"{name}: {fact}" for name, fact in known.items()))
    for failure in failures:
        say(f"FAILED: {failure}")
    if given.json:
        given.json.write_text(json.dumps({"facts": known, "runs": found}, default=vars, indent=1))
    return 1 if failures else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 run.py bench idle",
        description="Looks at services that have nothing to do, and at their memory with work.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=float, default=30.0, help="of doing nothing")
    parser.add_argument("--tasks", type=int, default=20_000, metavar="N", help="backlog of ours")
    parser.add_argument("--peer-tasks", type=int, default=4_000, metavar="N", help="of Celery's")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="threads of each")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--only", choices=KEYS, help="leave the other system out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a file")
    return parser.parse_args(arguments)


def _measure(given: argparse.Namespace, servers: Stage, failures: list[str]) -> Iterator[Footprint]:
    keys = [key for key in KEYS if given.only in (None, key)]
    sites = {}
    with step("Creating databases and tables"):
        for key in keys:
            sites[key] = servers.site(
                SYSTEMS[key], name=key, concurrency=given.concurrency, variables={}
            )
            sites[key].step("prepare")
    for number in range(1, given.rounds + 1):
        for key in keys if number % 2 else reversed(keys):
            title = f"Round {number}: {SYSTEMS[key].label}"
            tasks = given.tasks if key == "carrot" else given.peer_tasks
            try:
                with step(title):
                    one = _run(sites[key], servers, given.seconds, tasks)
            except BenchmarkFailed as error:
                failures.append(f"{title}: {error}")
            else:
                say(f"    {one.idle_cpu:.3f} % idle, {one.idle.rss:.0f} MB, {one.start:.1f} s")
                yield one


def _run(site: Site, servers: Stage, seconds: float, tasks: int) -> Footprint:
    servers.broker.delete(site.queue)
    site.step("fill", "no_op", 1)
    begin = time.time()
    with site.service(keep_lines=False) as service:
        first = site.step("watch", 1)["first_start"]
        start_cpu = cpu_seconds(service.pid)
        time.sleep(REST)
        before = _look(service, servers, site)
        time.sleep(seconds)
        after = _look(service, servers, site)
        passed, cpu, database, transactions = (
            now - then for then, now in zip(before, after, strict=True)
        )
        idle = Memory.of(service.pid)
        loaded = _load(site, service, tasks)
        rows = site.step("watch", tasks + 1)
    servers.broker.delete(site.queue)
    if not rows["rows"] == rows["succeeded"] == tasks + 1:
        raise BenchmarkFailed(f"of {tasks + 1:,} tasks {rows['succeeded']:,} have succeeded")
    return Footprint(
        system=site.system.label,
        start=first - begin,
        start_cpu=start_cpu,
        idle_cpu=cpu / passed * 100,
        database_cpu=database / passed * 100,
        transactions=transactions / passed * 60,
        idle=idle,
        loaded=loaded,
    )


def _look(service: Process, servers: Stage, site: Site) -> tuple[float, float, float, float]:
    """Time, CPU times of service and database, and transactions of its database so far."""
    return (
        time.monotonic(),
        cpu_seconds(service.pid),
        servers.database.cpu_seconds() or 0.0,
        servers.database.transactions(site.queue),
    )


def _load(site: Site, service: Process, tasks: int) -> Memory:
    """Have a backlog drained; the most memory that was seen."""
    seen = [Memory.of(service.pid)]
    with (
        site.module("benchmarks.sites", site.system.site, tasks) as publisher,
        site.probe("watch", tasks + 1) as watcher,
    ):
        while publisher.poll() is None or watcher.poll() is None:
            if not service.running:
                raise BenchmarkFailed(f"the service ended by itself. {site.log_tail()}")
            seen.append(Memory.of(service.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return Memory(
        rss=max(one.rss for one in seen),
        pss=max(one.pss for one in seen),
        threads=max(one.threads for one in seen),
    )


def text_of(found: Sequence[Footprint]) -> str:
    """The table, and what is promised."""
    systems = dict.fromkeys(one.system for one in found)
    by_system = {system: [one for one in found if one.system == system] for system in systems}
    medians = {
        system: [median(value(one) for one in runs) for _, value in COLUMNS]
        for system, runs in by_system.items()
    }
    rows = [(system, *(f"{value:.2f}" for value in values)) for system, values in medians.items()]
    head = ("system", *(name for name, _ in COLUMNS))
    return f"\n{table(head, rows)}\n\n{LEGEND}\n{_verdicts(by_system)}"


def _verdicts(by_system: dict[str, list[Footprint]]) -> str:
    ours = by_system.get(SYSTEMS["carrot"].label, [])
    theirs = by_system.get(SYSTEMS["celery"].label, [])
    if not ours:
        return ""
    idle = median(one.idle_cpu for one in ours)
    lines = [f"idle CPU {idle:.2f} %, target below {IDLE_CPU:g} %: {_kept(idle < IDLE_CPU)}"]
    if theirs:
        for name, memory in (
            ("idle", lambda one: one.idle.pss),
            ("loaded", lambda one: one.loaded.pss),
        ):
            ratio = median(map(memory, ours)) / median(map(memory, theirs))
            lines.append(
                f"memory {name}, {ratio:.2f} times Celery's, target at most {MEMORY:g}: "
                f"{_kept(ratio <= MEMORY)}"
            )
    return "\n".join(lines)


def _kept(met: bool) -> str:
    return "met" if met else "NOT MET"
