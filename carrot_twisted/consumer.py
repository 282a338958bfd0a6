# SPDX-License-Identifier: Apache-2.0
"""The object that a project subclasses and names as a queue's ``consumer_class``.

Names, signatures and moments of the hooks are django-carrot's; unlike there, a consumer is no
thread. The service does the work and calls the hooks, so a hook that raises costs one message, or
nothing. Where each hook runs:

=======================  ===========================================================================
in a worker thread       ``on_message``, ``get_message_log``, ``get_task_type``, the methods of the
                         ``serializer``, ``fail`` and the failure callbacks: they may use the
                         database and block
in the reactor           ``run``, ``connect``, ``reconnect``, ``start_consuming``,
                         ``stop_consuming``, ``stop``, ``close_connection`` and every other
                         ``on_…``: they must return at once, or return a Deferred or coroutine
=======================  ===========================================================================

As long as a class overrides none of ``on_message``, ``get_message_log``, ``get_task_type`` and the
serializer, none of them is called: messages are then claimed in batches, and the row alone says
what runs. Overriding one costs some of the speed.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from django.db import router, transaction
from django.db.models.functions import Now
from django.utils.module_loading import import_string

from carrot_twisted import conf, execution, outcomes, running, task_logging
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import BaseMessageSerializer, DefaultMessageSerializer
from carrot_twisted.task_logging import LOGGING_FORMAT, ListHandler, LoggingTask

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pika
    from pika.connection import Connection
    from twisted.internet.defer import Deferred

    from carrot_twisted.execution import FailureCallback, Run
    from carrot_twisted.service.delivery import SafeChannel
    from carrot_twisted.service.engine import Engine
    from carrot_twisted.virtual_host import VirtualHost

__all__ = [
    "LOGGING_FORMAT",
    "Consumer",
    "ConsumerSet",
    "ListHandler",
    "LoggingTask",
]


class Link(Protocol):
    """What a consumer asks of the service. From any thread."""

    def connect(self) -> None:
        """Use the connection to the queue's broker; make it, if there is none."""

    def consume(self, wanted: bool) -> None:
        """Let the broker deliver, or not."""

    def close_connection(self) -> None:
        """Close the connection. Unless the service stops, it connects again."""


class Serving(Protocol):
    """What the service does with the message that this thread is serving."""

    def process(self, properties: pika.BasicProperties, body: bytes) -> None:
        """Find the row, read the task, claim it, run it."""


#: The message that this thread is serving.
serving: ContextVar[Serving | None] = ContextVar("carrot_serving", default=None)
#: The row whose failure the service is going to write, while ``fail`` is called for it.
_failing: ContextVar[UUID | None] = ContextVar("carrot_failing", default=None)


