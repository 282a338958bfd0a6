# SPDX-License-Identifier: Apache-2.0
"""Histograms are small, add up, and tell quantiles to a tenth."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import histograms

if TYPE_CHECKING:
    from carrot_twisted.histograms import Histogram

DURATIONS = st.floats(min_value=0.001, max_value=1e6)


def of(*durations: float) -> Histogram:
    found: Histogram = {}
    for seconds in durations:
        histograms.add(found, seconds)
    return found


@pytest.mark.parametrize(
    ("seconds", "number"),
    [(-1, 0), (0, 0), (0.001, 0), (0.00101, 1), (0.002, 4), (1.024, 40), (0.99, 40), (3686.4, 88)],
)
def test_there_are_four_buckets_for_each_factor_of_two(seconds: float, number: int) -> None:
    assert histograms.bucket(seconds) == number


@pytest.mark.parametrize("seconds", [1e7, 1e300])
def test_however_long_it_takes_there_is_a_last_bucket(seconds: float) -> None:
    assert histograms.bucket(seconds) == histograms.LAST


@given(st.lists(DURATIONS, min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_is_at_most_a_tenth_off(durations: list[float], share: float) -> None:
    exact = sorted(durations)[max(1, math.ceil(len(durations) * share)) - 1]
    told = histograms.quantile(of(*durations), share)
    assert told is not None
    assert abs(told - exact) / exact < 0.091


def test_of_nothing_there_is_no_quantile() -> None:
    assert histograms.quantile({}, 0.5) is None


@given(st.lists(DURATIONS), st.lists(DURATIONS))
def test_the_sum_of_two_is_that_of_all_durations(one: list[float], other: list[float]) -> None:
    both = of(*one)
    histograms.merge(both, of(*other))
    assert both == of(*one, *other)


def test_a_thousand_tasks_of_the_same_kind_take_a_few_bytes() -> None:
    assert len(json.dumps(of(*(0.1 + n / 10_000 for n in range(1000))))) < 60
