# SPDX-License-Identifier: Apache-2.0
"""What a row tells of a task of django.tasks: its ``TaskResult``."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django.db import router

from carrot_twisted.exceptions import TaskCancelled, TaskExpired
from carrot_twisted.message_log_set import EXPIRED
from carrot_twisted.models import Attempt, MessageLog
from carrot_twisted.outcomes import WORKER_LOST, exception_class
from carrot_twisted.standard_tasks import (
    Said,
    Task,
    TaskError,
    TaskResult,
    TaskResultStatus,
    task_backends,
)
from carrot_twisted.task_paths import resolve_task, standard_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

P = ParamSpec("P")
R = TypeVar("R")

STATUS = {
    MessageLog.PUBLISHED: TaskResultStatus.READY,
    MessageLog.IN_PROGRESS: TaskResultStatus.RUNNING,
    MessageLog.COMPLETED: TaskResultStatus.SUCCESSFUL,
    MessageLog.FAILED: TaskResultStatus.FAILED,
    # Django knows no other end.
    MessageLog.CANCELLED: TaskResultStatus.FAILED,
}
#: Class of an exception whose row is older than the column for it.
UNKNOWN_CLASS = "builtins.Exception"


def find(key: UUID, alias: str) -> TaskResult[..., Any] | None:
    """The result of the task with this primary key.

    Args:
        key: of the MessageLog.
        alias: of the backend that asks; for rows that were not enqueued by one.

    Returns:
        None: there is no such row, or it is no task of django.tasks.
    """
    # Where the caller's own transaction may have written it a moment ago.
    rows = MessageLog.objects.using(router.db_for_write(MessageLog))
    row = rows.defer("log").filter(pk=key).first()
    if row is None:
        return None
    task = _task_at(row.task)
    if task is None and row.django_task is None:
        return None
    return of_row(row, task or _gone(row.task, alias), alias)


def of_row(row: MessageLog, task: Task[P, R], alias: str | None = None) -> TaskResult[P, R]:
    """The result that a row tells of.

    Args:
        row: as it is in the database now.
        task: as the code has it.
        alias: of the backend, where the row names none that is there; None: as the task says.
    """
    attempts = _attempts(row)
    said = said_of(row, task, alias)
    ran = row.attempts > 0
    first = attempts.get(1)
    result = TaskResult(
        task=published(task, row.queue, said),
        id=str(row.pk),
        status=STATUS[row.status],
        enqueued_at=row.publish_time,
        started_at=(row.start_time if first is None else first.started) if ran else None,
        finished_at=_finished_at(row),
        last_attempted_at=row.start_time if ran else None,
        args=[*row.positionals],
        kwargs=row.keywords,
        backend=said.backend,
        errors=_errors(row, attempts),
        worker_ids=_workers(row, attempts),
    )
    if row.status == MessageLog.COMPLETED:
        object.__setattr__(result, "_return_value", _value(row.output))
    return result


def said_of(row: Any, task: Task[..., Any], alias: str | None = None) -> Said:
    """What was said of a task when it was enqueued; where nothing was, as its code says.

    Args:
        row: a MessageLog, or a claimed one.
        task: as the code has it.
        alias: see ``of_row``.
    """
    other = alias or task.backend
    if row.django_task is None:
        run_after = getattr(row, "run_after", None)
        return Said(backend=other, priority=task.priority, run_after=run_after)
    said = Said.read(row.django_task)
    if said.backend in task_backends.settings:
        return said
    return Said(backend=other, priority=said.priority, run_after=said.run_after)


def published(task: Task[P, R], queue: str, said: Said) -> Task[P, R]:
    """The task as it was enqueued.

    Not made by ``using``: that would check it against today's settings, and what has run under
    yesterday's could not be looked at any more.
    """
    changes = {
        "queue_name": queue,
        "backend": said.backend,
        "priority": said.priority,
        "run_after": said.run_after,
    }
    copy: Task[P, R] = object.__new__(type(task))
    for field in fields(task):
        value = changes.get(field.name, getattr(task, field.name))
        object.__setattr__(copy, field.name, value)
    return copy


def _task_at(path: str) -> Task[..., Any] | None:
    try:
        resolve_task(path)
    except (Exception, SystemExit):
        # It was removed, or its module fails. A worker says so; here its results are looked at.
        return None
    found: Task[..., Any] | None = standard_task(path)
    return found


def _gone(path: str, alias: str) -> Task[..., Any]:
    """Stands for a task that is not in the code any more; calling it says so."""
    module, _, name = path.rpartition(".")

    def missing(*_args: Any, **_kwargs: Any) -> None:
        raise ImportError(f"There is no task {path} any more.")

    missing.__module__, missing.__qualname__, missing.__name__ = module, name, name
    task: Task[..., Any] = object.__new__(Task)
    values = {"func": missing, "backend": alias, "priority": 0, "takes_context": False}
    for field in fields(Task):
        object.__setattr__(task, field.name, values.get(field.name))
    return task


def _attempts(row: MessageLog) -> Mapping[int, Attempt]:
    """The attempts that have not ended the task, by number. The last one is told by the row."""
    if row.attempts <= 1 and row.status not in (MessageLog.PUBLISHED, MessageLog.CANCELLED):
        return {}
    if not row.attempts:
        return {}
    using = row._state.db or router.db_for_write(MessageLog)
    found = Attempt.objects.using(using).filter(message=row.pk, number__lte=row.attempts)
    return {one.number: one for one in found.defer("log").order_by("number", "pk")}


def _workers(row: MessageLog, attempts: Mapping[int, Attempt]) -> list[str]:
    """Names of the workers, one for each attempt; "" where it was not noted."""
    names = [attempts[n].worker if n in attempts else "" for n in range(1, row.attempts + 1)]
    if names and row.attempts not in attempts:
        names[-1] = row.worker
    return names


def _errors(row: MessageLog, attempts: Mapping[int, Attempt]) -> list[TaskError]:
    errors = [error for one in attempts.values() if (error := _attempt_error(one)) is not None]
    if row.status == MessageLog.FAILED:
        errors.append(
            TaskError(
                exception_class_path=row.exception_class or UNKNOWN_CLASS,
                traceback=row.traceback or row.exception or "",
            )
        )
    elif row.status == MessageLog.CANCELLED:
        late = row.exception == EXPIRED
        why = TaskExpired("It has not started in time.") if late else TaskCancelled("Cancelled.")
        errors.append(TaskError(exception_class_path=exception_class(why), traceback=f"{why}\n"))
    return errors


def _attempt_error(one: Attempt) -> TaskError | None:
    if one.outcome == Attempt.LOST:
        return TaskError(
            exception_class_path=WORKER_LOST,
            traceback=f"The worker {one.worker} was lost while it ran attempt {one.number}.\n",
        )
    if one.exception is None:
        return None
    return TaskError(
        exception_class_path=one.exception_class or UNKNOWN_CLASS,
        traceback=one.traceback or one.exception,
    )


def _finished_at(row: MessageLog) -> datetime | None:
    if row.status == MessageLog.FAILED:
        return row.failure_time
    return row.completion_time if row.status in MessageLog.FINAL else None


def _value(output: str | None) -> Any:
    if output is None:
        return None
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        # It was no task of django.tasks when it ran.
        return output
