# SPDX-License-Identifier: Apache-2.0
"""Messages with handlers between the channel, the worker threads and the broker's copies.

The threads are never started: the test takes their jobs and does them itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pika
import pytest
from django.db.utils import OperationalError
from twisted.internet.defer import Deferred

from carrot_twisted import conf, handlers
from carrot_twisted.begun_message import Losses
from carrot_twisted.exceptions import PermanentFailure
from carrot_twisted.service import copying
from carrot_twisted.service.delivery import Delivery, Settler
from carrot_twisted.service.loss_counter import LossCounter
from carrot_twisted.service.message_copies import COPY_RETRY, LAST_COPIES
from carrot_twisted.service.message_dispatcher import MessageDispatcher
from carrot_twisted.service.quarantine import Quarantine
from tests.unit.test_delivery import Channel
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from carrot_twisted.outbox import Post
    from carrot_twisted.service.journal import Handled

LOCKED = OperationalError("database is locked")
LOCKED.__cause__ = type("Locked", (Exception,), {"sqlite_errorcode": 5})()


class Counter(LossCounter):
    """Has the records in memory; the database answers when ``answer`` is called, or at once."""

    def __init__(self) -> None:
        self._losses = Losses(worker="here", limit=4, using="default")
        self.lost: dict[str, int] = {}
        self.asked: list[tuple[list[str], bool]] = []
        self.noted: list[str] = []
        self.error: Exception | None = None
        self.waiting: list[Callable[[], None]] | None = None

    def begin(self, fingerprints: Collection[str], *, alone: bool) -> Deferred[dict[str, int]]:
        keys = list(fingerprints)
        self.asked.append((keys, alone))
        result: Deferred[dict[str, int]] = Deferred()
        error = self.error

        def answer() -> None:
            if error is not None:
                result.errback(error)
                return
            lost = {key: self.lost.get(key, 0) for key in keys}
            self.noted += [key for key in keys if self.may_begin(lost[key], alone=alone)]
            result.callback(lost)

        if self.waiting is None:
            answer()
        else:
            self.waiting.append(answer)
        return result

    def end(self, fingerprint: str) -> None:
        self.noted.remove(fingerprint)


class Desk:
    """A dispatcher among fakes; its handler raises what the body is in ``errors``."""

    def __init__(self, concurrency: int = 2) -> None:
        self.clock = Reactor()
        self.handled: list[bytes] = []
        self.errors: dict[bytes, BaseException] = {}
        self.meanwhile: Callable[[], object] = lambda: None
        self.returned: object = None
        self.sent: list[tuple[Post, Callable[[str | None], None]]] = []
        self.settled: list[Handled] = []
        self.counter = Counter()
        handlers.message_handler("mail")(self.handle)
        (queue,) = handlers.queues(conf.current())
        self.dispatcher = MessageDispatcher(
            queue=queue,
            concurrency=concurrency,
            send=lambda post, settled: self.sent.append((post, settled)),
            note=self.settled.append,
            losses=self.counter,
            reactor=self.clock,
        )
        self.open_channel()

    def handle(self, message: handlers.Message) -> object:
        self.handled.append(message.body)
        self.meanwhile()
        if message.body in self.errors:
            raise self.errors[message.body]
        return self.returned

    def open_channel(self) -> None:
        self.channel = Channel()
        self.settler = Settler(self.channel)
        self.tag = 0

    def lose_channel(self) -> None:
        self.channel.is_open = False
        self.dispatcher.forget_closed()
        self.open_channel()

    def deliver(self, body: bytes = b"body", redelivered: bool = False, **properties: Any) -> int:
        """A message that comes by itself; returns its tag."""
        self.arrive(body, redelivered, **properties)
        self.turn()
        return self.tag

    def arrive(self, body: bytes, redelivered: bool = False, **properties: Any) -> None:
        """A message that others follow in the same turn of the reactor."""
        self.tag += 1
        self.channel.unacked.add(self.tag)
        self.settler.delivered(self.tag)
        given = pika.BasicProperties(**properties)
        self.dispatcher.deliver(
            Delivery(self.settler, self.tag, given, body, "", "mail", redelivered)
        )

    def work(self) -> int:
        """Do what the threads have to do; how much that was."""
        self.turn()
        jobs = self.dispatcher._pool.recall()
        for job in jobs:
            self.dispatcher._work(job)
        self.turn()
        return len(jobs)

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)

    def answer(self, error: str | None = None) -> list[str]:
        """The broker answers for all copies; returns where they were sent."""
        sent, self.sent = self.sent, []
        for _, settled in sent:
            settled(error)
        return [post.routing_key for post, _ in sent]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(handlers, "_registry", {})
    return Desk()


def test_a_message_is_acknowledged_when_its_handler_has_returned(desk: Desk) -> None:
    for _ in range(3):
        desk.deliver()
    assert desk.dispatcher.running == 3
    assert not desk.channel.acked
    desk.work()
    assert desk.channel.frames == [("ack", 3, True)]
    assert (desk.dispatcher.running, desk.dispatcher.finished) == (0, 3)


def test_a_thousand_messages_cost_one_hand_over_and_one_frame(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a message costs beside its handler is shared by all that come together."""
    hand_overs: list[object] = []
    hand_over = desk.clock.callFromThread

    def counted(*call: Any) -> None:
        hand_overs.append(call)
        hand_over(*call)

    monkeypatch.setattr(desk.clock, "callFromThread", counted)
    desk.dispatcher.pace.seconds = 0.0
    timers = len(desk.clock.getDelayedCalls())
    for number in range(1000):
        desk.arrive(str(number).encode())
    assert len(desk.clock.getDelayedCalls()) == timers + 1
    assert desk.work() == 1000
    assert len(hand_overs) == 1
    assert desk.channel.frames == [("ack", 1000, True)]
    assert desk.counter.asked == []


