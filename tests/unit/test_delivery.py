# SPDX-License-Identifier: Apache-2.0
"""Acknowledgements: every delivery is settled once, and never before its time."""

from __future__ import annotations

from typing import Any, cast

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted.service import delivery
from carrot_twisted.service.delivery import Delivery, SafeChannel, Settler


class Channel:
    """A channel as the broker sees it: a wrong tag closes it."""

    def __init__(self) -> None:
        self.is_open = True
        self.unacked: set[int] = set()
        self.acked: set[int] = set()
        self.requeued: set[int] = set()
        self.rejected: set[int] = set()
        self.frames: list[tuple[str, int, bool]] = []

    def basic_ack(self, tag: int, multiple: bool = False) -> None:
        self.frames.append(("ack", tag, multiple))
        covered = {t for t in self.unacked if t <= tag} if multiple else {tag}
        self._settle(tag, covered)
        self.acked |= covered

    def basic_nack(self, tag: int, requeue: bool) -> None:
        self.frames.append(("nack", tag, False))
        self._settle(tag, {tag})
        (self.requeued if requeue else self.rejected).add(tag)

    def _settle(self, tag: int, covered: set[int]) -> None:
        assert self.is_open, "sent on a closed channel"
        assert tag in self.unacked, f"PRECONDITION_FAILED - unknown delivery tag {tag}"
        self.unacked -= covered


class Desk:
    """A settler, its channel, and deliveries with tags from 1."""

    def __init__(self, count: int = 0) -> None:
        self.channel = Channel()
        self.settler = Settler(self.channel)
        self.count = 0
        for _ in range(count):
            self.deliver()

    def deliver(self) -> int:
        self.count += 1
        self.channel.unacked.add(self.count)
        self.settler.delivered(self.count)
        return self.count

    def ack(self, *tags: int) -> list[tuple[str, int, bool]]:
        """Acknowledge, flush; the frames that this took."""
        self.channel.frames.clear()
        for tag in tags:
            self.settler.ack(tag)
        self.settler.flush()
        return self.channel.frames


def test_nothing_is_sent_before_the_flush() -> None:
    desk = Desk(1)
    desk.settler.ack(1)
    assert desk.channel.frames == []
    desk.settler.flush()
    assert desk.channel.frames == [("ack", 1, False)]


def test_a_run_without_a_gap_takes_one_frame() -> None:
    desk = Desk(5)
    assert desk.ack(3, 1, 2) == [("ack", 3, True)]
    assert desk.channel.unacked == {4, 5}


def test_behind_a_task_that_still_runs_tags_go_one_by_one() -> None:
    desk = Desk(5)
    assert desk.ack(4, 2) == [("ack", 2, False), ("ack", 4, False)]
    assert desk.ack(1, 3) == [("ack", 3, True)]
    assert desk.ack(5) == [("ack", 5, False)]


def test_a_tag_that_was_returned_leaves_no_gap() -> None:
    desk = Desk(3)
    desk.settler.requeue(2)
    assert desk.ack(1, 3) == [("ack", 3, True)]
    assert (desk.channel.acked, desk.channel.requeued) == ({1, 3}, {2})


def test_returning_is_immediate() -> None:
    desk = Desk(1)
    desk.settler.requeue(1)
    assert desk.channel.frames == [("nack", 1, False)]


def test_a_flush_without_news_sends_nothing() -> None:
    desk = Desk(2)
    desk.ack(1)
    assert desk.ack() == []


def test_on_a_closed_channel_nothing_is_sent_any_more() -> None:
    """The broker has those messages again; their tags would be somebody else's."""
    desk = Desk(3)
    desk.settler.ack(1)
    desk.channel.is_open = False
    assert not desk.settler.is_open
    desk.settler.requeue(2)
    desk.settler.flush()
    desk.settler.flush()
    assert desk.channel.frames == []


