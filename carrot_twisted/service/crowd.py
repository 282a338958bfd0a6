# SPDX-License-Identifier: Apache-2.0
"""Tasks of one queue of which many messages come that have to wait for their limits.

For some seconds their messages are taken without a thread for them: thousands of these must not
keep others behind them from their threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from carrot_twisted.service.prefetch import Pace

#: Seconds for which that is so of a task, once one of its messages had to wait.
CROWDED = 5.0
#: So many of them in that time, and more are delivered at once.
MANY = 100


class Crowd:
    """Remembers who had to wait. In the reactor.

    Args:
        pace: of the queue.
        reactor: Twisted's reactor.
    """

    def __init__(self, pace: Pace, reactor: IReactorTime) -> None:
        self._pace = pace
        self._reactor = reactor
        self.tasks: dict[str, float] = {}
        """Paths of tasks, and until when they are remembered."""
        self._size = 0

    def note(self, task: str) -> None:
        """A task had to wait for its limits."""
        self.tasks[task] = self._reactor.seconds() + CROWDED
        self._size += 1
        self._pace.crowded = self._size >= MANY

    def forget(self) -> None:
        """Forget those whose time is over."""
        if not self.tasks:
            return
        now = self._reactor.seconds()
        self.tasks = {task: until for task, until in self.tasks.items() if until > now}
        if not self.tasks:
            self._size = 0
            self._pace.crowded = False
