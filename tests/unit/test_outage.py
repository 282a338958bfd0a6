# SPDX-License-Identifier: Apache-2.0
"""When to speak of what fails again and again."""

from __future__ import annotations

import pytest

from carrot_twisted import outage
from carrot_twisted.outage import Outage


class Clock:
    """Time that the test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> Outage:
    return Outage(clock)


def test_what_never_failed_is_well_and_its_return_no_news(broker: Outage) -> None:
    assert broker.reason is None
    assert broker.over() == ""


def test_a_failure_is_told_once_and_its_end_with_how_long_it_lasted(
    broker: Outage, clock: Clock
) -> None:
    assert broker.failed("refused") == "refused"
    clock.now += 10
    assert broker.failed("refused") is None
    assert (broker.reason, broker.seconds) == ("refused", 10.0)
    clock.now += 2.5
    assert broker.over() == ", again after 12.5 s"
    assert (broker.reason, broker.seconds) == (None, 0.0)
    assert broker.over() == ""


def test_another_reason_is_told_at_once_and_an_old_one_is_not_news(broker: Outage) -> None:
    told = [broker.failed(reason) for reason in ("lost", "refused", "lost", "timed out", "refused")]
    assert told == ["lost", "refused", None, "timed out", None]
    assert broker.reason == "refused"


def test_ten_minutes_of_attempts_are_told_in_a_few_lines(broker: Outage, clock: Clock) -> None:
    told = []
    for _ in range(600):
        told.append(broker.failed("refused"))
        clock.now += 1
    assert [(second, text) for second, text in enumerate(told) if text] == [
        (0, "refused"),
        (60, "refused (for 60 s now, 61 times)"),
        (180, "refused (for 180 s now, 181 times)"),
        (420, "refused (for 420 s now, 421 times)"),
    ]


def test_it_is_never_silent_for_more_than_an_hour(broker: Outage, clock: Clock) -> None:
    silent = longest = 0.0
    for _ in range(60 * 24):
        silent = 0 if broker.failed("refused") else silent + 60
        longest = max(longest, silent)
        clock.now += 60
    assert longest <= outage.LAST_REMINDER


def test_reasons_that_differ_each_time_are_no_way_around_it(broker: Outage) -> None:
    told = [broker.failed(f"from port {number}") for number in range(500)]
    assert sum(text is not None for text in told) == outage.MAX_REASONS
    assert broker.reason == "from port 499"


def test_what_comes_and_goes_every_moment_is_not_told_each_time(
    broker: Outage, clock: Clock
) -> None:
    told = []
    for _ in range(600):
        told += [broker.failed("lost"), broker.over()]
        clock.now += 1
    lines = [text for text in told if text]
    assert len(lines) == 2 * 4
    assert told[2:4] == [None, None]


def test_a_new_outage_after_a_calm_time_is_told_like_the_first(
    broker: Outage, clock: Clock
) -> None:
    broker.failed("lost")
    broker.over()
    clock.now += outage.CALM + 1
    assert broker.failed("lost") == "lost"
    clock.now += 3
    assert broker.over() == ", again after 3.0 s"


def test_what_comes_and_goes_for_long_is_told_in_its_own_words_now_and_then(
    broker: Outage, clock: Clock
) -> None:
    told = []
    for _ in range(100):
        told.append(broker.failed("refused"))
        clock.now += 0.5
        broker.over()
        clock.now += 0.5
    assert set(told) == {"refused", None}
    assert told.count("refused") == 2
