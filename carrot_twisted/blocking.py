# SPDX-License-Identifier: Apache-2.0
"""What a call does that waits for the broker, on a blocking connection of its own.

For the few jobs of people and scripts. Publishing goes through the process's publisher, and the
service through the reactor.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from carrot_twisted.exceptions import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pika
    from pika.adapters.blocking_connection import BlockingChannel

    from carrot_twisted.topology import Step
    from carrot_twisted.virtual_host import VirtualHost

#: AMQP reply codes: there is no such thing; it exists with other arguments.
NOT_FOUND = 404
PRECONDITION_FAILED = 406


def connect(host: VirtualHost, patience: int) -> pika.BlockingConnection:
    """A new connection, for the caller to close.

    Args:
        host: whose broker.
        patience: seconds; see ``VirtualHost.connect_blocking``.

    Raises:
        BrokerError: none of its servers let us in.
    """
    try:
        return host.connect_blocking(patience)
    except (AMQPError, AMQPConnectorException, OSError) as error:
        # The second of them: a broker that accepts the connection and then says nothing.
        raise BrokerError(f"No connection to the broker {host.label}: {error!r}") from error


def close(connection: pika.BlockingConnection) -> None:
    """Close a connection, also one that is broken or closed."""
    with suppress(AMQPError, OSError):
        connection.close()


def declared_channel(connection: pika.BlockingConnection, steps: Sequence[Step]) -> BlockingChannel:
    """A new channel, after these declarations. What exists with other arguments is used as it is.

    Raises:
        BrokerError: the broker refused a declaration, or the connection was lost.
    """
    what = "channel"
    try:
        channel = connection.channel()
        for step in steps:
            what = step.name
            try:
                getattr(channel, step.method)(**step.arguments)
            except ChannelClosedByBroker as error:
                if error.reply_code != PRECONDITION_FAILED:
                    raise
                channel = connection.channel()
    except (AMQPError, OSError) as error:
        raise BrokerError(f"The {what} could not be declared: {error!r}") from error
    return channel


def publish(channel: BlockingChannel, properties: pika.BasicProperties, **kwargs: Any) -> None:
    """Publish one message and wait until the broker has it.

    Args:
        channel: an open channel; it is put into confirm mode.
        properties: of the message.
        kwargs: for ``basic_publish``.

    Raises:
        BrokerError: the broker has it not, or it is not certain that it has.
    """
    try:
        channel.confirm_delivery()
        channel.basic_publish(properties=properties, **kwargs)
    except UnroutableError as error:
        raise BrokerError(
            f"The message was not published: no queue is bound to exchange "
            f"{kwargs.get('exchange')!r} with routing key {kwargs.get('routing_key')!r}. "
            "Message.connection_channel declares the queue of the settings."
        ) from error
    except NackError as error:
        raise BrokerError(
            "The message was not published: the broker refused it, its queue may be full."
        ) from error
    except (AMQPError, OSError) as error:
        raise BrokerError(f"The broker did not confirm the message: {error!r}") from error


def purge(connection: pika.BlockingConnection, queue: str) -> None:
    """Drop the waiting messages of a queue. One that does not exist is as good as empty.

    Raises:
        BrokerError: the broker refused, or the connection was lost.
    """
    try:
        # A channel of its own: a refusal closes it.
        connection.channel().queue_purge(queue)
    except (AMQPError, OSError) as error:
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND:
            return
        raise BrokerError(f"Queue {queue!r} could not be purged: {error!r}") from error


def look(connection: pika.BlockingConnection, queue: str) -> tuple[int, int] | None:
    """How many messages are ready in a queue, and how many consumers it has; None: it is not there.

    Raises:
        BrokerError: the broker refused, or the connection was lost.
    """
    try:
        # A channel of its own: a refusal closes it.
        channel = connection.channel()
        declared = channel.queue_declare(queue, passive=True).method
        channel.close()
    except (AMQPError, OSError) as error:
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND:
            return None
        raise BrokerError(f"Queue {queue!r} could not be looked at: {error!r}") from error
    return declared.message_count, declared.consumer_count
