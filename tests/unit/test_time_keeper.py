# SPDX-License-Identifier: Apache-2.0
"""When calls are interrupted and given up; under a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from twisted.internet.task import Clock

from carrot_twisted.service.time_keeper import LONGEST, REPEAT, STUCK_AFTER, TimeKeeper

if TYPE_CHECKING:
    from collections.abc import Callable


class Reactor(Clock):
    """What threads hand over is done at once, and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:  # noqa: N802
        self.woken += 1
        function(*args)


class Call:
    """Stands in for a TimedCall."""

    def __init__(self, due: float) -> None:
        self.due = due
        self.interrupted_at: float | None = None
        self.interrupted: list[float] = []
        self.ended = False

    def interrupt(self) -> None:
        assert self.interrupted_at is not None
        self.interrupted.append(self.interrupted_at)

    def abandon(self) -> bool:
        return not self.ended


class Watch:
    """A keeper among fakes."""

    def __init__(self) -> None:
        self.clock = Reactor()
        self.stuck: list[Any] = []
        self.keeper = TimeKeeper(self.clock, self.stuck.append, self.clock.seconds)

    def begin(self, due: float) -> Any:
        call = Call(due)
        self.keeper.begin(cast("Any", call))
        return call


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_without_limited_tasks_there_is_no_timer(watch: Watch) -> None:
    assert watch.clock.getDelayedCalls() == []
    call = watch.begin(10.0)
    assert len(watch.clock.getDelayedCalls()) == 1
    watch.keeper.end(call)
    watch.clock.advance(10)
    assert watch.clock.getDelayedCalls() == []
    assert call.interrupted == []


def test_a_task_is_interrupted_at_its_limit_and_not_before(watch: Watch) -> None:
    call = watch.begin(10.0)
    watch.clock.advance(9.9)
    assert call.interrupted == []
    watch.clock.advance(0.1)
    assert len(call.interrupted) == 1
    watch.keeper.end(call)
    watch.clock.advance(STUCK_AFTER)
    assert (len(call.interrupted), watch.stuck) == (1, [])


def test_the_nearest_limit_counts_whoever_begins_first(watch: Watch) -> None:
    late = watch.begin(100.0)
    early = watch.begin(1.0)
    watch.clock.advance(1.0)
    assert (len(early.interrupted), len(late.interrupted)) == (1, 0)


def test_the_reactor_is_not_woken_for_each_task(watch: Watch) -> None:
    for number in range(100):
        call = watch.begin(10.0 + number / 1000)
        watch.keeper.end(call)
    assert watch.clock.woken == 1


def test_a_task_that_begins_after_the_last_look_is_looked_at(watch: Watch) -> None:
    first = watch.begin(1.0)
    watch.keeper.end(first)
    watch.clock.advance(1.0)
    second = watch.begin(2.0)
    watch.clock.advance(1.0)
    assert len(second.interrupted) == 1


def test_it_is_interrupted_again_and_then_given_up_once(watch: Watch) -> None:
    call = watch.begin(1.0)
    watch.clock.pump([1.0, *[REPEAT] * int(STUCK_AFTER / REPEAT - 1)])
    assert len(call.interrupted) == STUCK_AFTER / REPEAT
    assert watch.stuck == []
    watch.clock.advance(REPEAT)
    assert watch.stuck == [call]
    watch.clock.advance(100)
    assert watch.stuck == [call]
    assert watch.clock.getDelayedCalls() == []


def test_one_that_ends_at_the_last_moment_is_not_stuck(watch: Watch) -> None:
    call = watch.begin(1.0)
    watch.clock.advance(1.0)
    call.ended = True
    watch.clock.advance(STUCK_AFTER)
    assert watch.stuck == []


def test_a_reactor_that_was_late_gives_the_task_its_time_to_end(watch: Watch) -> None:
    call = watch.begin(1.0)
    watch.clock.advance(60)
    assert (len(call.interrupted), watch.stuck) == (1, [])
    watch.clock.advance(STUCK_AFTER)
    assert watch.stuck == [call]


def test_a_limit_of_a_year_is_no_timer_of_a_year(watch: Watch) -> None:
    watch.begin(3e7)
    (timer,) = watch.clock.getDelayedCalls()
    assert timer.getTime() == LONGEST
    watch.clock.advance(LONGEST)
    assert len(watch.clock.getDelayedCalls()) == 1


def test_an_error_costs_one_call_its_turn_and_no_other(watch: Watch) -> None:
    bad, good = watch.begin(1.0), watch.begin(1.0)
    bad.interrupt = lambda: 1 / 0
    watch.clock.advance(1.0)
    assert len(good.interrupted) == 1
    del bad.interrupt
    watch.clock.advance(REPEAT)
    assert len(bad.interrupted) == 1


def test_after_the_stop_nobody_is_interrupted(watch: Watch) -> None:
    call = watch.begin(1.0)
    watch.keeper.stop()
    watch.clock.advance(100)
    watch.begin(101.0)
    watch.clock.advance(100)
    assert call.interrupted == []
    assert watch.clock.getDelayedCalls() == []