def test_a_delivery_is_settled_on_the_channel_that_brought_it() -> None:
    first, second = Desk(1), Desk(2)
    delivery, other = (
        Delivery(desk.settler, tag, pika.BasicProperties(), b"", "", "default")
        for desk, tag in ((first, 1), (second, 2))
    )
    delivery.ack()
    first.settler.flush()
    other.requeue()
    assert (first.channel.acked, second.channel.requeued) == ({1}, {2})
    assert second.channel.unacked == {1}


def test_properties_are_read_once_and_only_for_those_who_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = pika.BasicProperties(message_id="m", headers={"a": 1})
    read: list[bytes] = []

    def reading(encoded: bytes) -> pika.BasicProperties:
        read.append(encoded)
        return properties

    monkeypatch.setattr(delivery, "read_properties", reading)
    desk = Desk(1)
    one = Delivery(desk.settler, 1, b"encoded", b"", "", "default")
    one.ack()
    assert read == []
    assert one.properties is properties
    assert one.properties is properties
    assert read == [b"encoded"]


@given(st.data())
def test_every_tag_is_settled_as_it_was_asked_and_no_other(data: st.DataObject) -> None:
    last = data.draw(st.sampled_from(["ack", "requeue"]))
    desk = Desk()
    running: set[int] = set()
    acked: set[int] = set()
    requeued: set[int] = set()
    actions = st.lists(st.sampled_from(["deliver", "deliver", "ack", "ack", "requeue", "flush"]))
    for action in data.draw(actions):
        if action == "deliver":
            running.add(desk.deliver())
        elif action == "flush":
            desk.settler.flush()
            assert desk.channel.acked == acked
        elif running:
            tag = data.draw(st.sampled_from(sorted(running)))
            running.discard(tag)
            if action == "ack":
                desk.settler.ack(tag)
                acked.add(tag)
            else:
                desk.settler.requeue(tag)
                requeued.add(tag)
        assert desk.channel.requeued == requeued
        assert desk.channel.acked <= acked
        assert running <= desk.channel.unacked
    for tag in running:
        getattr(desk.settler, last)(tag)
    desk.settler.flush()
    assert desk.channel.unacked == set()


def test_it_remembers_nothing_of_what_is_settled() -> None:
    """A service runs for months."""
    desk = Desk()
    for _ in range(100):
        tags = [desk.deliver() for _ in range(5)]
        desk.ack(tags[4], tags[2])
        desk.settler.requeue(tags[3])
        desk.settler.take(tags[1], None)
        desk.ack(tags[0], tags[1])
    assert [len(v) for v in vars(desk.settler).values() if hasattr(v, "__len__")] == [0, 0, 0]


def test_nor_of_what_is_settled_behind_a_task_that_runs_for_long() -> None:
    """At a thousand tasks a second that would be half a million in ten minutes."""
    desk = Desk(1)
    for _ in range(100):
        tags = [desk.deliver() for _ in range(3)]
        desk.ack(*tags[:2])
        desk.settler.requeue(tags[2])
    sizes = [len(v) for v in vars(desk.settler).values() if hasattr(v, "__len__")]
    assert max(sizes) == 1
    assert desk.ack(1) == [("ack", 1, False)]


class TestWhatAHookSettles:
    """The first word about a message counts; the broker hears of no other."""

    @given(
        st.lists(
            st.tuples(
                st.integers(1, 8),
                st.sampled_from(["take", "give back", "throw", "ack", "requeue", "flush"]),
            ),
            max_size=60,
        )
    )
    def test_every_tag_is_settled_once_whoever_is_first(self, steps: list[tuple[int, str]]) -> None:
        desk = Desk(8)
        settled: set[int] = set()
        for tag, step in steps:
            if step == "flush":
                desk.settler.flush()
            elif step in ("ack", "requeue"):
                settled.add(tag)
                getattr(desk.settler, step)(tag)
            else:
                settled.add(tag)
                desk.settler.take(tag, {"take": None, "give back": True}.get(step, False))
                desk.settler.flush()
                assert tag not in desk.channel.unacked
        desk.settler.flush()
        assert desk.channel.unacked == set(range(1, 9)) - settled

    def test_twice_is_once(self) -> None:
        desk = Desk(1)
        desk.settler.take(1, True)
        desk.settler.take(1, None)
        assert (desk.channel.requeued, desk.channel.acked) == ({1}, set())


