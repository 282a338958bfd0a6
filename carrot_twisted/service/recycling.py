# SPDX-License-Identifier: Apache-2.0
"""Says when this process has had its day, and a fresh one should go on.

That is after so many tasks, with so much memory in use (``--max-tasks``, ``--max-memory``), or
when too many threads are stuck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from carrot_twisted import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.service.working import Working

#: So many threads of a process may be stuck at once; with one more it is replaced.
MAX_STUCK = 4
#: Seconds between looks at the memory.
INTERVAL = 1.0


class Recycling:
    """Watches one process.

    Args:
        dispatchers: of all queues.
        max_tasks: end after so many tasks; None: never.
        max_memory: end with more MB (of 1024 * 1024 bytes) than that in use; None: never.
        reactor: Twisted's reactor.
        on_due: called with the reason, once.
    """

    def __init__(
        self,
        *,
        dispatchers: Sequence[Working],
        max_tasks: int | None,
        max_memory: int | None,
        reactor: Any,
        on_due: Callable[[str], None],
    ) -> None:
        self._dispatchers = dispatchers
        self._max_tasks = max_tasks
        self._max_memory = max_memory
        self._on_due = on_due
        self._due = False
        self._memory = LoopingCall(self._look_at_memory)
        self._memory.clock = reactor
        for dispatcher in dispatchers:
            dispatcher.on_stuck = self._count_stuck
            if max_tasks is not None:
                dispatcher.on_finished = self._count_finished

    def refusal(self) -> str | None:
        """Why this process should not even begin; None if it may."""
        used = processes.memory()
        if self._max_memory is None or used <= self._max_memory:
            return None
        return (
            f"The service takes {used:.0f} MB before its first task: with --max-memory="
            f"{self._max_memory} it would never come to work. Give it more."
        )

    def start(self) -> None:
        """Look at the memory from time to time, if there is a limit."""
        if self._max_memory is not None:
            self._memory.start(INTERVAL, now=False)

    def stop(self) -> None:
        """The process ends."""
        self._due = True
        if self._memory.running:
            self._memory.stop()

    def _count_finished(self) -> None:
        finished = sum(dispatcher.finished for dispatcher in self._dispatchers)
        if self._max_tasks is not None and finished >= self._max_tasks:
            self._tell(f"it has run {finished} tasks (--max-tasks={self._max_tasks})")

    def _count_stuck(self) -> None:
        stuck = sum(one.stuck for d in self._dispatchers for one in d.threads())
        if stuck > MAX_STUCK:
            self._tell(f"{stuck} of its threads are stuck in tasks")

    def _look_at_memory(self) -> None:
        used = processes.memory()
        if self._max_memory is not None and used > self._max_memory:
            self._tell(f"it uses {used:.0f} MB of memory (--max-memory={self._max_memory})")

    def _tell(self, reason: str) -> None:
        if not self._due:
            self.stop()
            self._on_due(reason)
