# SPDX-License-Identifier: Apache-2.0
"""Messages with callbacks between channel and threads; the test does the threads' work."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pika
import pytest
from django.db.utils import OperationalError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from carrot_twisted import callbacks
from carrot_twisted.exceptions import Drop, HaltConsumer, Nack
from carrot_twisted.service.callback_dispatcher import CallbackDispatcher
from carrot_twisted.service.consumption import (
    LAST_FRAMES,
    CallbackConsumer,
    Consumption,
    status_of,
)
from carrot_twisted.service.delivery import Delivery, Settler
from carrot_twisted.service.log_writer import LAST_WRITES
from carrot_twisted.service.protocol import FAREWELL
from tests.unit.test_delivery import Channel
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.logger import LogEvent

    from carrot_twisted.handlers import Message
    from carrot_twisted.outbox import Post
    from carrot_twisted.service.journal import Handled

LOCKED = OperationalError("database is locked")
LOCKED.__cause__ = type("Locked", (Exception,), {"sqlite_errorcode": 5})()


class Desk:
    """A dispatcher and its consumer among fakes; the callback raises what is in ``errors``."""

    consuming = True
    problem = None

    def __init__(self, **options: Any) -> None:
        self.clock = Reactor()
        self.called: list[bytes] = []
        self.errors: dict[bytes, BaseException] = {}
        self.sent: list[tuple[Post, Callable[[str | None], None]]] = []
        self.noted: list[Handled] = []
        self.gate = threading.Semaphore(1)
        (queue,) = callbacks.queues_of(self.callback, queues={"mine": {}}, **options)
        self.dispatcher = CallbackDispatcher(
            queue=queue,
            gate=self.gate,
            send=lambda post, settled: self.sent.append((post, settled)),
            note=self.noted.append,
            reactor=self.clock,
        )
        self.channel = Channel()
        self.settler = Settler(self.channel)
        self.tag = 0
        self.events: list[str] = []
        subscription: Any = self
        self.consumer = CallbackConsumer(
            queue, self.dispatcher, subscription, self.ended, self.clock
        )

    def stop(self) -> None:
        """As the subscription: no delivery comes after this."""
        self.events.append(f"cancel, {len(self.channel.frames)} frames sent")

    def ended(self) -> None:
        self.events.append(f"ended, {len(self.channel.frames)} frames sent")

    def callback(self, message: Message) -> None:
        self.called.append(message.body)
        if message.body in self.errors:
            raise self.errors[message.body]

    def deliver(self, *bodies: bytes, redelivered: bool = False) -> None:
        for body in bodies:
            self.tag += 1
            self.channel.unacked.add(self.tag)
            self.settler.delivered(self.tag)
            properties = pika.BasicProperties()
            self.dispatcher.deliver(
                Delivery(self.settler, self.tag, properties, body, "", "mine", redelivered)
            )
        self.clock.advance(0)

    def work(self) -> None:
        """Do what the threads have to do, before the reactor hears of it."""
        for job in self.dispatcher._pool.recall():
            self.dispatcher._work(job)
        self.clock.advance(0)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def result_of(desk: Desk) -> Any:
    found: list[Any] = []
    desk.consumer.result.addBoth(found.append)
    return getattr(found[0], "value", found[0]) if found else None


def test_what_was_called_back_is_acknowledged(desk: Desk) -> None:
    desk.deliver(b"a", b"b")
    desk.work()
    assert desk.called == [b"a", b"b"]
    assert desk.channel.acked == {1, 2}
    assert result_of(desk) is None


def test_what_was_called_back_is_acknowledged_without_a_word(desk: Desk) -> None:
    """fedora-messaging writes two lines into its log for each message."""
    told: list[LogEvent] = []
    observer: Any = told.append
    globalLogPublisher.addObserver(observer)
    try:
        desk.deliver(b"a")
        desk.work()
        desk.errors = {b"drop": Drop("not mine")}
        desk.deliver(b"drop")
        desk.work()
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [event["error"] for event in told if "error" in event] == ["Drop: not mine"]
    assert len(told) == 1


def test_nack_returns_and_drop_rejects_one_message(desk: Desk) -> None:
    desk.errors = {b"nack": Nack(), b"drop": Drop()}
    desk.deliver(b"nack", b"drop", b"last")
    desk.work()
    assert (desk.channel.requeued, desk.channel.rejected, desk.channel.acked) == ({1}, {2}, {3})
    assert desk.dispatcher.running == 0
    assert desk.dispatcher.finished == 2


def test_one_that_was_back_before_rests_and_goes_back_at_a_stop(desk: Desk) -> None:
    desk.errors = {b"nack": Nack()}
    desk.deliver(b"nack", redelivered=True)
    desk.work()
    assert not desk.channel.frames
    desk.clock.advance(callbacks.NACK_DELAY)
    assert desk.channel.requeued == {1}
    desk.deliver(b"nack", redelivered=True)
    desk.work()
    desk.consumer.cancel()
    assert desk.channel.requeued == {1, 2}
    desk.clock.advance(callbacks.NACK_DELAY)
    assert desk.called == [b"nack"] * 2


@pytest.mark.parametrize(
    ("error", "acked", "requeued", "status"),
    [
        (HaltConsumer(0), {1}, {2, 3, 4, 5}, 0),
        (HaltConsumer(7, requeue=True), set(), {1, 2, 3, 4, 5}, 7),
        (ValueError("no"), set(), {1, 2, 3, 4, 5}, 13),
        (KeyboardInterrupt(), set(), {1, 2, 3, 4, 5}, 13),
    ],
)
def test_what_halts_is_the_last_that_is_called_back_and_the_rest_goes_back_after_the_cancel(
    desk: Desk, error: BaseException, acked: set[int], requeued: set[int], status: int
) -> None:
    desk.errors = {b"halt": error}
    desk.deliver(b"halt", b"b", b"c", b"d", b"e")
    assert desk.dispatcher.running < 5
    desk.work()
    assert desk.called == [b"halt"]
    assert (desk.channel.acked, desk.channel.requeued) == (acked, requeued)
    # Else the broker would deliver them here again.
    assert desk.events[0] == "cancel, 0 frames sent"
    assert result_of(desk) is error
    assert status_of(error) == status


def test_its_result_comes_when_all_is_settled_and_sent(desk: Desk) -> None:
    desk.deliver(b"running")
    (job,) = desk.dispatcher._pool.recall()
    cancelled = desk.consumer.cancel()
    assert desk.events == ["cancel, 0 frames sent"]
    desk.dispatcher._stopping = False
    desk.dispatcher._work(job)
    desk.clock.advance(0)
    assert desk.channel.acked == {1}
    assert (cancelled.called, desk.events[-1]) == (True, "ended, 1 frames sent")
    assert result_of(desk) is desk.consumer
    assert desk.consumer.cancel().called


@pytest.mark.parametrize(
    ("error", "acked", "requeued"),
    [(HaltConsumer(7), {1}, set()), (ValueError("no"), set(), {1}), (Drop(), set(), set())],
)
def test_what_a_callback_raises_during_a_stop_settles_its_message_and_is_no_failure_of_the_stop(
    desk: Desk, error: BaseException, acked: set[int], requeued: set[int]
) -> None:
    desk.errors = {b"running": error}
    desk.deliver(b"running")
    (job,) = desk.dispatcher._pool.recall()
    desk.consumer.cancel()
    # It had begun before that.
    desk.dispatcher._stopping = False
    desk.dispatcher._work(job)
    desk.dispatcher._stopping = True
    desk.clock.advance(0)
    assert (desk.channel.acked, desk.channel.requeued) == (acked, requeued)
    assert result_of(desk) is desk.consumer


def test_nor_does_it_come_before_an_acknowledgement_of_the_same_turn_is_sent() -> None:
    desk = Desk(on_error="archive")
    desk.errors = {b"fail": ValueError("no")}
    desk.deliver(b"a", b"fail")
    for job in desk.dispatcher._pool.recall():
        desk.dispatcher._work(job)
    # There is no time for the copy: that one goes back.
    desk.consumer.cancel()
    desk.clock.advance(0)
    assert (desk.channel.acked, desk.channel.requeued) == ({1}, {2})
    assert desk.events[-1] == "ended, 2 frames sent"


def test_no_more_callbacks_run_at_once_than_the_gate_lets_through(desk: Desk) -> None:
    """It is shared with other queues."""
    desk.deliver(b"a")
    (job,) = desk.dispatcher._pool.recall()
    desk.gate.acquire()
    thread = threading.Thread(target=desk.dispatcher._work, args=(job,), daemon=True)
    thread.start()
    thread.join(0.05)
    assert desk.called == []
    desk.gate.release()
    thread.join(5)
    assert desk.called == [b"a"]


def test_with_on_error_archive_the_copy_comes_before_the_acknowledgement() -> None:
    desk = Desk(on_error="archive")
    desk.errors = {b"fail": ValueError("no")}
    desk.deliver(b"fail", b"last")
    desk.work()
    assert desk.channel.acked == {2}
    ((post, settled),) = desk.sent
    assert (post.routing_key, post.body) == ("mine.archived", b"fail")
    settled(None)
    assert desk.channel.acked == {1, 2}
    assert result_of(desk) is None


class TestRows:
    """Of which messages it is told that they have come to their end, and how."""

    def told(self, desk: Desk) -> list[tuple[bytes, str | None]]:
        return [
            (one.delivery.body, one.failure.exception if one.failure else None)
            for one in desk.noted
        ]

    def test_one_that_goes_back_has_not_come_to_its_end(self, desk: Desk) -> None:
        desk.errors = {b"nack": Nack(), b"drop": Drop("no"), b"database": LOCKED}
        for body in (b"nack", b"drop", b"database", b"fine"):
            desk.deliver(body)
            desk.work()
        assert self.told(desk) == [(b"drop", "Drop: no"), (b"fine", None)]
        assert {one.queue.name for one in desk.noted} == {"mine"}

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (HaltConsumer(), [(b"halt", None)]),
            (HaltConsumer(requeue=True), []),
            (HaltConsumer(3, "bad"), [(b"halt", "HaltConsumer: bad")]),
            (HaltConsumer(3, "bad", requeue=True), [(b"halt", "HaltConsumer: bad")]),
            (ValueError("no"), [(b"halt", "ValueError: no")]),
        ],
    )
    def test_one_that_ends_its_consumer_is_told_before_that_has_ended(
        self, desk: Desk, error: BaseException, told: list[tuple[bytes, str | None]]
    ) -> None:
        desk.errors = {b"halt": error}
        desk.consumer._on_ended = lambda: desk.events.append(f"{len(desk.noted)} told")
        desk.deliver(b"halt", b"next")
        desk.work()
        assert result_of(desk) is error
        assert self.told(desk) == told
        assert desk.events[-1] == f"{len(told)} told"

    def test_an_archived_one_is_told_when_the_broker_has_its_copy(self) -> None:
        desk = Desk(on_error="archive")
        desk.errors = {b"fail": ValueError("no")}
        desk.deliver(b"fail")
        desk.work()
        ((_, settled),) = desk.sent
        assert desk.noted == []
        settled(None)
        assert self.told(desk) == [(b"fail", "ValueError: no")]

    def test_one_that_is_given_back_at_the_deadline_of_a_stop_is_not_told(self, desk: Desk) -> None:
        desk.errors = {b"late": Drop()}
        desk.deliver(b"late")
        (job,) = desk.dispatcher._pool.recall()
        desk.consumer.cancel()
        assert desk.dispatcher.release_running() == 1
        desk.dispatcher._stopping = False
        desk.dispatcher._work(job)
        desk.clock.advance(0)
        assert desk.called == [b"late"]
        assert desk.noted == []


@pytest.mark.parametrize(("log", "writes"), [("none", 0.0), ("failures", LAST_WRITES)])
def test_a_stop_takes_longer_where_rows_are_written(log: str, writes: float) -> None:
    queues = callbacks.queues_of(print, queues={"mine": {}}, log=log)
    consumption = Consumption(queues, Clock(), 10.0)
    assert consumption.longest_stop == 10.0 + LAST_FRAMES + 2 * FAREWELL + writes
