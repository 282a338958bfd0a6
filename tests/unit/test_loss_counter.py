# SPDX-License-Identifier: Apache-2.0
"""Notes of messages that come again, on their way to the database's writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from carrot_twisted.service.loss_counter import LossCounter

if TYPE_CHECKING:
    from collections.abc import Callable


class Losses:
    """Stands in for the records."""

    def __init__(self) -> None:
        self.ended: list[list[str]] = []

    def begin(self, fingerprints: list[str], *, alone: bool) -> dict[str, int]:
        return dict.fromkeys(fingerprints, 1 if alone else 0)

    def end(self, fingerprints: list[str]) -> None:
        self.ended.append(fingerprints)


class Writer:
    """Does what it is given when the test says so."""

    def __init__(self) -> None:
        self.given: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def call(self, function: Callable[[], Any]) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.given.append((function, result))
        return result

    def go_on(self) -> None:
        function, result = self.given.pop(0)
        result.callback(function())


def test_ends_that_come_while_the_database_is_busy_go_together() -> None:
    clock, losses, writer = Clock(), Losses(), Writer()
    counter = LossCounter(losses, writer, clock)  # type: ignore[arg-type]
    counter.end("one")
    counter.end("two")
    clock.advance(0)
    for name in ("three", "four"):
        counter.end(name)
        clock.advance(0)
    assert len(writer.given) == 1
    writer.go_on()
    writer.go_on()
    assert losses.ended == [["one", "two"], ["three", "four"]]
    assert not writer.given
    # A database that says no is not asked again for these, but for those that follow.
    counter.end("five")
    clock.advance(0)
    _, result = writer.given.pop()
    result.errback(ValueError("away"))
    counter.end("six")
    clock.advance(0)
    writer.go_on()
    assert losses.ended[2:] == [["six"]]


def test_beginnings_are_the_writers_and_their_answer_comes_back() -> None:
    writer = Writer()
    counter = LossCounter(Losses(), writer, Clock())  # type: ignore[arg-type]
    told: list[dict[str, int]] = []
    counter.begin(["one"], alone=True).addCallback(told.append)
    assert told == []
    writer.go_on()
    assert told == [{"one": 1}]
