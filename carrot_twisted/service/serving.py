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
from carrot_twisted.objects import BaseMessageSerializer, DefaultMessageSerializer
from carrot_twisted.outcomes import Kind, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from carrot_twisted.execution import Call, Limits, Run
    from carrot_twisted.service.delivery import Delivery, SafeChannel


class Outcome(Enum):
    """What a message's way through the hooks has come to."""

    RAN = "there is a result to record"
    HANDLED = "a hook has dealt with it: acknowledge"
    GIVEN_BACK = "a hook has returned it to the broker, or rejected it"
    MISSING = "there is no row (yet)"
    BROKEN = "a hook raised, and there is no row to say so"
    AWAY = "the database did not answer: again later"
    ELSEWHERE = "its row is not for this thread; whoever decided that settles it"


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
        claim: claims the row of that primary key and returns the run; None if it is not ours. Its
            second argument says that there is nothing to run any more, only an end to be written.
        claimed: the run, if the row was claimed already (a suspect, to run alone).
        limits: of the run.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        channel: SafeChannel,
        delivery: Delivery,
        claim: Callable[[UUID, bool], Run | None],
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
        #: What the base's ``on_message`` has raised: it counts also where an override catches it.
        self._error: BaseException | None = None
        #: Of the row that ``get_message_log`` has found.
        self._key: UUID | None = None

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
        hook: Callable[..., Any] = self._consumer.on_message
        raised: BaseException | None = None
        self._channel.watch(delivery.tag)
        try:
            execution.awaited(hook(self._channel, method, delivery.properties, delivery.body))
        except BaseException as error:
            raised = error
        given_back = self._channel.forget(delivery.tag)
        return self._ended(given_back, raised)

    def _ended(self, given_back: bool, raised: BaseException | None) -> Served:
        """``on_message`` has returned, or raised: what that means for the message."""
        served, error = self._served, raised or self._error
        if served is not None and not (given_back and served.outcome is Outcome.MISSING):
            if raised is not None:
                # What the task did stands; only what came after it has failed.
                self._complain(raised, "after its base's method had returned")
            return served
        if given_back:
            if error is not None:
                self._complain(error, "and has given the message back")
            return self._released()
        if error is None:
            # An override has not called the base's method: the message is its own affair.
            return self._end_without_task(_nothing, Served(Outcome.HANDLED))
        if self._run is None and execution.blames_database(error):
            return Served(Outcome.AWAY, error=error)
        served = self._end_without_task(partial(_raise, error), Served(Outcome.BROKEN, error=error))
        if served.outcome is Outcome.BROKEN:
            self._complain(error, "and there is no row to say so")
        return served

    def _complain(self, error: BaseException, when: str) -> None:
        self._consumer.logger.error(
            "%s.on_message raised an exception, %s",
            type(self._consumer).__name__,
            when,
            exc_info=error,
        )

    def _released(self) -> Served:
        if self._run is None:
            return Served(Outcome.GIVEN_BACK)
        # A suspect: its row waits again, too.
        return Served(Outcome.RAN, Result(kind=Kind.RELEASED))

    def _end_without_task(self, prepare: Callable[[Run], Call], otherwise: Served) -> Served:
        """Bring the message's row to its end, if it has one."""
        # The claim must not wait for a transaction that a hook has left open in this thread.
        execution.clean_connections()
        try:
            if self._run is None:
                key = self._key or self._key_of_message()
                if key is None:
                    return otherwise
                self._run = self._claim(key, True)
        except BaseException as error:
            return Served(Outcome.AWAY, error=error)
        if self._run is None:
            return Served(Outcome.ELSEWHERE)
        return self._execute(self._run, prepare)

    def _key_of_message(self) -> UUID | None:
        delivery = self._delivery
        log = Consumer.get_message_log(self._consumer, delivery.properties, delivery.body)
        return None if log is None else log.pk

    def process(self, properties: pika.BasicProperties, body: bytes) -> None:
        """The base's ``on_message``: find the row, read the task, claim, run."""
        if self._served is not None and self._served.outcome is not Outcome.MISSING:
            # An override has called it twice: a message runs once.
            return
        self._error = None
        try:
            self._served = self._process(properties, body)
        except BaseException as error:
            self._error = error
            raise

    def _process(self, properties: pika.BasicProperties, body: bytes) -> Served:
        self._check_transaction()
        if self._run is None:
            log = self._find(properties, body)
            if log is None:
                return Served(Outcome.MISSING)
        else:
            log = MessageLog.objects.get(pk=self._run.uuid)
        prepare = self._read(log, properties, body)
        self._check_transaction()
        self._key = log.pk
        if self._run is None:
            self._run = self._claim(log.pk, False)
        if self._run is None:
            return Served(Outcome.ELSEWHERE)
        return self._execute(self._run, prepare)

    def _check_transaction(self) -> None:
        """The claim is made on another connection: it would wait for this thread's, for ever."""
        if execution.in_transaction(router.db_for_write(MessageLog)):
            raise RuntimeError(
                f"{type(self._consumer).__name__} has a transaction open. A hook must end its own, "
                "and the base's on_message must not be called inside of one (transaction.atomic): "
                "the task has its own."
            )

    def _execute(self, run: Run, prepare: Callable[[Run], Call]) -> Served:
        hook = self._consumer.failure_hook()
        result = execution.execute(run, self._limits, hook, prepare)
        return Served(Outcome.ELSEWHERE) if result is None else Served(Outcome.RAN, result)

    def _find(self, properties: pika.BasicProperties, body: bytes) -> MessageLog | None:
        if not self._consumer.overrides("get_message_log"):
            return self._consumer.get_message_log(properties, body)
        with transaction.atomic(using=router.db_for_write(MessageLog)):
            given = execution.awaited(self._consumer.get_message_log(properties, body))
            log = None if given is None else self._checked(given)
            if log is not None and log.confirmed_at is None:
                # A row that the hook has just made is not for the relays: its message is here,
                # and comes again if this process dies.
                rows = MessageLog.objects.unsent()
                rows.filter(pk=log.pk, token=log.token).update(confirmed_at=Now())
        return log

    def _checked(self, given: Any) -> MessageLog:
        name = f"{type(self._consumer).__name__}.get_message_log"
        if not isinstance(given, MessageLog):
            raise TypeError(f"{name} must return a MessageLog or None, not {given!r:.200}")
        if given._state.adding or given.pk is None:
            raise ValueError(
                f"{name} returned a MessageLog that is not in the database: make it with "
                "MessageLog.objects.get_or_create"
            )
        # One that was made with a text for its primary key still has the text.
        given.pk = MessageLog._meta.pk.to_python(given.pk)
        return given

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
            if log.attempts or self._is_told_by_row(properties):
                return execution.from_row
            return partial(_raise, error)
        return lambda _run: (task, args, kwargs)

    def _is_told_by_row(self, properties: pika.BasicProperties) -> bool:
        """Whether it is our own message, on a queue of others' messages.

        A relay sends it for a row that a hook has made, too, and it has not the form that these
        hooks read. The row has all that there is to know.
        """
        consumer = self._consumer
        return properties.app_id == wire.APP_ID and (
            consumer.overrides("get_message_log")
            or consumer.serializer is not DefaultMessageSerializer
        )

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
        # Whoever makes no rows of messages has those of publish_message only: they have the word.
        told = not empty or not self._consumer.overrides("get_message_log")
        if told and not _overrides(serializer, "serialize_arguments"):
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
