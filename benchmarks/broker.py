# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ's side: how many messages wait, and tidying up. With pika, over one connection."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from benchmarks import processes
from benchmarks.queues import Queues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NOT_FOUND = 404
#: Of a queue of messages: the same for all who declare it.
QUEUE_ARGUMENTS = {"x-queue-type": "classic"}
#: What is made beside a queue of tasks, of messages with a handler, of Celery's worker, of
#: Dramatiq's.
BESIDE = (
    *("dead", "archived", "tasks", "retry", "DQ", "XQ"),
    *("retry.200ms", "retry.1000ms", "retry.60000ms", "retry.1800000ms"),
)


class Broker(Queues):
    """A RabbitMQ server that all use but those who have another broker."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        super().__init__(url, processes.find_server(parameters.host, parameters.port))
        # Nobody serves heartbeats while a measure runs.
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def facts(self) -> dict[str, str]:
        return {"RabbitMQ": str(self._connection._impl.server_properties["version"])}

    def delete(self, queue: str) -> None:
        for each in (queue, *(f"{queue}.{name}" for name in BESIDE)):
            self._on_channel(BlockingChannel.queue_delete, each)
            self._on_channel(BlockingChannel.exchange_delete, each)

    def delete_all(self, queues: Iterable[str]) -> None:
        """The same for many, on one channel: the broker takes it as done where there is none."""
        channel = self._connection.channel()
        for queue in queues:
            for each in (queue, *(f"{queue}.{name}" for name in BESIDE)):
                channel.queue_delete(each)
            channel.exchange_delete(queue)
        channel.close()

    def fill(self, queue: str, exchange: str, messages: int) -> None:
        """Make a queue, and publish a backlog of numbered messages into it.

        They are persistent, small, and what fedora-messaging publishes of the simplest kind, so
        that every consumer can read them.
        """
        channel = self._connection.channel()
        channel.queue_declare(queue, durable=True, arguments=QUEUE_ARGUMENTS)
        if exchange:
            channel.queue_bind(queue, exchange, routing_key=queue)
        for number in range(messages):
            channel.basic_publish(exchange, queue, body_of(number), properties_of_message())
        channel.close()
        self.expect(queue, messages)

    def _waiting(self, queue: str) -> int:
        answer = self._on_channel(partial(BlockingChannel.queue_declare, passive=True), queue)
        return int(answer.method.message_count) if answer else 0

    def _on_channel(self, method: Callable[..., Any], name: str) -> Any:
        """Call a method on a channel of its own; None if there is nothing of that name."""
        channel = self._connection.channel()
        try:
            answer = method(channel, name)
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            return None
        channel.close()
        return answer


def body_of(number: int) -> bytes:
    """A message, as JSON."""
    text = "an order has been paid"
    return json.dumps({"number": number, "text": text, "items": [1, 2, 3]}).encode()


def properties_of_message() -> pika.BasicProperties:
    """What fedora-messaging gives to a message without a schema of its own."""
    return pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=pika.DeliveryMode.Persistent,
        message_id=str(uuid.uuid4()),
        priority=0,
        headers={
            "fedora_messaging_schema": "base.message",
            "fedora_messaging_severity": 20,
            "sent-at": datetime.now(UTC).isoformat(timespec="seconds"),
            "priority": 0,
        },
    )
