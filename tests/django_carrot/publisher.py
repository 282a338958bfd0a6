# SPDX-License-Identifier: Apache-2.0
"""Publishes as django-carrot 1.5.0 does: its own connection, transient, unconfirmed, no app_id."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pika

from tests.django_carrot import tables

if TYPE_CHECKING:
    from carrot_twisted.virtual_host import VirtualHost


def declare(host: VirtualHost, queue: str = "default") -> None:
    """Exchange, queue and binding as a Consumer of django-carrot's declares them."""
    with pika.BlockingConnection(host.parameters()) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange=queue)
        channel.queue_declare(queue, durable=True, arguments={"x-max-priority": 255})
        channel.queue_bind(queue, queue, queue)


def send(
    host: VirtualHost, task: str, *args: Any, message_id: str, queue: str = "default", **kwargs: Any
) -> None:
    """Send a message without its row."""
    content: dict[str, Any] = {}
    if args:
        content["args"] = args
    if kwargs:
        content["kwargs"] = kwargs
    connection = pika.BlockingConnection(host.parameters())
    connection.channel().basic_publish(
        exchange="",
        routing_key=queue,
        body=json.dumps(content),
        mandatory=True,
        properties=pika.BasicProperties(
            headers={"type": task},
            content_type="application/json",
            priority=0,
            message_id=message_id,
            type="django-carrot message",
        ),
    )
    connection.close()


def publish(host: VirtualHost, task: str, *args: Any, **kwargs: Any) -> str:
    """Write the row, send the message; its id."""
    message_id = tables.add_log(task, *args, uuid=str(uuid4()), content=json.dumps(kwargs))
    send(host, task, *args, message_id=message_id, **kwargs)
    return message_id
