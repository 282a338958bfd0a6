# SPDX-License-Identifier: Apache-2.0
"""The record that a schedule has published a task: the history of a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from django.db import models
from django.db.models import Exists, OuterRef

from carrot_twisted.message_log import MessageLog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID


class ScheduleRun(models.Model):
    """One run of a schedule: written with the task's row, in one transaction.

    It goes within the hour when that row is gone: deleted, or run again as another one.
    """

    # No foreign keys: what a schedule has published outlives it, and nothing waits for its row.
    schedule = models.BigIntegerField(help_text="Primary key of the ScheduledTask.")
    message = models.UUIDField(help_text="Primary key of the MessageLog.")
    slot = models.DateTimeField(
        null=True, help_text="When it was due; empty: somebody had it run at once."
    )

    class Meta:
        indexes: ClassVar = [models.Index("schedule", "id", name="carrot_schedule_run")]

    def __str__(self) -> str:
        return f"{self.schedule} {self.message}"


def note(runs: Sequence[tuple[int, UUID, datetime | None]], using: str) -> None:
    """Write runs: of each the schedule, the task's row and the slot. Call it in their transaction.

    One statement on PostgreSQL; SQLite takes some hundred in one.
    """
    ScheduleRun.objects.using(using).bulk_create(
        [ScheduleRun(schedule=pk, message=message, slot=slot) for pk, message, slot in runs]
    )


def delete_orphans(limit: int, using: str) -> int:
    """Delete runs whose tasks' rows are gone; returns how many. Call it in a transaction.

    Args:
        limit: how many at most.
        using: database alias.
    """
    runs = ScheduleRun.objects.using(using)
    row = MessageLog.objects.using(using).filter(pk=OuterRef("message"))
    orphans = runs.filter(~Exists(row)).order_by("pk").values_list("pk", flat=True)[:limit]
    deleted, _ = runs.filter(pk__in=list(orphans)).delete()
    return deleted
