# SPDX-License-Identifier: Apache-2.0
"""The record of one limit: who decides about it has it locked, and what it must remember.

How many run is not kept here: that is counted, of the rows that are IN_PROGRESS under its name. So
no slot is ever lost or given back twice, whatever ends a run.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from carrot_twisted.message_log import MAX_LIMIT_NAME

#: How long one is kept that nothing is to be remembered of: longer than any period.
KEPT = timedelta(days=8)
#: Limits that are woken at once, those first that would be looked at soonest.
WAKE_BATCH = 5000


class LimitState(models.Model):
    """A concurrency or rate, for one key. Not there: as if nothing had ever run under it."""

    name = models.CharField(max_length=MAX_LIMIT_NAME, primary_key=True)
    state = models.TextField(
        db_default="", help_text="Starts of the last period, or slots that are kept; JSON."
    )
    look_at = models.DateTimeField(
        null=True,
        help_text="When services look who may start; empty: nobody waits for it.",
    )
    used_at = models.DateTimeField(db_default=Now(), help_text="When it was made, or changed.")

    class Meta:
        indexes: ClassVar = [
            models.Index("look_at", name="carrot_limit_look", condition=Q(look_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.name


def wake(using: str) -> None:
    """Have services look at limits that rows wait for, now: runs may have ended unseen.

    Those that somebody has locked are being looked at. Call it in a transaction.
    """
    later = LimitState.objects.using(using).filter(look_at__gt=Now()).order_by("look_at")
    chosen = later.select_for_update(skip_locked=True).values_list("pk", flat=True)
    if names := list(chosen[:WAKE_BATCH]):
        later.filter(pk__in=names).update(look_at=Now())


def delete_idle(limit: int, using: str) -> int:
    """Delete those that nobody has needed for long. Call it in a transaction.

    Args:
        limit: how many at most.
        using: database alias.

    Returns:
        How many were deleted.
    """
    idle = LimitState.objects.using(using).filter(look_at=None, used_at__lt=Now() - KEPT)
    chosen = idle.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit]
    deleted, _ = idle.filter(pk__in=list(chosen)).delete()
    return deleted
