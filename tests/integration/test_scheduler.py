# SPDX-License-Identifier: Apache-2.0
"""Schedules: each slot is published once, by whichever service looks first."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from carrot_twisted import schedules
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import create_scheduled_task
from tests.processes import wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]


def test_two_services_publish_each_slot_once_and_no_scheduler_means_none(
    start_service: StartService, ledger: Ledger
) -> None:
    schedule = create_scheduled_task(tasks.effect, {"seconds": 1}, key="tick")
    idle = start_service("--no-scheduler")
    with pytest.raises(AssertionError):
        wait_until(ledger, 3.0)
    idle.stop()
    start_service()
    start_service()
    wait_until(lambda: len(ledger()) >= 5)
    schedule.refresh_from_db()
    assert schedule.last_run_time is not None
    assert schedule.next_run_time == schedule.last_run_time + timedelta(seconds=1)
    # One slot a second, and no second row for any of them.
    ScheduledTask.objects.update(active=False)
    rows = list(MessageLog.objects.order_by("publish_time"))
    assert Counter(row.task for row in rows) == {schedule.task: len(rows)}
    gaps = [b.publish_time - a.publish_time for a, b in itertools.pairwise(rows)]
    assert min(gaps) > timedelta(seconds=0.2)


@pytest.mark.usefixtures("served")
def test_missed_slots_are_made_up_for_once_and_the_grid_stays() -> None:
    schedule = create_scheduled_task(tasks.echo, {"minutes": 5}, task_name="report")
    assert schedule.interval_display == "Every 5 minutes"
    long_ago = timezone.now().replace(microsecond=0) - timedelta(minutes=23)
    ScheduledTask.objects.update(next_run_time=long_ago)
    for _ in range(3):
        with transaction.atomic():
            schedules.publish_due("default")
    assert MessageLog.objects.count() == 1
    schedule.refresh_from_db()
    assert schedule.last_run_time == long_ago
    assert schedule.next_run_time == long_ago + timedelta(minutes=25)


@pytest.mark.usefixtures("served")
def test_a_schedule_that_cannot_be_published_stops_none_of_the_others() -> None:
    for name in ("broken", "good"):
        create_scheduled_task(tasks.echo, {"hours": 1}, task_name=name, name=name)
    ScheduledTask.objects.filter(task_name="broken").update(queue="gone")
    ScheduledTask.objects.update(next_run_time=timezone.now() - timedelta(seconds=1))
    with transaction.atomic():
        assert schedules.publish_due("default") == 2
    assert [row.keywords for row in MessageLog.objects.all()] == [{"name": "good"}]


@pytest.mark.usefixtures("served")
def test_a_schedule_that_makes_no_sense_is_refused() -> None:
    for interval in ({}, {"weeks": 1}, {"seconds": 0}, {"seconds": 1, "days": 1}, {"days": 1.5}):
        with pytest.raises(InvalidMessage, match="interval"):
            create_scheduled_task(tasks.echo, interval)
    create_scheduled_task(tasks.echo, {"seconds": 1})
    with pytest.raises(InvalidMessage, match="already"):
        create_scheduled_task(tasks.echo, {"seconds": 1})
    with pytest.raises(IntegrityError), transaction.atomic():
        ScheduledTask.objects.update(interval_count=0)
    assert ScheduledTask.objects.count() == 1
