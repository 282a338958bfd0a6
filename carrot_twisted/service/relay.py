# SPDX-License-Identifier: Apache-2.0
"""Sends what a publisher left in the outbox, and looks after rows that others forgot.

Every service runs one. They share the work by conditional updates, so none has to lead.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from txaio.tx import make_logger

from carrot_twisted import failpoints, flow_settling, outbox, records, statements
from carrot_twisted.models import MessageLog
from carrot_twisted.service.chore import Chore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.records import Claimant
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.posting import ReactorPublisher

_log = make_logger()

#: Seconds between looks at the outbox.
INTERVAL = 1.0
#: Seconds between log lines about what was found there.
TELL_INTERVAL = 60.0
#: Rows that one look takes at most.
BATCH = 1000
#: Seconds between looks for rows of dead workers: with so many looks at the outbox comes one of
#: them, in the same statement.
REAP_INTERVAL = 3 * INTERVAL
#: Tasks that have not started in time, of which one such look cancels so many.
EXPIRE_BATCH = 5000
#: Seconds between looks for messages that never came.
RING_INTERVAL = 30.0
#: Seconds that a confirmed row may wait although its queue is empty.
QUIET = 60.0


class Relay:
    """The outbox's sender, and the reaper.

    Args:
        queues: the settings of all queues.
        writer: the way to the database.
        publisher: the way to the broker.
        claimant: in whose name dead workers are judged.
        using: database alias.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        queues: Sequence[QueueSettings],
        writer: LogWriter,
        publisher: ReactorPublisher,
        claimant: Callable[[], Claimant],
        using: str,
        reactor: Any,
    ) -> None:
        self._queues = queues
        self._writer = writer
        self._publisher = publisher
        self._claimant = claimant
        self._using = using
        self._reactor = reactor
        self._chores: dict[str, Chore] = {}
        #: Rows taken since that was told, and when it may be told again.
        self._taken = 0
        self._tell_at = 0.0
        self._has_looked = False
        #: Reactor time of the next look for rows of dead workers.
        self._reap_at = 0.0
        self.recovered = 0
        """Tasks of dead workers that it has found."""
        self._loops = {
            interval: LoopingCall(self._guarded, what, work)
            for interval, what, work in (
                (INTERVAL, "looks at the outbox", self._relay),
                (RING_INTERVAL, "looks for lost messages", self._ring),
            )
        }
        for loop in self._loops.values():
            loop.clock = reactor
        self._stopping = False
        self._ended: list[Deferred[Any]] = []

    def start(self) -> None:
        """Begin, with a look at once."""
        self._ended = [loop.start(interval, now=True) for interval, loop in self._loops.items()]

    def look(self) -> None:
        """Look at the outbox now, for something was put there that is due."""
        if not self._stopping:
            self._guarded("looks at the outbox", self._relay)

    def stop(self) -> Deferred[Any]:
        """Look no more; fires when what was taken from the outbox has gone out, or back."""
        self._stopping = True
        for loop in self._loops.values():
            if loop.running:
                loop.stop()
        return gatherResults(self._ended)

    def _guarded(self, what: str, work: Callable[[], Any]) -> Deferred[None]:
        """A LoopingCall ends at its first failure; this one goes on (Twisted ticket 1396)."""
        chore = self._chores.setdefault(what, Chore(f"The relay {what}", self._reactor.seconds))

        def failed(failure: Failure) -> None:
            if self._goes_on:
                chore.failed(failure)

        return Deferred.fromCoroutine(work()).addCallbacks(lambda _: chore.succeeded(), failed)

    @property
    def _goes_on(self) -> bool:
        return not (self._stopping or self._writer.away)

    async def _relay(self) -> None:
        if self._publisher.protocols and not self._has_looked:
            # At the start there was no broker to ask, and the next look is long to come.
            self._has_looked = True
            await self._ring()
        count = BATCH
        while count == BATCH and self._goes_on:
            now = self._reactor.seconds()
            reaps = now >= self._reap_at
            if reaps:
                # Turns come a little early or late.
                self._reap_at = now + REAP_INTERVAL - INTERVAL / 2
            found: list[bool] = []
            failure: Exception | None = None
            try:
                count = await self._send(reaps, found)
            except Exception as error:
                failure = error
            if reaps:
                # Also then: what is wrong with the outbox is no concern of the reaper's.
                reap = partial(self._reap, found[0] if found else None)
                await self._guarded("looks for dead workers", reap)
            if failure is not None:
                raise failure
        now = self._reactor.seconds()
        if self._taken and now >= self._tell_at:
            _log.info("Sending {n} messages that were left in the outbox", n=self._taken)
            # What the broker refuses is sent again and again.
            self._taken = 0
            self._tell_at = now + TELL_INTERVAL

    async def _send(self, asks: bool, found: list[bool]) -> int:
        """Send a batch of what is in the outbox.

        Args:
            asks: whether to ask in the same statement for what the reaper has to do.
            found: gets the answer.

        Returns:
            The number of rows.
        """
        # Asked each time: the last batch may have filled the window, or met a lost connection.
        queues = [q.name for q in self._queues if self._publisher.takes(q)]
        if not queues:
            return 0
        using = self._using
        looks = [[outbox.unsent()]]
        if asks:
            looks.append(records.chores_of_others(self._claimant().worker))

        def is_any() -> bool:
            is_unsent, *found[:] = statements.are_any(looks, using)
            return is_unsent

        rows = await self._writer.call(partial(outbox.take_unsent, queues, BATCH, using), is_any)
        if not rows:
            return 0
        self._taken += len(rows)
        failpoints.reached("in_relay_after_take")
        left = self._publisher.publish_rows(rows)
        if left:
            await self._writer.call(partial(outbox.give_back, left, using))
        return len(rows)

    async def _reap(self, is_needed: bool | None) -> None:
        """Look after what others have forgotten.

        Args:
            is_needed: whether there is anything to do; None: that is to be found out.
        """
        if self._writer.away or is_needed is False:
            return
        table, using = MessageLog._meta.db_table, self._using

        def is_any() -> bool:
            return statements.is_any(records.chores_of_others(self._claimant().worker), using)

        def look() -> int:
            if statements.has_expired(table, using):
                MessageLog.objects.using(using).cancel_expired(EXPIRE_BATCH)
            # Who is asked when it is done: leases may not be judged any more by then.
            return records.reap(self._claimant(), using)

        count = await self._writer.call(look, None if is_needed else is_any)
        if count is None:
            return
        self.recovered += count
        if count:
            _log.warn("{n} tasks of workers that died are published again", n=count)
        # Not in the same transaction: what is wrong with a flow must not keep tasks from running.
        is_any_open = partial(flow_settling.is_any, using)
        await self._writer.call(partial(flow_settling.sweep, using), is_any_open)

    def queue_lost(self, queue: QueueSettings) -> None:
        """A queue was deleted and is there again: its rows need new messages."""
        name, using = queue.name, self._using
        put_back = partial(self._put_back, name, partial(outbox.queue_lost, name, using))
        self._guarded("sends what a queue has lost", put_back)

    async def _ring(self) -> None:
        """Rows whose message was confirmed and is gone: ring again, if their queue is empty."""
        if not self._publisher.protocols:
            # There is no broker to ask.
            return
        # Only those with waiting rows: of two hundred queues the broker would be asked without end.
        table, states = MessageLog._meta.db_table, [MessageLog.PUBLISHED]
        look = partial(statements.queues_with, table, states, None, self._using)
        waiting = set(await self._writer.call(look))
        for queue in self._queues:
            if queue.name in waiting and await self._is_empty(queue):
                ring = partial(outbox.ring_again, queue.name, QUIET, self._using)
                await self._put_back(queue.name, ring)

    async def _is_empty(self, queue: QueueSettings) -> bool:
        protocol = self._publisher.protocols.get(queue.host)
        if protocol is None:
            return False
        try:
            channel = await protocol.channel()
            frame = await channel.queue_declare(queue.name, passive=True)
            channel.close()
        except AMQPError:
            # No such queue: a consumer or publisher declares it, then the next look counts. Or the
            # connection was lost, which its owner tells.
            return False
        return bool(frame.method.message_count == 0)

    async def _put_back(self, queue: str, batch: Callable[[], int]) -> None:
        """Put rows back into the outbox, batch by batch."""
        total, count = 0, outbox.RING_BATCH
        while count == outbox.RING_BATCH and self._goes_on:
            count = await self._writer.call(batch)
            total += count
        if total:
            _log.warn(
                "{n} messages of queue {queue} did not come; they are sent again",
                n=total,
                queue=queue,
            )
