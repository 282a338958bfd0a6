# SPDX-License-Identifier: Apache-2.0
"""The service's publishing: confirms are noted, dead letters are safe before they are acked."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pika
import pytest
from twisted.internet.defer import Deferred

from carrot_twisted import conf, outbox, publishing
from carrot_twisted.models import MessageLog
from carrot_twisted.service import posting
from carrot_twisted.service.delivery import Delivery, Settler
from carrot_twisted.service.posting import ReactorPublisher
from carrot_twisted.testing.memory_broker import MemoryConnection
from carrot_twisted.virtual_host import VirtualHost
from tests.unit.test_delivery import Channel
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.service.operations import Confirmed

HOST = VirtualHost("amqp://guest:guest@localhost:5672/")


class Writer:
    """Stands in for the LogWriter."""

    def __init__(self) -> None:
        self.confirmed: list[str] = []
        self.calls: list[Callable[[], Any]] = []
        self._results: list[Deferred[Any]] = []

    def submit(self, operation: Confirmed) -> None:
        self.confirmed += [post.message_id for post in operation.posts]

    def call(self, function: Callable[[], Any]) -> Deferred[Any]:
        self.calls.append(function)
        self._results.append(Deferred())
        return self._results[-1]

    def answer(self) -> None:
        """Do what it was called with first."""
        self._results.pop(0).callback(self.calls.pop(0)())


class Line(MemoryConnection):
    """A connection whose close is told, and the protocol around it in one."""

    def __init__(self, *queues: str) -> None:
        super().__init__()
        self.broker.queues.update({name: {} for name in queues})
        self.connection = self
        self.aborted = False
        self._on_close: list[Callable[..., None]] = []

    def abort(self) -> None:
        self.aborted = True

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self._on_close.append(callback)

    def lose(self, text: str = "the cable was cut") -> None:
        super().lose(text)
        for callback in self._on_close:
            callback(self, text)


class Desk:
    """A publisher among fakes."""

    def __init__(self) -> None:
        self.clock = Reactor()
        self.writer = Writer()
        self.publisher = ReactorPublisher([HOST], self.writer, "default", self.clock)  # type: ignore[arg-type]
        self.channel = Channel()
        self.settler = Settler(self.channel)

    def connect(self, *queues: str) -> Line:
        line = Line(*queues)
        self.publisher.connections[0]._connected(line)  # type: ignore[arg-type]
        line.run()
        return line

    def delivery(self, tag: int, body: bytes = b"body", **properties: Any) -> Delivery:
        self.channel.unacked.add(tag)
        self.settler.delivered(tag)
        return Delivery(self.settler, tag, pika.BasicProperties(**properties), body, "x", "key")

    def dead_letter(self, delivery: Delivery) -> None:
        self.publisher.dead_letter(HOST, "default", delivery, "nobody knows it")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def rows(count: int = 1) -> list[MessageLog]:
    return [MessageLog(task="app.work", queue="default", token=5) for _ in range(count)]


def ids(logs: list[MessageLog]) -> list[str]:
    return [str(log.pk) for log in logs]


class TestRows:
    def test_committed_rows_are_sent_in_the_reactor_and_their_confirms_are_noted(
        self, desk: Desk
    ) -> None:
        line, logs = desk.connect("default"), rows(3)
        desk.publisher.submit(logs[:2], "default")
        desk.publisher.submit(logs[2:], "default")
        assert line.channels[0].published == []
        desk.clock.advance(0)
        line.run()
        desk.clock.advance(0)
        assert line.broker.ids == desk.writer.confirmed == ids(logs)
        counts = desk.publisher
        assert (counts.sent, counts.confirmed, counts.failed, counts.unconfirmed) == (3, 3, 0, 0)

    def test_without_a_connection_they_stay_in_the_outbox(self, desk: Desk) -> None:
        assert not desk.publisher.can_publish(HOST)
        desk.publisher.submit(rows(), "default")
        desk.clock.advance(0)
        line = desk.connect("default")
        assert desk.publisher.can_publish(HOST)
        assert line.broker.ids == []

    def test_a_lost_connection_leaves_them_to_the_relay_with_the_reason(self, desk: Desk) -> None:
        line = desk.connect("default")
        desk.publisher.publish_rows(rows(2))
        line.lose()
        desk.clock.advance(0)
        assert not desk.publisher.can_publish(HOST)
        counts = desk.publisher
        assert (counts.sent, counts.confirmed, counts.failed, counts.unconfirmed) == (2, 0, 2, 0)
        assert desk.writer.confirmed == []
        assert len(desk.writer.calls) == 1

    def test_each_reason_is_noted_once_and_on_its_own_row(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noted: list[Any] = []
        monkeypatch.setattr(outbox, "note_refused", lambda *args: noted.append(args))
        line, logs = desk.connect("default"), rows(3)
        line.broker.confirms_at_once = False
        desk.publisher.publish_rows(logs)
        line.run()
        for tag in (1, 3):
            line.channels[0].confirm(tag, nack=True)
        line.run(publishing.NACK_RETRY)
        for tag in (4, 5):
            line.channels[0].confirm(tag, nack=True)
            desk.clock.advance(0)
        for call in desk.writer.calls:
            call()
        refused = "the broker refused it (basic.nack)"
        assert noted == [({key: refused}, "default") for key in ids([logs[0], logs[2]])]

    def test_what_a_silent_queue_gets_is_tried_again_soon_and_is_a_problem(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noted: list[Any] = []
        monkeypatch.setattr(outbox, "note_errors", lambda *args: noted.append(args))
        line, (log,) = desk.connect("default"), rows(1)
        line.broker.confirms_at_once = False
        desk.publisher.publish_rows([log])
        line.run()
        for _ in range(2):
            line.run(publishing.SILENCE)
        desk.clock.advance(0)
        desk.writer.calls.pop()()
        ((errors, using, delay),) = noted
        assert (list(errors), using, delay) == (ids([log]), "default", posting.UNANSWERED_RETRY)
        assert desk.publisher.problem is not None
        assert "does not confirm messages to default" in desk.publisher.problem
        assert line.aborted
        line.lose()
        assert "does not confirm" not in str(desk.publisher.problem)
        line = desk.connect("default")
        assert "does not confirm messages to default" in str(desk.publisher.problem)
        desk.publisher.publish_rows([log])
        line.run()
        assert "does not confirm" not in str(desk.publisher.problem)

    def test_of_what_is_for_a_silent_queue_no_more_is_taken_while_one_is_tried(
        self, desk: Desk
    ) -> None:
        """However many rows wait for it, the database is not kept busy with them."""
        queue, other = (replace(conf.current().queue("default"), name=n) for n in ("deaf", "other"))
        line = desk.connect("deaf", "other")
        line.broker.confirms_at_once = False
        (log,) = rows(1)
        log.routing_key = "deaf"
        assert desk.publisher.takes(queue)
        desk.publisher.publish_rows([log])
        line.run()
        for _ in range(2):
            assert desk.publisher.takes(queue)
            line.run(publishing.SILENCE)
        assert desk.publisher.takes(queue)
        desk.publisher.publish_rows([log])
        assert (desk.publisher.takes(queue), desk.publisher.takes(other)) == (False, True)
        line.run()
        for _ in range(2):
            line.run(publishing.SILENCE)
        assert desk.publisher.takes(queue)
        line.lose()
        assert not desk.publisher.takes(queue)

    def test_a_queue_that_was_not_there_has_lost_what_waited_in_it(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rung: list[Any] = []

        def ring_again(*args: Any) -> int:
            rung.append(args)
            return 0

        monkeypatch.setattr(outbox, "ring_again", ring_again)
        line = desk.connect()
        desk.publisher.publish_rows(rows(2))
        line.run()
        desk.clock.advance(0)
        desk.publisher.publish_rows(rows(1))
        line.run()
        desk.clock.advance(0)
        for call in desk.writer.calls:
            call()
        ((queue, quiet, using),) = rung
        assert (queue, using) == ("default", "default")
        assert 0 <= quiet < 5

    def test_its_rows_are_put_back_batch_by_batch(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Other work of the writer's, such as the lease, has its turn in between."""
        counts = [outbox.RING_BATCH, outbox.RING_BATCH, 3]
        monkeypatch.setattr(outbox, "ring_again", lambda *_: counts.pop(0))
        line = desk.connect()
        desk.publisher.publish_rows(rows(1))
        line.run()
        for left in (2, 1, 0):
            desk.writer.answer()
            assert len(counts) == left
        assert desk.writer.calls == []

    def test_who_flushes_waits_for_all_that_was_taken_over(self, desk: Desk) -> None:
        line, done = desk.connect("default"), threading.Event()
        desk.publisher.submit(rows(), "default")
        desk.publisher._add_flusher(done)
        assert not done.is_set()
        desk.clock.advance(0)
        assert not done.is_set()
        line.run()
        assert done.is_set()

    def test_the_close_of_an_old_connection_does_not_forget_the_new_one(self, desk: Desk) -> None:
        old = desk.connect("default")
        new = desk.connect("default")
        old.lose()
        assert desk.publisher.protocols == {HOST: new}
        assert desk.publisher.can_publish(HOST)

    def test_only_so_many_wait_in_memory(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(posting, "MAX_WAITING", 3)
        line = desk.connect("default")
        line.broker.confirms_at_once = False
        desk.publisher.publish_rows(rows(3))
        assert not desk.publisher.can_publish(HOST)
        desk.publisher.publish_rows(rows(1))
        line.run()
        assert len(line.broker.ids) == 3

    def test_rows_that_cannot_be_sent_do_not_harm_others(self, desk: Desk) -> None:
        line, good = desk.connect("default"), rows()
        desk.publisher.submit([MessageLog(task="app.work", queue="gone", token=1)], "default")
        desk.publisher.submit(good, "default")
        desk.clock.advance(0)
        line.run()
        assert line.broker.ids == ids(good)


class TestProblems:
    def test_without_a_connection_it_says_so_and_for_whom(self, desk: Desk) -> None:
        assert desk.publisher.problem == (
            "no connection to localhost:5672/%2F for publishing: it is about to be made"
        )

    def test_in_an_alarm_nothing_is_taken_over_and_the_reason_is_told(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(type(desk.publisher.connections[0]), "is_open", True)
        line = desk.connect("default")
        assert desk.publisher.problem is None
        line.block("low on disk")
        assert desk.publisher.problem == (
            "the broker localhost:5672/%2F takes no messages for now: low on disk"
        )
        assert not desk.publisher.can_publish(HOST)
        left = desk.publisher.publish_rows(rows(2))
        assert len(left) == 2
        line.unblock()
        assert desk.publisher.problem is None
        assert desk.publisher.can_publish(HOST)


class TestDeadLetters:
    def test_it_is_acknowledged_when_the_dead_letter_queue_has_it_and_not_before(
        self, desk: Desk
    ) -> None:
        line = desk.connect("default.dead")
        line.broker.confirms_at_once = False
        desk.dead_letter(desk.delivery(1))
        line.run()
        assert [queue for queue, _, _ in line.broker.messages] == ["default.dead"]
        assert desk.channel.frames == []
        line.channels[0].confirm(1)
        assert desk.channel.acked == {1}

    def test_it_is_unchanged_but_for_the_reason(self, desk: Desk) -> None:
        line = desk.connect("default.dead")
        given = {
            "content_type": "text/x",
            "content_encoding": "gzip",
            "priority": 3,
            "correlation_id": "c",
            "reply_to": "r",
            "message_id": "m",
            "timestamp": 5,
            "type": "t",
            "app_id": "a",
        }
        headers: dict[Any, Any] = {
            "type": "app.work",
            "x-mine": {"a": [1]},
            "x-death": [{}],
            "x-first-death": "q",
        }
        headers |= {"CC": ["default"], "BCC": ["other"], b"\xff": "name"}
        desk.dead_letter(
            desk.delivery(
                1, b"\xff\x00", headers=headers, user_id="guest", expiration="10", **given
            )
        )
        line.run()
        ((_, sent, body),) = line.broker.messages
        assert body == b"\xff\x00"
        assert {name: getattr(sent, name) for name in given} == given
        assert (sent.user_id, sent.expiration, sent.delivery_mode) == (None, None, 2)
        assert sent.headers == {
            "type": "app.work",
            "x-mine": {"a": [1]},
            b"\xff": "name",
            "x-carrot-reason": "nobody knows it",
            "x-carrot-queue": "default",
        }

    @pytest.mark.parametrize("room", [0, 1])
    def test_headers_that_leave_no_room_for_the_reason_are_left_out(
        self, desk: Desk, room: int
    ) -> None:
        """RabbitMQ hangs up on a frame that is too large, each time that it is tried again."""
        line = desk.connect("default.dead")
        ours = {"x-carrot-reason": "nobody knows it", "x-carrot-queue": "default"}
        empty = pika.BasicProperties(headers={"n": "", **ours}, message_id="m", delivery_mode=2)
        free = line.params.frame_max - 20 - sum(map(len, empty.encode()))
        theirs = {"n": "x" * (free + 1 - room)}
        desk.dead_letter(desk.delivery(1, headers=theirs, message_id="m"))
        line.run()
        ((_, sent, body),) = line.broker.messages
        assert (sent.message_id, body) == ("m", b"body")
        if room:
            assert sent.headers == theirs | ours
        else:
            assert sent.headers.keys() == ours.keys()
            assert "its own headers are left out" in sent.headers["x-carrot-reason"]

    def test_the_queue_is_declared_if_it_is_not_there(self, desk: Desk) -> None:
        line = desk.connect()
        desk.dead_letter(desk.delivery(1))
        line.run()
        assert "default.dead" in line.broker.queues
        assert desk.channel.acked == {1}

    def test_without_a_connection_it_is_tried_again(self, desk: Desk) -> None:
        desk.dead_letter(desk.delivery(1))
        assert desk.channel.frames == []
        line = desk.connect("default.dead")
        desk.clock.advance(posting.DEAD_LETTER_RETRY)
        line.run()
        assert desk.channel.acked == {1}

    def test_what_the_broker_refused_is_tried_again(self, desk: Desk) -> None:
        line = desk.connect("default.dead")
        line.broker.confirms_at_once = False
        desk.dead_letter(desk.delivery(1))
        line.run()
        line.channels[0].confirm(1, nack=True)
        line.run(publishing.NACK_RETRY)
        line.channels[0].confirm(2, nack=True)
        assert desk.channel.frames == []
        line.broker.confirms_at_once = True
        desk.clock.advance(posting.DEAD_LETTER_RETRY)
        line.run()
        assert desk.channel.acked == {1}

    def test_that_it_is_refused_is_told_once_and_is_a_problem(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It stays unacknowledged: with enough of its like the queue would stand still unseen."""
        told: list[str] = []
        monkeypatch.setattr(
            posting._log, "error", lambda text, **values: told.append(text.format(**values))
        )
        line = desk.connect("default.dead")
        line.broker.max_message_size = 1
        for tag in range(1, 4):
            desk.dead_letter(desk.delivery(tag))
        for _ in range(10):
            line.run()
            desk.clock.advance(posting.DEAD_LETTER_RETRY)
        reason = "the message of 4 bytes is larger than the broker permits"
        (text,) = told
        assert text.startswith(
            f"Messages of queue default that cannot run are not taken by default.dead: {reason}"
        )
        assert f"not taken by default.dead: {reason}" in str(desk.publisher.problem)
        desk.channel.is_open = False
        desk.clock.advance(posting.DEAD_LETTER_RETRY)
        assert "not taken" not in str(desk.publisher.problem)

    def test_after_the_channels_close_nothing_is_moved(self, desk: Desk) -> None:
        """The broker has the message again, and delivers it anew."""
        line = desk.connect("default.dead")
        delivery = desk.delivery(1)
        desk.channel.is_open = False
        desk.dead_letter(delivery)
        line.run()
        assert line.broker.messages == []

    def test_its_confirm_is_nothing_to_note_in_the_database(self, desk: Desk) -> None:
        line = desk.connect("default.dead")
        desk.dead_letter(desk.delivery(1, message_id=str(uuid4())))
        line.run()
        desk.clock.advance(0)
        assert desk.writer.confirmed == []
        assert desk.writer.calls == []

    def test_headers_that_cannot_be_written_again_do_not_stop_it(self, desk: Desk) -> None:
        """pika reads a float as a whole number, of any size, and writes 64 bits."""
        line = desk.connect("default.dead")
        desk.dead_letter(desk.delivery(1, headers={"big": 10**300, "type": "app.work"}))
        line.run()
        ((_, sent, _),) = line.broker.messages
        sent.encode()
        assert sent.headers["type"] == "app.work"


class TestPosts:
    """Messages that no row stands for, from any thread."""

    def test_one_is_sent_in_the_reactor_and_its_end_is_told(self, desk: Desk) -> None:
        told: list[str | None] = []
        post = post_to("there")
        desk.publisher.submit_post(HOST, post, told.append)
        desk.clock.advance(0)
        assert told == ["no connection"]
        line = desk.connect("there")
        desk.publisher.submit_post(HOST, post, told.append)
        assert not line.broker.queues["there"]
        desk.clock.advance(0)
        line.run()
        assert told == ["no connection", None]
        assert not desk.writer.confirmed

    def test_a_broker_that_no_queue_is_on_gets_them_from_another_thread(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []

        class Thread:
            alive = True

            def __init__(self) -> None:
                self.sent: list[Any] = []
                made.append(self)

            def submit_post(self, *sent: Any) -> None:
                self.sent.append(sent)

            def alarm(self, host: VirtualHost) -> str:
                return f"of {host.label}"

        monkeypatch.setattr(posting, "ThreadPublisher", Thread)
        other = VirtualHost("amqp://guest:guest@elsewhere/")
        assert desk.publisher.alarm(other) is None
        sent = [(other, post_to("there"), lambda _error: None) for _ in range(2)]
        for one in sent:
            desk.publisher.submit_post(*one)
        assert [thread.sent for thread in made] == [sent]
        assert desk.publisher.problem is not None
        assert "elsewhere" not in desk.publisher.problem
        assert desk.publisher.alarm(other) == "of elsewhere:5672/%2F"


def post_to(queue: str) -> outbox.Post:
    return outbox.Post(
        message_id="1",
        token=None,
        exchange="",
        routing_key=queue,
        body=b"",
        properties=pika.BasicProperties(message_id="1"),
        steps=(),
    )
