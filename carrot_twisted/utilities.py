# SPDX-License-Identifier: Apache-2.0
"""What a Django project calls to publish tasks, with django-carrot's names and signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carrot_twisted import conf, triggers
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.objects import Message, resolve_task

if TYPE_CHECKING:
    from carrot_twisted.virtual_host import VirtualHost

Task = str | Callable[..., Any]


def get_host_from_name(name: str | None) -> VirtualHost:
    """The broker of the queue called ``name``; without a name, the default broker.

    Raises:
        CarrotConfigException: no such queue in ``CARROT["queues"]``.
    """
    settings = conf.current()
    return settings.queue(name).host if name else settings.default_broker


def validate_task(task: Task) -> str:
    """The dotted path of a task given as that path or as the function itself.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such function.
        InvalidMessage: a worker could not find this function by a path (a lambda, a nested
            function, a method, one typed into a shell).
    """
    if isinstance(task, str):
        resolve_task(task)
        return task
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


def create_message(
    task: Task,
    queue: str | None = None,
    priority: int = 0,
    task_args: Sequence[Any] = (),
    exchange: str = "",
    routing_key: str | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
) -> Message:
    """A checked ``Message`` that is not published yet. See ``Message`` for arguments and errors.

    The order of the arguments is that of django-carrot's release 1.5.0.
    """
    return Message(
        task=validate_task(task),
        queue=queue or conf.DEFAULT_QUEUE,
        routing_key=routing_key,
        exchange=exchange,
        priority=priority,
        task_args=task_args,
        task_kwargs=task_kwargs,
    )


def publish_message(
    task: Task,
    *task_args: Any,
    priority: int = 0,
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
        priority: 0 to 255.
        queue: name of a configured queue, "default" if not given.
        exchange: "" for RabbitMQ's default exchange.
        routing_key: defaults to the queue's name.
        task_kwargs: keyword arguments of the task. The names above cannot be used; for such a
            task use ``create_message(..., task_kwargs={...}).publish()``.

    Returns:
        The MessageLog, PUBLISHED.

    Raises:
        InvalidMessage, CarrotConfigException, ImportError, AttributeError: see ``create_message``.
            No row has been written then.
    """
    return create_message(
        task, queue, priority, task_args, exchange, routing_key, task_kwargs
    ).publish()


def publish_many(messages: Iterable[Message]) -> list[MessageLog]:
    """Publish thousands of messages in one go: all rows in one transaction, or none.

    Args:
        messages: made by ``create_message``; each can be published once.

    Returns:
        Their MessageLogs, in the same order.
    """
    rows = [message.row for message in messages]
    if rows:
        MessageLog.objects.enqueue(rows)
    return rows


def create_scheduled_task(
    task: Task,
    interval: Mapping[str, Any],
    task_name: str | None = None,
    queue: str | None = None,
    **kwargs: Any,
) -> ScheduledTask:
    """Publish a task again and again, at an interval.

    Args:
        task: the function, or its dotted path.
        interval: one of ``{"seconds": n}``, ``{"minutes": n}``, ``{"hours": n}``, ``{"days": n}``.
        task_name: unique name of the schedule; the task's path if not given.
        queue: name of a configured queue, "default" if not given.
        kwargs: keyword arguments of the task.

    Returns:
        The schedule, active; it first runs one interval from now.

    Raises:
        InvalidMessage: the interval or the arguments make no sense, or the name is taken.
        CarrotConfigException, ImportError, AttributeError: see ``create_message``.
    """
    message = create_message(task, queue, task_kwargs=kwargs)
    known = ", ".join(triggers.SECONDS)
    interval_type = next(iter(interval)) if len(interval) == 1 else ""
    if interval_type not in triggers.SECONDS:
        raise InvalidMessage(f"An interval is a dictionary with one of {known}, not {interval!r}.")
    count = interval[interval_type]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidMessage(f"An interval has a whole number, 1 or more, not {count!r}.")
    name = task_name or message.task
    schedule, created = ScheduledTask.objects.get_or_create(
        task_name=name,
        defaults={
            "task": message.task,
            "interval_type": interval_type,
            "interval_count": count,
            "queue": message.queue,
            "content": message.kwargs_json,
        },
    )
    if not created:
        raise InvalidMessage(
            f"There is a schedule named {name!r} already: give this one another task_name, or "
            "change that one."
        )
    return schedule
