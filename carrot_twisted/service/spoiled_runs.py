# SPDX-License-Identifier: Apache-2.0
"""Runs of one queue that the database has spoiled: they are told, and slow down the next ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted.outcomes import Kind
from carrot_twisted.service.run_ends import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.outcomes import Result
    from carrot_twisted.service.job import Job
    from carrot_twisted.service.prefetch import Pace

_log = make_logger()

#: When the database has spoiled so many rounds of all threads, and nothing else has come of them,
#: one more round is tried each BRAKE seconds: its connections are used up, say.
ROUNDS = 2
BRAKE = 1.0
#: Seconds for which spoiled runs are gathered to be told in one line, growing as long as it lasts.
TELL_FIRST = 1.0
TELL_LAST = 60.0


class SpoiledRuns:
    """Minds them. In the reactor, but for what is noted otherwise.

    Args:
        queue: its name.
        pace: of the queue.
        go_on: called when runs may begin again.
        reactor: Twisted's reactor.
    """

    def __init__(self, queue: str, pace: Pace, go_on: Callable[[], None], reactor: Any) -> None:
        self._queue = queue
        self._pace = pace
        self._go_on = go_on
        self._reactor = reactor
        #: Those since a run came to its end.
        self._count = 0
        self._brake_until = 0.0
        self._untold = 0
        self._tell_after = TELL_FIRST

    @property
    def are_many(self) -> bool:
        """Whether there is no use in more than one round of all threads. From any thread."""
        return self._count >= ROUNDS * self._pace.concurrency

    @property
    def brake(self) -> bool:
        """Whether nothing is to begin for now."""
        return bool(self._reactor.seconds() < self._brake_until)

    def over(self) -> None:
        """A run has come to its end."""
        self._count = 0

    def note(self, jobs: Sequence[Job]) -> None:
        """Some were released: if the database has spoiled them, tell it, and mind the next ones."""
        spoiled = [job for job in jobs if job.result is not None and _was_spoiled(job.result)]
        if not spoiled:
            return
        self._count += len(spoiled)
        if self.are_many:
            self._brake_until = self._reactor.seconds() + BRAKE
            self._reactor.callLater(BRAKE, self._go_on)
        if not self._untold:
            self._reactor.callLater(self._tell_after, self._tell, spoiled[-1])
        self._untold += len(spoiled)

    def _tell(self, job: Job) -> None:
        count, self._untold = self._untold, 0
        self._tell_after = min(TELL_LAST, self._tell_after * 2) if self.are_many else TELL_FIRST
        assert job.result is not None
        _log.warn(
            "{n} tasks of queue {queue} run again later, the database was in their way. "
            "Task {task} ({uuid}): {error}",
            n=count,
            queue=self._queue,
            task=job.run.task if job.run else "?",
            uuid=job.uuid,
            error=first_line(job.result.exception or ""),
        )


def _was_spoiled(result: Result) -> bool:
    return result.kind is Kind.RELEASED and result.exception is not None