class Consumer:
    """One queue's consumer: how to read its messages, and what to do when a task fails.

    One object serves all threads of its queue.

    Args:
        host: the queue's broker.
        queue: its name.
        logger: the logger ``carrot``.
        name: ``<queue>-consumer``.
        durable: as in the queue's settings.
        queue_arguments: as in the queue's settings.
        exchange_arguments: as in the queue's settings.
    """

    serializer: type[BaseMessageSerializer] = DefaultMessageSerializer

    def __init__(
        self,
        host: VirtualHost,
        queue: str,
        logger: logging.Logger,
        name: str,
        durable: bool = True,
        queue_arguments: Mapping[str, Any] | None = None,
        exchange_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.host = host
        self.queue = queue
        self.exchange = queue
        self.logger = logger
        self.name = name
        self.durable = durable
        self.queue_arguments = dict(queue_arguments or {})
        self.exchange_arguments = dict(exchange_arguments or {})
        self.failure_callbacks: list[Callable[[MessageLog, Any], Any]] = []
        self.connection: Connection | None = None
        """pika's connection while it is open; for the reactor's thread only."""
        self.channel: SafeChannel | None = None
        """The channel while it is open; settling on it works from every thread."""
        self.shutdown_requested = False
        self.link: Link | None = None
        """Set by the service that this consumer works for."""
        self.barred: Sequence[str] = ()
        """Queues whose messages are signed, where those of this queue need not be: their rows
        count as missing. Else who may publish to this queue need not sign for those."""

    # When a task fails: in the worker thread

    def add_failure_callback(self, cb: Callable[[MessageLog, Any], Any]) -> None:
        """Call ``cb(log, exception)`` in the worker thread whenever a task of this queue fails.

        It is called before the failure is written, in a transaction of its own: what it does to
        the database happens as a whole, or not at all if it raises. A callback that deletes the
        log, for example to publish the task anew, leaves nothing to write.
        """
        self.failure_callbacks.append(cb)

    def fail(self, log: MessageLog, err: str | BaseException) -> None:
        """A task failed: say so in the log and call the failure callbacks in their order.

        The service calls it when a task, or reading its message, raises; the row becomes FAILED
        afterwards, whatever an override does. Called by a project itself, it makes an unfinished
        row FAILED at once.

        Args:
            log: the row.
            err: what was raised, or a text.
        """
        self.logger.error("Task %s failed due to the following exception: %s", log.task, err)
        for callback in self.failure_callbacks:
            name = getattr(callback, "__name__", repr(callback))
            key = log.pk
            try:
                with _all_or_nothing(router.db_for_write(MessageLog)):
                    execution.awaited(callback(log, err))
            except BaseException as failure:
                # Where the callback had deleted the log, that has not happened.
                log.pk = key
                self.logger.error("Failure callback %s failed due to an error: %s", name, failure)
            else:
                self.logger.info("Failure callback %s succeeded", name)
        if _failing.get() != log.pk and log.pk is not None:
            _write_failure(log, err)

    def failure_hook(self) -> FailureCallback | None:
        """What ``execution`` calls when a task fails; None if there is nothing to call."""
        if self.failure_callbacks or self.overrides("fail"):
            return self._tell_failure
        return None

    def _tell_failure(self, run: Run, error: BaseException) -> None:
        try:
            log = MessageLog.objects.get(pk=run.uuid)
        except Exception:
            self.logger.exception("The failure callbacks of %s were not called", run.task)
            return
        token = _failing.set(log.pk)
        try:
            fail: Callable[..., Any] = self.fail
            execution.awaited(fail(log, error))
        except BaseException as failure:
            self.logger.error("%s.fail raised %r", type(self).__name__, failure)
        finally:
            _failing.reset(token)

    # One message: in a worker thread

    def on_message(
        self,
        channel: SafeChannel,
        method_frame: pika.spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        """Take one message: find its row, read its task, run it; the service records the outcome.

        An override may look at the message, change what it hands on to this method, or not call
        this method at all: then it has handled the message, which is acknowledged, and whose row,
        if it has one, becomes COMPLETED. It may also settle the message itself on ``channel``.
        A message may come more than once: after a lost connection, or while its row is not there.

        Args:
            channel: settles from any thread: ``basic_ack``, ``basic_nack``, ``basic_reject``.
            method_frame: pika's Basic.Deliver, with the delivery tag and the routing key.
            properties: of the message.
            body: of the message.

        Raises:
            RuntimeError: nobody is serving a message in this thread.
        """
        current = serving.get()
        if current is None:
            raise RuntimeError("on_message is called by the service, for a message it received.")
        current.process(properties, body)

    def get_message_log(self, properties: pika.BasicProperties, body: bytes) -> MessageLog | None:
        """The row of a message: the one whose primary key is its ``message_id``.

        Override it to create rows for messages that others publish. Give the row a primary key
        that follows from the message (``uuid.uuid5``), so that a message which comes twice finds
        its row, and is run once. Use ``get_or_create``; leave ``status`` alone.

        Args:
            properties: of the message.
            body: not used here.

        Returns:
            The row, in any state: the service sees to it that it runs once. None: there is none;
            the service asks again for some seconds, and then moves the message, unchanged, to the
            queue's dead-letter queue.
        """
        try:
            key = UUID(properties.message_id)
        except (ValueError, TypeError, AttributeError):
            return None
        return MessageLog.objects.filter(pk=key).exclude(queue__in=self.barred).first()

    def get_task_type(self, properties: pika.BasicProperties, body: bytes) -> str:
        """Dotted path of a message's task: its header ``serializer.type_header``.

        Unless the serializer finds the task by itself (``get_task``), it must be the row's task:
        no path is imported on the word of a message.

        Args:
            properties: of the message; ``properties["name"]`` reads a header, for overrides that
                were written for django-carrot 1.5.0, which passed the headers here.
            body: not used here.

        Raises:
            KeyError: there is no such header. The task fails and says so.
        """
        headers = getattr(properties, "headers", properties) or {}
        return str(headers[self.serializer.type_header])

    @property
    def reads_messages(self) -> bool:
        """Whether this class has its own way with messages, so that its hooks are called."""
        hooks = ("on_message", "get_message_log", "get_task_type")
        return any(map(self.overrides, hooks)) or self.serializer is not DefaultMessageSerializer

    def overrides(self, hook: str) -> bool:
        """Whether this consumer, by its class or by itself, has its own way with that hook."""
        return getattr(getattr(self, hook), "__func__", None) is not getattr(Consumer, hook)

    # The connection: in the reactor

    def run(self) -> None:
        """The service starts this consumer. Connects."""
        self.connect()

    def connect(self) -> Connection | None:
        """Connect to the broker; queues of one broker share a connection.

        Returns:
            pika's connection if it is open already. None: ``on_connection_open`` comes later.
        """
        if self.link is not None:
            self.link.connect()
        return self.connection

    def reconnect(self) -> None:
        """The connection was lost: connect again. The service waits longer after each failure."""
        self.connect()

    def start_consuming(self) -> None:
        """Let the broker deliver. The service calls it when the queue is declared and bound."""
        if self.link is not None:
            self.link.consume(True)

    def stop_consuming(self) -> None:
        """Let the broker deliver nothing more; ``start_consuming`` takes it up again."""
        if self.link is not None:
            self.link.consume(False)

    def stop(self) -> None:
        """The service stops: consume no more. Tasks that run may end."""
        self.shutdown_requested = True
        self.stop_consuming()

    def close_connection(self) -> None:
        """Close the connection to the broker; the service does so when all tasks have ended.

        Called by a project itself, the service connects again, unless it is stopping.
        """
        if self.link is not None:
            self.link.close_connection()

    def on_connection_open(self, connection: Connection) -> None:
        """The connection is open."""

    def on_connection_closed(self, *args: Any) -> None:
        """The connection is closed. ``args``: the connection, a reply code and a text."""

    def on_channel_open(self, channel: SafeChannel) -> None:
        """The channel is open; exchange and queue are declared next."""

    def on_channel_closed(self, channel: SafeChannel, reply_code: int, reply_text: str) -> None:
        """The channel is closed."""

    def on_exchange_declare(self, *args: Any) -> None:
        """The exchange is there. ``args``: pika's frame."""

    def on_queue_declare(self, *args: Any) -> None:
        """The queue is there. ``args``: pika's frame."""

    def on_bind(self, *args: Any) -> None:
        """The queue is bound to the exchange. ``args``: pika's frame."""

    def on_consumer_cancelled(self, method_frame: Any) -> None:
        """The broker cancelled the consumer: its queue was deleted. The service declares it anew.

        Args:
            method_frame: pika's frame with the Basic.Cancel.
        """

    def on_cancel(self, *args: Any) -> None:
        """The broker confirmed that it delivers nothing more. ``args``: pika's frame."""

    # What the thread is doing

    @property
    def active_message_log(self) -> MessageLog | None:
        """The row of the task that runs in this thread, as it is in the database now."""
        run = running.current.get()
        return MessageLog.objects.filter(pk=run.uuid).first() if run else None

    @property
    def task_log(self) -> list[str]:
        """The lines that the task which runs in this thread has logged so far."""
        transcript = task_logging.current.get()
        return transcript.lines if transcript else []


@contextmanager
def _all_or_nothing(using: str) -> Iterator[None]:
    """A transaction that what is in it can neither leave open nor break without notice."""
    connection = transaction.get_connection(using)
    inside = connection.in_atomic_block
    try:
        with transaction.atomic(using=using):
            depth = len(connection.savepoint_ids)
            yield
            if len(connection.savepoint_ids) != depth:
                raise RuntimeError("it left a transaction open")
            with connection.cursor() as cursor:
                # PostgreSQL answers COMMIT by a silent rollback, where an error was caught.
                cursor.execute("SELECT 1")
    finally:
        if connection.in_atomic_block and not inside:
            execution.clean_connections()


def _write_failure(log: MessageLog, err: str | BaseException) -> None:
    limit = conf.current().max_result_size
    error = err if isinstance(err, BaseException) else None
    MessageLog.objects.unfinished().filter(pk=log.pk).update(
        status=MessageLog.FAILED,
        failure_time=Now(),
        exception=(
            outcomes.exception_text(error, limit) if error else outcomes.stored(str(err), limit)
        ),
        traceback=(
            outcomes.stored("".join(traceback.format_exception(error))[-limit:], limit)
            if error
            else None
        ),
        exception_class=outcomes.exception_class(error) if error else None,
    )


def make_consumer(path: str, **arguments: Any) -> Consumer:
    """An object of the class that ``consumer_class`` names.

    Raises:
        CarrotConfigException: there is no such class, or it is no Consumer.
    """
    return ConsumerSet.get_consumer_class(path)(**arguments)


class ConsumerSet:
    """Consumes one queue in this process, beside whatever else the process does.

    ``twistd carrot`` is the usual way to consume. This one is for programs that want a queue's
    tasks in their own process: with Twisted's reactor running already, or in a thread that the
    set starts for it.

    Args:
        host: the queue's broker.
        queue: its name; arguments of a queue in ``CARROT["queues"]`` are taken from there.
        logger: given to the consumer.
        concurrency: tasks at once.
        name: the consumer is called ``<queue>-<name>``.
        consumer_class: dotted path.
    """

    durable = True
    queue_arguments: Mapping[str, Any] = {}
    exchange_arguments: Mapping[str, Any] = {}

    def __init__(
        self,
        host: VirtualHost,
        queue: str,
        logger: logging.Logger,
        concurrency: int = 1,
        name: str = "consumer",
        consumer_class: str = conf.QUEUE_DEFAULTS["consumer_class"],
    ) -> None:
        self.host = host
        self.queue = queue
        self.logger = logger
        self.concurrency = concurrency
        self.name = f"{queue}-{name}"
        self.consumer_class = consumer_class
        self._engine: Engine | None = None

    @staticmethod
    def get_consumer_class(consumer_class: str) -> type[Consumer]:
        """The class of that dotted path.

        Raises:
            CarrotConfigException: there is no such class, or it is no Consumer.
        """
        try:
            factory = import_string(consumer_class)
        except ImportError as error:
            raise CarrotConfigException(f"consumer_class {consumer_class!r}: {error}") from error
        if not (isinstance(factory, type) and issubclass(factory, Consumer)):
            raise CarrotConfigException(
                f"consumer_class {consumer_class!r} is not a subclass of "
                "carrot_twisted.consumer.Consumer"
            )
        return factory

    def start_consuming(self) -> Deferred[None] | None:
        """Start the threads and consume. Returns when the database has answered.

        Returns:
            None; in the reactor's thread a Deferred that fires then.

        Raises:
            CarrotConfigException: the database lacks our tables, or the class is no Consumer.
            RuntimeError: it consumes already.
        """
        started: Deferred[None] | None = self._in_reactor(self._start)
        return started

    def stop_consuming(self) -> Deferred[None] | None:
        """Take nothing more, let running tasks end, close the connections. Returns then.

        Returns:
            None; in the reactor's thread a Deferred that fires when all is done.
        """
        stopped: Deferred[None] | None = self._in_reactor(self._stop)
        return stopped

    def _in_reactor(self, function: Callable[[], Any]) -> Any:
        from twisted.internet.defer import Deferred
        from twisted.internet.threads import blockingCallFromThread
        from twisted.python.threadable import isInIOThread

        from carrot_twisted.service.background import running_reactor

        reactor = running_reactor()
        if isInIOThread():
            return Deferred.fromCoroutine(function())
        return blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(function()))

    async def _start(self) -> None:
        from carrot_twisted.service.background import running_reactor
        from carrot_twisted.service.engine import Engine
        from carrot_twisted.service.engine_options import ServiceOptions

        if self._engine is not None:
            raise RuntimeError(f"{self.name} consumes already; stop_consuming ends that.")
        refusals: list[str] = []
        settings = conf.current()
        known = settings.queues.get(self.queue)
        queue = conf.QueueSettings(
            name=self.queue,
            host=self.host,
            concurrency=self.concurrency,
            consumable=True,
            durable=known.durable if known else self.durable,
            queue_arguments=dict(known.queue_arguments if known else self.queue_arguments),
            exchange_arguments=dict(known.exchange_arguments if known else self.exchange_arguments),
            consumer_class=self.consumer_class,
            prefetch=known.prefetch if known else None,
            signing=known.signing if known else settings.signing,
        )
        self._engine = Engine(
            dataclasses.replace(settings, queues={**settings.queues, self.queue: queue}),
            ServiceOptions(
                queues=(self.queue,),
                scheduler=False,
                consumer_name=self.name,
                logger=self.logger,
            ),
            running_reactor(),
            on_fatal=refusals.append,
            on_crash=functools.partial(self.logger.critical, "Queue %s: %s", self.queue),
            on_recycle=functools.partial(
                self.logger.critical, "Queue %s: this process should be restarted: %s", self.queue
            ),
            on_stop=self.stop_consuming,
        )
        await self._engine.start()
        if refusals:
            await self._stop()
            raise CarrotConfigException(refusals[0])

    async def _stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()
