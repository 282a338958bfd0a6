# SPDX-License-Identifier: Apache-2.0
"""`python3 run.py bench latency`: from the call that publishes a task to its start.

Another process publishes at a steady rate, whatever becomes of the tasks. In each round each rate
is measured with each system, the first one changing from round to round.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.contestants import SYSTEMS
from benchmarks.failure import BenchmarkFailed
from benchmarks.stage import Site, Stage, stage, table
from devtools.servers import ServerError
from devtools.steps import StepFailed, say, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RATES = (50, 500)
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
DEPLOYED = {
    "carrot": SYSTEMS["carrot"],
    "celery": replace(
        SYSTEMS["celery"],
        service=(*SYSTEMS["celery"].service, "--include=benchmarks.latency.celery_tasks"),
    ),
}
HEAD = (
    *("system", "a second", "tasks", "reached"),
    *(f"start {name}, ms: median (min-max)" for name in QUANTILES),
    *("caller p50", "caller p99"),
)
LEGEND = """\
Start: from the call that publishes to the first line of the task. Caller: how long that call took,
in ms. Reached: tasks a second that were published in fact; a caller that is slower than its share
of the rate publishes late."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What one run has found, in milliseconds."""

    system: str
    rate: float
    tasks: int
    reached: float
    start: dict[str, float]
    caller: dict[str, float]


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
        prog="python3 run.py bench latency",
        description="Publishes tasks at a steady rate, and looks when they start.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES), metavar="N")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="threads of each")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--only", choices=DEPLOYED, help="leave the other systems out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a file")
    return parser.parse_args(arguments)


def _measure(given: argparse.Namespace, servers: Stage, failures: list[str]) -> Iterator[Latencies]:
    keys = [key for key in DEPLOYED if given.only in (None, key)]
    sites = {}
    with step("Creating databases and tables"):
        for key in keys:
            site = sites[key] = servers.site(
                DEPLOYED[key], name=key, concurrency=given.concurrency, variables={}
            )
            site.step("prepare")
    for number in range(1, given.rounds + 1):
        for rate in given.rates:
            for key in keys if number % 2 else reversed(keys):
                title = f"Round {number}: {DEPLOYED[key].label} at {rate} tasks a second"
                try:
                    with step(title):
                        one = _run(sites[key], servers, rate, given.seconds)
                except BenchmarkFailed as error:
                    failures.append(f"{title}: {error}")
                else:
                    say(f"    {', '.join(f'{k} {ms:.2f} ms' for k, ms in one.start.items())}")
                    yield one


def _run(site: Site, servers: Stage, rate: int, seconds: float) -> Latencies:
    servers.broker.delete(site.queue)
    file = servers.folder / "starts"
    file.unlink(missing_ok=True)
    count = round(rate * seconds)
    key = site.system.key
    site.step("fill", "no_op", 1)
    with site.service(keep_lines=False):
        # It runs, and has its connections.
        site.step("watch", 1)
        told = site.run("benchmarks.latency.publisher", key, rate, count, file)
        expected = 1 + told["warm_up"] + count
        rows = site.step("watch", expected)
    servers.broker.delete(site.queue)
    if not rows["rows"] == rows["succeeded"] == expected:
        raise BenchmarkFailed(
            f"of {expected:,} tasks {rows['rows']:,} have a row, {rows['succeeded']:,} succeeded"
        )
    return Latencies(
        system=DEPLOYED[key].label,
        rate=rate,
        tasks=count,
        reached=told["per_second"],
        start=quantiles(starts(file.read_text(), count)),
        caller=quantiles(told["waited"]),
    )


def starts(text: str, count: int) -> list[float]:
    """Milliseconds from publishing to the start of each task, in order.

    Raises:
        BenchmarkFailed: a task has not run, or more than once.
    """
    lines = [tuple(map(int, line.split())) for line in text.splitlines()]
    counted = [line for line in lines if line[0] >= 0]
    if sorted(number for number, _, _ in counted) != list(range(count)):
        raise BenchmarkFailed(f"{len(counted):,} starts of {count:,} tasks, or of others")
    return sorted((started - sent) / 1e6 for _, sent, started in counted)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of values in order: the smallest that so many are not above."""
    last = len(values) - 1
    return {name: values[min(last, int(share * len(values)))] for name, share in QUANTILES.items()}


def text_of(found: Sequence[Latencies]) -> str:
    """The table."""
    rows = []
    for rate, system in sorted({(one.rate, one.system) for one in found}):
        runs = [one for one in found if (one.rate, one.system) == (rate, system)]
        rows.append(
            (
                *(system, f"{rate:g}", f"{runs[0].tasks:,}"),
                f"{median(one.reached for one in runs):,.0f}",
                *(_spread([one.start[name] for one in runs]) for name in QUANTILES),
                *(f"{median(one.caller[name] for one in runs):.2f}" for name in ("p50", "p99")),
            )
        )
    return f"\n{table(HEAD, rows)}\n\n{LEGEND}\n{_verdicts(found)}"


def _verdicts(found: Sequence[Latencies]) -> str:
    """Of each rate: is carrot-twisted below Celery, by the medians of the runs?"""
    ours, theirs = (DEPLOYED[key].label for key in ("carrot", "celery"))
    lines = []
    for rate in sorted({one.rate for one in found}):
        for name in ("p50", "p99"):
            both = [
                [one.start[name] for one in found if (one.rate, one.system) == (rate, system)]
                for system in (ours, theirs)
            ]
            if all(both):
                mine, other = map(median, both)
                met = "met" if mine < other else "NOT MET"
                lines.append(f"{rate:g} a second, {name} below that of {theirs}: {met}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
