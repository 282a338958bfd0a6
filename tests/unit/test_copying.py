# SPDX-License-Identifier: Apache-2.0
"""Copies of messages whose handlers have failed: what they keep, what they say, where they go."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pika
import pytest

from carrot_twisted import conf, handlers
from carrot_twisted.handler_topology import MAX_QUEUE_BYTES, Layout
from carrot_twisted.retry import LONGEST, Action, Decision, Failure, Fault
from carrot_twisted.service import copying
from carrot_twisted.service.delivery import Delivery

if TYPE_CHECKING:
    from carrot_twisted.outbox import Post

NOW = "2026-11-28T00:00:00+00:00"
FAILURE = Failure(fault=Fault.HANDLER, exception="ValueError: no", traceback="Traceback…")
RETRY = Decision(action=Action.RETRY, delay=0.2)


@pytest.fixture(autouse=True)
def queue(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(handlers, "_registry", {})
    handlers.message_handler("mail")(lambda body: None)
    return handlers.queues(conf.current())[0]


def delivery(exchange: str = "data", key: str = "mail", **properties: Any) -> Delivery:
    given = pika.BasicProperties(**properties)
    return Delivery(None, 1, given, b"\x00body", exchange, key)  # type: ignore[arg-type]


def copy(queue: Any, original: Delivery, decision: Decision = RETRY, now: str = NOW) -> Post:
    return copying.copy_of(
        original, queue=queue, decision=decision, failure=FAILURE, now=now, host="here"
    )


def test_all_properties_are_kept_and_the_message_becomes_persistent(queue: Any) -> None:
    given: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "priority": 3,
        "correlation_id": "correlation",
        "reply_to": "reply",
        "message_id": "message",
        "timestamp": 1_700_000_000,
        "type": "type",
        "app_id": "app",
        "cluster_id": "cluster",
    }
    post = copy(queue, delivery(**given, delivery_mode=1))
    assert {name: getattr(post.properties, name) for name in given} == given
    assert post.properties.delivery_mode == 2
    assert (post.body, post.exchange, post.message_id) == (b"\x00body", "", "message")
    assert set(vars(pika.BasicProperties())) == {
        *given,
        *("headers", "delivery_mode", "user_id", "expiration"),
    }


def test_what_the_broker_would_act_upon_becomes_headers(queue: Any) -> None:
    post = copy(queue, delivery(user_id="somebody", expiration="5", headers={"CC": ["x"], "a": 1}))
    assert (post.properties.user_id, post.properties.expiration) == (None, None)
    headers = post.properties.headers
    assert (headers["x-carrot-user-id"], headers["x-carrot-expiration"]) == ("somebody", "5")
    assert headers["a"] == 1
    assert "CC" not in headers


def test_what_pika_reads_and_cannot_write_is_left_out(queue: Any) -> None:
    original = delivery(headers={"fine": 1}, reply_to=object(), type="type")
    original.properties.headers["impossible"] = object()
    properties = copy(queue, original).properties
    assert (properties.type, properties.reply_to) == ("type", None)
    assert properties.headers["fine"] == 1
    assert "impossible" not in properties.headers
    assert properties.encode()


def test_the_first_failure_stays_the_last_one_is_new(queue: Any) -> None:
    first = copy(queue, delivery())
    again = copy(queue, delivery("", "mail", headers=first.properties.headers), now="later")
    headers = again.properties.headers
    assert headers["x-carrot-first-failure"] == NOW
    assert headers["x-carrot-last-failure"] == "later"
    assert headers["x-retry-count"] == 2
    assert headers["x-carrot-host"] == "here"


def test_where_it_was_published_to_is_known_also_of_a_copy(queue: Any) -> None:
    post = copy(queue, delivery("data", "shop.paid"))
    returned = delivery("", "mail", headers=post.properties.headers)
    assert copying.origin_of(returned) == ("data", "shop.paid")
    # What comes by another exchange is no copy, whatever it says.
    assert copying.origin_of(delivery("x", "y", headers=post.properties.headers)) == ("x", "y")


def test_a_fingerprint_is_of_one_message_of_one_queue_however_often_it_comes() -> None:
    def told(queue: str = "mail", exchange: str = "data", **properties: Any) -> str:
        return copying.fingerprint(delivery(exchange, **properties), queue)

    one = told(headers={"a": 1}, message_id="\udc80")
    assert len(one) == 64
    again = {"a": 1, "x-delivery-count": 3, "x-acquired-count": 4}
    assert told(headers=again, message_id="\udc80") == one
    others = [
        told("other", headers={"a": 1}, message_id="\udc80"),
        told(exchange="other", headers={"a": 1}, message_id="\udc80"),
        told(headers={"a": 2}, message_id="\udc80"),
        told(headers={"a": 1}),
    ]
    assert len({one, *others}) == 5


def test_it_goes_to_the_queue_of_its_delay_or_to_the_archive(queue: Any) -> None:
    post = copy(queue, delivery(), Decision(action=Action.RETRY, delay=5))
    assert post.routing_key == "mail.retry.6000ms"
    assert [step.arguments["queue"] for step in post.steps] == ["mail.retry.6000ms"]
    post = copy(queue, delivery(), Decision(action=Action.ARCHIVE, reason="because"))
    assert post.routing_key == "mail.archived"
    assert [step.arguments["queue"] for step in post.steps] == ["mail.archived"]
    assert post.properties.headers["x-carrot-reason"] == "because"
    assert "x-retry-count" not in post.properties.headers


def test_the_retries_are_counted_in_the_header_of_the_settings(queue: Any) -> None:
    policy = dataclasses.replace(queue.policy, header="x-tries")
    queue = dataclasses.replace(queue, policy=policy)
    headers = copy(queue, delivery(headers={"x-tries": 1, "x-retry-count": 7})).properties.headers
    assert (headers["x-tries"], headers["x-retry-count"]) == (2, 7)


def test_the_properties_of_a_copy_fit_into_a_frame(queue: Any) -> None:
    headers = copy(queue, delivery(headers={"a": "x" * 99_000})).properties.headers
    assert "x-carrot-exception" in headers
    long = Failure(fault=Fault.HANDLER, exception="E", traceback="x" * 4000)
    post = copying.copy_of(
        delivery(headers={"a": "x" * 99_000}),
        queue=queue,
        decision=RETRY,
        failure=long,
        now=NOW,
        host="here",
    )
    assert "x-carrot-traceback" not in post.properties.headers
    assert post.properties.headers["x-carrot-exception"] == "E"
    assert sum(map(len, post.properties.encode())) <= copying.MAX_PROPERTIES


class TestLayout:
    def test_a_classic_queue_has_the_originals_layout_but_for_the_retries(self) -> None:
        layout = Layout(name="mail", archive_arguments={"x-message-ttl": 5})
        steps = layout.steps([200])
        declared = {
            step.arguments["queue"]: step.arguments["arguments"]
            for step in steps
            if "passive" not in step.arguments
        }
        classic = {"x-queue-type": "classic"}
        assert declared == {
            "mail.archived": {**classic, "x-message-ttl": 5},
            "mail.retry.200ms": {
                **classic,
                "x-message-ttl": 200,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "mail",
            },
            "mail": classic,
        }
        assert all(step.arguments.get("durable", True) for step in steps)
        # Those that copies go to are there before the first message is taken.
        assert [step.arguments["queue"] for step in steps] == [
            *("mail.archived", "mail.retry.200ms"),
            *("mail.archived", "mail.retry.200ms"),
            "mail",
        ]

    def test_arguments_of_the_handler_are_the_work_queues_only(self) -> None:
        layout = Layout(name="mail", arguments={"x-max-length": 5, "x-max-priority": 3})
        archive, retry, _, _, work = layout.steps([200])
        assert work.arguments["arguments"].items() >= {("x-max-length", 5), ("x-max-priority", 3)}
        for other in (archive, retry):
            assert not {"x-max-length", "x-max-priority"} & set(other.arguments["arguments"])

    def test_all_queues_of_a_quorum_queue_are_quorum_queues_and_drop_nothing(self) -> None:
        lazy = {"x-message-ttl": 5, "x-queue-mode": "lazy"}
        layout = Layout(name="mail", arguments={"x-queue-type": "quorum"}, archive_arguments=lazy)
        archive, retry, _, _, work = layout.steps([200])
        assert "x-queue-mode" not in archive.arguments["arguments"]
        assert all(step.is_quorum_queue for step in (archive, retry, work))
        arguments = work.arguments["arguments"]
        assert arguments["x-dead-letter-routing-key"] == "mail.archived"
        assert retry.arguments["arguments"]["x-dead-letter-strategy"] == "at-least-once"

    def test_a_dead_letter_exchange_of_the_project_is_left_alone(self) -> None:
        layout = Layout(
            name="mail", arguments={"x-queue-type": "quorum", "x-dead-letter-exchange": "dlx"}
        )
        arguments = layout.work_steps()[0].arguments["arguments"]
        assert arguments["x-dead-letter-exchange"] == "dlx"
        assert "x-dead-letter-routing-key" not in arguments

    def test_the_names_of_all_its_queues_can_be_sent(self) -> None:
        longest = Layout(name="x" * MAX_QUEUE_BYTES).retry_queue(LONGEST)
        assert len(longest) == 255

    def test_exchanges_are_declared_before_their_bindings_once_each(self, settings: Any) -> None:
        settings.CARROT = {
            "handlers": {
                "exchanges": {
                    "data": {"name": "data", "type": "topic", "arguments": {"a": 1}},
                    "there": {"name": "amq.topic", "passive": True},
                }
            }
        }
        exchanges = conf.handlers().exchanges
        data, there = exchanges["data"], exchanges["there"]
        layout = Layout(name="q", bindings=((data, "a"), (data, "b"), (there, "c")))
        steps = [
            (step.method, step.arguments.get("passive", False)) for step in layout.work_steps()
        ]
        assert steps == [
            ("exchange_declare", False),
            ("exchange_declare", True),
            ("queue_declare", False),
            *[("queue_bind", False)] * 3,
        ]
        assert layout.work_steps()[0].arguments["arguments"] == {"a": 1}
