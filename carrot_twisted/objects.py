# SPDX-License-Identifier: Apache-2.0
"""Messages and their serialisers, with django-carrot's names and signatures."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from carrot_twisted import conf, wire
from carrot_twisted.exceptions import InvalidMessage, PoisonMessage
from carrot_twisted.models import MAX_TASK, MessageLog
from carrot_twisted.virtual_host import VirtualHost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "BaseMessageSerializer",
    "DefaultMessageSerializer",
    "Message",
    "VirtualHost",
    "resolve_task",
]

_logger = logging.getLogger("carrot_twisted.publisher")
_warned_queues: set[str] = set()
_resolved: dict[str, Callable[..., Any]] = {}


def resolve_task(path: str) -> Callable[..., Any]:
    """The function that a dotted path names. Imported once, then looked up.

    Raises:
        ImportError: no such module.
        AttributeError: the module has no such function, or it is not callable.
    """
    try:
        return _resolved[path]
    except KeyError:
        pass
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise ImportError(f"Unable to find the module: {path!r} is not of the form module.function")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ImportError(f"Unable to find the module: {module_name} ({error})") from error
    task = getattr(module, name, None)
    if not callable(task):
        raise AttributeError(f"Unable to find a function called {name} in the module {module_name}")
    _resolved[path] = task
    return task  # type: ignore[no-any-return]


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
        return {
            **wire.properties(message.task, message.uuid, message.priority),
            "headers": {self.type_header: message.task},
            "content_type": self.content_type,
            "type": self.message_type,
        }

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

    Raises:
        InvalidMessage: arguments that JSON would change, a priority out of range, names or a body
            too long.
        CarrotConfigException: no such queue in the settings.
    """

    def __init__(
        self,
        task: str,
        virtual_host: VirtualHost | None = None,
        queue: str = conf.DEFAULT_QUEUE,
        routing_key: str | None = None,
        exchange: str = "",
        priority: int = 0,
        task_args: Sequence[Any] = (),
        task_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        settings = conf.current()
        target = settings.queue(queue)
        if virtual_host is not None and virtual_host != target.host:
            raise InvalidMessage(
                f"Queue {target.name!r} is on {target.host} by CARROT['queues'], not on "
                f"{virtual_host}: give the queue that 'host' in the settings."
            )
        self.task = task
        self.queue = target.name
        self.virtual_host = target.host
        self.routing_key = routing_key or target.name
        self.exchange = exchange or ""
        self.priority = _checked_priority(priority, target)
        self.task_args = tuple(task_args)
        self.task_kwargs = dict(task_kwargs or {})
        self.args_json = (
            wire.exact_json(list(self.task_args), "positional arguments")
            if self.task_args
            else wire.NO_ARGS
        )
        self.kwargs_json = (
            wire.exact_json(self.task_kwargs, "keyword arguments")
            if self.task_kwargs
            else wire.NO_KWARGS
        )
        for what, text, limit in (
            ("task path", task, MAX_TASK),
            ("exchange", self.exchange, conf.MAX_NAME_BYTES),
            ("routing key", self.routing_key, conf.MAX_NAME_BYTES),
        ):
            if len(text.encode()) > limit:
                raise InvalidMessage(f"The {what} is longer than {limit} bytes: {text[:50]}…")
        size = len(self.args_json.encode()) + len(self.kwargs_json.encode())
        if size > settings.max_message_size:
            raise InvalidMessage(
                f"The arguments take {size} bytes as JSON; at most "
                f"{settings.max_message_size} (CARROT['max_message_size']) can be sent. Store the "
                "data and pass its key."
            )
        self.row = MessageLog.new(
            task=task,
            task_args=self.args_json,
            content=self.kwargs_json,
            exchange=self.exchange,
            queue=self.queue,
            routing_key=self.routing_key,
            priority=self.priority,
        )

    @property
    def formatter(self) -> DefaultMessageSerializer:
        """Turns this message into what goes over the wire."""
        return DefaultMessageSerializer(self)

    @property
    def uuid(self) -> str:
        """The message id, which is the primary key of its MessageLog."""
        return str(self.row.pk)

    def publish(self, pika_log_level: int = logging.ERROR) -> MessageLog:
        """Write the MessageLog in the caller's transaction; the broker is told on commit.

        Args:
            pika_log_level: accepted for django-carrot's sake and not used: publishing changes no
                logger.

        Returns:
            The MessageLog, PUBLISHED.
        """
        MessageLog.objects.enqueue([self.row])
        return self.row


def _checked_priority(priority: int, queue: conf.QueueSettings) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidMessage(f"A priority is a whole number, not {priority!r}.")
    if not 0 <= priority <= wire.MAX_PRIORITY:
        raise InvalidMessage(f"A priority is from 0 to {wire.MAX_PRIORITY}, not {priority}.")
    unheeded = priority and "x-max-priority" not in queue.queue_arguments
    if unheeded and queue.name not in _warned_queues:
        _warned_queues.add(queue.name)
        _logger.warning(
            "Queue %r has no x-max-priority: priorities have no effect. Add "
            "{'x-max-priority': 10} to its queue_arguments in CARROT['queues'].",
            queue.name,
        )
    return priority
