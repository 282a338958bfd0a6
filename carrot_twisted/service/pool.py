# SPDX-License-Identifier: Apache-2.0
"""The worker threads of one queue: long-lived loops, fed from a queue of their own.

Not the reactor's thread pool: ten stuck tasks there would stop DNS look-ups, and so reconnection.
Not one ``deferToThread`` per message either: that costs twice the CPU of a loop. The threads are
daemons, so that a stuck task cannot keep the process from ending.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django.db import connections
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from txaio.tx import make_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_log = make_logger()

Job = TypeVar("Job")


class DaemonThreadPool(ThreadPool):
    """Twisted's pool, whose threads do not hold up the end of the process."""

    @staticmethod
    def threadFactory(*args: Any, **kwargs: Any) -> threading.Thread:  # type: ignore[override]
        """Twisted's hook; it names the class Thread itself, typed as such."""
        return threading.Thread(*args, daemon=True, **kwargs)


class WorkerPool(Generic[Job]):
    """``size`` threads that call ``work`` with one job after another.

    Args:
        name: for the threads' names.
        size: number of threads.
        work: called in a thread for each job. It must not raise; if it does, the loop goes on.
        reactor: Twisted's reactor.
    """

    def __init__(self, name: str, size: int, work: Callable[[Job], None], reactor: Any) -> None:
        self._work = work
        self._size = size
        self._reactor = reactor
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = DaemonThreadPool(minthreads=0, maxthreads=size, name=name)

    def start(self) -> None:
        """Start the loops."""
        self._threads.start()
        for _ in range(self._size):
            deferToThreadPool(self._reactor, self._threads, self._loop)

    def put(self, job: Job) -> None:
        """Give a job to the next free thread. From any thread."""
        self._inbox.put(job)

    def recall(self) -> list[Job]:
        """Take back the jobs that no thread has begun."""
        jobs: list[Job] = []
        while True:
            try:
                job = self._inbox.get_nowait()
            except Empty:
                return jobs
            if job is not None:
                jobs.append(job)

    def stop(self) -> None:
        """Let the loops end when they have nothing to do. Does not wait."""
        for _ in range(self._size):
            self._inbox.put(None)
        # And the threads with them; not stop(), which waits for a task that is stuck.
        self._threads.adjustPoolsize(0, 0)

    def _loop(self) -> None:
        while (job := self._inbox.get()) is not None:
            try:
                self._work(job)
            except BaseException:
                _log.failure("A worker thread met an error outside of its task")
        connections.close_all()
