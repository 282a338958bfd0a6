# SPDX-License-Identifier: Apache-2.0
"""How much work to hold: free threads' worth of long tasks, hundreds of short ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted.service import prefetch
from carrot_twisted.service.prefetch import Pace, worth_changing


def pace_of(seconds: float, size: float = 100.0, concurrency: int = 4) -> Pace:
    pace = Pace(concurrency=concurrency, fixed=None)
    for _ in range(100):
        pace.measured(seconds, size)
    return pace


def test_of_long_tasks_only_as_many_are_held_as_can_run() -> None:
    pace = pace_of(10.0)
    assert (pace.claimed, pace.prefetch) == (4, 4)


def test_of_short_tasks_many_are_held() -> None:
    pace = pace_of(0.0001)
    assert (pace.claimed, pace.prefetch) == (4 + 1000, 4 + 2000)


def test_half_a_second_of_work_is_delivered_ahead_and_a_tenth_claimed() -> None:
    pace = pace_of(0.01)
    assert pace.claimed == pytest.approx(44, abs=1)
    assert pace.prefetch == pytest.approx(204, abs=1)


def test_large_bodies_bound_the_number() -> None:
    pace = pace_of(0.0001, size=1024 * 1024)
    assert pace.prefetch == pytest.approx(4 + 64, abs=1)


def test_a_number_from_the_settings_is_kept_whatever_is_measured() -> None:
    pace = Pace(concurrency=4, fixed=7)
    pace.measured(0.00001, 1.0)
    assert pace.prefetch == 7


@pytest.mark.parametrize(
    ("missing", "headroom"), [(0, 0), (1, 2), (2, 4), (3, 4), (4, 8), (100, 128), (200, 256)]
)
def test_what_waits_for_rows_leaves_room_for_others(missing: int, headroom: int) -> None:
    pace = Pace(concurrency=1, fixed=1, missing=missing)
    assert (pace.prefetch, pace.headroom) == (1, headroom)


def test_where_many_messages_are_held_there_is_room() -> None:
    assert Pace(concurrency=1, fixed=401, missing=100).headroom == 0
    assert Pace(concurrency=1, fixed=400, missing=100).headroom == 128


def test_one_odd_batch_does_not_throw_the_average() -> None:
    pace = pace_of(0.001)
    pace.measured(0.003, 100.0)
    assert 0.001 < pace.seconds < 0.002


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6, allow_nan=False, allow_infinity=False), st.floats(0, 1e9)),
        max_size=20,
    ),
    st.integers(1, 500),
)
def test_every_measurement_gives_numbers_that_the_broker_takes(
    batches: list[tuple[float, float]], concurrency: int
) -> None:
    pace = Pace(concurrency=concurrency, fixed=None)
    for seconds, size in batches:
        pace.measured(seconds, size)
        for number in (pace.claimed, pace.prefetch):
            assert concurrency <= number <= concurrency + prefetch.MAX_PREFETCH


@pytest.mark.parametrize(
    ("present", "wanted", "worth"),
    [
        (4, 4, False),
        (4, 15, False),
        (4, 16, True),
        (16, 5, False),
        (16, 4, True),
        (2000, 500, True),
        (2000, 501, False),
    ],
)
def test_a_new_consumer_is_worth_a_factor_of_four(present: int, wanted: int, worth: bool) -> None:
    assert worth_changing(present, Pace(concurrency=1, fixed=wanted)) is worth


def test_coroutines_have_messages_of_their_own() -> None:
    pace = pace_of(0.01)
    before = pace.prefetch
    pace.beside = Pace(concurrency=250, fixed=None, seconds=1.0)
    assert pace.prefetch == before + pace.beside.prefetch
    # Less than a factor of four, and yet some would wait for nothing.
    assert not worth_changing(before, pace_of(0.005))
    assert worth_changing(before, pace)
    assert not worth_changing(pace.prefetch, pace)
    pace.fixed = 10
    assert not worth_changing(10, pace)
