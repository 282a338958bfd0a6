# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG: from numbers to the places of bars and lines. Templates draw them.

No script takes part, so that they are there without any, and nothing is drawn twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

#: Units of the drawing; browsers scale it.
WIDTH, HEIGHT = 480.0, 150.0
#: Room for the labels of the axes, and above the highest value.
LEFT, BOTTOM, TOP = 52.0, 24.0, 8.0
#: Labels of the axis of times.
TIME_LABELS = 5
#: Parts of the axis of values.
STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Series:
    """One row of numbers; None where there is none."""

    name: str
    kind: str
    """A class of the style sheet: it says the colour."""
    values: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One part of a stacked bar."""

    x: str
    y: str
    width: str
    height: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series, as the data of a path: with gaps where there is no number."""

    path: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Slot:
    """All of one time: an invisible column that tells its numbers."""

    x: str
    width: str
    start: datetime
    texts: list[str]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label of an axis."""

    at: str
    text: str = ""
    time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """All that a template draws."""

    series: Sequence[Series]
    bars: list[Bar]
    lines: list[Line]
    slots: list[Slot]
    values: list[Tick]
    times: list[Tick]
    empty: bool
    """There is no number but 0."""
    width: str = f"{WIDTH:g}"
    height: str = f"{HEIGHT:g}"
    left: str = f"{LEFT:g}"
    floor: str = f"{HEIGHT - BOTTOM:g}"


def stacked(
    starts: Sequence[datetime], series: Sequence[Series], shown: Callable[[float], str]
) -> Chart:
    """Bars upon each other: parts of a whole, such as completed and failed tasks.

    Args:
        starts: when each of the values begins.
        series: from the lowest part to the highest; as many values each as there are starts.
        shown: a value as text.
    """
    sums = [sum(one.values[n] or 0 for one in series) for n in range(len(starts))]
    top = _round_up(max(sums, default=0))
    step = _step(starts)
    bars = []
    for n in range(len(starts)):
        below = 0.0
        for one in series:
            value = one.values[n] or 0
            if value:
                height = _height(value, top)
                y = HEIGHT - BOTTOM - _height(below, top) - height
                bars.append(
                    Bar(
                        x=_text(LEFT + n * step + step * 0.1),
                        y=_text(y),
                        width=_text(step * 0.8),
                        height=_text(height),
                        kind=one.kind,
                    )
                )
            below += value
    return _chart(starts, series, shown, top, bars=bars, lines=[])


def lines(
    starts: Sequence[datetime], series: Sequence[Series], shown: Callable[[float], str]
) -> Chart:
    """Lines beside each other, such as the median and the 95th percentile; see ``stacked``."""
    top = _round_up(max((value or 0 for one in series for value in one.values), default=0))
    step = _step(starts)
    drawn = []
    for one in series:
        path: list[str] = []
        alone = True
        for n, value in enumerate(one.values):
            if value is None:
                alone = True
                continue
            x, y = LEFT + (n + 0.5) * step, HEIGHT - BOTTOM - _height(value, top)
            # A line of no length, with round ends, is a point: a number between two gaps shows.
            path.append(f"M{_text(x)} {_text(y)}h0" if alone else f"L{_text(x)} {_text(y)}")
            alone = False
        drawn.append(Line(path="".join(path), kind=one.kind))
    return _chart(starts, series, shown, top, bars=[], lines=drawn)


def _chart(
    starts: Sequence[datetime],
    series: Sequence[Series],
    shown: Callable[[float], str],
    top: float,
    *,
    bars: list[Bar],
    lines: list[Line],
) -> Chart:
    step = _step(starts)
    slots = [
        Slot(
            x=_text(LEFT + n * step),
            width=_text(step),
            start=start,
            texts=[
                f"{one.name}: {shown(value)}"
                for one in series
                if (value := one.values[n]) is not None
            ],
        )
        for n, start in enumerate(starts)
    ]
    labelled = range(0, len(starts), max(1, len(starts) // TIME_LABELS))
    return Chart(
        series=series,
        bars=bars,
        lines=lines,
        slots=slots,
        values=[
            Tick(
                at=_text(HEIGHT - BOTTOM - _height(top * n / STEPS, top)),
                text=shown(top * n / STEPS),
            )
            for n in range(0, STEPS + 1, 2)
        ],
        times=[Tick(at=_text(LEFT + (n + 0.5) * step), time=starts[n]) for n in labelled],
        empty=not any(value for one in series for value in one.values),
    )


def _step(starts: Sequence[datetime]) -> float:
    return (WIDTH - LEFT) / max(1, len(starts))


def _height(value: float, top: float) -> float:
    return (HEIGHT - BOTTOM - TOP) * value / top


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 (times a power of ten) above: halves and quarters are round, too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * n for n in (1, 2, 4, 10) if power * n >= value * 0.999999)


def _text(number: float) -> str:
    """Short, with a point in every language."""
    return f"{number:.1f}".removesuffix(".0")
