# SPDX-License-Identifier: Apache-2.0
"""From numbers to places: bars and lines are where the axis says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted.monitor import charts
from carrot_twisted.monitor.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Series

START = datetime(2026, 1, 1, tzinfo=UTC)
FLOOR = HEIGHT - BOTTOM


def starts(count: int) -> list[datetime]:
    return [START + n * timedelta(minutes=1) for n in range(count)]


def series(*values: float | None, kind: str = "good") -> Series:
    return Series(name=kind, kind=kind, values=values)


def test_the_highest_value_reaches_the_top_of_a_round_axis() -> None:
    chart = charts.stacked(starts(2), [series(50, 100)], str)
    low, high = chart.bars
    assert float(high.y) == TOP
    assert float(high.height) == FLOOR - TOP
    assert float(low.height) == pytest.approx((FLOOR - TOP) / 2)
    assert [tick.text for tick in chart.values] == ["0.0", "50.0", "100.0"]


@pytest.mark.parametrize(
    ("highest", "top"), [(3, 4), (4, 4), (5, 10), (11, 20), (0.3, 0.4), (999, 1000), (0, 1)]
)
def test_the_axis_ends_with_a_round_number(highest: float, top: float) -> None:
    chart = charts.lines(starts(1), [series(highest)], str)
    assert float(chart.values[-1].text) == pytest.approx(top)


def test_parts_of_a_bar_stand_on_each_other() -> None:
    chart = charts.stacked(starts(1), [series(3), series(1, kind="bad")], str)
    below, above = chart.bars
    assert (below.kind, above.kind) == ("good", "bad")
    assert float(below.y) + float(below.height) == pytest.approx(FLOOR, abs=0.1)
    assert float(above.y) + float(above.height) == pytest.approx(float(below.y), abs=0.1)


def test_a_line_has_a_gap_where_there_is_no_number() -> None:
    chart = charts.lines(starts(4), [series(1, None, 1, 1)], str)
    assert chart.lines[0].path.count("M") == 2
    assert chart.lines[0].path.count("L") == 1


def test_each_time_tells_its_numbers() -> None:
    chart = charts.lines(starts(2), [series(1, None), series(2, 3, kind="bad")], str)
    assert [slot.texts for slot in chart.slots] == [["good: 1", "bad: 2"], ["bad: 3"]]


@pytest.mark.parametrize("values", [[], [0, 0], [None, None]])
def test_no_numbers_are_no_chart(values: list[float | None]) -> None:
    assert charts.lines(starts(len(values)), [series(*values)], str).empty


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e12)), min_size=1, max_size=200))
def test_everything_is_drawn_inside(values: list[float | None]) -> None:
    chart = charts.stacked(starts(len(values)), [series(*values)], str)
    for bar in chart.bars:
        assert LEFT <= float(bar.x) <= float(bar.x) + float(bar.width) <= WIDTH + 0.2
        assert float(bar.y) >= TOP - 0.2
        assert float(bar.y) + float(bar.height) <= FLOOR + 0.2
