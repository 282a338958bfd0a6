# SPDX-License-Identifier: Apache-2.0
"""The worker threads of one queue: ``deferToThread`` loops, fed from a queue of their own.

Not the reactor's thread pool: ten stuck tasks there would stop DNS look-ups, and so reconnection.
Not one ``deferToThread`` per message either: that costs twice the CPU of a loop. The threads are
daemons, so that a stuck task cannot keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django.db import connections
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from txaio.tx import make_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_log = make_logger()

#: Seconds until a thread that could not be started, or was lost by an error, gets another try.
RESTART = 5.0

Job = TypeVar("Job")


class DaemonThreadPool(ThreadPool):
    """Twisted's pool, whose threads do not hold up the end of the process."""

    @staticmethod
    def threadFactory(*args: Any, **kwargs: Any) -> threading.Thread:  # type: ignore[override]
        """Twisted's hook; it names the class Thread itself, typed as such."""
        return threading.Thread(*args, daemon=True, **kwargs)


class Slot(Generic[Job]):
    """One loop in its thread, and what it does. Read from any thread, ``job`` before ``since``."""

    __slots__ = ("begun", "ident", "job", "name", "since", "stuck")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ident = 0
        self.job: Job | None = None
        self.since = 0.0
        """When the job began, on the monotonic clock."""
        self.begun = 0
        """Jobs that it has begun. Written in its thread only."""
        self.stuck = False
        """Given up: another one has taken its place, and it ends with its job."""


class WorkerPool(Generic[Job]):
    """``size`` threads that call ``work`` with one job after another.

    In the reactor, but for the methods noted otherwise.

    Args:
        name: for the threads' names.
        size: number of threads.
        work: called in a thread for each job. It must not raise; if it does, the loop goes on.
        reactor: Twisted's reactor.
    """

    def __init__(self, name: str, size: int, work: Callable[[Job], None], reactor: Any) -> None:
        self._name = name
        self._work = work
        self._size = size
        self._reactor = reactor
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = DaemonThreadPool(minthreads=0, maxthreads=size, name=name)
        self._started = 0
        #: Changed in the reactor only.
        self._slots: list[Slot[Job]] = []
        self._stopped = False
        #: Jobs that threads have begun which are gone.
        self._begun_before = 0

    @property
    def begun(self) -> int:
        """Jobs that its threads have begun."""
        return self._begun_before + sum(slot.begun for slot in self._slots)

    @property
    def slots(self) -> list[Slot[Job]]:
        """Of all its threads, those that are stuck included. From any thread."""
        return list(self._slots)

    def start(self) -> None:
        """Start the threads."""
        self._threads.start()
        for _ in range(self._size):
            self._start()

    def replace(self, ident: int, first: Callable[[], None]) -> str:
        """Give up a thread that is stuck in its job.

        Args:
            ident: of the thread.
            first: what the thread that takes its place does before anything else.

        Returns:
            The name of the stuck thread.
        """
        (slot,) = (slot for slot in self._slots if slot.ident == ident)
        slot.stuck = True
        self._start(first)
        return slot.name

    def put(self, job: Job) -> None:
        """Give a job to the next free thread. From any thread."""
        self._inbox.put(job)

    def recall(self) -> list[Job]:
        """Take back the jobs that no thread has begun. Not after ``stop``."""
        jobs: list[Job] = []
        while True:
            try:
                job = self._inbox.get_nowait()
            except Empty:
                return jobs
            if job is not None:
                jobs.append(job)

    def stop(self) -> None:
        """Let the threads end when they have nothing to do. Does not wait."""
        self._stopped = True
        for _ in self._slots:
            # Also for those that are given up: one may have ended its job at that very moment, and
            # wait for another.
            self._inbox.put(None)

    def _start(self, first: Callable[[], None] | None = None) -> None:
        if self._stopped:
            return
        self._started += 1
        slot: Slot[Job] = Slot(f"{self._name}-{self._started}")
        self._slots.append(slot)
        self._fit()
        ended = maybeDeferred(
            lambda: deferToThreadPool(self._reactor, self._threads, self._loop, slot, first)
        )
        ended.addBoth(self._ended, slot, first)

    def _fit(self) -> None:
        """A thread for each loop, and no other: a loop never waits for one that is stuck."""
        self._threads.adjustPoolsize(0, len(self._slots))

    def _ended(self, result: object, slot: Slot[Job], first: Callable[[], None] | None) -> None:
        self._slots.remove(slot)
        self._begun_before += slot.begun
        self._fit()
        if isinstance(result, Failure):
            _log.failure("Worker thread {name} is lost", failure=result, name=slot.name)
            if not (slot.stuck or self._stopped):
                # Not at once: there may be no more threads, or no more memory.
                self._reactor.callLater(RESTART, self._start, None if slot.ident else first)

    def _loop(self, slot: Slot[Job], first: Callable[[], None] | None) -> None:
        """In a thread of the pool."""
        threading.current_thread().name = slot.name
        slot.ident = threading.get_ident()
        if first is not None:
            self._guarded(first)
        while not slot.stuck and (job := self._inbox.get()) is not None:
            slot.since = time.monotonic()
            slot.job = job
            slot.begun += 1
            self._guarded(self._work, job)
            slot.job = None
        connections.close_all()

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except BaseException:
            _log.failure("A worker thread met an error outside of its task")
