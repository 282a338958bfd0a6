# SPDX-License-Identifier: Apache-2.0
"""One message on its way through the hooks of a project's consumer, all in one worker thread.

The order is django-carrot's: ``on_message``, and in it ``get_message_log``, ``get_task_type``,
``serializer.get_task``, ``serializer.serialize_arguments``, then the task. Between reading and
running comes the claim, which waits for the database's writer. What goes wrong before the task is
the failure of this message: of its row, if there is one.
"""

from __future__ import annotations

import inspect
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
from django.db import router, transaction
from django.db.models.functions import Now

from carrot_twisted import execution, objects, wire
from carrot_twisted.consumer import Consumer, serving
from carrot_twisted.exceptions import InvalidMessage, PoisonMessage
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import BaseMessageSerializer

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from carrot_twisted.execution import Call, Limits, Run
    from carrot_twisted.outcomes import Result
    from carrot_twisted.service.delivery import Delivery, SafeChannel


class Outcome(Enum):
    """What a message's way through the hooks has come to."""

    RAN = "there is a result to record"
    HANDLED = "a hook has dealt with it: acknowledge"
    MISSING = "there is no row (yet)"
    BROKEN = "a hook raised, and there is no row to say so"
    AWAY = "the database did not answer: again later"
    ELSEWHERE = "its row is not for this thread; whoever decided that has settled it"


@dataclass(slots=True)
class Served:
    """The outcome, with what belongs to it."""

    outcome: Outcome
    result: Result | None = None
    error: BaseException | None = None


class Properties(pika.BasicProperties):  # type: ignore[misc]
    """Properties that also read like the headers: django-carrot 1.5.0 passed those to one hook."""

    def __init__(self, given: pika.BasicProperties) -> None:
        super().__init__()
        self.__dict__.update(given.__dict__)

    def __getitem__(self, name: str) -> Any:
        return (self.headers or {})[name]

    def __contains__(self, name: str) -> bool:
        return name in (self.headers or {})

    def get(self, name: str, default: Any = None) -> Any:
        """A header, or the default."""
        return (self.headers or {}).get(name, default)


