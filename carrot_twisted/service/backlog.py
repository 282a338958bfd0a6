# SPDX-License-Identifier: Apache-2.0
"""What was delivered to this process and waits in it for its turn."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeVar

from carrot_twisted.service.delivery import Delivery

if TYPE_CHECKING:
    from carrot_twisted.service.prefetch import Pace

#: Seconds that what was claimed, or chosen, may wait for a thread. It was to be less than one: see
#: ``prefetch``.
STUCK = 10.0


class Backlog(deque[Delivery]):
    """Deliveries of one queue, the oldest first."""

    def give_back(self) -> None:
        """Give all of them back."""
        while self:
            self.popleft().requeue()

    def give_back_beyond(self, keep: int) -> None:
        """Give back those beyond ``keep``, the newest first."""
        while len(self) > keep:
            self.pop().requeue()

    def forget_closed(self) -> None:
        """Drop those of a channel that is closed: the broker has them again."""
        is_open = [delivery for delivery in self if delivery.settler.is_open]
        self.clear()
        self.extend(is_open)

    def take_overdue(self, now: float, deadline: float) -> list[Delivery]:
        """Take those out that have waited for ``deadline`` seconds.

        They count from the first call that finds them.
        """
        overdue: list[Delivery] = []
        for _ in range(len(self)):
            delivery = self.popleft()
            if delivery.seen is None:
                delivery.seen = now
            (overdue if now - delivery.seen >= deadline else self).append(delivery)
        return overdue


class _HasSince(Protocol):
    since: float
    """Reactor time when it was claimed, or chosen."""


Job = TypeVar("Job", bound=_HasSince)


class _Workers(Protocol[Job]):
    """A ``WorkerPool``, or ``Coroutines``."""

    def put(self, job: Job) -> None:
        """Run a job."""

    def recall(self) -> list[Job]:
        """Take back the jobs that were not begun."""


def take_behind(workers: _Workers[Job], pace: Pace, now: float) -> list[Job]:
    """Take jobs from workers that have begun none of them for STUCK seconds.

    Args:
        workers: who work long, perhaps.
        pace: theirs; it learns of that.
        now: reactor time.
    """
    behind = workers.recall()
    oldest = max((now - job.since for job in behind), default=0.0)
    if oldest > STUCK:
        # What was measured of earlier jobs does not hold for those that run now.
        pace.seconds = max(pace.seconds, oldest)
        return behind
    for job in behind:
        workers.put(job)
    return []
