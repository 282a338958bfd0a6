# SPDX-License-Identifier: Apache-2.0
"""The ``async def`` tasks of one queue: so many at a time, in the process's event loop."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from carrot_twisted.service.event_loop import start_task
from carrot_twisted.service.pool import Slot

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from carrot_twisted.service.event_loop import EventLoop


class _HasRun(Protocol):
    run: Any


Job = TypeVar("Job", bound=_HasRun)


class Coroutines(Generic[Job]):
    """What ``WorkerPool`` is for threads: runs ``work`` with one job after another.

    Args:
        name: of the queue.
        limit: how many run at once.
        work: called in the loop for each job; it must not raise.
        events: the process's event loop.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        work: Callable[[Job], Coroutine[Any, Any, None]],
        events: EventLoop,
    ) -> None:
        self._name = name
        self._limit = limit
        self._work = work
        self._events = events
        self._inbox: deque[Job] = deque()
        #: Of each that runs its asyncio task: asyncio itself keeps no hold of them.
        self._running: dict[Slot[Job], asyncio.Task[None]] = {}
        self.begun = 0
        """Jobs that were begun."""
        self._due = False

    @property
    def slots(self) -> list[Slot[Job]]:
        """Of those that run. From any thread."""
        return list(self._running)

    def put(self, job: Job) -> None:
        """Run it as soon as fewer than ``limit`` others do. From any thread."""
        self._inbox.append(job)
        self._call()

    def _call(self) -> None:
        if not self._due:
            self._due = True
            self._events.call(self._take)

    def recall(self) -> list[Job]:
        """Take back the jobs that were not begun. From any thread."""
        jobs: list[Job] = []
        while True:
            try:
                jobs.append(self._inbox.popleft())
            except IndexError:
                return jobs

    def give_up(self, run: Any) -> str:
        """Another one takes the place of a job that does not end. From any thread.

        Args:
            run: of the job.

        Returns:
            The name of its slot; "" if it has just ended, or is another queue's.
        """
        for slot in self.slots:
            if slot.job is not None and slot.job.run is run:
                slot.stuck = True
                self.look_again()
                return slot.name
        return ""

    def look_again(self) -> None:
        """Begin what waits, in the present loop: the one that was asked may be blocked."""
        self._due = False
        if self._inbox:
            self._call()

    def _take(self) -> None:
        """In the loop."""
        self._due = False
        room = self._limit - sum(not slot.stuck for slot in self.slots)
        for _ in range(room):
            try:
                job = self._inbox.popleft()
            except IndexError:
                return
            self.begun += 1
            slot: Slot[Job] = Slot(f"{self._name}-async-{self.begun}")
            slot.since = time.monotonic()
            slot.job = job
            self._running[slot] = start_task(self._run(slot, job))

    async def _run(self, slot: Slot[Job], job: Job) -> None:
        try:
            await self._work(job)
        finally:
            del self._running[slot]
            if self._inbox:
                self._call()
