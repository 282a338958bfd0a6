# SPDX-License-Identifier: Apache-2.0
"""Bar charts of a run, as SVG for light pages: of each measure the rate, and the CPU time."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl

from benchmarks.catalogue import MEASURES
from benchmarks.consumers import RAW
from benchmarks.measures import NO_DATABASE
from benchmarks.report import label_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.measures import Sample
    from benchmarks.report import Report

mpl.use("svg")
# The same run gives the same file; text stays text, which pages show in their own font.
mpl.rcParams.update({"svg.hashsalt": "benchmark", "svg.fonttype": "none", "font.size": 10})

OURS, OTHERS, LIMIT = "#c2570c", "#7c8794", "#c9ced6"
INK = "#1f2933"
ROOM = 1.28  # beyond the longest bar, for its number
WIDTH, HEIGHT_OF_A_BAR, HEIGHT_OF_THE_REST = 7.2, 0.34, 0.75


def draw(report: Report, folder: Path) -> Iterator[Path]:
    """Write the charts; yield their files."""
    folder.mkdir(parents=True, exist_ok=True)
    for measure, database in report.kinds:
        title = MEASURES[measure].label
        what = "messages" if MEASURES[measure].of_messages else "tasks"
        if database != NO_DATABASE:
            title += f", {database}"
        name = measure if database == NO_DATABASE else f"{measure}-{database.lower()}"
        kinds: dict[str, tuple[str, Callable[[Sample], float | None], int]] = {
            "rate": (f"{what} a second", lambda sample: sample.per_second, 0),
            "cpu": (f"CPU seconds of the process for 10,000 {what}", _cpu_per_10_000, 2),
        }
        for kind, (unit, value, digits) in kinds.items():
            bars = _bars(report, measure, database, value)
            if len(bars) > 1:
                file = folder / f"{name.replace('_', '-')}-{kind}.svg"
                _write(file, f"{title}: {unit}", bars, digits)
                yield file


def _cpu_per_10_000(sample: Sample) -> float | None:
    return None if sample.cpu is None else sample.cpu / sample.tasks * 10_000


def _bars(
    report: Report, measure: str, database: str, value: Callable[[Sample], float | None]
) -> list[tuple[str, str, list[float]]]:
    """Of each system its key, its label and the value of each round.

    Not of the limit of tasks: beside its bar those of most systems would not be seen.
    """
    bars = []
    for system in MEASURES[measure].systems:
        if system == RAW.key and not MEASURES[measure].of_messages:
            continue
        found = map(value, report.of(measure, database, system))
        values = [one for one in found if one is not None]
        if values:
            bars.append((system, label_of(system, report.options, measure), values))
    return bars


def _write(
    file: Path, title: str, bars: Sequence[tuple[str, str, list[float]]], digits: int
) -> None:
    """Bars from top to bottom, their medians beside them, and a thin line from least to most."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(WIDTH, HEIGHT_OF_A_BAR * len(bars) + HEIGHT_OF_THE_REST), layout="constrained"
    )
    axes = figure.subplots()
    middles = [median(values) for _, _, values in bars]
    spans = [
        [middle - min(values) for middle, (_, _, values) in zip(middles, bars, strict=True)],
        [max(values) - middle for middle, (_, _, values) in zip(middles, bars, strict=True)],
    ]
    longest = max(max(values) for _, _, values in bars)
    places = range(len(bars))
    axes.barh(places, middles, color=[_color(key) for key, _, _ in bars], height=0.68)
    axes.errorbar(middles, places, xerr=spans, fmt="none", ecolor=INK, elinewidth=0.8)
    for place, middle, (_, _, values) in zip(places, middles, bars, strict=True):
        axes.text(
            max(values) + longest * 0.015, place, f"{middle:,.{digits}f}", va="center", color=INK
        )
    axes.set_yticks(places, [label for _, label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * ROOM)
    axes.set_xticks([])
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.tick_params(axis="y", length=0, colors=INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None})


def _color(system: str) -> str:
    if system.startswith("carrot"):
        return OURS
    return LIMIT if system == RAW.key else OTHERS
