# SPDX-License-Identifier: Apache-2.0
"""Confirmed publishing: each post is settled once, and never as confirmed if it was not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import conf, publishing, topology
from carrot_twisted.outbox import Post
from carrot_twisted.publishing import PublishingSession
from carrot_twisted.testing.memory_broker import MemoryBroker, MemoryChannel, MemoryConnection

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from carrot_twisted.topology import Step

STEPS = topology.work_queue(conf.current().queue("default"))


def post(
    message_id: str | None = None,
    exchange: str = "",
    key: str = "default",
    body: bytes = b"{}",
    steps: Sequence[Step] = STEPS,
) -> Post:
    message_id = message_id or str(uuid4())
    return Post(
        message_id=message_id,
        token=None,
        exchange=exchange,
        routing_key=key,
        body=body,
        properties=pika.BasicProperties(message_id=message_id),
        steps=steps,
    )


def posts(count: int, exchange: str = "", key: str = "default") -> list[Post]:
    return [post(f"m{number}", exchange, key) for number in range(count)]


class Desk:
    """A session on a fake connection, with what it told."""

    def __init__(self, queues: Sequence[str] = ("default",), ready: bool = True) -> None:
        self.broker = MemoryBroker()
        for name in queues:
            self.broker.queues[name] = {}
        self.connection = MemoryConnection(self.broker)
        self.settled: list[tuple[Post, str | None]] = []
        self.idle = 0
        self.session = PublishingSession(self.connection, self._settled, self._idle)
        if ready:
            self.connection.run()

    def _settled(self, post: Post, error: str | None) -> None:
        self.settled.append((post, error))

    def _idle(self) -> None:
        assert not self.session.busy
        self.idle += 1

    @property
    def channel(self) -> MemoryChannel:
        """The publishing channel: the last that confirms."""
        return [channel for channel in self.connection.channels if channel.confirming][-1]

    @property
    def confirmed(self) -> list[str]:
        return [post.message_id for post, error in self.settled if error is None]

    @property
    def errors(self) -> dict[str, str]:
        return {post.message_id: error for post, error in self.settled if error is not None}


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def slow() -> Desk:
    """A broker that confirms when it is told to."""
    desk = Desk()
    desk.broker.confirms_at_once = False
    return desk


def test_a_post_is_sent_and_settled_when_it_is_confirmed(slow: Desk) -> None:
    one = post(body=b"body")
    slow.session.publish([one])
    slow.connection.run()
    assert slow.broker.messages == [("default", one.properties, b"body")]
    assert slow.settled == []
    assert slow.session.busy
    slow.channel.confirm(1)
    assert slow.settled == [(one, None)]
    assert (slow.session.busy, slow.idle) == (False, 1)


def test_nothing_is_sent_before_confirms_are_selected() -> None:
    """MemoryChannel refuses it; so would a real one leave that message unconfirmed for ever."""
    desk = Desk(ready=False)
    desk.session.publish(posts(3))
    assert desk.broker.messages == []
    desk.connection.run()
    assert desk.confirmed == ["m0", "m1", "m2"]


def test_order_is_kept(desk: Desk) -> None:
    desk.session.publish(posts(20))
    desk.session.publish([post("last")])
    desk.connection.run()
    assert desk.broker.ids == [*(f"m{n}" for n in range(20)), "last"]


def test_one_confirm_can_stand_for_many(slow: Desk) -> None:
    slow.session.publish(posts(5))
    slow.connection.run()
    slow.channel.confirm(3, multiple=True)
    assert slow.confirmed == ["m0", "m1", "m2"]
    assert slow.idle == 0
    slow.channel.confirm(5, multiple=True)
    assert slow.confirmed == ["m0", "m1", "m2", "m3", "m4"]
    assert slow.idle == 1


def test_confirms_out_of_order_meet_their_posts(slow: Desk) -> None:
    slow.session.publish(posts(5))
    slow.connection.run()
    for tag in (4, 2):
        slow.channel.confirm(tag)
    slow.channel.confirm(5, multiple=True)
    assert slow.confirmed == ["m3", "m1", "m0", "m2", "m4"]


def test_a_confirm_that_is_repeated_or_unknown_is_ignored(slow: Desk) -> None:
    slow.session.publish(posts(1))
    slow.connection.run()
    for tag in (1, 1, 99):
        slow.channel.confirm(tag)
    assert slow.confirmed == ["m0"]


def test_a_nack_is_told_and_the_others_are_confirmed(slow: Desk) -> None:
    slow.session.publish(posts(3))
    slow.connection.run()
    slow.channel.confirm(2, nack=True)
    slow.channel.confirm(3, multiple=True)
    assert slow.confirmed == ["m0", "m2"]
    slow.connection.run(publishing.NACK_RETRY)
    slow.channel.confirm(4, nack=True)
    assert slow.errors == {"m1": "the broker refused it (basic.nack)"}
    assert not slow.session.busy


def test_a_nacked_post_is_sent_once_more_and_may_arrive(slow: Desk) -> None:
    """A quorum queue nacks for a moment, after it was made or when it has lost its leader."""
    slow.session.publish(posts(1))
    slow.connection.run()
    slow.channel.confirm(1, nack=True)
    assert slow.settled == []
    assert slow.session.busy
    slow.connection.run(publishing.NACK_RETRY)
    slow.channel.confirm(2)
    assert slow.confirmed == ["m0"]


def test_a_nacked_post_is_settled_when_the_connection_is_lost_meanwhile(slow: Desk) -> None:
    slow.session.publish(posts(1))
    slow.connection.run()
    slow.channel.confirm(1, nack=True)
    slow.connection.lose()
    slow.connection.run()
    assert list(slow.errors) == ["m0"]
    assert not slow.session.busy


@given(st.data())
def test_whatever_the_order_of_confirms_each_post_gets_its_own(data: st.DataObject) -> None:
    slow = Desk()
    slow.broker.confirms_at_once = False
    count = data.draw(st.integers(1, 12))
    sent = posts(count)
    for one in sent:
        one.nacked = True  # the second time counts
    slow.session.publish(sent)
    slow.connection.run()
    open_tags = set(range(1, count + 1))
    nacked = set()
    while open_tags:
        tag = data.draw(st.sampled_from(sorted(open_tags)))
        multiple, nack = data.draw(st.booleans()), data.draw(st.booleans())
        covered = {t for t in open_tags if t <= tag} if multiple else {tag}
        if nack:
            nacked |= covered
        open_tags -= covered
        slow.channel.confirm(tag, multiple, nack)
        assert slow.session.busy == bool(open_tags)
    assert sorted(p.message_id for p, _ in slow.settled) == sorted(f"m{n}" for n in range(count))
    assert set(slow.errors) == {f"m{tag - 1}" for tag in nacked}


class TestUnroutable:
    def test_a_queue_that_is_not_there_is_declared_and_the_post_is_sent_again(self) -> None:
        desk = Desk(queues=())
        desk.session.publish(posts(1))
        desk.connection.run()
        assert desk.confirmed == ["m0"]
        assert desk.broker.ids == ["m0"]
        assert desk.broker.queues.keys() == {"default"}

    def test_it_is_declared_once_for_posts_that_were_made_apart(self) -> None:
        """As each commit makes its own: one channel for each would be too many for a connection."""
        desk = Desk(queues=())
        queue = conf.current().queue("default")
        desk.session.publish(
            [post(f"m{number}", steps=topology.work_queue(queue)) for number in range(200)]
        )
        desk.connection.run()
        assert sorted(desk.confirmed) == sorted(f"m{n}" for n in range(200))
        assert desk.broker.declared == ["default", "default"]

    def test_one_with_nothing_to_declare_is_told_at_once(self) -> None:
        desk = Desk(queues=())
        desk.session.publish([post("lost", steps=())])
        desk.connection.run()
        assert desk.errors == {"lost": "unroutable: NO_ROUTE; is there such a queue?"}
        desk.session.publish([post("other", exchange="default", steps=())])
        desk.connection.run()
        assert not desk.session.busy

    def test_it_is_declared_once_for_many_posts_and_order_is_kept(self) -> None:
        desk = Desk(queues=())
        desk.session.publish(posts(200))
        desk.connection.run()
        assert desk.confirmed == desk.broker.ids == [f"m{n}" for n in range(200)]
        assert desk.broker.declared == ["default", "default"]  # exchange and queue
        assert desk.idle >= 1

    def test_only_the_returned_ones_of_many_in_flight_are_sent_again(self) -> None:
        """A return names no tag: it is matched by its message id."""
        desk = Desk(queues=("default",))
        other = topology.dead_letter_steps(replace(conf.current().queue("default"), name="other"))
        desk.session.publish(
            [post(f"m{n}") for n in range(3)]
            + [post("gone", key="other.dead", steps=other)]
            + [post(f"n{n}") for n in range(3)]
        )
        desk.connection.run()
        assert desk.broker.ids == ["m0", "m1", "m2", "n0", "n1", "n2", "gone"]
        assert sorted(desk.confirmed) == sorted(desk.broker.ids)

    def test_returns_meet_their_posts_under_one_confirm_for_all(self, slow: Desk) -> None:
        slow.session.publish([*posts(2), post("lost", key="nowhere"), post("last")])
        slow.connection.run()
        slow.channel.confirm(4, multiple=True)
        assert slow.confirmed == ["m0", "m1", "last"]
        assert slow.session.busy

    def test_a_second_return_is_told_and_not_tried_for_ever(self) -> None:
        desk = Desk()
        desk.session.publish([post("lost", key="nowhere")])
        desk.connection.run()
        assert desk.errors == {"lost": "unroutable: NO_ROUTE; is there such a queue?"}
        assert (len(desk.channel.published), desk.idle) == (2, 1)

    def test_a_queue_that_exists_with_other_arguments_is_used(self) -> None:
        desk = Desk(queues=())
        desk.session.publish(posts(1))
        desk.broker.exchanges["default"] = {"type": "fanout"}
        desk.connection.run()
        assert desk.confirmed == ["m0"]

    def test_a_declaration_that_is_refused_is_the_reason(self) -> None:
        desk = Desk()
        bind_only = [step for step in STEPS if step.method == "queue_bind"]
        desk.session.publish([post("lost", key="nowhere", steps=bind_only), post("fine")])
        desk.connection.run()
        assert desk.confirmed == ["fine"]
        assert desk.errors["lost"].startswith("binding of queue 'default': NOT_FOUND")
        assert not desk.session.busy

    def test_two_messages_with_the_same_id_that_both_came_back_are_both_sent_again(self) -> None:
        """Foreign messages, on their way to a dead-letter queue, may have no id or the same.

        Both are returned and then acknowledged. Taking the second for confirmed would lose it.
        """
        desk = Desk(queues=())
        desk.broker.confirms_at_once = False
        desk.session.publish([post("None", body=b"first"), post("None", body=b"second")])
        desk.connection.run()
        desk.channel.confirm(2, multiple=True)
        desk.broker.confirms_at_once = True
        desk.connection.run()
        assert [body for _, _, body in desk.broker.messages] == [b"first", b"second"]
        assert len(desk.confirmed) == 2


class TestExchanges:
    def test_another_exchange_is_looked_for_first(self) -> None:
        """Publishing to one that is not there would close the channel for all others."""
        desk = Desk()
        desk.broker.exchanges["events"] = {}
        desk.broker.bindings.add(("events", "default", "default"))
        desk.session.publish([post("m", exchange="events")])
        desk.connection.run()
        assert (desk.confirmed, desk.broker.declared) == (["m"], ["events"])

    def test_one_that_is_not_there_is_the_reason_and_others_go_on(self) -> None:
        desk = Desk()
        desk.session.publish([post("a"), post("lost", exchange="nowhere"), post("b")])
        desk.connection.run()
        assert desk.confirmed == ["a", "b"]
        text = "exchange 'nowhere': NOT_FOUND - no 'nowhere'. It has to be declared first"
        assert desk.errors == {"lost": text}
        assert desk.idle >= 1

    def test_one_that_was_missing_is_looked_for_again(self) -> None:
        desk = Desk()
        desk.session.publish([post("lost", exchange="events")])
        desk.connection.run()
        desk.broker.exchanges["events"] = {}
        desk.broker.bindings.add(("events", "default", "default"))
        desk.session.publish([post("m", exchange="events")])
        desk.connection.run()
        assert desk.confirmed == ["m"]

    def test_it_is_looked_for_once_for_many_posts(self) -> None:
        """Each look takes a channel, and a connection has 2,047 of them."""
        desk = Desk()
        desk.broker.exchanges["events"] = {}
        desk.broker.bindings.add(("events", "default", "default"))
        desk.session.publish(posts(50, exchange="events"))
        desk.connection.run()
        assert desk.confirmed == [f"m{n}" for n in range(50)]
        assert desk.broker.declared == ["events"]

    def test_the_queues_own_exchange_is_declared_before_anything_is_sent_to_it(self) -> None:
        """Many posts at once to an exchange of our own that is not there yet."""
        desk = Desk(queues=())
        desk.session.publish(posts(5, exchange="default"))
        desk.connection.run()
        assert desk.errors == {}
        assert sorted(desk.confirmed) == [f"m{n}" for n in range(5)]

    def test_after_a_channels_close_it_is_looked_for_again(self) -> None:
        """What closed the channel may have been the exchange that is gone."""
        desk = Desk()
        desk.broker.exchanges["events"] = {}
        desk.broker.bindings.add(("events", "default", "default"))
        desk.session.publish([post("m", exchange="events")])
        desk.connection.run()
        del desk.broker.exchanges["events"]
        desk.session.publish([post("lost", exchange="events")])
        desk.connection.run()
        assert "NOT_FOUND" in desk.errors["lost"]
        desk.session.publish([post("lost again", exchange="events"), post("fine")])
        desk.connection.run()
        assert desk.confirmed == ["m", "fine"]
        assert desk.errors["lost again"].startswith("exchange 'events'")


class TestCloses:
    def test_posts_in_flight_are_uncertain_when_the_channel_closes(self, slow: Desk) -> None:
        slow.session.publish(posts(3))
        slow.connection.run()
        slow.channel.confirm(2)
        slow.channel.refuse(541, "INTERNAL_ERROR")
        assert slow.confirmed == ["m1"]
        assert slow.errors.keys() == {"m0", "m2"}
        assert "INTERNAL_ERROR" in slow.errors["m0"]
        assert (slow.session.busy, slow.idle) == (False, 1)

    def test_a_new_channel_goes_on_with_new_tags(self, slow: Desk) -> None:
        slow.session.publish(posts(2))
        slow.connection.run()
        slow.channel.refuse(541, "INTERNAL_ERROR")
        slow.broker.confirms_at_once = True
        slow.session.publish([post("after")])
        slow.connection.run()
        assert slow.confirmed == ["after"]

    def test_what_was_not_sent_yet_survives_a_closed_channel(
        self, slow: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publishing, "WINDOW", 2)
        slow.session.publish(posts(5))
        slow.connection.run()
        slow.channel.refuse(541, "INTERNAL_ERROR")
        slow.broker.confirms_at_once = True
        slow.connection.run()
        assert slow.errors.keys() == {"m0", "m1"}
        assert slow.confirmed == ["m2", "m3", "m4"]

    def test_all_are_settled_when_the_connection_is_lost(
        self, slow: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publishing, "WINDOW", 2)
        slow.session.publish(posts(4))
        slow.connection.run()
        slow.connection.lose()
        assert slow.errors.keys() == {"m0", "m1", "m2", "m3"}
        assert "the cable was cut" in slow.errors["m3"]
        assert (slow.session.busy, slow.idle) == (False, 1)

    def test_posts_that_wait_for_a_declaration_are_settled_as_well(self) -> None:
        desk = Desk(queues=())
        desk.broker.confirms_at_once = False
        desk.session.publish(posts(2))
        desk.connection.run()
        desk.channel.confirm(2, multiple=True)  # both were returned
        assert desk.settled == []
        desk.connection.lose()
        assert desk.errors.keys() == {"m0", "m1"}
        assert not desk.session.busy

    def test_a_connection_lost_before_the_channel_was_open_settles_what_waits(self) -> None:
        desk = Desk(ready=False)
        desk.session.publish(posts(2))
        desk.connection.lose()
        assert desk.errors.keys() == {"m0", "m1"}
        assert not desk.session.busy

    def test_a_return_of_the_old_channel_does_not_taint_the_new(self, slow: Desk) -> None:
        slow.session.publish([post("m", key="nowhere")])
        slow.connection.run()  # returned, not yet confirmed
        slow.channel.refuse(541, "INTERNAL_ERROR")
        slow.broker.confirms_at_once = True
        slow.session.publish([post("m")])
        slow.connection.run()
        assert slow.confirmed == ["m"]


class TestForbidden:
    """An exchange that the user may not write to: RabbitMQ closes the channel over it."""

    REASON = "ACCESS_REFUSED - access to exchange '{}' in vhost '/' refused for user 'web'"

    def test_others_in_flight_are_sent_once_more_and_it_says_why(self, slow: Desk) -> None:
        slow.broker.exchanges["secret"] = {}
        slow.session.publish([post("a"), post("b")])
        slow.connection.run()
        slow.session.publish([post("no", exchange="secret"), post("c")])
        slow.connection.run()
        slow.broker.confirms_at_once = True
        slow.channel.refuse(403, self.REASON.format("secret"))
        slow.connection.run()
        assert slow.confirmed == ["a", "b", "c"]
        assert slow.errors == {
            "no": "the user may not write to exchange 'secret': give him the permission "
            "(rabbitmqctl set_permissions)"
        }
        assert isinstance(slow.errors["no"], publishing.Refused)
        assert not slow.session.busy

    @pytest.mark.parametrize(
        "name", ["access to topic 'x' in exchange", "write access to exchange"]
    )
    def test_whatever_the_broker_calls_it(self, slow: Desk, name: str) -> None:
        reason = self.REASON.replace("access to exchange", name).format("amq.default")
        slow.session.publish(posts(1))
        slow.connection.run()
        slow.channel.refuse(403, reason)
        assert slow.errors["m0"].startswith("the user may not write to exchange 'amq.default'")

    def test_one_that_nothing_was_sent_to_is_not_to_blame(self, slow: Desk) -> None:
        """Else the same would be sent again and again."""
        slow.session.publish(posts(1))
        slow.connection.run()
        slow.channel.refuse(403, self.REASON.format("other"))
        assert "no answer from the broker" in slow.errors["m0"]

    def test_a_channel_that_is_closed_again_and_again_is_told_once(
        self, slow: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(20):
            slow.session.publish(posts(1))
            slow.connection.run()
            slow.channel.refuse(541, "INTERNAL_ERROR")
            slow.connection.run()
        assert caplog.text.count("The publishing channel was closed") == 1


class TestBounds:
    def test_no_more_than_the_window_is_in_flight(self, slow: Desk) -> None:
        slow.session.publish(posts(publishing.WINDOW + 10))
        slow.connection.run()
        assert len(slow.channel.published) == publishing.WINDOW
        slow.channel.confirm(3, multiple=True)
        slow.connection.run()
        assert len(slow.channel.published) == publishing.WINDOW + 3

    def test_nor_more_bytes(self, slow: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publishing, "WINDOW_BYTES", 100)
        slow.session.publish([post(body=bytes(60)) for _ in range(5)])
        slow.connection.run()
        assert len(slow.channel.published) == 2
        slow.channel.confirm(1)
        slow.connection.run()
        assert len(slow.channel.published) == 3

    def test_bytes_are_free_again_after_a_closed_channel(
        self, slow: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publishing, "WINDOW_BYTES", 100)
        slow.session.publish([post(body=bytes(60)) for _ in range(5)])
        slow.connection.run()
        slow.channel.refuse(541, "INTERNAL_ERROR")
        slow.connection.run()
        assert len(slow.channel.published) == 2

    def test_a_body_larger_than_the_bound_is_sent_all_the_same(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publishing, "WINDOW_BYTES", 100)
        desk.session.publish([post("large", body=bytes(1000)), post("small")])
        desk.connection.run()
        assert desk.confirmed == ["large", "small"]


class TestSilence:
    """A queue that confirms nothing, such as a quorum queue without a leader."""

    @pytest.fixture
    def silent(self) -> Desk:
        """Two messages to "deaf" are given up, the second one with tag 2."""
        desk = Desk(["default", "deaf"])
        desk.broker.confirms_at_once = False
        desk.session.publish(posts(2, key="deaf"))
        desk.connection.run()
        desk.connection.run(publishing.SILENCE)
        assert desk.settled == []
        desk.connection.run(publishing.SILENCE)
        return desk

    def test_what_is_not_confirmed_for_long_is_given_up(self, silent: Desk) -> None:
        text = "the broker does not confirm messages to deaf: has its queue a leader?"
        assert silent.errors == {"m0": text, "m1": text}
        assert not silent.session.busy
        assert silent.session.silent == [("", "deaf")]

    def test_it_is_told_once_to_who_can_connect_anew(self) -> None:
        calls: list[str] = []
        connection = MemoryConnection()
        connection.broker.queues["deaf"] = {}
        connection.broker.confirms_at_once = False
        session = PublishingSession(
            connection, lambda *_: None, lambda: None, (), lambda: calls.append("silence")
        )
        connection.run()
        session.publish(posts(2, key="deaf"))
        for _ in range(5):
            connection.run(publishing.SILENCE)
            session.publish(posts(1, key="deaf"))
        assert calls == ["silence"]

    def test_the_next_connection_knows_it_and_tries_one(self) -> None:
        settled: list[str | None] = []
        connection = MemoryConnection()
        connection.broker.queues["deaf"] = {}
        session = PublishingSession(
            connection, lambda _, error: settled.append(error), lambda: None, [("", "deaf")]
        )
        session.publish(posts(3, key="deaf"))
        connection.run()
        assert connection.broker.ids == ["m0"]
        assert settled.count(None) == 1
        assert session.silent == []

    def test_others_do_not_wait_for_it(self, silent: Desk) -> None:
        silent.session.publish([*posts(publishing.WINDOW + 10, key="deaf"), post("other")])
        silent.connection.run()
        assert [one.message_id for one in silent.channel.published] == ["m0", "m1", "m0", "other"]
        silent.channel.confirm(4)
        assert silent.confirmed == ["other"]
        assert silent.session.silent == [("", "deaf")]

    @pytest.mark.parametrize(("tag", "multiple"), [(2, False), (2, True), (3, False), (3, True)])
    def test_any_confirm_from_there_ends_it(self, silent: Desk, tag: int, multiple: bool) -> None:
        if tag == 3:
            silent.session.publish([post("probe", key="deaf")])
            silent.connection.run()
        silent.channel.confirm(tag, multiple=multiple)
        assert silent.session.silent == []
        silent.session.publish([post("a", key="deaf"), post("b", key="deaf")])
        silent.connection.run()
        assert silent.broker.ids[-2:] == ["a", "b"]

    def test_it_is_told_once_and_when_it_is_over(
        self, silent: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(5):
            silent.session.publish([post(key="deaf")])
            silent.connection.run(publishing.SILENCE)
        silent.channel.confirm(7, multiple=True)
        assert len(silent.settled) == 7
        told = [one.getMessage() for one in caplog.get_records("setup") + caplog.records]
        assert [text.partition(".")[0] for text in told] == [
            "The broker does not confirm messages to deaf",
            "The broker confirms messages to deaf again",
        ]

    def test_a_queue_that_answers_slowly_is_not_silent(self, slow: Desk) -> None:
        """16 MB in flight take longer than two looks on a slow line."""
        slow.session.publish(posts(20))
        slow.connection.run()
        for tag in range(1, 21):
            slow.connection.run(publishing.SILENCE / 2)
            slow.channel.confirm(tag)
        assert slow.errors == {}
        assert len(slow.confirmed) == 20
        assert slow.session.silent == []

    def test_one_that_is_sent_nothing_any_more_is_forgotten(self, silent: Desk) -> None:
        """Another service may have sent what there was, and had its answer."""
        for _ in range(publishing.FORGET_LOOKS + 1):
            assert silent.session.silent == [("", "deaf")]
            silent.connection.run(publishing.SILENCE)
        assert silent.session.silent == []

    def test_but_not_while_something_is_to_go_there(self, silent: Desk) -> None:
        for _ in range(3 * publishing.FORGET_LOOKS):
            silent.session.publish([post(key="deaf"), post(key="deaf")])
            silent.connection.run(publishing.SILENCE)
            assert silent.session.silent == [("", "deaf")]

    def test_a_confirm_of_what_was_sent_after_the_last_look_ends_it(self, slow: Desk) -> None:
        slow.session.publish([post("early")])
        slow.connection.run(publishing.SILENCE)
        slow.session.publish([post("late")])
        slow.connection.run(publishing.SILENCE)
        assert list(slow.errors) == ["early"]
        slow.channel.confirm(2)
        assert slow.session.silent == []

    def test_what_cannot_be_sent_is_not_taken_for_the_one_that_tries(
        self, silent: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unfit = post("unfit", key="deaf")
        sent = MemoryChannel.basic_publish

        def basic_publish(channel: MemoryChannel, *args: Any, **kwargs: Any) -> None:
            if args[3] is unfit.properties:
                raise ValueError("a priority of 1000")
            sent(channel, *args, **kwargs)

        monkeypatch.setattr(MemoryChannel, "basic_publish", basic_publish)
        silent.session.publish([unfit, post("other")])
        silent.connection.run()
        silent.channel.confirm(3)
        assert silent.confirmed == ["other"]
        assert silent.session.silent == [("", "deaf")]

    def test_many_are_told_in_one_line(self, slow: Desk, caplog: pytest.LogCaptureFixture) -> None:
        """A routing key for each customer, and the broker hangs."""
        slow.broker.queues |= {f"customer.{n}": {} for n in range(100)}
        slow.session.publish([post(key=f"customer.{n}") for n in range(100)])
        slow.connection.run()
        for _ in range(2):
            slow.connection.run(publishing.SILENCE)
        slow.channel.confirm(100, multiple=True)
        names = "customer.0, customer.1, customer.10, customer.11, customer.12 and 95 more"
        assert [one.getMessage().partition(" Their")[0] for one in caplog.records] == [
            f"The broker does not confirm messages to {names}.",
            f"The broker confirms messages to {names} again.",
        ]

    def test_after_an_alarm_there_is_time_to_answer(self, slow: Desk) -> None:
        slow.session.publish(posts(1))
        slow.connection.run()
        slow.connection.block()
        for _ in range(3):
            slow.connection.run(publishing.SILENCE / 2)
        slow.connection.unblock()
        slow.connection.run(publishing.SILENCE / 2)
        assert slow.settled == []
        slow.channel.confirm(1)
        assert slow.confirmed == ["m0"]

    def test_after_a_channels_close_it_is_forgotten(self, silent: Desk) -> None:
        silent.channel.refuse(541, "INTERNAL_ERROR")
        assert silent.session.silent == []

    def test_an_alarm_is_no_silence(self, slow: Desk) -> None:
        slow.session.publish(posts(1))
        slow.connection.run()
        slow.connection.block()
        for _ in range(5):
            slow.connection.run(publishing.SILENCE)
        assert slow.settled == []
        slow.connection.unblock()
        slow.channel.confirm(1)
        assert slow.confirmed == ["m0"]

    def test_with_the_connection_the_looks_end(self, slow: Desk) -> None:
        assert slow.connection.clock.getDelayedCalls()
        slow.connection.lose()
        assert not slow.connection.clock.getDelayedCalls()


class TestBlocked:
    def test_to_a_broker_that_blocks_nothing_is_sent_and_nothing_is_kept_for_it(
        self, desk: Desk
    ) -> None:
        assert desk.session.alarm is None
        desk.connection.block("low on disk")
        assert desk.session.alarm == "low on disk"
        desk.session.publish(posts(2))
        assert desk.errors == dict.fromkeys(
            ["m0", "m1"], "the broker takes no messages for now: low on disk"
        )
        assert not desk.session.busy
        desk.connection.run()
        assert desk.broker.messages == []
        desk.connection.unblock()
        assert desk.session.alarm is None
        desk.session.publish([post("later")])
        desk.connection.run()
        assert desk.confirmed == ["later"]

    def test_what_waits_for_its_turn_when_it_blocks_is_left_to_the_relay(self, slow: Desk) -> None:
        slow.session.publish(posts(publishing.WINDOW + 2))
        slow.connection.run()
        slow.connection.block()
        assert len(slow.errors) == 2
        assert slow.session.busy
        slow.channel.confirm(publishing.WINDOW, multiple=True)
        assert len(slow.confirmed) == publishing.WINDOW
        assert not slow.session.busy

    def test_an_alarm_that_comes_and_goes_is_told_once(
        self, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(10):
            desk.connection.block()
            desk.connection.unblock()
        assert caplog.text.count("takes no messages for now (low on memory)") == 1
        assert caplog.text.count("takes messages, again after") == 1

    def test_what_is_in_flight_may_still_be_confirmed(self, slow: Desk) -> None:
        slow.session.publish(posts(1))
        slow.connection.run()
        slow.connection.block()
        slow.channel.confirm(1)
        assert slow.confirmed == ["m0"]

    def test_what_was_not_sent_can_be_left_to_the_relay(self, slow: Desk) -> None:
        slow.session.publish([post("in flight")])
        slow.connection.run()
        slow.session.publish(posts(publishing.WINDOW + 1))
        slow.session.abandon_pending("takes too long")
        assert set(slow.errors.values()) == {"takes too long"}
        assert len(slow.errors) == 2
        assert slow.session.busy
        slow.connection.run()
        assert slow.broker.ids[0] == "in flight"
        assert len(slow.broker.ids) == publishing.WINDOW


@given(st.randoms(use_true_random=False))
def test_in_a_storm_every_post_is_settled_once_and_confirmed_ones_are_there(
    rng: random.Random,
) -> None:
    desk = Desk(queues=())
    desk.broker.confirms_at_once = False
    sent = posts(20)
    waiting = list(sent)
    for _ in range(40):
        action = rng.choice(
            ["publish", "run", "confirm", "confirm", "close", "forbid", "block", "unblock", "wait"]
        )
        if action == "publish":
            desk.session.publish(waiting[:3])
            del waiting[:3]
        elif action == "run":
            desk.connection.run()
        elif action == "confirm" and desk.channel.arrived and desk.channel.is_open:
            tag = rng.randint(1, desk.channel.arrived)
            desk.channel.confirm(tag, multiple=rng.random() < 0.5)
        elif action == "close" and rng.random() < 0.2:
            desk.channel.refuse(541, "INTERNAL_ERROR")
        elif action == "forbid" and rng.random() < 0.2:
            desk.channel.refuse(403, TestForbidden.REASON.format("amq.default"))
        elif action == "block":
            desk.connection.block()
        elif action == "unblock":
            desk.connection.unblock()
        elif action == "wait":
            desk.connection.run(publishing.SILENCE / 2)
    desk.connection.unblock()
    desk.session.publish(waiting)
    while desk.session.busy:
        desk.connection.run()
        if desk.channel.arrived and desk.channel.is_open:
            desk.channel.confirm(desk.channel.arrived, multiple=True)
    assert sorted(p.message_id for p, _ in desk.settled) == sorted(p.message_id for p in sent)
    assert set(desk.confirmed) <= set(desk.broker.ids)


class TestTooLarge:
    """RabbitMQ closes the channel over a message above its limit, with all that is in flight."""

    @pytest.fixture
    def desk(self) -> Desk:
        desk = Desk()
        desk.broker.max_message_size = 100
        desk.session.publish(
            [post("before"), post("large", body=b"x" * 101), post("exact", body=b"x" * 100)]
        )
        desk.connection.run()
        return desk

    def test_only_that_message_is_refused_with_the_reason(self, desk: Desk) -> None:
        ((large, reason),) = [(post, why) for post, why in desk.settled if why is not None]
        assert large.message_id == "large"
        assert isinstance(reason, publishing.Refused)
        assert "101 bytes is larger than the broker permits, 100 bytes" in reason

    def test_the_others_in_flight_arrive(self, desk: Desk) -> None:
        assert sorted(desk.confirmed) == ["before", "exact"]
        assert desk.broker.ids[-1] == "exact"

    def test_the_next_one_is_refused_without_closing_the_channel_again(self, desk: Desk) -> None:
        channels = len(desk.connection.channels)
        desk.session.publish([post("large again", body=b"x" * 101), post("after")])
        desk.connection.run()
        assert len(desk.connection.channels) == channels
        assert desk.confirmed[-1] == "after"
        assert not desk.session.busy