@pytest.mark.parametrize("returned", [False, 0, ValueError("returned"), "requeue"])
def test_what_a_handler_returns_is_not_used(desk: Desk, returned: object) -> None:
    desk.returned = returned
    desk.deliver()
    desk.work()
    assert (desk.channel.acked, desk.sent) == ({1}, [])


def test_no_more_is_begun_than_the_pace_allows(desk: Desk) -> None:
    for _ in range(100):
        desk.deliver()
    begun = desk.dispatcher.running
    assert 2 <= begun == desk.dispatcher.pace.claimed < 100
    desk.work()
    assert desk.dispatcher.running > 0


@pytest.mark.parametrize(
    ("error", "retries", "target"),
    [
        (ValueError("no"), 0, "mail.retry.200ms"),
        (SystemExit(1), 1, "mail.retry.1000ms"),
        (ValueError("no"), 2, "mail.retry.60000ms"),
        (ValueError("no"), 3, "mail.retry.1800000ms"),
        (ValueError("no"), 4, "mail.archived"),
        (PermanentFailure("never"), 0, "mail.archived"),
    ],
)
def test_what_fails_is_acknowledged_when_the_broker_has_the_copy(
    desk: Desk, error: BaseException, retries: int, target: str
) -> None:
    desk.errors[b"body"] = error
    desk.deliver(headers={"x-retry-count": retries})
    desk.work()
    assert not desk.channel.frames
    assert desk.dispatcher.running == 1
    assert desk.answer() == [target]
    assert desk.channel.acked == {1}
    assert desk.dispatcher.running == 0


def test_a_copy_that_the_broker_does_not_take_is_tried_again(desk: Desk) -> None:
    desk.errors[b"body"] = ValueError("no")
    desk.deliver()
    desk.work()
    for _ in range(3):
        desk.answer("no connection")
        desk.turn(COPY_RETRY - 0.1)
        assert not desk.sent
        desk.turn(0.1)
    assert not desk.channel.frames
    desk.answer()
    assert desk.channel.acked == {1}
    assert desk.handled == [b"body"]


def test_messages_whose_copies_are_not_taken_hold_up_further_ones(desk: Desk) -> None:
    """Else they would pile up while the broker takes nothing."""
    desk.errors[b"body"] = ValueError("no")
    for _ in range(50):
        desk.deliver()
    while desk.work():
        desk.answer("memory alarm")
    assert len(desk.handled) == desk.dispatcher.running < 50


def test_the_databases_trouble_costs_no_retry(desk: Desk) -> None:
    desk.errors[b"body"] = LOCKED
    desk.deliver(headers={"x-retry-count": 4})
    for delay in (1, 2, 4, 8, 10, 10):
        assert desk.work() == 1
        desk.turn(delay - 0.1)
        assert (desk.work(), desk.dispatcher.running) == (0, 0)
        desk.turn(0.1)
    del desk.errors[b"body"]
    desk.work()
    assert (desk.sent, desk.channel.acked, desk.dispatcher.finished) == ([], {1}, 1)


