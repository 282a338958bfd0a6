# SPDX-License-Identifier: Apache-2.0
"""What a Django project calls to publish tasks, with django-carrot's names and signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, overload

from carrot_twisted import conf, triggers
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.housekeeping import cancel_tasks, purge_queue, requeue_all
from carrot_twisted.models import ScheduledTask
from carrot_twisted.objects import Message, publish_rows, resolve_task
from carrot_twisted.task_paths import StandardTask, function_of
from carrot_twisted.view_decorators import (
    create_class_view,
    create_function_view,
    decorate_class_view,
    decorate_function_view,
    get_mixin,
)

if TYPE_CHECKING:
    from carrot_twisted.models import MessageLog
    from carrot_twisted.virtual_host import VirtualHost

__all__ = [
    "cancel_tasks",
    "create_class_view",
    "create_function_view",
    "create_message",
    "create_scheduled_task",
    "decorate_class_view",
    "decorate_function_view",
    "get_host_from_name",
    "get_mixin",
    "publish_many",
    "publish_message",
    "purge_queue",
    "requeue_all",
    "validate_task",
]

P = ParamSpec("P")
Task = str | Callable[..., Any] | StandardTask[...]
"""A dotted path or a function; a ``Task`` of django.tasks does, too."""


def get_host_from_name(name: str | None) -> VirtualHost:
    """The broker of the queue called ``name``; without a name, the default broker.

    Raises:
        CarrotConfigException: no such queue in ``CARROT["queues"]``.
    """
    settings = conf.current()
    return settings.queue(name).host if name else settings.default_broker


def validate_task(task: Task) -> str:
    """The dotted path of a task given as that path, as the function, or as a django.tasks Task.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such function.
        InvalidMessage: a worker could not find this function by a path (a lambda, a nested
            function, a method, one typed into a shell).
    """
    if isinstance(task, str):
        resolve_task(task)
        return task
    task = function_of(task)
    if not callable(task):
        raise InvalidMessage(f"A task is a function or its dotted path, not {task!r}.")
    module = getattr(task, "__module__", None)
    name = getattr(task, "__qualname__", None)
    if not module or not name or module == "__main__" or "." in name or "<" in name:
        raise InvalidMessage(
            f"A worker cannot import {task!r}: define the task as a function at the top of a "
            "module of your project, for example myapp/tasks.py."
        )
    path = f"{module}.{name}"
    if resolve_task(path) is not task:
        raise InvalidMessage(
            f"{path} is not the function that was passed; pass the function that the module holds."
        )
    return path


def _message(
    task: Task,
    queue: str | None = None,
    priority: int | None = None,
    task_args: Sequence[Any] = (),
    exchange: str = "",
    routing_key: str | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
) -> Message:
    """In the order of django-carrot's release 1.5.0."""
    return Message(
        task=validate_task(task),
        queue=queue or None,
        routing_key=routing_key,
        exchange=exchange,
        priority=priority,
        task_args=task_args,
        task_kwargs=task_kwargs,
    )


def _message_as_documented(
    task: Task,
    priority: int | None = None,
    task_args: Sequence[Any] = (),
    queue: str | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
) -> Message:
    """In the order of django-carrot's documentation."""
    return _message(task, queue, priority, task_args, exchange, routing_key, task_kwargs)


@overload
def create_message(
    task: Task,
    queue: str | None = None,
    priority: int | None = None,
    task_args: Sequence[Any] = (),
    exchange: str = "",
    routing_key: str | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
) -> Message: ...


@overload
def create_message(
    task: Task,
    priority: int,
    task_args: Sequence[Any] = (),
    queue: str | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
) -> Message: ...


