# SPDX-License-Identifier: Apache-2.0
"""Tasks of a project that uses Django's own interface only; no ``task_modules`` name this."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from django.dispatch import receiver

from carrot_twisted import task as carrot_task
from tests.project.tasks import ledger

if TYPE_CHECKING or find_spec("django.tasks"):
    from django.tasks import TaskContext, task
    from django.tasks.signals import task_enqueued, task_finished, task_started
else:
    from django_tasks import TaskContext, task
    from django_tasks.signals import task_enqueued, task_finished, task_started

logger = logging.getLogger(__name__)


@task
def add(one: int, other: int = 0) -> int:
    """Return something."""
    logger.info("adding %s", one)
    return one + other


@task(queue_name="other", priority=-7)
async def tell(value: Any) -> Any:
    """Return what came, from a coroutine."""
    return value


@task
def fail(text: str) -> NoReturn:
    """Raise."""
    raise ValueError(text)


@task(takes_context=True)
@carrot_task(max_retries=2, retry_backoff=0.1, unique="{name}", unique_until="start")
def third_time(context: TaskContext[..., Any], name: str) -> list[Any]:
    """Fail twice; tell what Django's context says then."""
    result = context.task_result
    if context.attempt < 3:
        raise LookupError(f"{name} {context.attempt}")
    classes = [error.exception_class for error in result.errors]
    assert classes == [LookupError, LookupError], classes
    return [result.id, context.attempt, result.status, result.args, len(result.worker_ids)]


@task
def strange(kind: str) -> Any:
    """Return what JSON would change, or cannot say."""
    return {
        "tuple": (1, b"two", {3: [float("1.5")]}),
        "text": "a\0b é \ud800",
        "nan": float("nan"),
        "object": object(),
        "long": "x" * 1_000_000,
        "none": None,
    }[kind]


def undecorated() -> None:
    """No task of Django's."""


@receiver(task_enqueued)
@receiver(task_started)
@receiver(task_finished)
def note(signal: Any, sender: Any, task_result: Any, **_: Any) -> None:
    """Leave a trace of each signal in the ledger, where there is one."""
    if task_result.task.name == "add" and "CARROT_TEST_LEDGER" in os.environ:
        names = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}
        worker = "".join(task_result.worker_ids)
        ledger(f"{names[signal]} {sender.__name__} {task_result.status} {worker}".strip())
