# SPDX-License-Identifier: Apache-2.0
"""What has come to an end in this process since its start: how often, and how long it took.

Each end is counted once, by some look-ups in dictionaries; the charts of the monitor and the
metrics are made of the same numbers. Everything here happens in the reactor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from carrot_twisted import histograms
from carrot_twisted.message_log import MAX_TASK
from carrot_twisted.rollups import OTHERS, Totals

if TYPE_CHECKING:
    from carrot_twisted.service.journal import Handled

#: Tasks that are counted one by one; what comes beyond them is counted with its queue's others.
MAX_TASKS = 1000


class Counted:
    """Totals of one process, by queue and task or handler."""

    def __init__(self) -> None:
        #: Since ``_take``.
        self._fresh: dict[tuple[str, str], Totals] = {}
        #: Before that.
        self._before: dict[tuple[str, str], Totals] = {}

    def count(self, queue: str, task: str, completed: bool, wait: float, run: float) -> None:
        """Something has come to its end.

        Args:
            queue: where it came from.
            task: dotted path of the task or handler.
            completed: whether it has not failed.
            wait: seconds until it began.
            run: seconds that it took.
        """
        totals = self._fresh.get((queue, task))
        if totals is None:
            key = (queue, task if len(self._fresh) < MAX_TASKS else OTHERS)
            totals = self._fresh.setdefault(key, Totals())
        if completed:
            totals.completed += 1
        else:
            totals.failed += 1
        histograms.add(totals.wait, wait)
        histograms.add(totals.run, run)
        totals.wait_seconds += wait
        totals.run_seconds += run

    def handled(self, one: Handled) -> None:
        """A message with a handler is settled."""
        self.count(
            one.queue.name,
            one.queue.handler[:MAX_TASK],
            one.failure is None,
            one.started - one.arrived,
            one.ended - one.started,
        )

    def totals(self) -> dict[tuple[str, str], Totals]:
        """Copies of all totals since the start, by queue and task."""
        found: dict[tuple[str, str], Totals] = {}
        for part in (self._before, self._fresh):
            for key, totals in part.items():
                found.setdefault(key, Totals()).add(totals)
        return found

    def _take(self) -> dict[tuple[str, str], Totals]:
        """What was counted since the last call."""
        fresh, self._fresh = self._fresh, {}
        for (queue, task), totals in fresh.items():
            key = (queue, task)
            if key not in self._before and len(self._before) >= MAX_TASKS:
                key = (queue, OTHERS)
            self._before.setdefault(key, Totals()).add(totals)
        return fresh
