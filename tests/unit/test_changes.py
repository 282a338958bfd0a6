# SPDX-License-Identifier: Apache-2.0
"""What has changed in the tables is seen, whatever it is, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db.models.functions import Now

from carrot_twisted import changes, housekeeping
from carrot_twisted.models import MessageLog, PausedQueue, ScheduledTask, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db


def add(status: str = "PUBLISHED") -> MessageLog:
    return MessageLog.objects.create(task="app.work", queue="default", status=status)


def schedule() -> ScheduledTask:
    return ScheduledTask.objects.create(task_name="x", task="app.work")


def worker() -> Worker:
    return Worker.objects.create(name="w", host="h", pid=1, version="1", queues="default")


@pytest.fixture(autouse=True)
def _there() -> None:
    """Something of each kind."""
    for status in ("PUBLISHED", "IN_PROGRESS", "COMPLETED", "FAILED"):
        add(status)
    schedule()
    worker()
    housekeeping.pause_queue("default")


def test_nothing_has_changed() -> None:
    assert changes.changed(changes.marker("default"), changes.marker("default")) == []


def test_at_first_everything_has() -> None:
    names = ["tasks", "queues", "workers", "schedules"]
    assert changes.changed({}, changes.marker("default")) == names == list(changes.TABLES)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tasks", add),
        ("tasks", lambda: MessageLog.objects.get(status="PUBLISHED").cancel()),
        ("tasks", lambda: MessageLog.objects.get(status="COMPLETED").requeue()),
        (
            "tasks",
            lambda: MessageLog.objects.filter(status="PUBLISHED").update(
                status="IN_PROGRESS", start_time=Now()
            ),
        ),
        (
            "tasks",
            lambda: MessageLog.objects.filter(status="IN_PROGRESS").update(
                status="COMPLETED", completion_time=Now()
            ),
        ),
        (
            "tasks",
            lambda: MessageLog.objects.filter(status="IN_PROGRESS").update(
                status="FAILED", failure_time=Now()
            ),
        ),
        # One ends while another one begins.
        ("tasks", lambda: MessageLog.objects.filter(status="IN_PROGRESS").update(start_time=Now())),
        ("queues", lambda: housekeeping.resume_queue("default")),
        ("queues", lambda: PausedQueue.objects.update(reason="another one")),
        ("workers", lambda: Worker.objects.update(heartbeat_at=Now())),
        ("workers", lambda: housekeeping.quiet_worker("w")),
        ("workers", lambda: Worker.objects.all().delete()),
        ("schedules", lambda: ScheduledTask.objects.update(active=False)),
        ("schedules", lambda: ScheduledTask.objects.all().delete()),
    ],
)
def test_a_change_is_seen(name: str, change: Callable[[], object]) -> None:
    before = changes.marker("default")
    change()
    assert changes.changed(before, changes.marker("default")) == [name]