@wraps(_message, assigned=())
def create_message(task: Task, *positional: Any, **named: Any) -> Message:
    """A checked ``Message`` that is not published yet. See ``Message`` for arguments and errors.

    Best give all but the task by keyword. By position two orders are accepted, because
    django-carrot's release 1.5.0 and its documentation differ. The types tell which one it is:

    - ``(task, queue, priority, task_args, exchange, routing_key, task_kwargs)``, the release's,
      where a text or None comes second: a text is never a priority;
    - ``(task, priority, task_args, queue, exchange, routing_key, task_kwargs)``, the
      documentation's, where a number comes second: a number is never a queue. None counts as
      no priority where a list or tuple of arguments follows it.

    A queue or priority that is not given is as the task's decorator says (see ``carrot_twisted.
    task``), or else "default" and 0.

    Raises:
        InvalidMessage: the types fit neither order, or ``task_args`` is a text or a dictionary;
            and what ``Message`` raises.
    """
    make: Callable[..., Message] = _message
    if positional:
        make, positional = _order_of(positional)
    if not _are_arguments(named.get("task_args", ())):
        raise InvalidMessage(
            f"task_args is a list or tuple of the task's arguments, not {named['task_args']!r}."
        )
    return make(task, *positional, **named)


def _order_of(given: tuple[Any, ...]) -> tuple[Callable[..., Message], tuple[Any, ...]]:
    """Which of the two orders these arguments have, by the types of the first three."""
    absent = object()
    first, second, third, *_ = (*given, absent, absent)
    then_queue = third is absent or third is None or isinstance(third, str)
    then_arguments = third is absent or _are_arguments(third)
    if isinstance(first, int):
        if then_queue and (second is absent or _are_arguments(second)):
            return _message_as_documented, given
    elif first is None or isinstance(first, str):
        if then_arguments and (second is absent or isinstance(second, int)):
            return _message, given
        if first is None and then_queue and _are_arguments(second):
            return _message_as_documented, given
    raise InvalidMessage(
        f"The arguments after the task are in neither order that django-carrot has: "
        f"{', '.join(repr(value)[:50] for value in given)}. Say what is what: create_message("
        "task, queue='default', priority=0, task_args=[...], task_kwargs={...})."
    )


def _are_arguments(value: Any) -> bool:
    """Whether this can be a task's positional arguments. A text would become its characters."""
    return isinstance(value, list | tuple) or (
        isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    )


# Types cannot say "these four, and else the task's own arguments": where one of the four is given,
# the others are not checked. ``task.options(...).publish(...)`` is checked in any case.
@overload
def publish_message(
    task: Callable[P, Any] | StandardTask[P], *task_args: P.args, **task_kwargs: P.kwargs
) -> MessageLog: ...


@overload
def publish_message(
    task: str,
    *task_args: Any,
    priority: int | None = None,
    queue: str | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    **task_kwargs: Any,
) -> MessageLog: ...


@overload
def publish_message(
    task: Task,
    *task_args: Any,
    priority: int | None,
    queue: str | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    **task_kwargs: Any,
) -> MessageLog: ...


@overload
def publish_message(
    task: Task,
    *task_args: Any,
    priority: int | None = None,
    queue: str | None,
    exchange: str = "",
    routing_key: str | None = None,
    **task_kwargs: Any,
) -> MessageLog: ...


@overload
def publish_message(
    task: Task,
    *task_args: Any,
    priority: int | None = None,
    queue: str | None = None,
    exchange: str,
    routing_key: str | None = None,
    **task_kwargs: Any,
) -> MessageLog: ...


@overload
def publish_message(
    task: Task,
    *task_args: Any,
    priority: int | None = None,
    queue: str | None = None,
    exchange: str = "",
    routing_key: str | None,
    **task_kwargs: Any,
) -> MessageLog: ...


# A task whose own argument has one of these names needs create_message: see below.
def publish_message(  # type: ignore[misc]
    task: Task,
    *task_args: Any,
    priority: int | None = None,
    queue: str | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    **task_kwargs: Any,
) -> MessageLog:
    """Publish a task: its row is written in the caller's transaction, the broker told on commit.

    Returns quickly also when the broker is away; a service sends the message when it is back.

    Args:
        task: the function, or its dotted path.
        task_args: positional arguments of the task.
        priority: 0 to 255; by default the task's own, or 0.
        queue: name of a configured queue; by default the task's own, or "default".
        exchange: "" for RabbitMQ's default exchange.
        routing_key: defaults to the queue's name.
        task_kwargs: keyword arguments of the task. The names above cannot be used; for such a
            task use ``create_message(..., task_kwargs={...}).publish()``.

    Returns:
        The MessageLog, PUBLISHED. Of a unique task that is there already: that one's, whose
        ``duplicate`` is True.

    Raises:
        InvalidMessage, CarrotConfigException, ImportError, AttributeError: see ``create_message``.
            No row has been written then.
        DuplicateTask: a unique task that is there already, if it says ``on_duplicate="raise"``.
    """
    return _message(task, queue, priority, task_args, exchange, routing_key, task_kwargs).publish()


