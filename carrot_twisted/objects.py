# SPDX-License-Identifier: Apache-2.0
"""Messages and their serialisers, with django-carrot's names and signatures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import pika
from django.db import router, transaction

from carrot_twisted import blocking, conf, topology, wire
from carrot_twisted.exceptions import BrokerError, DuplicateTask, InvalidMessage, PoisonMessage
from carrot_twisted.models import MessageLog
from carrot_twisted.signing import Seal
from carrot_twisted.task_paths import resolve_task
from carrot_twisted.virtual_host import HEARTBEAT, VirtualHost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pika.adapters.blocking_connection import BlockingChannel

    from carrot_twisted.task_options import PublishOptions

__all__ = [
    "BaseMessageSerializer",
    "DefaultMessageSerializer",
    "Message",
    "VirtualHost",
    "resolve_task",
]


class BaseMessageSerializer:
    """Turns a ``Message`` into what goes over the wire, and a message into a call.

    Subclass it, and name the subclass as ``serializer`` of a ``Consumer``, to read messages that
    others publish in a form of their own.

    Args:
        message: the message to publish; None for reading.
    """

    content_type: ClassVar[str] = wire.CONTENT_TYPE
    type_header: ClassVar[str] = ""
    message_type: ClassVar[str] = ""

    def __init__(self, message: Message | None = None) -> None:
        self._message = message

    @property
    def message(self) -> Message:
        if self._message is None:
            raise ValueError("This serializer reads messages; it was made without one to publish.")
        return self._message

    @classmethod
    def get_task(cls, properties: Any, body: bytes) -> Callable[..., Any]:
        """The function that a message names in its header ``type_header``.

        Args:
            properties: ``pika.BasicProperties`` of the message.
            body: not used here; for subclasses that find the task in the body.

        Raises:
            PoisonMessage: the header is missing.
            ImportError, AttributeError: there is no such function.
        """
        path = (properties.headers or {}).get(cls.type_header)
        if not isinstance(path, str):
            raise PoisonMessage(f"The message has no header {cls.type_header!r} that names a task.")
        return resolve_task(path)

    def publish_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for a pika channel's ``basic_publish``, without the properties."""
        return {
            "exchange": self.message.exchange,
            "routing_key": self.message.routing_key,
            "body": self.body(),
            "mandatory": True,
        }

    def body(self) -> str:
        """The message body, JSON text: ``{"args": [...], "kwargs": {...}}``."""
        return wire.body(self.message.args_json, self.message.kwargs_json).decode()

    def properties(self) -> dict[str, Any]:
        """Keyword arguments for ``pika.BasicProperties``."""
        message = self.message
        properties = {
            **wire.properties(message.task, message.uuid, message.priority),
            "headers": {self.type_header: message.task},
            "content_type": self.content_type,
            "type": self.message_type,
        }
        if conf.current().queue(message.queue).signs:
            return Seal().sign(properties, self.body().encode())
        return properties

    def publish(self, connection: pika.BlockingConnection, channel: BlockingChannel) -> None:
        """Send this message and wait until the broker has it; then close the connection.

        The message alone. The service runs no message without a row: ``Message.publish`` is what
        writes it. This is for other brokers' queues, and for a ``Message.connection_channel``.

        Raises:
            BrokerError: the broker has it not, or it is not certain that it has.
        """
        try:
            properties = pika.BasicProperties(**self.properties())
            blocking.publish(channel, properties, **self.publish_kwargs())
        finally:
            blocking.close(connection)

    @classmethod
    def serialize_arguments(cls, body: str) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Positional and keyword arguments of a message body.

        Raises:
            PoisonMessage: the body is not JSON of the expected form.
        """
        return wire.arguments(body)


class DefaultMessageSerializer(BaseMessageSerializer):
    """The wire format of django-carrot."""

    type_header = wire.TYPE_HEADER
    message_type = wire.MESSAGE_TYPE


class Message:
    """A task to publish. Made by ``utilities.create_message``; checked when it is made.

    Args:
        task: dotted path of the function.
        virtual_host: the queue's broker; None takes it from the settings. Another one is refused:
            the service would not look there.
        queue: name of a queue in ``CARROT["queues"]``; its worker runs the task.
        routing_key: defaults to the queue's name.
        exchange: "" is RabbitMQ's default exchange, which routes to the queue of the key's name.
        priority: 0 to 255, higher first; needs ``x-max-priority`` in the queue's arguments.
        task_args: positional arguments, JSON values.
        task_kwargs: keyword arguments, JSON values.
        options: more of this publishing: ``tasks.Task.options`` makes them.

    Queue and priority that are None are as the options and the task's decorator say, or else
    "default" and 0.

    Raises:
        InvalidMessage: arguments that JSON would change, a priority out of range, names or a body
            too long.
        CarrotConfigException: no such queue in the settings.
    """

    def __init__(
        self,
        task: str,
        virtual_host: VirtualHost | None = None,
        queue: str | None = None,
        routing_key: str | None = None,
        exchange: str = "",
        priority: int | None = None,
        task_args: Sequence[Any] = (),
        task_kwargs: Mapping[str, Any] | None = None,
        *,
        options: PublishOptions | None = None,
    ) -> None:
        self.task_args = tuple(task_args)
        self.task_kwargs = dict(task_kwargs or {})
        self.row = row = MessageLog.checked(
            task, queue, routing_key, exchange, priority, self.task_args, self.task_kwargs, options
        )
        if virtual_host is not None:
            target = conf.current().queue(row.queue)
            if virtual_host != target.host:
                raise InvalidMessage(
                    f"Queue {target.name!r} is on {target.host} by CARROT['queues'], not on "
                    f"{virtual_host}: give the queue that 'host' in the settings."
                )
        self.task = task
        self.queue = row.queue
        self.routing_key = row.routing_key
        self.exchange = row.exchange
        self.priority = row.priority
        self.args_json = row.task_args
        self.kwargs_json = row.content

    @property
    def virtual_host(self) -> VirtualHost:
        """The queue's broker."""
        return conf.current().queue(self.queue).host

    @property
    def formatter(self) -> DefaultMessageSerializer:
        """Turns this message into what goes over the wire."""
        return DefaultMessageSerializer(self)

    @property
    def uuid(self) -> str:
        """The message id, which is the primary key of its MessageLog."""
        return str(self.row.pk)

    @property
    def connection_channel(self) -> tuple[pika.BlockingConnection, BlockingChannel]:
        """A new connection to the queue's broker, and a channel on it; the queue is there then.

        The connection is the caller's to close; ``formatter.publish`` does so.

        Raises:
            BrokerError: no connection, or the broker refused to declare the queue.
        """
        steps = topology.work_queue(conf.current().queue(self.queue))
        connection = blocking.connect(self.virtual_host, HEARTBEAT)
        try:
            return connection, blocking.declared_channel(connection, steps)
        except BrokerError:
            blocking.close(connection)
            raise

    def publish(self, pika_log_level: int = logging.ERROR) -> MessageLog:
        """Write the MessageLog in the caller's transaction; the broker is told on commit.

        Args:
            pika_log_level: accepted for django-carrot's sake and not used: publishing changes no
                logger.

        Returns:
            The MessageLog, PUBLISHED. Of a unique task that is there already: that one's, whose
            ``duplicate`` is True.

        Raises:
            DuplicateTask: the same, and the task says ``on_duplicate="raise"``.
        """
        return publish_rows([self.row])[0]


def publish_rows(rows: Sequence[MessageLog]) -> list[MessageLog]:
    """Publish rows in one transaction, or none; see ``MessageLogQuerySet.enqueue``.

    Raises:
        DuplicateTask: one that refuses duplicates is one. Nothing was published.
    """
    if not any(row.refuses_duplicates for row in rows):
        return MessageLog.objects.enqueue(rows)
    with transaction.atomic(using=router.db_for_write(MessageLog)):
        logs = MessageLog.objects.enqueue(rows)
        for row, log in zip(rows, logs, strict=True):
            if log.duplicate and row.refuses_duplicates:
                raise DuplicateTask(row.unique_key or "", log.pk)
    return logs