def test_what_waits_for_the_database_for_too_long_goes_back(desk: Desk) -> None:
    desk.errors[b"body"] = LOCKED
    desk.deliver()
    desk.work()
    desk.turn(0.9)
    desk.dispatcher.free_waiting(0.95)
    assert not desk.channel.requeued
    desk.turn(0.05)
    desk.dispatcher.free_waiting(0.95)
    assert desk.channel.requeued == {1}
    desk.turn(1)
    assert desk.work() == 0


def test_without_the_database_nothing_is_begun_and_all_that_waits_goes_back(desk: Desk) -> None:
    desk.errors[b"resting"] = LOCKED
    resting = desk.deliver(b"resting")
    desk.work()
    begun = desk.deliver()
    desk.dispatcher.pause()
    late = desk.deliver()
    assert desk.channel.requeued == {resting, begun, late}
    desk.turn(5)
    assert desk.work() == 0
    desk.dispatcher.resume()
    desk.deliver()
    assert desk.work() == 1


def test_a_handler_that_meets_the_outage_gives_its_message_back(desk: Desk) -> None:
    desk.errors[b"body"] = LOCKED
    desk.deliver()
    (job,) = desk.dispatcher._pool.recall()
    desk.dispatcher._work(job)
    desk.dispatcher.pause()
    desk.turn()
    assert desk.channel.requeued == {1}


def test_what_cannot_be_done_about_one_message_holds_up_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no copy")

    desk.errors[b"bad"] = ValueError("no")
    with monkeypatch.context() as patch:
        patch.setattr(copying, "copy_of", refuse)
        desk.deliver(b"bad")
        desk.deliver(b"good")
        desk.work()
    assert desk.channel.acked == {2}
    desk.turn(1)
    desk.work()
    assert desk.answer() == ["mail.retry.200ms"]
    assert desk.channel.acked == {1, 2}


def test_what_a_handler_does_to_its_message_changes_no_copy(desk: Desk) -> None:
    def spoil(message: handlers.Message) -> None:
        message.properties.headers.clear()
        message.properties.message_id = "other"
        raise ValueError("no")

    handlers._registry.clear()
    handlers.message_handler("mail")(spoil)
    desk.dispatcher._queue = handlers.queues(conf.current())[0]
    desk.deliver(message_id="one", headers={"a": 1, "x-retry-count": 1})
    desk.work()
    ((post, _),) = desk.sent
    assert post.properties.message_id == "one"
    assert (post.properties.headers["a"], post.properties.headers["x-retry-count"]) == (1, 2)


class TestStop:
    def test_what_has_not_begun_goes_back_and_what_runs_may_end(self, desk: Desk) -> None:
        running, waiting = desk.deliver(b"running"), desk.deliver(b"waiting")
        first, second = desk.dispatcher._pool.recall()
        desk.dispatcher._pool.put(second)
        desk.dispatcher.stop_claiming()
        assert desk.channel.requeued == {waiting}
        desk.dispatcher._stopping = False
        desk.dispatcher._work(first)
        desk.dispatcher._stopping = True
        desk.turn()
        assert desk.channel.acked == {running}

    def test_at_the_deadline_all_goes_back_and_a_late_end_changes_nothing(self, desk: Desk) -> None:
        desk.deliver(b"running")
        (job,) = desk.dispatcher._pool.recall()
        desk.errors[b"copied"] = ValueError("no")
        desk.deliver(b"copied")
        desk.work()
        assert desk.dispatcher.release_running() == 2
        assert desk.channel.requeued == {1, 2}
        desk.dispatcher._work(job)
        desk.turn()
        desk.answer()
        assert desk.channel.acked == set()
        assert desk.dispatcher.running == 0

    def test_a_copy_that_is_not_taken_does_not_hold_it_up(self, desk: Desk) -> None:
        desk.errors[b"body"] = ValueError("no")
        desk.deliver()
        desk.work()
        desk.dispatcher.stop_claiming()
        assert desk.dispatcher.running == 1
        desk.answer("memory alarm")
        desk.turn()
        assert desk.dispatcher.running == 0
        assert desk.channel.requeued == {1}

    def test_one_that_is_not_confirmed_does_so_for_a_moment(self, desk: Desk) -> None:
        """In an alarm the broker does not even read it."""
        desk.errors[b"body"] = ValueError("no")
        desk.deliver()
        desk.work()
        desk.dispatcher.stop_claiming()
        desk.turn(LAST_COPIES - 0.1)
        assert desk.dispatcher.running == 1
        desk.turn(0.1)
        assert desk.dispatcher.running == 0
        assert desk.channel.requeued == {1}
        desk.answer()
        assert desk.channel.acked == set()

    def test_a_copy_that_waits_for_its_next_try_does_not_either(self, desk: Desk) -> None:
        desk.errors[b"body"] = ValueError("no")
        desk.deliver()
        desk.work()
        desk.answer("memory alarm")
        desk.dispatcher.stop_claiming()
        assert desk.dispatcher.running == 0
        assert desk.channel.requeued == {1}
        desk.turn(COPY_RETRY)
        assert not desk.sent


