# SPDX-License-Identifier: Apache-2.0
"""One attempt at a task of django.tasks, in the worker: its context, its signals, its result."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from django.db import router
from django.utils import timezone
from django.utils.module_loading import import_string

from carrot_twisted import execution, outcomes, task_logging, task_results
from carrot_twisted.backends import CarrotBackend
from carrot_twisted.exceptions import InvalidResult
from carrot_twisted.models import MessageLog
from carrot_twisted.standard_tasks import (
    TaskContext,
    TaskError,
    TaskResult,
    TaskResultStatus,
    normalize_json,
    task_backends,
    task_finished,
    task_started,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from django.dispatch import Signal

    from carrot_twisted.execution import Limits, Run
    from carrot_twisted.standard_tasks import Task

_logger = logging.getLogger("carrot_twisted.execution")


class TaskAttempt:
    """One attempt. Its methods are called in the order in which they stand here.

    Args:
        task: as the code has it.
        run: the claimed row.
        limits: how much text is kept, and whose attempt it is.
        args: positional arguments, without the context.
        kwargs: keyword arguments.
    """

    def __init__(
        self,
        task: Task[..., Any],
        run: Run,
        limits: Limits,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._task = task
        self._limits = limits
        self._result = _result(task, run, limits.worker, args, kwargs)
        self._sender = _sender(self._result.backend)
        _capture(task.func.__module__)

    def begin(self, args: Sequence[Any]) -> Sequence[Any]:
        """Tell that it starts; returns the arguments of the function, with the context first."""
        self._tell(task_started)
        return [TaskContext(task_result=self._result), *args] if self._task.takes_context else args

    def returned(self, value: Any) -> str | None:
        """How the row keeps what the function has returned: as JSON.

        Raises:
            InvalidResult: it cannot.
        """
        if value is None:
            return None
        try:
            plain = normalize_json(value)
            text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
            if not text.isascii() and outcomes.stored(text, len(text)) != text:
                # Halves of surrogate pairs, which JSON tells by an escape.
                text = json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidResult(f"The result is no JSON value: {error}") from error
        if len(text) > self._limits.result:
            raise InvalidResult(
                f"The result takes {len(text)} characters as JSON; at most {self._limits.result} "
                "are kept (CARROT['max_result_size']). Store the data and return its key."
            )
        self._set(_return_value=json.loads(text))
        return text

    def succeeded(self) -> None:
        """Tell that it has ended well."""
        self._set(status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now())
        self._tell(task_finished)

    def failed(self, error: BaseException) -> None:
        """Tell that the task has failed, and is not tried again."""
        self._result.errors.append(
            TaskError(
                exception_class_path=outcomes.exception_class(error),
                traceback=execution.traceback_text(error, self._limits.result),
            )
        )
        self._set(status=TaskResultStatus.FAILED, finished_at=timezone.now(), _return_value=None)
        self._tell(task_finished)

    def _set(self, **values: Any) -> None:
        # As Django's own backends do: a TaskResult is frozen for everybody else.
        for name, value in values.items():
            object.__setattr__(self._result, name, value)

    def _tell(self, signal: Signal) -> None:
        try:
            signal.send_robust(sender=self._sender, task_result=self._result)
        except BaseException:
            # send_robust catches exceptions, but not SystemExit and its like.
            _logger.exception("A receiver of a signal of %s ended itself", self._result.id)


def _result(
    task: Task[..., Any],
    run: Run,
    worker: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> TaskResult[..., Any]:
    """The result, RUNNING. For what the claim does not know the row is read; mostly it does."""
    said = task_results.said_of(run, task)
    if run.attempt > 1 or said.run_after is not None:
        rows = MessageLog.objects.using(router.db_for_write(MessageLog))
        row = rows.defer("log").filter(pk=run.uuid, token=run.token).first()
        if row is not None:
            return task_results.of_row(row, task)
    started = timezone.now()
    return TaskResult(
        task=task_results.published(task, run.queue, said),
        id=str(run.uuid),
        status=TaskResultStatus.RUNNING,
        enqueued_at=datetime.fromtimestamp(run.published, UTC),
        started_at=started,
        finished_at=None,
        last_attempted_at=started,
        args=[*args],
        kwargs={**kwargs},
        backend=said.backend,
        errors=[],
        worker_ids=[*[""] * (run.attempt - 1), worker],
    )


def _sender(alias: str) -> type[CarrotBackend]:
    """The class of the backend: signals come from it."""
    try:
        # Not the backend itself: each run, with a context of its own, would make one.
        kind: type = import_string(task_backends.settings[alias]["BACKEND"])
    except (ImportError, LookupError):
        # This service has other settings than who has enqueued the task.
        return CarrotBackend
    return kind if issubclass(kind, CarrotBackend) else CarrotBackend


@cache
def _capture(module: str) -> None:
    """What the task's module logs belongs into the row: ``task_modules`` may not name it."""
    task_logging.capture({module})
