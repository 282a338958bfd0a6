# SPDX-License-Identifier: Apache-2.0
"""The record of a message that came again and whose handler has begun, so that losses are counted.

A process that a handler kills leaves its message to the broker, which delivers it again and again:
a classic queue does not count how often. A message that has come for the first time has no such
record, and costs nothing. One that comes again gets its record before its handler begins, and
loses it when that has ended, however it did: what is left tells of a process that died meanwhile.
Messages that were only held by that process, and not begun, have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

#: A record whose message never came again, deleted with its queue perhaps, is kept for so long.
KEPT = timedelta(days=30)


class BegunMessage(models.Model):
    """A message that was delivered before, under way in a handler."""

    fingerprint = models.CharField(max_length=64, primary_key=True)
    worker = models.CharField(max_length=100, help_text="Who has begun it last.")
    losses = models.PositiveIntegerField(
        default=0, db_default=0, help_text="How many other workers had begun it, and are gone."
    )
    begun_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.fingerprint


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Counts, for one worker, the processes that were lost while messages were handled."""

    worker: str
    limit: int
    """After so many a message is not begun any more."""
    using: str
    """Database alias."""

    def begin(self, fingerprint: str, *, alone: bool) -> int:
        """A message that was delivered before is about to be handled: note it.

        Args:
            fingerprint: of the message.
            alone: nothing else runs in this process.

        Returns:
            How many workers were lost while they handled it. It is noted, and may begin, if that is
            0, or if this is below the limit and it is alone.
        """
        records = BegunMessage.objects.using(self.using)
        found = records.filter(pk=fingerprint).first()
        if found is None:
            records.bulk_create(
                [BegunMessage(fingerprint=fingerprint, worker=self.worker)], ignore_conflicts=True
            )
            return 0
        # What this very process has begun is not lost: its connection was.
        lost = found.losses + (found.worker != self.worker)
        if not lost or (alone and lost < self.limit):
            records.filter(pk=fingerprint).update(worker=self.worker, losses=lost, begun_at=Now())
        return lost

    def end(self, fingerprint: str) -> None:
        """Its handler has ended."""
        BegunMessage.objects.using(self.using).filter(pk=fingerprint).delete()

    def leave(self) -> None:
        """This worker stops in order: what it gives back was not lost."""
        BegunMessage.objects.using(self.using).filter(worker=self.worker).delete()


def forget_old(using: str) -> None:
    """Delete the records that nobody will ask for any more."""
    BegunMessage.objects.using(using).filter(begun_at__lt=Now() - KEPT).delete()
