# SPDX-License-Identifier: Apache-2.0
"""Django's own interface to task queues, wherever it is: in Django since 6.0, or in django-tasks.

Also what a row keeps of it: ``Said``. Import this only where a project uses that interface; of the
two names, ``django.tasks`` is meant by both in this package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING or find_spec("django.tasks") is not None:
    from django.tasks import TaskContext, TaskResult, TaskResultStatus, task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import (
        TASK_MAX_PRIORITY,
        TASK_MIN_PRIORITY,
        Task,
        TaskError,
    )
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    try:
        from django_tasks import TaskContext, TaskResult, TaskResultStatus, task_backends
    except ImportError as error:
        raise ImportError(
            "This Django has no django.tasks yet. Install the package that brings it: "
            "pip install 'carrot-twisted[tasks]'"
        ) from error
    from django_tasks import exceptions as _exceptions
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY, Task, TaskError
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

    # Its next release has Django's name.
    InvalidTask = getattr(_exceptions, "InvalidTask", None) or _exceptions.InvalidTaskError

__all__ = [
    "TASK_MAX_PRIORITY",
    "TASK_MIN_PRIORITY",
    "BaseTaskBackend",
    "InvalidTask",
    "Said",
    "Task",
    "TaskContext",
    "TaskError",
    "TaskResult",
    "TaskResultDoesNotExist",
    "TaskResultStatus",
    "normalize_json",
    "task_backends",
    "task_enqueued",
    "task_finished",
    "task_started",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a project has said of a task that it enqueued, where the row has no column for it."""

    backend: str
    """Its alias in ``TASKS``."""
    priority: int
    """-100 to 100; the row has the queue's own number."""
    run_after: datetime | None
    """As it was said; the row's changes with each retry."""

    def text(self) -> str:
        """As the row keeps it."""
        moment = None if self.run_after is None else self.run_after.isoformat()
        return json.dumps([self.backend, self.priority, moment])

    @classmethod
    def read(cls, text: str) -> Said:
        """What ``text`` has made."""
        backend, priority, moment = json.loads(text)
        run_after = None if moment is None else datetime.fromisoformat(moment)
        return cls(backend=backend, priority=priority, run_after=run_after)