class TestLostChannel:
    def test_what_runs_takes_over_its_message_when_that_comes_again(self, desk: Desk) -> None:
        desk.deliver(message_id="1", headers={"a": 1})
        (job,) = desk.dispatcher._pool.recall()
        desk.lose_channel()
        # A quorum queue counts, in the message's own headers.
        desk.deliver(message_id="1", headers={"a": 1, "x-delivery-count": 1}, redelivered=True)
        assert desk.dispatcher.running == 1
        desk.dispatcher._work(job)
        desk.turn()
        assert desk.handled == [b"body"]
        assert desk.channel.acked == {1}

    def test_what_has_ended_meanwhile_is_acknowledged_when_it_comes_again(self, desk: Desk) -> None:
        desk.meanwhile = desk.lose_channel
        desk.deliver(message_id="1")
        desk.work()
        desk.meanwhile = lambda: None
        for _ in range(2):
            desk.deliver(message_id="1", redelivered=True)
        assert desk.channel.acked == {1}
        desk.work()
        # Of two with one id each is handled.
        assert len(desk.handled) == 2
        assert desk.channel.acked == {1, 2}

    def test_of_messages_without_an_id_nobody_knows(self, desk: Desk) -> None:
        desk.meanwhile = desk.lose_channel
        desk.deliver()
        desk.work()
        desk.meanwhile = lambda: None
        desk.deliver(redelivered=True)
        desk.work()
        assert len(desk.handled) == 2
        assert desk.channel.acked == {1}

    @pytest.mark.parametrize(
        "other", [{"message_id": "2"}, {"headers": {"a": 2}}, {"priority": 1}, {"body": b"other"}]
    )
    def test_other_messages_are_not_taken_for_it(self, desk: Desk, other: dict[str, Any]) -> None:
        desk.deliver(message_id="1", headers={"a": 1})
        desk.dispatcher._pool.recall()
        desk.lose_channel()
        desk.deliver(**{"message_id": "1", "headers": {"a": 1}, **other}, redelivered=True)
        assert desk.dispatcher.running == 2

    def test_what_has_not_begun_is_the_brokers(self, desk: Desk) -> None:
        desk.deliver(message_id="1")
        desk.lose_channel()
        assert desk.dispatcher.running == 0
        desk.deliver(message_id="1", redelivered=True)
        desk.work()
        assert desk.handled == [b"body"]

    def test_a_copy_is_sent_for_a_message_that_has_come_again(self, desk: Desk) -> None:
        desk.errors[b"body"] = ValueError("no")
        desk.deliver(message_id="1")
        desk.work()
        desk.lose_channel()
        desk.answer("the connection was lost")
        desk.deliver(message_id="1", redelivered=True)
        desk.turn(COPY_RETRY)
        assert desk.answer() == ["mail.retry.200ms"]
        assert desk.handled == [b"body"]
        assert desk.channel.acked == {1}

    def test_none_is_sent_for_one_that_has_not(self, desk: Desk) -> None:
        desk.errors[b"body"] = ValueError("no")
        desk.deliver()
        desk.work()
        desk.lose_channel()
        desk.answer("the connection was lost")
        desk.turn(COPY_RETRY)
        assert (desk.sent, desk.dispatcher.running) == ([], 0)


