# SPDX-License-Identifier: Apache-2.0
"""Publishes the schedules that are due: each slot once, however many services look.

There is no leader. Moving a schedule to its next slot is a conditional update in the transaction
that inserts the task's row: who comes second changes nothing and publishes nothing.
"""

from __future__ import annotations

import logging
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.functions import Now

from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.objects import Message
from carrot_twisted.triggers import next_slot

if TYPE_CHECKING:
    from datetime import datetime

    from django.db.models import QuerySet

_logger = logging.getLogger("carrot_twisted.scheduler")

#: When a schedule is looked at again that cannot be published.
PENALTY = timedelta(hours=1)
#: Schedules that one call takes at most.
BATCH = 1000


def publish_due(using: str) -> int:
    """Publish every active schedule that is due, once each. Call it inside a transaction.

    A new schedule first runs one interval after it was seen, as in django-carrot. A schedule that
    cannot be published (its queue is not configured any more, its
    arguments are no JSON) is logged and tried again later.

    Returns:
        How many schedules were due; BATCH at most: call it again then.
    """
    schedules = ScheduledTask.objects.using(using).filter(active=True)
    for fresh in schedules.filter(next_run_time__isnull=True)[:BATCH]:
        _begin(fresh, schedules)
    clock = ExpressionWrapper(Now(), output_field=DateTimeField())
    due = list(
        schedules.filter(next_run_time__lte=Now())
        .annotate(now=clock)
        .order_by("next_run_time")[:BATCH]
    )
    rows = [row for schedule in due if (row := _publish(schedule, schedules)) is not None]
    if rows:
        MessageLog.objects.using(using).enqueue(rows)
    return len(due)


def _begin(schedule: ScheduledTask, schedules: QuerySet[ScheduledTask]) -> None:
    """Give a new schedule its first slot."""
    try:
        first = Now() + schedule.interval
    except CarrotError as error:
        _tell(schedule, error)
        # Looked at again in an hour, in case somebody mends it.
        first = Now() + PENALTY
    schedules.filter(pk=schedule.pk, next_run_time__isnull=True).update(next_run_time=first)


def _publish(schedule: Any, schedules: QuerySet[ScheduledTask]) -> MessageLog | None:
    """Move a due schedule on; the row to insert, if this call was the first to do so."""
    slot: datetime = schedule.next_run_time
    now = max(schedule.now.replace(tzinfo=schedule.now.tzinfo or UTC), slot)
    row: MessageLog | None
    try:
        following = next_slot(slot, now, schedule.interval)
        row = message_of(schedule).row
    except CarrotError as error:
        _tell(schedule, error)
        following, row = now + PENALTY, None
    moved = schedules.filter(pk=schedule.pk, next_run_time=slot).update(
        next_run_time=following, last_run_time=slot
    )
    return row if moved else None


def _tell(schedule: ScheduledTask, error: CarrotError) -> None:
    _logger.error(
        "Schedule %r cannot be published and is tried again in %s: %s",
        schedule.task_name,
        PENALTY,
        error,
    )


def message_of(schedule: ScheduledTask, priority: int = 0) -> Message:
    """The message that a schedule publishes.

    Raises:
        InvalidMessage, CarrotConfigException: the schedule's arguments or queue are wrong.
    """
    return Message(
        task=schedule.task,
        queue=schedule.queue,
        routing_key=schedule.routing_key or None,
        exchange=schedule.exchange,
        priority=priority,
        task_args=schedule.positional_arguments,
        task_kwargs=schedule.keyword_arguments,
    )
