# SPDX-License-Identifier: Apache-2.0
"""Has what comes to an end in this service (``counted``) written, for the charts of the monitor.

What was counted is added to its buckets of time when the minute ends, or the next write begins:
each INTERVAL seconds one statement writes the totals of all buckets that have changed. They are
this worker's own rows, so writing twice does no harm, and what a write has missed the next one has.
A process that is killed takes along what it has counted since its last write. Everything here
happens in the reactor.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

from carrot_twisted import rollups
from carrot_twisted.rollups import FINEST, KEPT, OTHERS, Totals
from carrot_twisted.service.chore import Chore
from carrot_twisted.service.counted import Counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.python.failure import Failure

    from carrot_twisted.rollups import Key
    from carrot_twisted.service.journal import Handled
    from carrot_twisted.service.log_writer import LogWriter

#: Seconds between writes.
INTERVAL = 10.0
#: Buckets that are held; what comes beyond them is counted with its queue's others.
MAX_BUCKETS = 6000


class Tally(Counted):
    """The statistics of one service.

    Args:
        writer: the way to the database.
        worker: name of this service.
        queues: whose depth is sampled.
        using: database alias.
        reactor: Twisted's reactor.
        now: the database's time, in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        writer: LogWriter,
        worker: str,
        queues: Collection[str],
        using: str,
        reactor: Any,
        now: Callable[[], float],
    ) -> None:
        super().__init__()
        self._writer = writer
        self._worker = worker
        self._queues = queues
        self._using = using
        self._now = now
        self._chore = Chore("The worker writes its statistics", reactor.seconds)
        self._loop = LoopingCall(self._guarded)
        self._loop.clock = reactor
        #: That of what is counted and not yet in a bucket.
        self._minute = 0
        self._buckets: dict[Key, Totals] = {}
        #: Those of them that have changed since they were written.
        self._changed: dict[Key, None] = {}
        #: The minute of the last sample.
        self._sampled = 0

    def start(self) -> None:
        """Begin to write."""
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> Deferred[None]:
        """Write what was counted, for the last time; fires when that is done, or has failed."""
        if self._loop.running:
            self._loop.stop()
        if self._writer.away:
            return succeed(None)
        return Deferred.fromCoroutine(self._write())

    def turn_minute(self) -> None:
        """Before ends are counted: what was counted in an earlier minute goes to its buckets."""
        now = self._now()
        # Never back: a bucket that has ended may be forgotten, and would begin again at nothing.
        if now >= self._minute + FINEST:
            self._sort_in()
            self._minute = rollups.start_of(now, FINEST)

    def handled(self, one: Handled) -> None:
        """A message with a handler is settled."""
        self.turn_minute()
        super().handled(one)

    def _sort_in(self) -> None:
        for (queue, task), new in self._take().items():
            for resolution in KEPT:
                start = rollups.start_of(self._minute, resolution)
                key = (resolution, start, queue, task)
                if key not in self._buckets and len(self._buckets) >= MAX_BUCKETS:
                    key = (resolution, start, queue, OTHERS)
                for one in rollups.counted_in(key):
                    self._buckets.setdefault(one, Totals()).add(new)
                    self._changed[one] = None

    def _guarded(self) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            if not self._writer.away:
                # Else the writer has told that.
                self._chore.failed(failure)

        work = Deferred.fromCoroutine(self._work())
        return work.addCallbacks(lambda _: self._chore.succeeded(), failed)

    async def _work(self) -> None:
        if self._writer.away:
            return
        await self._write()
        now = self._now()
        minute = rollups.start_of(now, FINEST)
        if minute > self._sampled:
            await self._writer.call(partial(rollups.sample, self._queues, now, self._using))
            self._sampled = minute

    async def _write(self) -> None:
        self.turn_minute()
        self._sort_in()
        changed, self._changed = self._changed, {}
        if changed:
            rows = [(key, self._buckets[key].copy()) for key in changed]
            try:
                await self._writer.call(partial(rollups.write, rows, self._worker, self._using))
            except BaseException:
                self._changed = {**changed, **self._changed}
                raise
        for key in [key for key in self._buckets if self._has_ended(key)]:
            del self._buckets[key]

    def _has_ended(self, key: Key) -> bool:
        """Whether nothing comes into a bucket any more, and all of it is written."""
        resolution, start, _queue, _task = key
        return start + resolution <= self._minute and key not in self._changed
