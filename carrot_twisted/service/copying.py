# SPDX-License-Identifier: Apache-2.0
"""The copy of a message that goes to a retry queue or to the archive, and what it says.

It goes through the nameless exchange. Body and properties are the original's, but for four: it is
persistent, and three that the broker would act upon, which become headers: user_id (checked
against our own user), expiration (the copy would vanish), and headers that route further copies.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pika

from carrot_twisted import copies, retry, wire
from carrot_twisted.copies import (
    EXCEPTION_HEADER,
    EXCHANGE_HEADER,
    EXPIRATION_HEADER,
    FIRST_FAILURE_HEADER,
    HOST_HEADER,
    LAST_FAILURE_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    ROUTING_KEY_HEADER,
    TRACEBACK_HEADER,
    USER_HEADER,
)
from carrot_twisted.outbox import Post
from carrot_twisted.retry import Action

if TYPE_CHECKING:
    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.retry import Decision, Failure
    from carrot_twisted.service.delivery import Delivery

#: Headers that may be left out, in this order, of a message that has too many of its own.
OPTIONAL = (TRACEBACK_HEADER, EXCEPTION_HEADER)
#: Bytes of all properties: they have to fit into one frame, of 131,072 bytes by default.
MAX_PROPERTIES = 100_000


def origin_of(delivery: Delivery) -> tuple[str, str]:
    """Exchange and routing key that a message was published with, also if this is a copy."""
    headers = delivery.properties.headers or {}
    exchange, key = headers.get(EXCHANGE_HEADER), headers.get(ROUTING_KEY_HEADER)
    if delivery.exchange == "" and isinstance(exchange, str) and isinstance(key, str):
        return exchange, key
    return delivery.exchange, delivery.routing_key


def is_same(one: Delivery, other: Delivery) -> bool:
    """Whether two deliveries are of one message, or of two that nothing distinguishes."""
    return _identity(one) == _identity(other)


def fingerprint(delivery: Delivery, queue: str) -> str:
    """Tells a message of a queue from others, but for those that nothing distinguishes."""
    exchange, routing_key, body, properties = _identity(delivery)
    told = repr((queue, exchange, routing_key, properties))
    return sha256(told.encode(errors="backslashreplace") + body).hexdigest()


def _identity(delivery: Delivery) -> tuple[str, str, bytes, dict[str, Any]]:
    properties = vars(delivery.properties) | {
        "headers": {
            key: value
            for key, value in (delivery.properties.headers or {}).items()
            if not copies.is_count(key)
        }
    }
    return delivery.exchange, delivery.routing_key, delivery.body, properties


def copy_of(
    delivery: Delivery,
    *,
    queue: HandlerQueue,
    decision: Decision,
    failure: Failure,
    now: str,
    host: str,
) -> Post:
    """The copy of a message whose handler has failed.

    Args:
        delivery: the message.
        queue: its queue.
        decision: RETRY or ARCHIVE.
        failure: of the handler.
        now: the time, as text.
        host: this machine's name.
    """
    properties = delivery.properties
    exchange, routing_key = origin_of(delivery)
    headers = copies.kept_headers(properties) | {
        QUEUE_HEADER: queue.name,
        EXCHANGE_HEADER: exchange,
        ROUTING_KEY_HEADER: routing_key,
        EXCEPTION_HEADER: failure.exception,
        TRACEBACK_HEADER: failure.traceback,
        LAST_FAILURE_HEADER: now,
        HOST_HEADER: host,
    }
    headers.setdefault(FIRST_FAILURE_HEADER, now)
    for header, value in (
        (USER_HEADER, properties.user_id),
        (EXPIRATION_HEADER, properties.expiration),
    ):
        if value is not None and copies.can_be_sent(headers={header: value}):
            headers[header] = value
    if decision.action is Action.RETRY:
        milliseconds = retry.step_of(decision.delay, queue.delays)
        target, declarations = (
            queue.layout.retry_queue(milliseconds),
            queue.layout.retry_steps(milliseconds),
        )
        headers[queue.policy.header] = queue.policy.retries(properties.headers) + 1
    else:
        target, declarations = queue.layout.archive, queue.layout.archive_steps
        headers[REASON_HEADER] = decision.reason
    return Post(
        message_id=str(properties.message_id),
        token=None,
        exchange="",
        routing_key=target,
        body=delivery.body,
        properties=_properties(properties, headers),
        steps=declarations,
    )


def _properties(original: pika.BasicProperties, headers: dict[str, Any]) -> pika.BasicProperties:
    kept = {
        name: value
        for name in (*copies.COPIED, "cluster_id")
        if (value := getattr(original, name)) is not None and copies.can_be_sent(**{name: value})
    }
    properties = pika.BasicProperties(**kept, headers=headers, delivery_mode=wire.PERSISTENT)
    for name in OPTIONAL:
        if sum(map(len, properties.encode())) <= MAX_PROPERTIES:
            break
        headers.pop(name, None)
    return properties
