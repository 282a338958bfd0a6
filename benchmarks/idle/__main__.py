# SPDX-License-Identifier: Apache-2.0
"""`python3 run.py bench idle`: memory, CPU time of a service with nothing to do, and its start.

Each round measures each system once, the first one changing from round to round.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.contestants import SYSTEMS
from benchmarks.idle.footprint import Memory, precise_cpu_seconds
from benchmarks.markdown import table
from benchmarks.measures import check_rows
from benchmarks.stage import Stage, parser, perform
from benchmarks.targets import Target, compared
from benchmarks.watching import watch
from devtools.steps import say, step

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from benchmarks.systems import Deployment
    from devtools.process import Process

KEYS = ("carrot", "celery")
#: What is promised at most: percent of one processor, and times the memory of Celery's threads.
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
    return perform(_parse(arguments), _measure, text_of)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    result = parser(
        "idle", "Looks at services that have nothing to do, and at their memory with work."
    )
    result.add_argument(
        "--seconds", type=float, default=30.0, metavar="S", help="how long nothing is done"
    )
    result.add_argument("--tasks", type=int, default=20_000, metavar="N", help="backlog of ours")
    result.add_argument("--peer-tasks", type=int, default=4_000, metavar="N", help="of Celery's")
    result.add_argument("--only", choices=KEYS, help="leave the other system out")
    return result.parse_args(arguments)


def _measure(given: argparse.Namespace, servers: Stage) -> list[Footprint]:
    keys = [key for key in KEYS if given.only in (None, key)]
    deployed = {
        key: servers.deploy(SYSTEMS[key], name=key, concurrency=given.concurrency) for key in keys
    }
    with step("Creating databases and tables"):
        for deployment in deployed.values():
            deployment.step("prepare")
    found = []
    for number in range(1, given.rounds + 1):
        for key in keys if number % 2 else reversed(keys):
            tasks = given.tasks if key == "carrot" else given.peer_tasks
            with servers.attempted(f"Round {number}: {SYSTEMS[key].label}"):
                one = _run(deployed[key], servers, given.seconds, tasks)
                say(f"    {one.idle_cpu:.3f} % idle, {one.idle.rss:.0f} MB, {one.start:.1f} s")
                found.append(one)
    return found


def _run(deployment: Deployment, servers: Stage, seconds: float, tasks: int) -> Footprint:
    deployment.tidy_up()
    deployment.step("fill", "no_op", 1)
    begin = time.time()
    with deployment.service(keep_lines=False) as service:
        first = deployment.step("watch", 1)["first_start"]
        start_cpu = precise_cpu_seconds(service.pid)
        time.sleep(REST)
        before = _look(service, servers, deployment)
        time.sleep(seconds)
        after = _look(service, servers, deployment)
        passed, cpu, database, transactions = (
            now - then for then, now in zip(before, after, strict=True)
        )
        idle = Memory.of(service.pid)
        loaded = _load(deployment, service, tasks)
        check_rows(deployment.step("watch", tasks + 1), tasks + 1, deployment)
    deployment.tidy_up()
    return Footprint(
        system=deployment.system.label,
        start=first - begin,
        start_cpu=start_cpu,
        idle_cpu=cpu / passed * 100,
        database_cpu=database / passed * 100,
        transactions=transactions / passed * 60,
        idle=idle,
        loaded=loaded,
    )


def _look(
    service: Process, servers: Stage, deployment: Deployment
) -> tuple[float, float, float, float]:
    """Time, CPU times of service and database, and transactions of its database so far."""
    return (
        time.monotonic(),
        precise_cpu_seconds(service.pid),
        servers.database.cpu_seconds() or 0.0,
        servers.database.transactions(deployment.queue),
    )


def _load(deployment: Deployment, service: Process, tasks: int) -> Memory:
    """Have a backlog drained; the most memory that was seen."""
    seen = [Memory.of(service.pid)]
    with (
        deployment.running("benchmarks.backlog", deployment.system.site, tasks) as publisher,
        deployment.running(deployment.system.probe, "watch", tasks + 1) as watcher,
    ):
        watch(
            service,
            lambda: None not in (publisher.poll(), watcher.poll()),
            deployment.log_tail,
            look=lambda: seen.append(Memory.of(service.pid)),
            seconds=SECONDS_BETWEEN_LOOKS,
        )
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
    return "\n" + "\n\n".join((table(head, rows), LEGEND, compared(_targets(by_system))))


def _targets(by_system: dict[str, list[Footprint]]) -> list[Target]:
    ours = by_system.get(SYSTEMS["carrot"].label, [])
    theirs = by_system.get(SYSTEMS["celery"].label, [])
    idle = [one.idle_cpu for one in ours]
    found = [Target(label="idle CPU", values=idle, limit=IDLE_CPU, at_least=False, unit=" %")]
    for name, memory in (
        ("idle", lambda one: one.idle.pss),
        ("loaded", lambda one: one.loaded.pss),
    ):
        # A round has no part in it: each of ours is compared with all of theirs.
        ratios = [memory(one) / median(map(memory, theirs)) for one in ours if theirs]
        label = f"memory {name}, PSS: {SYSTEMS['carrot'].label} / {SYSTEMS['celery'].label}"
        found.append(Target(label=label, values=ratios, limit=MEMORY, at_least=False))
    return [target for target in found if target.values]