class Serving:
    """One delivery in one thread.

    Args:
        consumer: the queue's.
        channel: given to ``on_message``.
        delivery: the message.
        claim: claims the row of that primary key and returns the run; None if it is not ours.
        claimed: the run, if the row was claimed already (a suspect, to run alone).
        limits: how much text to keep.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        channel: SafeChannel,
        delivery: Delivery,
        claim: Callable[[UUID], Run | None],
        claimed: Run | None,
        limits: Limits,
    ) -> None:
        self._consumer = consumer
        self._channel = channel
        self._delivery = delivery
        self._claim = claim
        self._run = claimed
        self._limits = limits
        self._served: Served | None = None

    def serve(self) -> Served:
        """Call ``on_message`` and tell what came of it. Never raises."""
        execution.clean_connections()
        try:
            return Context().run(self._serve)
        finally:
            execution.clean_connections()

    def _serve(self) -> Served:
        serving.set(self)
        delivery = self._delivery
        method = pika.spec.Basic.Deliver(
            delivery_tag=delivery.tag,
            redelivered=delivery.redelivered,
            exchange=delivery.exchange,
            routing_key=delivery.routing_key,
        )
        try:
            self._consumer.on_message(self._channel, method, delivery.properties, delivery.body)
        except BaseException as error:
            return self._raised(error)
        else:
            return self._served or self._handled()
        finally:
            self._channel.forget(delivery.tag)

    def _raised(self, error: BaseException) -> Served:
        if self._served is not None:
            # What the task did stands; only what came after it has failed.
            self._consumer.logger.error(
                "%s.on_message raised %r after the task had ended", self._consumer.name, error
            )
            return self._served
        if execution.blames_database(error):
            return Served(Outcome.AWAY, error=error)
        return self._end_without_task(partial(_raise, error), Served(Outcome.BROKEN, error=error))

    def _handled(self) -> Served:
        """An override has not called the base's method: the message is its own affair."""
        if self._channel.forget(self._delivery.tag):
            return Served(Outcome.HANDLED)
        return self._end_without_task(_nothing, Served(Outcome.HANDLED))

    def _end_without_task(self, prepare: Callable[[Run], Call], otherwise: Served) -> Served:
        """Bring the message's row to its end, if it has one."""
        try:
            if self._run is None:
                log = Consumer.get_message_log(
                    self._consumer, self._delivery.properties, self._delivery.body
                )
                if log is None:
                    return otherwise
                self._run = self._claim(log.pk)
        except BaseException as error:
            return Served(Outcome.AWAY, error=error)
        if self._run is None:
            return Served(Outcome.ELSEWHERE)
        return self._execute(self._run, prepare)

    def process(self, properties: pika.BasicProperties, body: bytes) -> None:
        """The base's ``on_message``: find the row, read the task, claim, run."""
        if self._run is not None:
            self._served = self._execute(self._run, execution.from_row)
            return
        log = self._find(properties, body)
        if log is None:
            self._served = Served(Outcome.MISSING)
            return
        prepare = self._read(log, properties, body)
        self._run = self._claim(log.pk)
        if self._run is None:
            self._served = Served(Outcome.ELSEWHERE)
        else:
            self._served = self._execute(self._run, prepare)

    def _execute(self, run: Run, prepare: Callable[[Run], Call]) -> Served:
        hook = self._consumer.failure_hook()
        return Served(Outcome.RAN, execution.execute(run, self._limits, hook, prepare))

    def _find(self, properties: pika.BasicProperties, body: bytes) -> MessageLog | None:
        with transaction.atomic(using=router.db_for_write(MessageLog)):
            log = self._consumer.get_message_log(properties, body)
            makes_rows = type(self._consumer).get_message_log is not Consumer.get_message_log
            if log is not None and log.confirmed_at is None and makes_rows:
                # A row that the hook has just made is not for the relays: its message is here,
                # and comes again if this process dies.
                rows = MessageLog.objects.unsent()
                rows.filter(pk=log.pk, token=log.token).update(confirmed_at=Now())
        return log

    def _read(
        self, log: MessageLog, properties: pika.BasicProperties, body: bytes
    ) -> Callable[[Run], Call]:
        """Ask the hooks what to call. Their answer, or their failure, waits for the claim."""
        try:
            task = self._task(log, properties, body)
            args, kwargs = self._arguments(log, body)
        except BaseException as error:
            if execution.blames_database(error):
                raise
            if log.attempts:
                # Its arguments are in the row since the first attempt: this may be the relay's
                # message, which has not the form that these hooks read.
                return execution.from_row
            return partial(_raise, error)
        return lambda _run: (task, args, kwargs)

    def _task(
        self, log: MessageLog, properties: pika.BasicProperties, body: bytes
    ) -> Callable[..., Any]:
        consumer = self._consumer
        try:
            path = consumer.get_task_type(Properties(properties), body)
        except KeyError as error:
            raise PoisonMessage(
                "Unable to identify the task type because a key was not found in the message "
                f"header: {error}"
            ) from error
        if _overrides(consumer.serializer, "get_task"):
            # The project's own code says what to call.
            return consumer.serializer.get_task(properties, body)
        if path != log.task:
            raise PoisonMessage(f"The message names task {path!r}, its row {log.task!r}.")
        return objects.resolve_task(path)

    def _arguments(self, log: MessageLog, body: bytes) -> tuple[Any, Any]:
        serializer = self._consumer.serializer
        empty = log.task_args == wire.NO_ARGS and log.content == wire.NO_KWARGS
        if not empty and not _overrides(serializer, "serialize_arguments"):
            return wire.row_arguments(log.task_args, log.content)
        try:
            args, kwargs = serializer.serialize_arguments(body.decode())
        except Exception as error:
            raise PoisonMessage(
                "Unable to process the message due to an error collecting the task arguments: "
                f"{error}"
            ) from error
        if empty and (args or kwargs):
            _keep(log, args, kwargs)
        return args, kwargs


def _keep(log: MessageLog, args: Any, kwargs: Any) -> None:
    """Write a foreign message's arguments into its row: the task may have to run again from it."""
    try:
        task_args = wire.exact_json(list(args), "positional arguments")
        content = wire.exact_json(dict(kwargs), "keyword arguments")
    except InvalidMessage:
        # The serializer makes more of them than JSON can tell; then only the message has them.
        return
    MessageLog.objects.filter(pk=log.pk, status=MessageLog.PUBLISHED).update(
        task_args=task_args, content=content
    )


def _overrides(serializer: type[BaseMessageSerializer], method: str) -> bool:
    mine = inspect.getattr_static(serializer, method)
    return mine is not inspect.getattr_static(BaseMessageSerializer, method)


def _raise(error: BaseException, _run: Run) -> Call:
    raise error


def _nothing(_run: Run) -> Call:
    return (lambda: None), (), {}
