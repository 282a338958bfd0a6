# SPDX-License-Identifier: Apache-2.0
"""When to connect again: soon at first, then rarely, and not all services at one moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted.service import connection
from carrot_twisted.service.connection import backoff

MIDDLE = 0.5


def test_the_delay_doubles_up_to_its_bound() -> None:
    delays = [backoff(attempt, False, MIDDLE) for attempt in range(1, 9)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_what_was_refused_on_purpose_waits_longer_from_the_first() -> None:
    delays = [backoff(attempt, True, MIDDLE) for attempt in range(1, 7)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


@pytest.mark.parametrize("refused", [False, True])
def test_it_is_spread_by_a_half(refused: bool) -> None:
    low, middle, high = (backoff(3, refused, chance) for chance in (0.0, MIDDLE, 1.0))
    assert low / middle == pytest.approx(0.75)
    assert high / middle == pytest.approx(1.25)


@given(st.integers(1, 10**6), st.booleans(), st.floats(0, 1))
def test_however_long_the_broker_is_away_it_is_tried_again(
    attempt: int, refused: bool, chance: float
) -> None:
    bound = max(connection.LAST_DELAY, connection.LAST_REFUSED_DELAY)
    assert 0.1 < backoff(attempt, refused, chance) <= bound * 1.25
