# SPDX-License-Identifier: Apache-2.0
"""Something that fails again and again: what is wrong with it now, and when to speak of it.

A broker that is away for ten minutes is tried hundreds of times. The log shall tell that it is
away and why, that it still is, and when it was back; not each attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds until what still fails is told again; doubled each time, up to the last.
FIRST_REMINDER = 60.0
LAST_REMINDER = 3600.0
#: What fails again so soon after its return was not back.
CALM = 5.0
#: Different reasons that one outage tells at once, for example of the servers of a cluster.
MAX_REASONS = 20


class Outage:
    """Of one thing, now or never.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.reason: str | None = None
        """Why it does not work now; None: it works, or was not tried yet."""
        self._clock = clock
        self._began = 0.0
        self._ended = float("-inf")
        self._count = 0
        self._told: set[str] = set()
        self._reminder = FIRST_REMINDER
        self._next = 0.0
        #: Whether anything was told since the last return.
        self._news = False

    @property
    def seconds(self) -> float:
        """How long it has not worked; 0: it works."""
        return 0.0 if self.reason is None else self._clock() - self._began

    def failed(self, reason: str) -> str | None:
        """It has failed.

        Returns:
            What is to be told of it; None: that was told already.
        """
        now = self._clock()
        if self.reason is None:
            self._began = now
            self._count = 0
            if now - self._ended > CALM:
                self._told.clear()
                self._reminder = FIRST_REMINDER
                self._next = now + self._reminder
        self.reason = reason
        self._count += 1
        if reason not in self._told and len(self._told) < MAX_REASONS:
            self._told.add(reason)
            self._news = True
            return reason
        if now < self._next:
            return None
        self._reminder = min(LAST_REMINDER, self._reminder * 2)
        self._next = now + self._reminder
        self._news = True
        if self._count == 1:
            # So soon after a return that it goes on with what was told.
            return reason
        return f"{reason} (for {self.seconds:.0f} s now, {self._count} times)"

    def over(self) -> str | None:
        """It works.

        Returns:
            How long it did not, to be added to a line that tells so, "" if it had not failed; None:
            the failure was not told, so its end need not be.
        """
        if self.reason is None:
            return ""
        now = self._ended = self._clock()
        self.reason = None
        if not self._news:
            return None
        self._news = False
        return f", again after {now - self._began:.1f} s"
