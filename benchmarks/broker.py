# SPDX-License-Identifier: Apache-2.0
"""The broker's side: how many messages wait, and tidying up. With pika, over one connection."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from benchmarks import processes
from benchmarks.failure import BenchmarkFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

NOT_FOUND = 404
SECONDS_TO_SETTLE = 10.0


class Broker:
    """A RabbitMQ server that both systems use, each with queues of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        parameters = pika.URLParameters(url)
        # Nobody serves heartbeats while a measure runs.
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        properties = self._connection._impl.server_properties
        self.version = str(properties["version"])
        self._pid = processes.find_server(parameters.host, parameters.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that the server has used so far, where it can be seen."""
        return processes.tree_cpu_seconds(self._pid) if self._pid else None

    def delete(self, queue: str) -> None:
        """Delete a queue with all that the two systems declare beside it."""
        for each in (queue, f"{queue}.dead"):
            self._on_channel(BlockingChannel.queue_delete, each)
        self._on_channel(BlockingChannel.exchange_delete, queue)

    def expect(self, queue: str, messages: int) -> None:
        """Return when that many messages wait; raise if that does not come true."""
        deadline = time.monotonic() + SECONDS_TO_SETTLE
        while (found := self._waiting(queue)) != messages:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(
                    f"{found:,} messages wait in the queue where {messages:,} should"
                )
            time.sleep(0.05)

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
