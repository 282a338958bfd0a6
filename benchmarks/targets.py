# SPDX-License-Identifier: Apache-2.0
"""What is promised, and whether it was kept: against the best of the others in the same round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.catalogue import CARROTS, MEASURES
from benchmarks.contestants import SYSTEMS, TUNED
from benchmarks.markdown import spread, table
from benchmarks.measures import NO_DATABASE
from benchmarks.report import label_of
from benchmarks.work import SECONDS_TO_WAIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.measures import Sample
    from benchmarks.report import Report

#: How many times as fast as the best of the others.
DRAIN = {"carrot": 12.0, "carrot-workers": 20.0}
#: Of their CPU time for a task.
CPU = 1 / 12
#: Of what so many threads can do at most.
WAITING = {"wait": 0.95, "wait_128": 0.90}
#: Times a bare insert of a row.
PUBLISHING = 1.5
PUBLISH_MANY = 10_000
#: Of what can be consumed and acknowledged at all.
OF_RAW = 0.4
#: Told beside those who store as much as we do.
WITHOUT_ROWS = tuple(system.key for system in SYSTEMS.values() if system.on_redis)
#: With messages of others, how many times as fast.
OF_MESSAGES = {("consume", "fedora"): 10.0, ("handle", "kombu"): 3.0}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number of each round, and what was promised."""

    label: str
    values: list[float]
    limit: float | None = None
    """None: it is only told."""
    kind: str = "target"
    """What it is called: a target, or an aim beyond it."""
    at_least: bool = True
    unit: str = ""
    digits: int = 2

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        middle = median(self.values)
        met = middle >= self.limit if self.at_least else middle <= self.limit
        sign = "at least" if self.at_least else "at most"
        return f"{self.kind}: {sign} {_short(self.limit)}{self.unit}: {'met' if met else 'NOT MET'}"


def compared(found: Sequence[Target]) -> str:
    """A table of them."""
    rows = [(one.label, spread(one.values, one.digits), one.verdict) for one in found]
    return table(("compared in the same round", "median (min-max)", "target"), rows, texts=3)


def targets(report: Report) -> list[Target]:
    """Return all of which there are numbers."""
    found = []
    for measure, database in report.kinds:
        where = MEASURES[measure].label
        if database != NO_DATABASE:
            where += f", {database}"
        found += [target for target in _targets(report, measure, database, where) if target.values]
    return found


def _targets(report: Report, measure: str, database: str, where: str) -> Iterator[Target]:
    if MEASURES[measure].of_messages:
        yield from _of_messages(report, measure, where)
        return
    carrot = report.of(measure, database, "carrot")
    if measure == "publish":
        yield Target(
            label=f"{where}: the caller's time / a bare insert",
            values=[r for r in map(_caller_ratio, carrot) if r is not None],
            limit=PUBLISHING,
            at_least=False,
        )
    if measure == "publish_many":
        values = [s.per_second for s in carrot]
        yield Target(label=where, values=values, limit=PUBLISH_MANY, unit="/s", digits=0)
    if measure in WAITING:
        threads = report.options.threads_of(measure)
        limit = WAITING[measure] * threads / SECONDS_TO_WAIT
        for system in CARROTS:
            label = f"{where}: {label_of(system, report.options)}"
            values = [s.per_second for s in report.of(measure, database, system)]
            yield Target(label=label, values=values, limit=limit, unit="/s", digits=0)
    for system in DRAIN:
        yield from _against_peers(report, measure, database, system, where)
    for peer in WITHOUT_ROWS:
        # The targets are of tasks with rows.
        yield Target(
            label=f"{where}: carrot-twisted / {label_of(peer, report.options)}",
            values=_ratios(report, measure, database, peer),
        )
    if measure == "drain":
        for system in CARROTS:
            names = " / ".join(label_of(one, report.options) for one in (system, "raw"))
            yield Target(
                label=f"{where}: {names}",
                values=_ratios(report, measure, database, "raw", system),
                limit=OF_RAW,
            )


def _against_peers(
    report: Report, measure: str, database: str, system: str, where: str
) -> Iterator[Target]:
    """Against the best of the others: in the rate, and, as hard as can be, in CPU time."""
    name = label_of(system, report.options)
    peers = [report.by_round(measure, database, peer) for peer in TUNED]
    rates, costs = [], []
    fastest, least = set(), set()
    for number, sample in report.by_round(measure, database, system).items():
        others = [peer[number] for peer in peers if number in peer]
        if others:
            best = max(others, key=lambda one: one.per_second)
            fastest.add(label_of(best.system, report.options))
            rates.append(sample.per_second / best.per_second)
        # Where there is no /proc, or was hardly any work, it is not known.
        known = {one.system: cost for one in others if (cost := _cpu_of_a_task(one))}
        mine = _cpu_of_a_task(sample)
        if known and mine is not None:
            cheapest = min(known, key=known.__getitem__)
            least.add(label_of(cheapest, report.options))
            costs.append(mine / known[cheapest])
    drains = measure == "drain"
    yield Target(
        label=f"{where}: {name} / the fastest other ({_names(fastest)})",
        values=rates,
        limit=DRAIN[system] if drains else None,
    )
    if measure not in ("publish", "publish_many"):
        yield Target(
            label=f"{where}: CPU for a task, {name} / the least other ({_names(least)})",
            values=costs,
            limit=CPU if drains else None,
            at_least=False,
            digits=3,
        )


def _names(labels: set[str]) -> str:
    return " or ".join(sorted(labels))


def _of_messages(report: Report, measure: str, where: str) -> Iterator[Target]:
    for peer in MEASURES[measure].systems[1:]:
        yield Target(
            label=f"{where}: carrot-twisted / {label_of(peer, report.options, measure)}",
            values=_ratios(report, measure, NO_DATABASE, peer),
            limit=OF_MESSAGES.get((measure, peer)),
        )


def _ratios(
    report: Report, measure: str, database: str, peer: str, system: str = "carrot"
) -> list[float]:
    others = report.by_round(measure, database, peer)
    return [
        sample.per_second / others[number].per_second
        for number, sample in report.by_round(measure, database, system).items()
        if number in others
    ]


def _caller_ratio(sample: Sample) -> float | None:
    if sample.caller_seconds is None or not sample.bare_insert_seconds:
        return None
    return sample.caller_seconds / sample.bare_insert_seconds


def _cpu_of_a_task(sample: Sample) -> float | None:
    return None if sample.cpu is None else sample.cpu / sample.tasks


def _short(number: float) -> str:
    """Without places that say nothing."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
