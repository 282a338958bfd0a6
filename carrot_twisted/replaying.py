# SPDX-License-Identifier: Apache-2.0
"""Puts the messages of an archive back into the queues that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pika.exceptions import AMQPError, ChannelClosedByBroker

from carrot_twisted import blocking, conf, copies, sending, topology
from carrot_twisted.exceptions import BrokerError
from carrot_twisted.sending import Outgoing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from carrot_twisted.virtual_host import VirtualHost

#: Headers that say why a message is in an archive, for it is there no more.
REASONS = (
    *(copies.REASON_HEADER, copies.EXCEPTION_HEADER, copies.TRACEBACK_HEADER, copies.HOST_HEADER),
    *(copies.FIRST_FAILURE_HEADER, copies.LAST_FAILURE_HEADER),
)
#: Seconds that the broker gets to confirm a message.
CONFIRM = 30.0
#: Seconds; see ``VirtualHost.connect_blocking``. Nothing is heard there while a confirm is awaited.
PATIENCE = 60


def host_of(queue: str) -> VirtualHost:
    """The broker that an archive is on: that of its queue of tasks, else that of handlers."""
    settings = conf.current()
    tasks = settings.queues.get(queue.removesuffix(topology.DEAD_SUFFIX))
    return settings.handlers.host if tasks is None else tasks.host


def replay_queue(host: VirtualHost, queue: str, to: str | None, limit: int | None) -> int:
    """Move the messages that are in a queue now into another one.

    Each is taken off when the broker has it in the other queue: killed in between, it is in both.

    Args:
        host: the broker.
        queue: the archive.
        to: where to; None: each message's header says where it comes from.
        limit: at most so many, the oldest.

    Returns:
        How many were moved.

    Raises:
        BrokerError: there is no such queue, or a message could not be moved; it stays where it is.
    """
    connection = blocking.connect(host, PATIENCE)
    try:
        channel = connection.channel()
        try:
            # What fails again meanwhile is not moved again.
            there = int(channel.queue_declare(queue, passive=True).method.message_count)
            count = there if limit is None else min(there, limit)
            for moved in range(count):
                if not _move_one(channel, queue, to, host):
                    return moved
        except ChannelClosedByBroker as error:
            raise BrokerError(f"Queue {queue!r} on {host.label}: {error.reply_text}.") from error
        except (AMQPError, OSError) as error:
            raise BrokerError(f"The connection to {host.label} was lost: {error!r}") from error
        return count
    finally:
        blocking.close(connection)


def _move_one(channel: Any, queue: str, to: str | None, host: VirtualHost) -> bool:
    """Move one message; False: there is none any more."""
    method, properties, body = channel.basic_get(queue)
    if method is None:
        return False
    headers: Mapping[str, Any] = properties.headers or {}
    target = to or headers.get(copies.QUEUE_HEADER)
    if not isinstance(target, str):
        raise BrokerError(
            f"A message of queue {queue!r} does not say in header {copies.QUEUE_HEADER} where it "
            "comes from. Say where it is to go: --to=QUEUE."
        )
    retries = conf.current().handlers.retry_header
    properties.headers = {
        key: value for key, value in headers.items() if key not in (*REASONS, retries)
    }
    properties.user_id = None
    message = Outgoing(host=host, exchange="", routing_key=target, body=body, properties=properties)
    sending.publish(message, CONFIRM)
    channel.basic_ack(method.delivery_tag)
    return True