class TestItsRow:
    """What is noted of a message, for a row that tells what became of it."""

    def test_is_of_one_that_is_acknowledged(self, desk: Desk) -> None:
        desk.deliver()
        desk.turn(3)
        desk.work()
        (one,) = desk.settled
        assert (one.failure, one.delivery.body) == (None, b"body")
        assert one.queue.name == "mail"
        assert one.arrived + 3 == pytest.approx(one.started, abs=1)
        assert one.started <= one.ended

    def test_is_of_one_that_is_archived_when_that_is_settled(self, desk: Desk) -> None:
        desk.errors[b"body"] = PermanentFailure("never")
        desk.deliver()
        desk.work()
        desk.answer("no connection")
        desk.turn(COPY_RETRY)
        assert not desk.settled
        desk.answer()
        assert desk.channel.acked == {1}
        assert [one.failure and one.failure.exception for one in desk.settled] == [
            "PermanentFailure: never"
        ]

    def test_is_none_of_one_that_is_tried_again_or_waits(self, desk: Desk) -> None:
        desk.errors |= {b"fails": ValueError("no"), b"waits": LOCKED}
        desk.deliver(b"fails")
        desk.deliver(b"waits")
        desk.work()
        desk.answer()
        assert desk.channel.acked == {1}
        assert not desk.settled

    def test_is_none_of_one_that_is_given_back(self, desk: Desk) -> None:
        desk.errors[b"body"] = PermanentFailure("never")
        desk.deliver()
        desk.work()
        desk.dispatcher.release_running()
        desk.answer()
        assert desk.channel.requeued == {1}
        assert not desk.settled


def test_what_waits_behind_long_work_goes_back(desk: Desk) -> None:
    desk.deliver()
    desk.dispatcher.free_waiting(600)
    assert desk.dispatcher.running == 1
    desk.turn(10.1)
    desk.dispatcher.free_waiting(600)
    assert (desk.dispatcher.running, desk.channel.requeued) == (0, {1})


def test_while_a_suspect_runs_nothing_begins(desk: Desk) -> None:
    desk.errors[b"resting"] = LOCKED
    desk.deliver(b"resting")
    desk.work()
    desk.dispatcher.hold()
    desk.deliver()
    desk.turn(3)
    assert desk.dispatcher.running == 0
    desk.dispatcher.unhold()
    desk.turn(1)
    assert desk.work() == 2


