# SPDX-License-Identifier: Apache-2.0
"""The record of a queue that operators have paused: no service takes messages off it."""

from __future__ import annotations

from datetime import UTC

from django.db import models
from django.db.models.functions import Now


class PausedQueue(models.Model):
    """One queue from which nothing is consumed until the row is gone.

    Made and deleted by ``housekeeping.pause_queue`` and ``resume_queue``; each service looks with
    its heartbeat.
    """

    name = models.CharField(max_length=255, primary_key=True)
    since = models.DateTimeField(db_default=Now(), editable=False)
    by = models.CharField(max_length=150, blank=True, default="", help_text="Who has paused it.")
    reason = models.TextField(blank=True, default="")

    def __str__(self) -> str:
        who = f" by {self.by}" if self.by else ""
        why = f": {self.reason}" if self.reason else ""
        since = self.since.astimezone(UTC)
        return f"Queue {self.name} is paused{who} since {since:%Y-%m-%d %H:%M:%S} UTC{why}"
