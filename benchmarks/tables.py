# SPDX-License-Identifier: Apache-2.0
"""The tables, in Markdown and as JSON: medians with their range, ratios of the same round."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.catalogue import MEASURES
from benchmarks.contestants import LACKS
from benchmarks.markdown import spread, table
from benchmarks.report import label_of, lacks_of
from benchmarks.targets import compared, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.measures import Sample
    from benchmarks.report import Report

HEADINGS = (
    *("measure", "database", "system", "lacks", "number"),
    *("per second: median (min-max)", "carrot x", "CPU s", "database", "broker", "wall s"),
)
LEGEND = """\
Publishing counts until the broker has confirmed all, draining from the start of the first task to
the last row final, consuming and handling messages from the first call to the last one. "carrot x":
how many times as fast carrot-twisted was in the same round. CPU s, for 10,000 tasks or messages: of
the publishing or the running process with its children, from the first one on; "database",
"broker": of the servers meanwhile, where they can be seen. Wall s: from the start of the service to
the end, as measured, for the number given. benchmarks/README.md says what is unequal."""
COSTS: tuple[Callable[[Sample], float | None], ...] = (
    lambda sample: sample.cpu,
    lambda sample: sample.database_cpu,
    lambda sample: sample.broker_cpu,
)


def text_of(report: Report) -> str:
    """Return the tables as plain text."""
    rows = _rows(report)
    letters = sorted(set("".join(row[HEADINGS.index("lacks")] for row in rows)))
    lacking = [f"  {letter}  {LACKS[letter]}" for letter in letters]
    parts = [
        f"\nRounds: {report.options.rounds}, in turns. Threads of each system: "
        f"{report.options.concurrency}, where the measure says no other number.",
        table(HEADINGS, rows, texts=4),
        LEGEND,
        "\n".join(["What is lacking:", *lacking]) if lacking else "",
        compared(targets(report)),
        _milliseconds(report),
        "\n".join(f"{name}: {fact}" for name, fact in report.facts.items()),
    ]
    if report.failures:
        parts.append("FAILED:\n" + "\n".join(report.failures))
    elif report.samples:
        parts.append(
            "Every task ran and succeeded, and has its row, or where there are none its result; "
            "every message of others was handled once; no message was left over."
        )
    repeats = sum(sample.repeats or 0 for sample in report.samples)
    if repeats:
        parts.append(f"carrot-twisted started {repeats:,} tasks more than once.")
    return "\n\n".join(part for part in parts if part)


def write_json(report: Report, file: Path) -> None:
    """Write all samples, and what is needed to understand them."""
    content = {
        "options": asdict(report.options),
        "facts": report.facts,
        "lacks": LACKS,
        "samples": [
            asdict(s)
            | {
                "per_second": s.per_second,
                "label": label_of(s.system, report.options, s.measure),
                "lacks": lacks_of(s.system, s.measure),
            }
            for s in report.samples
        ],
        "targets": [asdict(t) | {"verdict": t.verdict} for t in targets(report)],
        "failures": report.failures,
    }
    file.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _rows(report: Report) -> list[tuple[str, ...]]:
    return [
        _row(report, measure, database, system)
        for measure, database in report.kinds
        for system in MEASURES[measure].systems
        if report.of(measure, database, system)
    ]


def _row(report: Report, measure: str, database: str, system: str) -> tuple[str, ...]:
    samples = report.of(measure, database, system)
    carrot = report.by_round(measure, database, "carrot")
    times = [
        carrot[s.round_number].per_second / s.per_second
        for s in samples
        if system != "carrot" and s.round_number in carrot
    ]
    return (
        *(MEASURES[measure].label, database, label_of(system, report.options, measure)),
        *(lacks_of(system, measure), f"{samples[0].tasks:,}"),
        spread([s.per_second for s in samples]),
        _median(times, 1),
        *(_per_10_000(samples, cost) for cost in COSTS),
        _median([s.seconds_with_start for s in samples]),
    )


def _per_10_000(samples: Sequence[Sample], cost: Callable[[Sample], float | None]) -> str:
    costs = ((cost(sample), sample.tasks) for sample in samples)
    return _median([None if c is None else c / tasks * 10_000 for c, tasks in costs])


def _milliseconds(report: Report) -> str:
    """What a caller waits for one publish."""
    rows = []
    for measure, database in report.kinds:
        if measure == "publish":
            for system in MEASURES[measure].systems:
                samples = report.of(measure, database, system)
                label = label_of(system, report.options)
                times = {
                    f"{label}, one publish": [s.caller_seconds for s in samples],
                    f"{label}, one bare insert": [s.bare_insert_seconds for s in samples],
                }
                for what, seconds in times.items():
                    each = [
                        1000 * of_all / s.tasks
                        for of_all, s in zip(seconds, samples, strict=True)
                        if of_all is not None
                    ]
                    if each:
                        rows.append((what, database, f"{spread(each, 3)} ms"))
    return table(("the caller's time", "database", "median (min-max)"), rows, texts=2)


def _median(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):,.{digits}f}" if known else "-"