def publish_many(messages: Iterable[Message]) -> list[MessageLog]:
    """Publish thousands of messages in one go: all rows in one transaction, or none.

    Args:
        messages: made by ``create_message``; each can be published once.

    Returns:
        Their MessageLogs, in the same order. Of unique tasks that are there already, also in the
        same call: that one's, whose ``duplicate`` is True.

    Raises:
        DuplicateTask: one is, and its task says ``on_duplicate="raise"``. Nothing was published.
    """
    rows = [message.row for message in messages]
    return publish_rows(rows) if rows else []


def create_scheduled_task(
    task: Task,
    interval: Mapping[str, Any] | str,
    *names: str | None,
    task_name: str | None = None,
    queue: str | None = None,
    **kwargs: Any,
) -> ScheduledTask:
    """Publish a task again and again, at an interval or by a crontab.

    Best give name and queue by keyword. By position they stand in the order of django-carrot's
    release 1.5.0, ``(task, interval, task_name, queue)``. Its documentation has the queue in the
    third place, and no name: so a third argument that is the name of a configured queue is the
    queue, if it is not said otherwise.

    Args:
        task: the function, or its dotted path.
        interval: one of ``{"seconds": n}``, ``{"minutes": n}``, ``{"hours": n}``, ``{"days": n}``;
            or a crontab such as ``"30 2 * * MON-FRI"``, in the time zone of the settings; or
            ``{"cron": "30 2 * * *", "timezone": "Europe/Berlin"}``.
        names: task_name and queue by position.
        task_name: unique name of the schedule; the task's path if not given.
        queue: name of a configured queue, "default" if not given.
        kwargs: keyword arguments of the task.

    Returns:
        The schedule, active. An interval first runs one interval from now.

    Raises:
        InvalidMessage: the interval or the arguments make no sense, or the name is taken.
        CarrotConfigException, ImportError, AttributeError: see ``create_message``.
    """
    if names:
        task_name, queue = _name_and_queue(names, task_name, queue)
    message = _message(task, queue, task_kwargs=kwargs)
    name = task_name or message.task
    schedule, created = ScheduledTask.objects.get_or_create(
        task_name=name,
        defaults={
            "task": message.task,
            "queue": message.queue,
            "content": message.kwargs_json,
            **_trigger_fields(interval),
        },
    )
    if not created:
        raise InvalidMessage(
            f"There is a schedule named {name!r} already: give this one another task_name, or "
            "change that one."
        )
    return schedule


def _name_and_queue(
    given: tuple[str | None, ...], task_name: str | None, queue: str | None
) -> tuple[str | None, str | None]:
    """Name and queue of a schedule from positional arguments, and what was given by keyword."""
    first = given[0]
    if len(given) == 1 and queue is None and first in conf.current().queues:
        return task_name, first
    if len(given) > 2 or task_name is not None or (len(given) == 2 and queue is not None):
        raise InvalidMessage(
            f"It is not clear which of {', '.join(map(repr, given))} is what. Write "
            "create_scheduled_task(task, interval, task_name='...', queue='...')."
        )
    return first, given[1] if len(given) == 2 else queue


def _trigger_fields(interval: Mapping[str, Any] | str) -> dict[str, Any]:
    if isinstance(interval, str):
        return triggers.cron_fields(interval)
    if not isinstance(interval, Mapping):
        raise InvalidMessage(f"An interval is a dictionary or a crontab, not {interval!r}.")
    if "cron" in interval and interval.keys() <= {"cron", "timezone"}:
        return triggers.cron_fields(**interval)
    return triggers.interval_fields(interval)
