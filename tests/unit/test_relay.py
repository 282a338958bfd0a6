# SPDX-License-Identifier: Apache-2.0
"""The loops that ask the database again and again: what they leave behind when it says nothing."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from carrot_twisted import conf
from carrot_twisted.records import Claimant
from carrot_twisted.scheduler import ScheduledTaskManager
from carrot_twisted.service import relay as module
from carrot_twisted.service.relay import Relay
from tests.unit.test_outcomes import driver_error

ME = Claimant(worker="me", lease=10.0, max_crashes=5, alone=False, judges=True)
TEN_MINUTES = 600


class Writer:
    """Stands in for the LogWriter."""

    away = False

    def __init__(self, answer: Exception | None = None) -> None:
        self.calls = 0
        self._answer = answer

    def call(self, function: Any) -> Deferred[Any]:
        self.calls += 1
        return Deferred() if self._answer is None else fail(self._answer)


class Publisher:
    """One that could send."""

    protocols: dict[object, object] = {}  # noqa: RUF012

    def can_publish(self, host: object) -> bool:
        return True


def start(writer: Writer, clock: Clock) -> Relay:
    relay = Relay(
        queues=[conf.current().queue("default")],
        writer=writer,  # type: ignore[arg-type]
        publisher=Publisher(),  # type: ignore[arg-type]
        claimant=lambda: ME,
        using="default",
        reactor=clock,
    )
    relay.start()
    return relay


def test_a_database_that_says_nothing_is_asked_once_by_each_loop() -> None:
    """The writer's inbox does not grow, however long that lasts."""
    clock, writer = Clock(), Writer()
    start(writer, clock)
    scheduler = ScheduledTaskManager(database=writer, using="default", reactor=clock)
    scheduler.start()
    clock.pump([0.5] * 2 * TEN_MINUTES)
    # The relay, the reaper and the scheduler.
    assert writer.calls == 3


@pytest.mark.parametrize("state", ["55P03", "57014", "42P01"])
def test_failures_that_go_on_are_told_ever_more_rarely(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OperationalError("the reason")
    error.__cause__ = driver_error("Error", "the reason", sqlstate=state)
    told: list[str] = []
    for level in ("warn", "failure"):
        monkeypatch.setattr(module._log, level, lambda text, *_, **__: told.append(text))
    clock, writer = Clock(), Writer(error)
    start(writer, clock)
    clock.pump([0.5] * 2 * TEN_MINUTES)
    assert writer.calls > TEN_MINUTES
    # Two loops.
    assert 2 * 3 <= len(told) <= 2 * 8


def test_nothing_is_asked_while_the_database_is_away() -> None:
    """Nor told: the writer has told it."""
    clock, writer = Clock(), Writer()
    writer.away = True
    start(writer, clock)
    clock.pump([0.5] * 2 * TEN_MINUTES)
    assert writer.calls == 0
