# SPDX-License-Identifier: Apache-2.0
"""The record of one service process."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Worker(models.Model):
    """One service process. Its rows in progress count as running while its lease is fresh.

    The name is new for each process and never used again: a restarted service is another worker.
    """

    QUIET = "quiet"
    STOP = "stop"
    COMMAND_CHOICES = (
        ("", "Work"),
        (QUIET, "Take nothing more, go on with what runs"),
        (STOP, "Stop"),
    )

    name = models.CharField(max_length=100, primary_key=True)
    host = models.CharField(max_length=200)
    pid = models.PositiveIntegerField()
    machine = models.CharField(
        max_length=200,
        blank=True,
        help_text="Boot and process namespace: workers that share it can see each other's pids.",
    )
    process_start = models.CharField(
        max_length=40, blank=True, help_text="Tells this process from a later one with its pid."
    )
    version = models.CharField(max_length=40)
    queues = models.TextField(help_text="Names of its queues, one a line.")
    threads = models.PositiveIntegerField(
        default=0, db_default=0, help_text="How many tasks it can run at once."
    )
    state = models.JSONField(
        default=dict,
        db_default={},
        help_text="What its threads run, and what keeps it from working, as of its last heartbeat.",
    )
    command = models.CharField(
        max_length=10,
        blank=True,
        default="",
        db_default="",
        choices=COMMAND_CHOICES,
        help_text="What operators want of it; it obeys with its next heartbeat.",
    )
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.name
