# SPDX-License-Identifier: Apache-2.0
"""How much work to hold: pure arithmetic on what was measured.

What a service holds unacknowledged waits behind its running tasks and cannot go to another
service. So: just the free threads for long tasks, hundreds of messages for short ones.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds of work that may wait in claimed rows. Short, for those rows say IN_PROGRESS.
CLAIM_AHEAD = 0.1
#: Seconds of work that may wait in delivered messages.
DELIVER_AHEAD = 0.5
MAX_CLAIMED = 1000
MAX_PREFETCH = 2000
#: Bytes of message bodies that prefetched messages may take.
MAX_BYTES = 64 * 1024 * 1024
#: Messages that are taken together whose tasks have to wait for their limits.
CROWD = 512
#: Weight of the newest batch in the running averages.
WEIGHT = 0.3


@dataclass
class Pace:
    """Running averages of a queue's tasks.

    Args:
        concurrency: threads of the queue.
        fixed: prefetch from the settings; None follows the measurement.
        beside: the pace of the queue's coroutines, once it has any. They wait for no thread.
    """

    concurrency: int
    fixed: int | None
    seconds: float = 0.05
    """Run time of a task. The start value is a guess that is soon replaced."""
    size: float = 1000.0
    """Bytes of a body."""
    missing: int = 0
    """Messages that wait for their rows, which may never come."""
    crowded: bool = False
    """Many messages come whose tasks have to wait for their limits: they need no thread."""
    beside: Pace | None = None

    def measured(self, seconds: float, size: float) -> None:
        """A batch of tasks took so long on average, with bodies of that size."""
        self.seconds += WEIGHT * (seconds - self.seconds)
        self.size += WEIGHT * (size - self.size)

    @property
    def claimed(self) -> int:
        """How many rows to have claimed at once, running ones included."""
        return self.concurrency + self._ahead(CLAIM_AHEAD, MAX_CLAIMED)

    @property
    def prefetch(self) -> int:
        """How many messages to have delivered at once, claimed ones included."""
        if self.fixed is not None:
            return self.fixed
        ahead = self._ahead(DELIVER_AHEAD, MAX_PREFETCH)
        ahead = min(ahead, int(MAX_BYTES / max(1.0, self.size)))
        return self.concurrency + ahead + (0 if self.beside is None else self.beside.prefetch)

    @property
    def least(self) -> int:
        """How many messages keep all threads and coroutines busy."""
        return self.concurrency + (0 if self.beside is None else self.beside.concurrency)

    @property
    def headroom(self) -> int:
        """How many messages beyond ``prefetch``: those that wait for rows, or whose rows wait for
        their limits, keep no others out.

        0 where there is room. Else a power of two, for each change costs a new consumer.
        """
        if self.crowded:
            return CROWD
        return 0 if self.prefetch > 4 * self.missing else 1 << self.missing.bit_length()

    def _ahead(self, seconds: float, most: int) -> int:
        return min(most, int(seconds * self.concurrency / max(self.seconds, 1e-6)))


def worth_changing(present: int, pace: Pace) -> bool:
    """Whether a new prefetch is worth a new consumer: a factor of four, up or down.

    Or where the present one leaves some of those without work that could have it: the first
    coroutine has come.
    """
    wanted = pace.prefetch
    return wanted >= present * 4 or wanted * 4 <= present or present < pace.least <= wanted
