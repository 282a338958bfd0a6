# SPDX-License-Identifier: Apache-2.0
"""The loops that ask the database again and again: what they leave behind when it says nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError
from django.db.models.functions import Now
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from carrot_twisted import conf, statements
from carrot_twisted.models import MessageLog
from carrot_twisted.records import Claimant
from carrot_twisted.scheduler import ScheduledTaskManager
from carrot_twisted.service import chore
from carrot_twisted.service.relay import RING_INTERVAL, Relay
from tests.unit.test_outcomes import driver_error

if TYPE_CHECKING:
    from pytest_django import DjangoAssertNumQueries

ME = Claimant(worker="me", lease=10.0, max_crashes=5, alone=False, judges=True)
TEN_MINUTES = 600


class Writer:
    """Stands in for the LogWriter."""

    away = False

    def __init__(self, answer: Exception | float | None = None) -> None:
        self.calls = 0
        self.answer = answer

    def call(self, function: Any, if_any: Any = None) -> Deferred[Any]:
        self.calls += 1
        if self.answer is None:
            return Deferred()
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class Direct(Writer):
    """One that does it at once."""

    def call(self, function: Any, if_any: Any = None) -> Deferred[Any]:
        try:
            return succeed(function() if if_any is None or if_any() else None)
        except Exception as error:
            return fail(error)


class Publisher:
    """One that could send."""

    protocols: dict[object, object] = {}  # noqa: RUF012

    def takes(self, _queue: object) -> bool:
        return True

    def publish_rows(self, _rows: object) -> list[object]:
        return []


def start(writer: Writer, clock: Clock, publisher: Publisher | None = None) -> Relay:
    relay = Relay(
        queues=[conf.current().queue("default")],
        writer=writer,  # type: ignore[arg-type]
        publisher=publisher or Publisher(),  # type: ignore[arg-type]
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
    # The relay, which looks for the reaper as well, and the scheduler.
    assert writer.calls == 2


def test_rows_that_cannot_be_sent_now_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "takes", lambda _, queue: queue.name != "default")
    clock, writer = Clock(), Writer()
    start(writer, clock)
    clock.pump([0.5] * 20)
    # The reaper.
    assert writer.calls == 1


def tell(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is logged of failures: how, and who speaks."""
    told: list[tuple[str, str]] = []
    for level in ("info", "warn", "failure"):

        def keep(_: str, level: str = level, **values: Any) -> None:
            told.append((level, values["name"]))

        monkeypatch.setattr(chore._log, level, keep)
    return told


def failing(state: str) -> Writer:
    error = OperationalError("the reason")
    error.__cause__ = driver_error("Error", "the reason", sqlstate=state)
    return Writer(error)


STATES = [("55P03", "warn"), ("40P01", "warn"), ("57014", "warn"), ("42P01", "failure")]


@pytest.mark.parametrize(("state", "level"), STATES)
def test_failures_of_the_relay_that_go_on_are_told_ever_more_rarely(
    state: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a traceback where nobody foresaw them."""
    told = tell(monkeypatch)
    clock, writer = Clock(), failing(state)
    start(writer, clock)
    clock.pump([0.5] * 2 * TEN_MINUTES)
    assert writer.calls > TEN_MINUTES
    loops = ["The relay looks at the outbox", "The relay looks for dead workers"]
    assert sorted(told) == sorted([(level, loop) for loop in loops] * 4)


@pytest.mark.parametrize(("state", "level"), STATES)
def test_nor_does_the_scheduler_fill_the_log(
    state: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tell(monkeypatch)
    clock, writer = Clock(), failing(state)
    scheduler = ScheduledTaskManager(database=writer, using="default", reactor=clock)
    scheduler.start()
    clock.pump([0.5] * 2 * TEN_MINUTES)
    assert writer.calls > TEN_MINUTES
    does = ["The scheduler prepares its schedules", "The scheduler looks for due schedules"]
    assert sorted(told) == sorted([(level, it) for it in does] * 4)
    told.clear()
    writer.answer = 0.5
    clock.pump([0.5] * 2 * 60)
    assert sorted(told) == sorted(("info", it) for it in does)


def test_nothing_is_asked_while_the_database_is_away() -> None:
    """Nor told: the writer has told it."""
    clock, writer = Clock(), Writer()
    writer.away = True
    start(writer, clock)
    clock.pump([0.5] * 2 * TEN_MINUTES)
    assert writer.calls == 0


def test_tasks_of_dead_workers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "takes", lambda *_: False)
    clock, writer = Clock(), Writer(2)
    relay = start(writer, clock)
    clock.pump([0.5] * 20)
    assert writer.calls > 1
    assert relay.recovered == writer.calls, "two of every other call: the rest sees to flows"


@pytest.mark.django_db
def test_only_queues_with_waiting_rows_are_looked_at_for_lost_messages() -> None:
    """Whatever the number of queues, a service at rest asks one question, and not the broker."""

    class Broker:
        asked = 0

        def channel(self) -> Deferred[Any]:
            self.asked += 1
            return Deferred()

    broker = Broker()
    queue = conf.current().queue("default")
    publisher = Publisher()
    publisher.protocols = {queue.host: broker}
    publisher.takes = lambda _queue: False  # type: ignore[method-assign]
    clock = Clock()
    start(Direct(), clock, publisher)
    clock.advance(RING_INTERVAL)
    assert broker.asked == 0
    MessageLog.objects.create(task="t.t", queue="default", confirmed_at=Now())
    clock.advance(RING_INTERVAL)
    assert broker.asked == 1


@pytest.mark.django_db
def test_a_service_at_rest_asks_one_question_a_second(
    django_assert_num_queries: DjangoAssertNumQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the reaper has anything to do comes with each third look at the outbox."""
    asked: list[int] = []
    are_any = statements.are_any

    def counted(looks: Any, using: str) -> list[bool]:
        asked.append(len(looks))
        return are_any(looks, using)

    monkeypatch.setattr(statements, "are_any", counted)
    clock = Clock()
    start(Direct(), clock)
    with django_assert_num_queries(6):
        clock.pump([0.5] * 12)
    assert asked == [2, 1, 1] * 2 + [2]


@pytest.mark.django_db
def test_the_reaper_works_whatever_is_in_the_outbox() -> None:
    """Rows that cannot be sent, for a reason that nobody foresaw, keep it from nothing."""

    class Broken(Publisher):
        sent = 0

        def publish_rows(self, rows: object) -> list[object]:
            self.sent += 1
            raise RuntimeError("nobody foresaw this")

    clock, publisher = Clock(), Broken()
    long_ago = Now() - timedelta(hours=1)
    MessageLog.objects.create(task="t.t", queue="default", relay_at=long_ago)
    dead = MessageLog.objects.create(
        task="t.t", queue="default", status=MessageLog.IN_PROGRESS, worker="dead", token=1
    )
    relay = start(Direct(), clock, publisher)
    assert (publisher.sent, relay.recovered) == (1, 1)
    dead.refresh_from_db()
    assert (dead.status, dead.crashes) == (MessageLog.PUBLISHED, 1)
