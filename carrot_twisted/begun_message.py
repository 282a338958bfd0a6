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
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import F
from django.db.models.functions import Now

if TYPE_CHECKING:
    from collections.abc import Collection

#: So many losses, and a message runs alone.
SUSPECT = 2
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
    """Counts, for one worker, the processes that were lost while messages were handled.

    Messages are noted in batches, shortly before their handlers begin, so that an innocent one may
    be counted that was about to begin when another one killed the process. From SUSPECT losses on
    each runs alone: what is counted then is its own doing.
    """

    worker: str
    limit: int
    """After so many a message is not begun any more; at least one of them has to be its own."""
    using: str
    """Database alias."""

    def may_begin(self, lost: int, *, alone: bool) -> bool:
        """Whether a message under which so many processes were lost may begin now."""
        return lost < SUSPECT or (alone and not self.is_too_much(lost))

    def is_too_much(self, lost: int) -> bool:
        """Whether a message has cost so many processes that it is given up."""
        return lost >= max(self.limit, SUSPECT + 1)

    def begin(self, fingerprints: Collection[str], *, alone: bool) -> dict[str, int]:
        """Messages that were delivered before are about to be handled: note those that may be.

        Args:
            fingerprints: of the messages.
            alone: nothing else runs in this process.

        Returns:
            For each of them, how many workers were lost while they handled it.
        """
        records = BegunMessage.objects.using(self.using)
        found = {one.fingerprint: one for one in records.filter(pk__in=fingerprints)}
        # What this very process has begun is not lost: its connection was.
        lost = {key: one.losses + (one.worker != self.worker) for key, one in found.items()}
        records.bulk_create(
            [
                BegunMessage(fingerprint=key, worker=self.worker)
                for key in sorted({*fingerprints} - {*found})
            ],
            ignore_conflicts=True,
        )
        again = [key for key, count in lost.items() if self.may_begin(count, alone=alone)]
        others = records.filter(pk__in=again).exclude(worker=self.worker)
        others.update(worker=self.worker, losses=F("losses") + 1, begun_at=Now())
        return dict.fromkeys(fingerprints, 0) | lost

    def end(self, fingerprints: Collection[str]) -> None:
        """Their handlers have ended."""
        BegunMessage.objects.using(self.using).filter(pk__in=fingerprints).delete()

    def leave(self) -> None:
        """This worker stops in order: what it gives back was not lost."""
        BegunMessage.objects.using(self.using).filter(worker=self.worker).delete()


def forget_old(using: str) -> None:
    """Delete the records that nobody will ask for any more."""
    BegunMessage.objects.using(using).filter(begun_at__lt=Now() - KEPT).delete()
