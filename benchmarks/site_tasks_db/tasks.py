# SPDX-License-Identifier: Apache-2.0
"""The tasks of django-tasks, and how it publishes them."""

from __future__ import annotations

from django_tasks import task

from benchmarks import work
from benchmarks.settings import QUEUE

# A worker finds a task by module and name, and must find the task there, not the function.
no_op = task(queue_name=QUEUE)(work.no_op)
wait = task(queue_name=QUEUE)(work.wait)
calculate = task(queue_name=QUEUE)(work.calculate)
ten_lines = task(queue_name=QUEUE)(work.ten_lines)
publish_another = task(queue_name=QUEUE)(work.publish_another)


def publish(name: str) -> None:
    """As a view would."""
    globals()[name].enqueue()
