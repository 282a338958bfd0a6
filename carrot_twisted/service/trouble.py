# SPDX-License-Identifier: Apache-2.0
"""Something that does not work for a while: since when, why, and when to say so again."""

from __future__ import annotations

#: Seconds until trouble that lasts is told again; each time twice as long, up to the second.
REMIND_FIRST = 15.0
REMIND_LAST = 600.0


class Trouble:
    """One stretch of time in which something does not work. Told once, then ever more rarely.

    Args:
        now: seconds, of any clock that the other methods are given the time of, too.
        reason: for people.
    """

    def __init__(self, now: float, reason: str) -> None:
        self._since = now
        self._interval = REMIND_FIRST
        self._due = now + REMIND_FIRST
        self.reason = reason

    def seconds(self, now: float) -> int:
        """How long it has lasted, in whole seconds."""
        return int(now - self._since)

    def is_due(self, now: float) -> bool:
        """Whether it is to be told again now. Who is told yes, tells it."""
        if now < self._due:
            return False
        self._interval = min(REMIND_LAST, self._interval * 2)
        self._due = now + self._interval
        return True


class Complaints:
    """Whether to tell of failures of what is done again and again, and may fail each time."""

    def __init__(self) -> None:
        self._by_work: dict[str, Trouble] = {}

    def is_due(self, work: str, now: float) -> bool:
        """Whether this failure of ``work`` is to be told; the first one is."""
        trouble = self._by_work.get(work)
        if trouble is None:
            self._by_work[work] = Trouble(now, work)
            return True
        return trouble.is_due(now)

    def over(self, work: str) -> None:
        """It has not failed."""
        self._by_work.pop(work, None)
