# SPDX-License-Identifier: Apache-2.0
"""The record of what people did in the monitor, the admin and the API: who, what, when."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import F
from django.db.models.functions import Now

#: Characters that are kept of a user's name, and of what was acted on.
MAX_TEXT = 500


class OperatorAction(models.Model):
    """One action of one user, on one thing or on many.

    Never changed, but for the count of one that takes a while.
    """

    time = models.DateTimeField(db_default=Now(), editable=False)
    user = models.CharField(
        max_length=MAX_TEXT, help_text="Name, also of a user who does not exist any more."
    )
    action = models.CharField(max_length=50, help_text="For example requeue, cancel, purge.")
    target = models.CharField(
        max_length=MAX_TEXT, help_text="A task, a queue, a filter: what it was done to."
    )
    count = models.PositiveIntegerField(default=1, help_text="How many rows or messages it met.")

    class Meta:
        indexes: ClassVar = [models.Index("time", name="carrot_action_time")]
        default_permissions: ClassVar = ("view",)

    def __str__(self) -> str:
        return f"{self.user}: {self.action} {self.target}"

    @classmethod
    def note(cls, user: object, action: str, target: str, count: int = 1) -> OperatorAction:
        """Record an action. Call it in the transaction of what it tells, where that has one.

        Args:
            user: of the request.
            action: a word.
            target: what it was done to, for people; cut where it is too long.
            count: how many rows or messages it met.
        """
        name = str(user) or "unknown"
        return cls.objects.create(
            user=name[:MAX_TEXT], action=action, target=target[:MAX_TEXT], count=count
        )

    @classmethod
    def add(cls, pk: int, count: int) -> None:
        """An action that was noted went on. Call it in the transaction of what it tells.

        Args:
            pk: of the record.
            count: how many more rows it met.
        """
        cls.objects.filter(pk=pk).update(count=F("count") + count)
