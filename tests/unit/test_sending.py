# SPDX-License-Identifier: Apache-2.0
"""``carrot_twisted.publish``: what is sent, what is tried again, and what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import Deferred

from carrot_twisted import conf, publish, sending
from carrot_twisted.exceptions import InvalidMessage, PublishReturned, PublishTimeout
from carrot_twisted.publishing import Refused
from carrot_twisted.service import confirming
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.conftest import RecordingPublisher

    Posts = list[tuple[Any, Any, Callable[[str | None], None]]]


@pytest.fixture
def posts(handed_over: RecordingPublisher) -> Posts:
    return handed_over.posts


@pytest.fixture
def answers(handed_over: RecordingPublisher, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The broker's answers to the next tries; without one it says nothing."""
    prepared: list[Any] = []

    def submit_post(host: Any, post: Any, settled: Callable[[str | None], None]) -> None:
        handed_over.posts.append((host, post, settled))
        if prepared:
            settled(prepared.pop(0))

    monkeypatch.setattr(handed_over, "submit_post", submit_post)
    monkeypatch.setattr(sending, "RETRY", 0.01)
    return prepared


def test_it_returns_with_the_confirm(answers: list[Any], posts: Posts) -> None:
    answers.append(None)
    publish({"n": 1}, "exchange", "key", headers={"h": 1}, priority=2, message_id="mine")
    ((host, post, _),) = posts
    assert host == conf.current().default_broker
    assert (post.exchange, post.routing_key, post.body) == ("exchange", "key", b'{"n": 1}')
    properties = post.properties
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert (properties.headers, properties.priority) == ({"h": 1}, 2)
    assert post.message_id == properties.message_id == "mine"


@pytest.mark.parametrize(
    ("body", "data", "kind"),
    [
        (b"\xff", b"\xff", None),
        (bytearray(b"a"), b"a", None),
        ("ä", "ä".encode(), "text/plain"),
        ([1, None], b"[1, null]", "application/json"),
    ],
)
def test_the_body_is_bytes_text_or_json(
    answers: list[Any], posts: Posts, body: Any, data: bytes, kind: str | None
) -> None:
    answers.append(None)
    publish(body, routing_key="queue")
    assert posts[0][1].body == data
    assert posts[0][1].properties.content_type == kind


def test_what_is_refused_is_told_at_once_with_the_reason(answers: list[Any], posts: Posts) -> None:
    answers.append(Refused("unroutable: is there such a queue?"))
    with pytest.raises(PublishReturned, match=r"routing key 'queue'.*such a queue\?"):
        publish("text", routing_key="queue")
    assert len(posts) == 1


def test_what_was_not_confirmed_is_sent_again(answers: list[Any], posts: Posts) -> None:
    answers += ["the connection was lost", "no connection", None]
    publish("text", routing_key="queue")
    first, second, third = (post for _, post, _ in posts)
    assert len({first, second, third}) == 3
    assert first.message_id == second.message_id == third.message_id


@pytest.mark.parametrize("answer", [[], ["the connection was lost"]])
def test_when_the_time_is_over_that_is_told(answers: list[Any], answer: list[str]) -> None:
    answers += answer
    reason = answer[0] if answer else "no answer"
    with pytest.raises(PublishTimeout, match=f"{reason}.*publish it again if it may come twice"):
        publish("text", routing_key="queue", timeout=0.05)


def test_an_alarm_is_told_also_of_a_message_that_was_sent_before_it(
    answers: list[Any], handed_over: RecordingPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handed_over, "alarm", lambda _host: "low on memory")
    with pytest.raises(PublishTimeout, match="takes no messages for now: low on memory"):
        publish("text", routing_key="queue", timeout=0.05)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "where the message is to go"),
        ({"exchange": "e" * 256}, "exchange is a text of 255 bytes"),
        ({"routing_key": 7}, "routing_key is a text"),
        ({"routing_key": "k", "body": object()}, "cannot be sent as JSON"),
        ({"routing_key": "k", "body": "\ud800"}, "no text that UTF-8 knows"),
        ({"routing_key": "k", "priority": 256}, "cannot be sent"),
        ({"routing_key": "k", "nonsense": 1}, "pika.BasicProperties"),
        ({"routing_key": "k", "headers": {"h": object()}}, "cannot be sent"),
        ({"routing_key": "k", "timeout": 0}, "timeout is a number of seconds"),
    ],
)
def test_what_cannot_be_sent_is_told(posts: Posts, given: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidMessage, match=text):
        publish(**{"body": "text", **given})
    assert not posts


class TestInTheReactor:
    @pytest.fixture
    def message(self) -> sending.Outgoing:
        return sending.outgoing(
            "text", "", "queue", headers=None, host=conf.current().default_broker
        )

    def publish(self, message: sending.Outgoing, clock: Reactor) -> list[Any]:
        told: list[Any] = []
        done = Deferred.fromCoroutine(confirming.publish(message, 5.0, clock))
        done.addBoth(lambda result: told.append(getattr(result, "value", result)))
        return told

    def test_it_is_sent_again_until_it_is_confirmed(
        self, message: sending.Outgoing, posts: Posts
    ) -> None:
        clock = Reactor()
        told = self.publish(message, clock)
        posts[0][2]("the connection was lost")
        clock.advance(0)
        clock.advance(sending.RETRY)
        assert not told
        posts[1][2](None)
        clock.advance(0)
        assert told == [None]

    def test_a_refusal_and_the_end_of_the_time_are_told(
        self, message: sending.Outgoing, posts: Posts
    ) -> None:
        clock = Reactor()
        refused, late = self.publish(message, clock), self.publish(message, clock)
        posts[0][2](Refused("unroutable"))
        clock.advance(4.9)
        assert isinstance(refused[0], PublishReturned)
        assert not late
        clock.advance(0.2)
        assert isinstance(late[0], PublishTimeout)
        # Too late.
        posts[1][2](None)
        clock.advance(0)
        assert len(late) == 1
