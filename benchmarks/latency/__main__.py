# SPDX-License-Identifier: Apache-2.0
"""`python3 run.py bench latency`: from the call that publishes a task to its start.

Another process publishes at a steady rate, whatever becomes of the tasks. In each round each rate
is measured with each system, the first one changing from round to round.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.contestants import LACKS, SYSTEMS
from benchmarks.failure import BenchmarkFailed
from benchmarks.markdown import spread, table
from benchmarks.measures import check_rows
from benchmarks.stage import Stage, parser, perform
from benchmarks.targets import Target, compared
from devtools.steps import say, step

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.systems import Deployment

#: Ours first.
KEYS = ("carrot", "celery", "huey")
RATES = (50, 500)
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
#: Of ours and another's, what is promised to be below: the other's name, and how that is called.
PROMISED = ("p50", "p99")
RIVALS = {"celery": "target", "huey": "aim"}
HEAD = (
    *("system", "lacks", "a second", "tasks", "reached"),
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
    round_number: int
    rate: float
    tasks: int
    reached: float
    start: dict[str, float]
    caller: dict[str, float]


def main(arguments: Sequence[str]) -> int:
    """Measure, print; the exit status is 1 if anything was lost."""
    return perform(_parse(arguments), _measure, text_of)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    result = parser("latency", "Publishes tasks at a steady rate, and looks when they start.")
    result.add_argument(
        "--rates",
        type=int,
        nargs="+",
        default=list(RATES),
        metavar="N",
        help="tasks published a second, each in a run of its own",
    )
    result.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="how long each run publishes"
    )
    result.add_argument(
        "--only", choices=KEYS, action="append", help="leave the other systems out; may be repeated"
    )
    return result.parse_args(arguments)


def _measure(given: argparse.Namespace, servers: Stage) -> list[Latencies]:
    keys = servers.available(key for key in KEYS if key in (given.only or KEYS))
    deployed = {
        key: servers.deploy(SYSTEMS[key], name=key, concurrency=given.concurrency) for key in keys
    }
    with step("Creating databases and tables"):
        for deployment in deployed.values():
            deployment.step("prepare")
    found = []
    for number in range(1, given.rounds + 1):
        for rate in given.rates:
            for key in keys if number % 2 else reversed(keys):
                title = f"Round {number}: {SYSTEMS[key].label} at {rate} tasks a second"
                with servers.attempted(title):
                    one = _run(deployed[key], servers, number, rate, given.seconds)
                    say(f"    {', '.join(f'{k} {ms:.2f} ms' for k, ms in one.start.items())}")
                    found.append(one)
    return found


def _run(
    deployment: Deployment, servers: Stage, round_number: int, rate: int, seconds: float
) -> Latencies:
    deployment.tidy_up()
    file = servers.folder / "starts"
    file.unlink(missing_ok=True)
    count = max(1, round(rate * seconds))
    key = deployment.system.key
    deployment.step("fill", "no_op", 1)
    with deployment.service(keep_lines=False):
        # It runs, and has its connections.
        deployment.step("watch", 1)
        told = deployment.run("benchmarks.latency.publisher", key, rate, count, file)
        expected = 1 + told["warm_up"] + count
        check_rows(deployment.step("watch", expected), expected, deployment)
    deployment.tidy_up()
    return Latencies(
        system=key,
        round_number=round_number,
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
    """The table, what others lack, and what is promised."""
    rows = []
    for rate in sorted({one.rate for one in found}):
        for key in KEYS:
            runs = [one for one in found if (one.rate, one.system) == (rate, key)]
            if runs:
                rows.append(_row(SYSTEMS[key].label, SYSTEMS[key].lacks, rate, runs))
    letters = sorted(set("".join(SYSTEMS[one.system].lacks for one in found)))
    lacking = [f"  {letter}  {LACKS[letter]}" for letter in letters]
    parts = (
        table(HEAD, rows, texts=2),
        LEGEND,
        "\n".join(["What is lacking:", *lacking]) if lacking else "",
        compared(targets(found)),
    )
    return "\n" + "\n\n".join(part for part in parts if part)


def _row(label: str, lacks: str, rate: float, runs: Sequence[Latencies]) -> tuple[str, ...]:
    return (
        *(label, lacks, f"{rate:g}", f"{runs[0].tasks:,}"),
        f"{median(one.reached for one in runs):,.0f}",
        *(spread([one.start[name] for one in runs], 2) for name in QUANTILES),
        *(f"{median(one.caller[name] for one in runs):.2f}" for name in ("p50", "p99")),
    )


def targets(found: Sequence[Latencies]) -> list[Target]:
    """Of each rate: ours as a share of Celery's, which is to be below 1; huey's is the aim."""
    by_run = {(one.system, one.rate, one.round_number): one.start for one in found}
    told = []
    for rate in sorted({one.rate for one in found}):
        for rival, kind in RIVALS.items():
            for name in PROMISED:
                ratios = [
                    start[name] / by_run[rival, rate, number][name]
                    for (key, each, number), start in by_run.items()
                    if (key, each) == (KEYS[0], rate) and (rival, rate, number) in by_run
                ]
                if ratios:
                    label = f"{rate:g} a second, start {name}: {SYSTEMS[KEYS[0]].label} / "
                    label += SYSTEMS[rival].label
                    told.append(
                        Target(label=label, values=ratios, limit=1.0, at_least=False, kind=kind)
                    )
    return told
