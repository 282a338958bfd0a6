# SPDX-License-Identifier: Apache-2.0
"""The tasks of django-tasks, and how it publishes them.

A worker looks for a task where its function is defined: so each has a function here.
"""

from __future__ import annotations

from django_tasks import task

from benchmarks import work


@task()
def no_op() -> None:
    """See ``work``, here and below."""
    work.no_op()


@task()
def wait() -> None:
    """Waits."""
    work.wait()


@task()
def calculate() -> None:
    """Calculates."""
    work.calculate()


@task()
def ten_lines() -> None:
    """Writes log lines."""
    work.ten_lines()


@task()
def publish_another() -> None:
    """Publishes a task."""
    work.publish_another()


TASKS = {each.func.__name__: each for each in (no_op, wait, calculate, ten_lines, publish_another)}


def publish(name: str) -> None:
    """As a view would."""
    TASKS[name].enqueue()
