# SPDX-License-Identifier: Apache-2.0
"""When a service looks at limits, and who of it runs what may start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from twisted.internet.task import Clock

from carrot_twisted import Concurrency, task_options
from carrot_twisted.service.admitting import INTERVAL, REST, Admitting
from tests.unit.test_dispatcher import claimed

if TYPE_CHECKING:
    from carrot_twisted.service.operations import Admit


class Reactor(Clock):
    """Does what threads hand over at once."""

    def callFromThread(self, function: Any, *given: Any) -> None:  # noqa: N802
        function(*given)


class Writer:
    """Keeps what it is asked for; answers when the test says."""

    def __init__(self) -> None:
        self.asked: list[Admit] = []
        self.away = False

    submit = property(lambda self: self.asked.append)
    admissions = property(lambda self: self)

    def answer(self, seconds: float | None = None) -> None:
        """Of the last look."""
        self.asked[-1].done(seconds)
        if seconds is not None:
            self.on_look(seconds)

    on_look: Any
    on_ring: Any
    places: Any
    hand_over: Any


class Queue:
    """A dispatcher's part in it."""

    def __init__(self, name: str, places: int | None) -> None:
        self.name = name
        self._places = places
        self.runs: list[Any] = []

    def places(self, ended: int) -> int | None:
        return None if self._places is None else self._places + ended

    def hand_over(self, rows: Any, token: int) -> None:
        self.runs.append((len(rows), token))


class Desk:
    def __init__(self) -> None:
        self.clock = Reactor()
        self.writer = Writer()
        self.rung = 0
        self.queues = [Queue("default", 2), Queue("mail", 0), Queue("paused", None)]
        self.admitting = Admitting(
            dispatchers=self.queues,  # type: ignore[arg-type]
            writer=self.writer,  # type: ignore[arg-type]
            ring=self.ring,
            reactor=self.clock,
        )

    def ring(self) -> None:
        self.rung += 1

    def looks(self, seconds: float) -> int:
        """How many looks there are in so many seconds, all answered at once."""
        before = len(self.writer.asked)
        for _ in range(round(seconds * 100)):
            seen = len(self.writer.asked)
            self.clock.advance(0.01)
            if len(self.writer.asked) > seen:
                self.writer.answer()
        return len(self.writer.asked) - before


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(task_options, "_limits", {("slot", "app.work"): Concurrency(1)})
    desk = Desk()
    desk.admitting.start()
    desk.writer.answer()
    return desk


def test_it_looks_once_a_second_and_at_once_at_the_start(desk: Desk) -> None:
    assert len(desk.writer.asked) == 1
    assert desk.looks(5.5 * INTERVAL) == 5
    assert all(one.request.due for one in desk.writer.asked)
    desk.admitting.stop()
    assert desk.looks(5.5) == 0


def test_seldom_where_no_task_is_under_a_limit(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_options, "_limits", {})
    assert desk.looks(4 * REST * INTERVAL + 0.5) == 4


def test_sooner_where_a_rate_lets_the_next_start_sooner(desk: Desk) -> None:
    desk.writer.on_look(0.5)
    # The soonest counts; what is further away than the next look is no matter.
    desk.writer.on_look(0.2)
    desk.writer.on_look(0.7)
    desk.writer.on_look(30.0)
    assert desk.looks(0.19) == 0
    assert desk.looks(0.02) == 1
    assert desk.looks(0.7) == 0
    desk.writer.on_look(0.5)
    desk.admitting.stop()
    assert desk.clock.getDelayedCalls() == []
    desk.writer.on_look(0.5)
    assert desk.clock.getDelayedCalls() == []


def test_one_look_at_a_time_and_none_while_the_database_is_away(desk: Desk) -> None:
    desk.clock.advance(INTERVAL)
    desk.clock.advance(INTERVAL)
    assert len(desk.writer.asked) == 2
    desk.writer.answer()
    desk.writer.away = True
    assert desk.looks(3) == 0
    desk.writer.away = False
    assert desk.looks(1) == 1


def test_what_may_start_goes_to_its_queue(desk: Desk) -> None:
    assert desk.writer.places({"mail": 3}) == {"default": 2, "mail": 3}
    rows = [claimed(uuid4(), 7) for _ in range(3)]
    rows[1].queue = "mail"
    desk.writer.hand_over(rows)
    assert [queue.runs for queue in desk.queues] == [[(2, 7)], [(1, 7)], []]
    desk.writer.on_ring()
    assert desk.rung == 1