class Reactor:
    """Does in a moment what a thread hands over."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, tuple[Any, ...]]] = []

    def callFromThread(self, function: Any, *args: Any) -> None:  # noqa: N802
        self.waiting.append((function, args))

    def turn(self) -> None:
        for function, args in self.waiting:
            function(*args)
        self.waiting.clear()


class TestTheChannelForHooks:
    def safe(self, desk: Desk) -> tuple[SafeChannel, Reactor]:
        reactor = Reactor()
        return SafeChannel(cast("Any", desk.channel), desk.settler, reactor), reactor

    def test_it_settles_in_the_reactor_and_remembers_what_was_given_back(self) -> None:
        desk = Desk(4)
        safe, reactor = self.safe(desk)
        for tag in (1, 2, 3, 4):
            safe.watch(tag)
        safe.basic_ack(1)
        safe.basic_nack(2)
        safe.basic_nack(3, requeue=False)
        safe.basic_reject(delivery_tag=4)
        assert desk.channel.frames == []
        reactor.turn()
        channel = desk.channel
        assert (channel.acked, channel.requeued, channel.rejected) == ({1}, {2, 4}, {3})
        assert [safe.forget(tag) for tag in (1, 2, 3, 4)] == [False, True, True, True]
        assert [safe.forget(tag) for tag in (1, 2, 3, 4)] == [False] * 4

    def test_the_first_word_about_a_message_counts_here_too(self) -> None:
        desk = Desk(2)
        safe, reactor = self.safe(desk)
        for tag in (1, 2):
            safe.watch(tag)
        safe.basic_ack(1)
        safe.basic_nack(1)
        safe.basic_nack(2)
        safe.basic_ack(2)
        reactor.turn()
        assert (desk.channel.acked, desk.channel.requeued) == ({1}, {2})
        assert [safe.forget(tag) for tag in (1, 2)] == [False, True]

    def test_what_a_hook_settles_too_late_is_not_remembered(self) -> None:
        """A project may keep messages, and settle them from a thread of its own."""
        desk = Desk(50)
        safe, reactor = self.safe(desk)
        for tag in range(1, 51):
            safe.watch(tag)
            safe.forget(tag)
            desk.ack(tag)
            safe.basic_nack(tag)
        reactor.turn()
        assert safe._watched == {}
        assert desk.channel.requeued == set()

    def test_after_its_close_nothing_is_sent_and_nothing_raises(self) -> None:
        desk = Desk(2)
        safe, reactor = self.safe(desk)
        safe.basic_ack(1)
        desk.channel.is_open = False
        reactor.turn()
        safe.basic_nack(2)
        reactor.turn()
        assert desk.channel.frames == []

    def test_many_at_once_would_be_other_threads_messages(self) -> None:
        safe, reactor = self.safe(Desk(2))
        for settle in (safe.basic_ack, safe.basic_nack):
            with pytest.raises(ValueError, match="one message at a time"):
                settle(2, multiple=True)
        assert reactor.waiting == []

    def test_the_rest_of_the_channel_is_for_the_reactors_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        safe, _ = self.safe(Desk())
        monkeypatch.setattr(delivery, "isInIOThread", lambda: True)
        assert safe.is_open is True
        monkeypatch.setattr(delivery, "isInIOThread", lambda: False)
        with pytest.raises(RuntimeError, match=r"channel\.is_open is for the reactor's thread"):
            _ = safe.is_open