class TestLostProcesses:
    """A handler that kills its process meets its message again, and the broker does not count."""

    @pytest.fixture
    def quarantine(self, desk: Desk) -> Quarantine:
        return Quarantine([desk.dispatcher], desk.clock)

    @staticmethod
    def key(body: bytes = b"body") -> str:
        given = pika.BasicProperties()
        delivery = Delivery(None, 0, given, body, "", "mail")  # type: ignore[arg-type]
        return copying.fingerprint(delivery, "mail")

    def test_what_comes_for_the_first_time_is_not_noted(self, desk: Desk) -> None:
        desk.deliver()
        desk.work()
        assert (desk.counter.asked, desk.handled) == ([], [b"body"])

    @pytest.mark.parametrize("error", [None, ValueError("no"), LOCKED, SystemExit(1)])
    def test_what_comes_again_is_noted_until_its_handler_has_ended(
        self, desk: Desk, error: BaseException | None
    ) -> None:
        if error is not None:
            desk.errors[b"body"] = error
        noted: list[str] = []
        desk.meanwhile = lambda: noted.extend(desk.counter.noted)
        desk.deliver(redelivered=True)
        desk.work()
        assert (noted, desk.counter.noted) == ([self.key()], [])
        assert desk.handled == [b"body"]

    def test_messages_that_come_together_are_noted_together(self, desk: Desk) -> None:
        bodies = [b"one", b"two", b"three"]
        desk.counter.lost = {self.key(b"two"): 1}
        for body in bodies:
            desk.arrive(body, redelivered=True)
        assert desk.work() == 3
        assert desk.counter.asked == [([self.key(body) for body in bodies], False)]
        assert (desk.handled, desk.counter.noted) == (bodies, [])

    def test_while_the_database_has_a_batch_the_next_collects(self, desk: Desk) -> None:
        desk.counter.waiting = []
        for body in (b"one", b"two", b"three"):
            desk.deliver(body, redelivered=True)
            assert desk.work() == 0
        desk.counter.waiting.pop()()
        desk.counter.waiting.pop()()
        assert [len(keys) for keys, _ in desk.counter.asked] == [1, 2]
        assert desk.work() == 3

    @pytest.mark.usefixtures("quarantine")
    def test_one_that_has_cost_processes_runs_alone_and_the_others_after_it(
        self, desk: Desk
    ) -> None:
        key = self.key(b"suspect")
        desk.counter.lost[key] = 2
        beside = desk.deliver(b"beside")
        suspect = desk.deliver(b"suspect", redelivered=True)
        desk.turn()
        after = desk.deliver(b"after")
        assert (desk.dispatcher.suspects, desk.dispatcher.running) == (1, 1)
        assert desk.work() == 1
        assert (desk.handled, desk.channel.acked) == ([b"beside"], {beside})
        assert (desk.dispatcher.suspects, desk.dispatcher.running) == (0, 1)
        assert desk.work() == 1
        assert desk.counter.asked == [([key], False), ([key], True)]
        assert desk.channel.acked == {beside, suspect}
        assert desk.work() == 1
        assert desk.channel.acked == {beside, suspect, after}

    def test_one_that_has_cost_too_many_is_archived_and_not_begun(self, desk: Desk) -> None:
        desk.counter.lost[self.key()] = 4
        desk.deliver(redelivered=True)
        desk.work()
        desk.turn()
        assert desk.handled == []
        ((post, _),) = desk.sent
        assert post.properties.headers["x-carrot-exception"] == "worker lost 4 times"
        assert desk.answer() == ["mail.archived"]
        assert desk.channel.acked == {1}
        assert [one.failure and one.failure.exception for one in desk.settled] == [
            "worker lost 4 times"
        ]

    def test_a_suspect_goes_back_with_the_database_a_stop_or_after_long(self, desk: Desk) -> None:
        desk.counter.lost[self.key()] = 2
        for give_back in (
            desk.dispatcher.pause,
            lambda: desk.dispatcher.free_waiting(0),
            desk.dispatcher.stop_claiming,
        ):
            desk.dispatcher.resume()
            tag = desk.deliver(redelivered=True)
            assert desk.work() == 0
            assert desk.dispatcher.suspects == 1
            give_back()
            assert desk.dispatcher.suspects == 0
            assert tag in desk.channel.requeued
        assert desk.handled == []

    @pytest.mark.parametrize("how", ["pause", "stop_claiming"])
    def test_what_waits_for_the_answer_goes_back_too_and_is_not_noted(
        self, desk: Desk, how: str
    ) -> None:
        desk.counter.waiting = []
        desk.deliver(redelivered=True)
        desk.turn()
        getattr(desk.dispatcher, how)()
        assert desk.channel.requeued == {1}
        desk.counter.waiting[0]()
        assert desk.work() == 0
        assert (desk.counter.noted, desk.dispatcher.running) == ([], 0)

    def test_what_is_given_back_before_it_begins_is_not_noted_any_more(self, desk: Desk) -> None:
        desk.deliver(redelivered=True)
        desk.turn()
        assert desk.counter.noted == [self.key()]
        desk.dispatcher.pause()
        assert desk.counter.noted == []

    def test_one_of_a_lost_channel_is_the_brokers(self, desk: Desk) -> None:
        desk.counter.lost[self.key()] = 2
        desk.deliver(redelivered=True)
        desk.turn()
        desk.lose_channel()
        assert (desk.dispatcher.suspects, desk.dispatcher.running) == (0, 0)

    def test_without_the_database_it_is_not_begun_and_no_retry_is_counted(self, desk: Desk) -> None:
        desk.counter.error = LOCKED
        desk.deliver(redelivered=True)
        assert desk.work() == 0
        assert (desk.handled, desk.sent, desk.dispatcher.running) == ([], [], 0)
        desk.counter.error = None
        desk.turn(1)
        desk.work()
        assert desk.handled == [b"body"]
        assert desk.channel.acked == {1}

    @pytest.mark.usefixtures("quarantine")
    def test_a_suspect_that_the_database_keeps_waiting_is_one_again(self, desk: Desk) -> None:
        desk.counter.lost[self.key()] = 2
        desk.errors[b"body"] = LOCKED
        desk.deliver(redelivered=True)
        assert desk.work() == 1
        desk.turn(1)
        assert desk.work() == 1
        assert [alone for _, alone in desk.counter.asked] == [False, True, False, True]


class Tasks:
    """Stands in for the dispatcher of a queue of tasks, one of which has cost workers."""

    suspects = 1
    running = 0
    claimed = 0
    on_suspect: Callable[[], None]

    def hold(self) -> None:
        """Nothing else is to be claimed."""

    def unhold(self) -> None:
        """Go on."""

    def claim_suspect(self) -> None:
        self.claimed += 1
        self.suspects = 0


def test_a_suspect_runs_alone_also_where_messages_are_handled(desk: Desk) -> None:
    """Else the crash of a handler would be blamed on it."""
    tasks = Tasks()
    Quarantine([tasks, desk.dispatcher], desk.clock)  # type: ignore[list-item]
    first = desk.deliver()
    tasks.on_suspect()
    desk.deliver()
    assert (tasks.claimed, desk.dispatcher.running) == (0, 1)
    desk.work()
    assert (tasks.claimed, desk.channel.acked) == (1, {first})
    tasks.on_suspect()
    assert desk.work() == 1
