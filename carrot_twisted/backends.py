# SPDX-License-Identifier: Apache-2.0
"""The backend for Django's own task interface: ``TASKS`` names it, and ``@task`` runs on us.

See docs/django-tasks.md. A project's modules make their tasks while they are imported, perhaps
before Django's models are there; so what needs these is imported in the methods.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.db import DEFAULT_DB_ALIAS, connections

from carrot_twisted import conf, task_options
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.standard_tasks import (
    TASK_MAX_PRIORITY,
    TASK_MIN_PRIORITY,
    BaseTaskBackend,
    InvalidTask,
    Said,
    TaskResultDoesNotExist,
    task_enqueued,
)
from carrot_twisted.task_options import PublishOptions
from carrot_twisted.task_paths import function_of, is_standard
from carrot_twisted.wire import MAX_PRIORITY, QUORUM_HIGHEST, QUORUM_NORMAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from carrot_twisted.standard_tasks import Task, TaskResult

P = ParamSpec("P")
R = TypeVar("R")


class InvalidArguments(InvalidMessage, TypeError):
    """These arguments cannot be sent. A TypeError, as with Django's own backends. No row exists."""


def queue_priority(priority: int, queue: conf.QueueSettings) -> int:
    """The number that a priority of django.tasks is in a queue.

    In a quorum queue up to 0 is normal, above is high. In another one -100 to 100 become 0 to the
    queue's ``x-max-priority``, 0 its middle. Without one no number has an effect: 0, the default,
    is none, and any other gets one as if there were 255, of which the publisher warns.

    Args:
        priority: -100 to 100.
        queue: with its arguments.
    """
    if queue.is_quorum:
        if priority <= 0:
            return (priority - TASK_MIN_PRIORITY) * QUORUM_NORMAL // -TASK_MIN_PRIORITY
        steps = QUORUM_HIGHEST - QUORUM_NORMAL
        return QUORUM_NORMAL + -(-priority * steps // TASK_MAX_PRIORITY)
    highest = queue.queue_arguments.get("x-max-priority")
    if highest is None and not priority:
        return 0
    highest = min(int(highest or MAX_PRIORITY), MAX_PRIORITY)
    return (priority - TASK_MIN_PRIORITY) * highest // (TASK_MAX_PRIORITY - TASK_MIN_PRIORITY)


class CarrotBackend(BaseTaskBackend):
    """Publishes tasks of django.tasks through RabbitMQ; any ``twistd carrot`` runs them.

    Args:
        alias: its key in ``TASKS``.
        params: of ``TASKS``: ``QUEUES``, names of queues in ``CARROT["queues"]``, only "default" if
            it is left out, [] for all of them. ``OPTIONS`` there are none.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def validate_task(self, task: Task[..., Any]) -> None:
        """Raise for a task that could not be published.

        Raises:
            InvalidTask: the function, its context, priority, ``run_after`` or queue is wrong.
        """
        if task.run_after is not None and not isinstance(task.run_after, datetime):
            raise InvalidTask(
                f"run_after must be an aware datetime, not {task.run_after!r}: "
                "django.utils.timezone.now() + timedelta(...), for example."
            )
        super().validate_task(task)
        task_options.declare_standard(
            task.module_path, task.func, task.queue_name, task.takes_context
        )

    def enqueue(
        self, task: Task[P, R], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> TaskResult[P, R]:
        """Write the task's row in the caller's transaction; on commit the broker is told.

        Returns:
            The result, READY. Of a unique task that is there already (see docs/tasks.md): that
            one's.

        Raises:
            InvalidTask: no worker would find it, or its queue is not in ``CARROT["queues"]``.
            InvalidArguments: JSON would change them, or they are too large.
            DuplicateTask: a unique task that is there already, if it says ``on_duplicate="raise"``.
        """
        from carrot_twisted import task_results
        from carrot_twisted.objects import Message

        self.validate_task(task)
        _check_place(task)
        priority = int(task.priority)
        try:
            queue = conf.current().queue(task.queue_name)
            message = Message(
                task.module_path,
                queue=queue.name,
                priority=queue_priority(priority, queue),
                task_args=args,
                task_kwargs=kwargs,
                options=None
                if task.run_after is None
                else PublishOptions(run_after=task.run_after),
            )
        except CarrotConfigException as error:
            raise InvalidTask(str(error)) from error
        except InvalidMessage as error:
            raise InvalidArguments(str(error)) from error
        said = Said(backend=self.alias, priority=priority, run_after=task.run_after)
        message.row.django_task = said.text()
        row = message.publish()
        result = task_results.of_row(row, task)
        if not row.duplicate:
            _tell(type(self), result, row._state.db)
        return result

    def get_result(self, result_id: str) -> TaskResult[..., Any]:
        """The result of any task that was published, however it was, as it stands now.

        Raises:
            TaskResultDoesNotExist: no such row, or not any more; or no task of django.tasks.
        """
        from carrot_twisted import task_results

        try:
            key = UUID(result_id)
        except (ValueError, TypeError, AttributeError):
            raise TaskResultDoesNotExist(result_id) from None
        result = task_results.find(key, self.alias)
        if result is None:
            raise TaskResultDoesNotExist(result_id)
        return result

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """What is wrong with this entry of ``TASKS``, for ``manage.py check``."""
        found: list[CheckMessage] = [*super().check(**kwargs)]
        name = f"TASKS[{self.alias!r}]"
        if not apps.is_installed("carrot_twisted"):
            found.append(
                Error(
                    f"{name} is a CarrotBackend, and its tables are not there.",
                    hint="Add 'carrot_twisted' to INSTALLED_APPS, and migrate.",
                    id="carrot_twisted.E020",
                )
            )
        if self.options:
            found.append(
                Error(
                    f"{name} has OPTIONS {', '.join(map(repr, self.options))}, and a CarrotBackend "
                    "knows none.",
                    hint="Queues and brokers are described in CARROT; retries, expiry and "
                    "retention of all tasks in CARROT['task_defaults'].",
                    id="carrot_twisted.E021",
                )
            )
        if not conf.problems():
            known = conf.current().queues
            found += [
                Error(
                    f"{name} has the queue {queue!r} in its QUEUES, which is not in "
                    "CARROT['queues'].",
                    hint=f"Add it there, or name one of these: {', '.join(known)}.",
                    id="carrot_twisted.E022",
                )
                for queue in sorted(self.queues - known.keys())
            ]
        return found


def _tell(sender: type[CarrotBackend], result: TaskResult[..., Any], using: str | None) -> None:
    """Send ``task_enqueued``. What a receiver raises undoes the caller's transaction, if any."""
    if connections[using or DEFAULT_DB_ALIAS].in_atomic_block:
        # A receiver's failure may have spoiled the transaction: the caller has to know.
        task_enqueued.send(sender, task_result=result)
    else:
        # The row is committed: nothing that fails now may tell the caller otherwise.
        task_enqueued.send_robust(sender, task_result=result)


def _check_place(task: Task[..., Any]) -> None:
    """Raise for a task that a worker would not find: it looks where the function's path leads.

    Raises:
        InvalidTask: something else is there, or nothing.
    """
    module = task.func.__module__
    found = getattr(sys.modules.get(module), task.func.__qualname__, None)
    if module == "__main__" or not is_standard(found) or function_of(found) is not task.func:
        raise InvalidTask(
            f"A worker could not find the task {task.module_path}: define it at the top of a "
            "module of your project, with @task as the outermost decorator."
        )
