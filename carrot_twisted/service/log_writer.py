# SPDX-License-Identifier: Apache-2.0
"""Group commit: one thread with one database connection writes every claim and every outcome.

While one batch is being committed, the next one collects; an idle writer writes at once. So the
cost of a commit is shared by as many tasks as are under way, without any waiting time. While the
database is away nothing new is claimed: the service pauses.

In a batch claims go first (``claim_transactions``), so that their tasks start; then, in one
transaction, all that records something (``record_transactions``); then what this lets start of
tasks under limits (``admission_transactions``). What has ended is on the disk before its message
is acknowledged. ``persistence`` tells what happens when the database says no, or nothing.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from django.db import connections, reset_queries
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from txaio.tx import make_logger

from carrot_twisted import outcomes
from carrot_twisted.service.admission_transactions import AdmissionTransactions
from carrot_twisted.service.availability import MAX_REASON, Availability
from carrot_twisted.service.bounded_transactions import BoundedTransactions
from carrot_twisted.service.claim_transactions import ClaimTransactions
from carrot_twisted.service.operations import Admit, Call, Claim, Entry
from carrot_twisted.service.persistence import Persistence
from carrot_twisted.service.pool import DaemonThreadPool
from carrot_twisted.service.record_transactions import RecordTransactions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.records import Claimant
    from carrot_twisted.service.operations import Operation

_log = make_logger()

#: Operations that one batch takes at most.
MAX_BATCH = 2000
#: Seconds that the last writes get: when a stop has passed its deadline, and at its end.
LAST_WRITES = 3.0


class LogWriter:
    """The service's only way to the database, outside of the tasks themselves.

    Args:
        claimant: in whose name rows are claimed; asked with whether nothing else runs.
        using: database alias.
        reactor: Twisted's reactor.
        away: what the log says when the database stops answering, before the reason.
        on_away: called in the reactor then, with the reason.
        on_back: called in the reactor when it answers again.
        on_broken: called in the reactor with an error that is no database's. The batch is not
            written; ending the process lets others run its tasks. Entries are told as left out.
    """

    def __init__(
        self,
        claimant: Callable[[bool], Claimant],
        using: str,
        reactor: Any,
        away: str,
        on_away: Callable[[str], None],
        on_back: Callable[[], None],
        on_broken: Callable[[Failure], None],
    ) -> None:
        self._using = using
        self._reactor = reactor
        self._on_broken = on_broken
        self._inbox: SimpleQueue[Operation | None] = SimpleQueue()
        self._thread = DaemonThreadPool(minthreads=0, maxthreads=1, name="carrot-log-writer")
        self._stopped: Deferred[None] | None = None
        self.clock_offset = 0.0
        """Seconds that the database's clock is ahead of this host's."""
        self.batches = [0] * (MAX_BATCH.bit_length() + 1)
        """How many batches it has taken, by the bit length of their size."""
        self.operations = 0
        """How many operations these were. Written on its thread only, as are the batches."""
        self._availability = Availability(reactor, away, on_away, on_back)
        self.transactions = BoundedTransactions(using)
        """For what runs on its thread."""
        self.admissions = AdmissionTransactions(claimant, using, self.transactions)
        """Asks for places, and hands tasks over."""
        claims = ClaimTransactions(claimant, using, self.transactions, self.admissions)
        self._persistence = Persistence(
            using=using,
            reactor=reactor,
            availability=self._availability,
            transactions=self.transactions,
            claims=claims,
            records=RecordTransactions(
                using, reactor, lambda: self.clock_offset, self.transactions, self.admissions
            ),
            admissions=self.admissions,
            submit=self.submit,
        )

    @property
    def silence(self) -> float:
        """Seconds since the thread has last shown that it works; 0 while it has nothing to do.

        A database that is away is asked again and again: each time is a sign. From any thread.
        """
        return self._availability.silence

    @property
    def away(self) -> bool:
        """Whether the database did not answer the last time. From any thread."""
        return self._availability.away

    @property
    def problem(self) -> str | None:
        """Why nothing can be written just now, for people; None if all is well. From any thread."""
        return self._availability.problem

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._stopped = deferToThreadPool(self._reactor, self._thread, self._loop)

    def submit(self, operation: Operation) -> None:
        """Write this with the next batch. From any thread."""
        self._inbox.put(operation)

    def call(
        self,
        function: Callable[[], Any],
        if_any: Callable[[], bool] | None = None,
        *,
        is_atomic: bool = True,
    ) -> Deferred[Any]:
        """Run ``function`` on the writer's thread, in a transaction. From the reactor.

        Args:
            function: for what is to be done.
            if_any: asked before, outside of a transaction, whether there is anything to do: most
                looks of a service at rest cost one exchange with the database instead of four.
            is_atomic: False: each of its statements is a transaction of its own.

        Returns:
            Fires with the function's result; None: there was nothing to do.
        """
        result: Deferred[Any] = Deferred()
        self.submit(Call(function=function, result=result, if_any=if_any, is_atomic=is_atomic))
        return result

    def stop(self) -> Deferred[None]:
        """End when all is written; fires then."""
        assert self._stopped is not None
        self._inbox.put(None)
        self._thread.adjustPoolsize(0, 0)
        return self._stopped

    async def end(self, seconds: float) -> bool:
        """Write what is left, and end; a database that is away is not waited for.

        Args:
            seconds: for one that does not answer.

        Returns:
            Whether the thread has ended. Else it does not hold up the end of the process.
        """
        if self.away:
            self.give_up()
        ended = self.stop()
        try:
            await ended.addTimeout(seconds, self._reactor)
        except Exception as error:
            _log.debug("Not waited for any longer: {error}", error=error)
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """Do not wait for a database that is away any longer. What is unwritten will run again."""
        self._persistence.given_up.set()

    def _loop(self) -> None:
        running = True
        while running:
            batch: list[Operation] = []
            self._availability.rests()
            operation = self._inbox.get()
            self._availability.works()
            while True:
                if operation is None:
                    running = False
                    break
                batch.append(operation)
                if len(batch) >= MAX_BATCH:
                    break
                try:
                    operation = self._inbox.get_nowait()
                except Empty:
                    break
            self.batches[len(batch).bit_length()] += 1
            self.operations += len(batch)
            try:
                self._process(batch)
            except BaseException as error:
                # Told first: closing may fail as well, and this loop ends then.
                self._reactor.callFromThread(self._on_broken, Failure())
                for entry in (one for one in batch if isinstance(one, Entry)):
                    entry.done(outcomes.exception_line(error, MAX_REASON))
                connections[self._using].close()
            reset_queries()
        self._persistence.leave_out()
        connections.close_all()
        self._availability.rests()

    def _process(self, batch: Sequence[Operation]) -> None:
        persist = self._persistence.persist
        claims = [op for op in batch if isinstance(op, Claim)]
        if claims and not persist(claims):
            return
        own = (Claim, Call, Admit)
        rest = [op for op in batch if not isinstance(op, own)]
        if rest and not persist(rest):
            return
        admits = [*self.admissions.take_left(), *(op for op in batch if isinstance(op, Admit))]
        # One by one: each locks its limits in order, and nothing else waits for these.
        if not all(persist([admit]) for admit in admits):
            return
        for operation in batch:
            if isinstance(operation, Call):
                self._persistence.run_call(operation)
