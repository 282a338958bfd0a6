# SPDX-License-Identifier: Apache-2.0
"""The tables: medians with their range, ratios of the same round, targets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.consumers import CONSUMERS
from benchmarks.measures import NO_DATABASE
from benchmarks.options import MEASURES
from benchmarks.systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.measures import Sample
    from benchmarks.options import Options

LABELS = {
    "publish": "publish one by one",
    "publish_many": "publish_many",
    "drain": "drain",
    "drain_logs": "drain, 2 log lines each",
    "consume": "consume",
    "handle": "handle",
}
#: How many times as fast as its peer carrot-twisted is to be, with messages of others.
PROMISED = {("consume", "fedora"): 10.0, ("handle", "kombu"): 3.0}
HEADINGS = (
    *("measure", "database", "system", "number", "per second: median (min-max)"),
    *("CPU s", "with start", "database", "broker", "wall s"),
)
LEGEND = """\
Publishing counts until the broker has confirmed all, draining from the start of the first task to
the last row final, consuming and handling messages from the first call to the last one. CPU s: of
the publishing or the running process, for 10,000 tasks or messages, from the first one on; "with
start": of the running process from its very start; "database", "broker": of the servers meanwhile,
where they can be seen. Wall s: from the start of the service to the end, as measured, for the
number given. benchmarks/README.md says what is unequal."""


@dataclass(kw_only=True)
class Report:
    """All that was found."""

    options: Options
    facts: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, measure: str, database: str, system: str) -> list[Sample]:
        """Return the samples of a measure, in the order of the rounds."""
        wanted = (measure, database, system)
        return [s for s in self.samples if (s.measure, s.database, s.system) == wanted]

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Return each (measure, database) once."""
        return sorted(
            {(s.measure, s.database) for s in self.samples},
            key=lambda kind: (list(LABELS).index(kind[0]), kind[1]),
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A comparison, and what was promised."""

    label: str
    values: list[float]
    limit: float | None
    at_least: bool
    unit: str = ""
    digits: int = 2

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        middle = median(self.values)
        met = middle >= self.limit if self.at_least else middle <= self.limit
        sign = "at least" if self.at_least else "at most"
        return f"target: {sign} {self.limit:,g}{self.unit}: {'met' if met else 'NOT MET'}"


def comparisons(report: Report) -> list[Target]:
    """Return the ratios of systems that ran in the same round, and carrot-twisted's own targets."""
    targets = []
    for measure, database in report.kinds:
        label = LABELS[measure] if database == NO_DATABASE else f"{LABELS[measure]}, {database}"
        carrot = report.of(measure, database, "carrot")
        if measure == "publish" and carrot:
            values = [_caller_ratio(s) for s in carrot]
            what = f"{label}: time per call / bare insert"
            targets.append(Target(label=what, values=values, limit=1.5, at_least=False))
        if measure == "publish_many" and carrot:
            values = [s.per_second for s in carrot]
            targets.append(
                Target(label=label, values=values, limit=8_000, at_least=True, unit="/s", digits=0)
            )
        for key in MEASURES[measure][1:]:
            peers = {s.round_number: s for s in report.of(measure, database, key)}
            values = [
                s.per_second / peers[s.round_number].per_second
                for s in carrot
                if s.round_number in peers
            ]
            if values:
                what = f"{label}: per second, carrot-twisted / {label_of(measure, key)}"
                limit = _promised(measure, database, key)
                targets.append(Target(label=what, values=values, limit=limit, at_least=True))
    return targets


def label_of(measure: str, system: str) -> str:
    """What a system is called."""
    consumer = CONSUMERS.get((measure, system))
    return SYSTEMS[system].label if consumer is None else consumer.label


def _promised(measure: str, database: str, system: str) -> float | None:
    """How many times as fast as that system carrot-twisted is to be; None: nothing is promised."""
    if system == "celery" and measure != "publish" and database == "PostgreSQL":
        return 10.0
    return PROMISED.get((measure, system))


def text_of(report: Report) -> str:
    """Return the tables as plain text."""
    options = report.options
    parts = [
        f"\nRounds: {options.rounds}, in turns. Threads on each side: {options.concurrency}.",
        _table([HEADINGS, *_rows(report)]),
        LEGEND,
        "Comparisons, of the same round",
        _table([(t.label, _range(t.values, t.digits), t.verdict) for t in comparisons(report)]),
        _milliseconds(report),
        "\n".join(f"{name}: {fact}" for name, fact in report.facts.items()),
    ]
    if report.failures:
        parts.append("FAILED:\n" + "\n".join(report.failures))
    else:
        parts.append(
            "Every task ran, has its row and succeeded; every message of others was handled once; "
            "no message was left over."
        )
    repeats = sum(sample.repeats or 0 for sample in report.samples)
    if repeats:
        parts.append(f"carrot-twisted started {repeats:,} tasks more than once.")
    return "\n\n".join(part for part in parts if part)


def write_json(report: Report, file: Path) -> None:
    """Write all samples, and what is needed to understand them."""
    content = {
        "options": asdict(report.options) | {"json": str(file)},
        "facts": report.facts,
        "samples": [asdict(s) | {"per_second": s.per_second} for s in report.samples],
        "comparisons": [asdict(t) | {"verdict": t.verdict} for t in comparisons(report)],
        "failures": report.failures,
    }
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _rows(report: Report) -> list[tuple[str, ...]]:
    rows = []
    for measure, database in report.kinds:
        for system in MEASURES[measure]:
            samples = report.of(measure, database, system)
            if samples:
                label = label_of(measure, system)
                rows.append(
                    (
                        *(LABELS[measure], database, label, f"{samples[0].tasks:,}"),
                        _range([s.per_second for s in samples]),
                        *(_per_10_000(samples, cost) for cost in COSTS),
                        _median([s.seconds_with_start for s in samples]),
                    )
                )
    return rows


COSTS: tuple[Callable[[Sample], float | None], ...] = (
    lambda sample: sample.cpu,
    lambda sample: sample.cpu_with_start,
    lambda sample: sample.database_cpu,
    lambda sample: sample.broker_cpu,
)


def _per_10_000(samples: Sequence[Sample], cost: Callable[[Sample], float | None]) -> str:
    costs = ((cost(sample), sample.tasks) for sample in samples)
    return _median([None if c is None else c / tasks * 10_000 for c, tasks in costs])


def _milliseconds(report: Report) -> str:
    """What a caller waits for one publish."""
    rows = []
    for measure, database in report.kinds:
        if measure == "publish":
            for system in SYSTEMS.values():
                samples = report.of(measure, database, system.key)
                times = {
                    f"{system.label}, one publish": [
                        s.caller_seconds / s.tasks for s in samples if s.caller_seconds
                    ],
                    f"{system.label}, one bare insert": [
                        s.bare_insert_seconds / s.tasks for s in samples if s.bare_insert_seconds
                    ],
                }
                rows += [
                    (what, database, f"{_range([1000 * s for s in seconds], 3)} ms")
                    for what, seconds in times.items()
                    if seconds
                ]
    return f"The caller's time\n\n{_table(rows)}" if rows else ""


def _caller_ratio(sample: Sample) -> float:
    assert sample.caller_seconds is not None
    assert sample.bare_insert_seconds is not None
    return sample.caller_seconds / sample.bare_insert_seconds


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.2f}" if known else "-"


def _range(values: Sequence[float], digits: int = 0) -> str:
    if not values:
        return "-"
    low, middle, high = (
        f"{value:,.{digits}f}" for value in (min(values), median(values), max(values))
    )
    return f"{middle} ({low}-{high})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "-"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
