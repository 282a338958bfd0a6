# SPDX-License-Identifier: Apache-2.0
"""How queues and schedules stand, for those who ask again and again: it never counts all rows.

How many tasks wait is what the last sample says (``rollups.sample``), which some service takes each
minute. What is unsent, and which schedule is overdue, is asked of their indexes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from carrot_twisted.models import MessageLog, QueueStatistics, ScheduledTask
from carrot_twisted.rollups import FINEST

if TYPE_CHECKING:
    from datetime import timedelta

    from django.db.models.expressions import Combinable

#: Rows of the outbox that are looked at: those that are due first.
MAX_UNSENT = 1000


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All of it."""

    queues: list[QueueStatistics]
    """The last sample; empty if there is none yet."""
    age: float | None
    """Seconds since the minute of that sample began."""
    unsent: dict[str, float]
    """Seconds since the oldest message was due that the broker does not have, by queue."""
    overdue: float
    """Seconds since the slot of the schedule that should have been published first; 0: none is."""


def read(using: str) -> Standing:
    """Ask the tables: four small queries.

    Args:
        using: database alias.
    """
    samples = QueueStatistics.objects.using(using).filter(resolution=FINEST)
    last = samples.annotate(age=_since(F("start"))).order_by("-start").first()
    logs = MessageLog.objects.using(using)
    first = logs.unsent().order_by("relay_at").values("pk")[:MAX_UNSENT]
    due = ScheduledTask.objects.using(using).filter(active=True, next_run_time__lte=Now())
    overdue = due.order_by("next_run_time").values_list(_since(F("next_run_time")), flat=True)
    late = overdue.first()
    return Standing(
        queues=[] if last is None else [*samples.filter(start=last.start).order_by("queue")],
        age=None if last is None else _seconds(last.age),
        unsent={
            queue: max(0.0, one.seconds)
            for queue, one in logs.filter(pk__in=first).outbox_state().items()
        },
        overdue=0.0 if late is None else _seconds(late),
    )


def _since(field: Combinable) -> ExpressionWrapper[Any]:
    return ExpressionWrapper(Now() - field, output_field=DurationField())


def _seconds(age: timedelta) -> float:
    return max(0.0, age.total_seconds())
