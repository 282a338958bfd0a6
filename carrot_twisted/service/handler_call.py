# SPDX-License-Identifier: Apache-2.0
"""Calls a handler with what it asks for of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pika

from carrot_twisted import handlers
from carrot_twisted.handlers import Message
from carrot_twisted.service import copying

if TYPE_CHECKING:
    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.service.delivery import Delivery


def call(queue: HandlerQueue, delivery: Delivery) -> Any:
    """Call a queue's handler, on a worker thread; returns what it returns."""
    if queue.of_body is not None:
        return queue.of_body(handlers.content_of(delivery.body, delivery.properties, queue.accept))
    return queue.call(_message(queue, delivery))


def _message(queue: HandlerQueue, delivery: Delivery) -> Message:
    exchange, routing_key = copying.origin_of(delivery)
    # Of its own: what a handler changes in them must not get into a copy.
    headers = dict(delivery.properties.headers or {})
    properties = pika.BasicProperties(**vars(delivery.properties) | {"headers": headers})
    return Message(
        body=delivery.body,
        routing_key=routing_key,
        exchange=exchange,
        queue=queue.name,
        headers=headers,
        properties=properties,
        redelivered=delivery.redelivered,
        retries=queue.policy.retries(headers),
        accept=queue.accept,
    )
