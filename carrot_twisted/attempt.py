# SPDX-License-Identifier: Apache-2.0
"""The record of one attempt at a task that did not end it: the task has run, or runs, again.

How the last attempt went stands in the task's own row. So a task that ends at its first attempt has
no row here.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from carrot_twisted.message_log import MessageLog
from carrot_twisted.outcomes import MAX_CLASS

#: Characters that are kept of an attempt's exception, and of the ends of its log and traceback.
MAX_EXCEPTION = 1000
MAX_LOG = 10_000
#: Attempts that are kept of one task, the first ones: the database may spoil it every ten seconds.
MAX_ATTEMPTS = 100


class Attempt(models.Model):
    """One attempt at a task, of which nothing has come.

    It outlives its MessageLog by an hour, when that is deleted or requeued.
    """

    RETRIED = "RETRIED"
    RELEASED = "RELEASED"
    DATABASE = "DATABASE"
    LOST = "LOST"
    OUTCOMES = (
        (RETRIED, "Failed, and to be tried again"),
        (RELEASED, "Given back: its service stopped, or could not run it"),
        (DATABASE, "The database was in its way"),
        (LOST, "Worker lost"),
    )

    message = models.UUIDField(db_index=True, help_text="Primary key of the MessageLog.")
    number = models.PositiveIntegerField(help_text="1 for the first.")
    worker = models.CharField(max_length=100)
    started = models.DateTimeField(null=True)
    ended = models.DateTimeField(
        db_default=Now(), help_text="When that was noted: a lost worker is found out later."
    )
    outcome = models.CharField(max_length=10, choices=OUTCOMES)
    exception = models.TextField(null=True)
    exception_class = models.CharField(max_length=MAX_CLASS, null=True)
    traceback = models.TextField(null=True, help_text="The end of it.")
    log = models.TextField(help_text="The end of its log, as far as it was written.")

    class Meta:
        ordering: ClassVar = ["message", "number"]

    def __str__(self) -> str:
        return f"{self.message} {self.number}"


def delete_orphans(limit: int, using: str) -> int:
    """Delete attempts at tasks whose rows are gone; returns how many. Call it in a transaction.

    Args:
        limit: how many at most.
        using: database alias.
    """
    attempts = Attempt.objects.using(using)
    row = MessageLog.objects.using(using).filter(pk=OuterRef("message"))
    orphans = attempts.filter(~Exists(row)).order_by("pk").values_list("pk", flat=True)[:limit]
    deleted, _ = attempts.filter(pk__in=list(orphans)).delete()
    return deleted
