# SPDX-License-Identifier: Apache-2.0
"""How the log writer keeps trying, until what is to be written is in the database.

The database may go away at any line. What is to be written is kept and tried again until it is;
what it does is repeatable (see ``records``).

Another transaction that holds a row is no outage. The batch is repeated; what it hits again is put
aside for a moment, so that one row which somebody has locked does not hold up all the others.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, connections
from twisted.python.failure import Failure
from txaio.tx import make_logger

from carrot_twisted import outcomes
from carrot_twisted.service.availability import MAX_REASON
from carrot_twisted.service.operations import (
    Admit,
    Call,
    Claim,
    Entry,
    Finish,
    Lines,
    without_texts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred

    from carrot_twisted.service.admission_transactions import AdmissionTransactions
    from carrot_twisted.service.availability import Availability
    from carrot_twisted.service.bounded_transactions import BoundedTransactions
    from carrot_twisted.service.claim_transactions import ClaimTransactions
    from carrot_twisted.service.operations import Operation
    from carrot_twisted.service.record_transactions import RecordTransactions

_log = make_logger()

#: Seconds between attempts while the database is away.
RETRY_FIRST = 0.25
RETRY_LAST = 5.0
#: Seconds until operations are tried again that others' transactions keep from being written.
ASIDE = 1.0
#: In one batch so many operations may meet a lock; each may take as long as lock_timeout says.
MAX_LOCKED = 2


class Persistence:
    """On the writer's thread.

    Args:
        using: database alias.
        reactor: Twisted's reactor.
        availability: is told what the database says to each attempt.
        transactions: on the writer's connection, for calls.
        claims: writes claims.
        records: writes what records something.
        admissions: writes who may start.
        submit: takes an operation once more that was put aside. From the reactor.
    """

    def __init__(
        self,
        *,
        using: str,
        reactor: Any,
        availability: Availability,
        transactions: BoundedTransactions,
        claims: ClaimTransactions,
        records: RecordTransactions,
        admissions: AdmissionTransactions,
        submit: Callable[[Operation], None],
    ) -> None:
        self._using = using
        self._reactor = reactor
        self._availability = availability
        self._transactions = transactions
        self._claims = claims
        self._records = records
        self._admissions = admissions
        self._submit = submit
        self.given_up = threading.Event()
        """Set, from any thread: a database that is away is not waited for any longer."""
        #: Operations that were put aside for others' transactions, by id().
        self._aside: dict[int, Operation] = {}

    def persist(self, batch: Sequence[Operation]) -> bool:
        """Write the batch, however long the database is away; False if that was given up.

        Args:
            batch: claims only, or none; an admission is one by itself. No calls.
        """
        delay = 0.0
        while True:
            error = self._commit(batch, again=delay > 0)
            if error is None:
                self._is_back()
                return True
            if outcomes.is_refusal(error):
                return self._persist_without(error, batch)
            if delay:
                # A second failure: not just one connection that was cut.
                if outcomes.is_conflict(error):
                    self._persist_unlocked(batch)
                    return True
                self._availability.is_away(error)
            if self.given_up.wait(delay) and delay:
                _log.error("The database is away: {n} records are not written", n=len(batch))
                return False
            delay = min(RETRY_LAST, delay * 2) or RETRY_FIRST

    def run_call(self, call: Call) -> None:
        """A second attempt at once, on a new connection; a third is up to the caller."""
        result: Any = None

        def work() -> None:
            nonlocal result
            if call.if_any is None or call.if_any():
                transactions = self._transactions
                with transactions.begin() if call.is_atomic else transactions.each():
                    result = call.function()

        try:
            error = self._attempt(work)
            if error is not None and outcomes.blames_database(error):
                error = self._attempt(work)
        except BaseException:
            # Its transaction calls receivers of the project's, which may raise SystemExit.
            result = Failure()
        else:
            if error is None:
                self._is_back()
            else:
                result = Failure(error)
                if outcomes.is_conflict(error):
                    self._availability.is_obstructed(error)
                elif outcomes.blames_database(error):
                    self._availability.is_away(error)
        self._reactor.callFromThread(_fire, call.result, result)

    def leave_out(self) -> None:
        """The thread ends: what is still put aside is not written."""
        for left in self._aside.values():
            if isinstance(left, Entry):
                left.done("others' transactions were in the way to the end")

    def _commit(self, batch: Sequence[Operation], again: bool) -> Exception | None:
        """Write the batch and tell those who wait; returns what the database said against it."""
        told: list[Callable[[], None]] = []

        def work() -> None:
            first = batch[0]
            if isinstance(first, Claim):
                told.append(self._claims.write(batch))
            elif isinstance(first, Admit):
                told.append(self._admissions.write(first))
            else:
                told.append(self._records.write(batch, again))

        error = self._attempt(work)
        # Not among what is tried again: who is told twice of a claim runs it twice.
        for tell in told:
            self._take_back(batch)
            tell()
        return error

    def _attempt(self, work: Callable[[], None]) -> Exception | None:
        """Do it; returns what the database said against it, its connection closed then."""
        self._availability.asked()
        try:
            work()
        except (DatabaseError, InterfaceError) as error:
            connections[self._using].close()
            return error
        finally:
            self._availability.answered()
        return None

    def _is_back(self) -> None:
        self._availability.is_back(everything=not self._aside)

    def _take_back(self, written: Sequence[Operation]) -> None:
        """These are put aside no more."""
        if self._aside:
            for one in written:
                self._aside.pop(id(one), None)

    def _persist_without(self, error: Exception, batch: Sequence[Operation]) -> bool:
        """Something in the batch is refused for its content: find it, write it without that."""
        if len(batch) > 1:
            return all(self.persist([operation]) for operation in batch)
        (operation,) = batch
        self._aside.pop(id(operation), None)
        if isinstance(operation, Finish) and operation.finished.result.log is not None:
            # Not its further lines: there PostgreSQL repeats what is in the row.
            words, _, _ = outcomes.exception_text(error, MAX_REASON).partition("\n")
            _log.error(
                "The database refuses the result of task {uuid}: {error}",
                uuid=operation.finished.uuid,
                error=outcomes.one_line(words, MAX_REASON),
            )
            return self.persist([without_texts(operation, error)])
        if isinstance(operation, Entry):
            operation.done(outcomes.exception_line(error, MAX_REASON))
            return True
        if isinstance(operation, Lines):
            # Nor will it take the next ones, so they count as written until there are more; the
            # end of the task says why.
            operation.done(True)
            return True
        raise error

    def _persist_unlocked(self, batch: Sequence[Operation]) -> None:
        """Others hold rows that the batch needs: write what can be, put aside what cannot."""
        left: list[Operation] = []
        locked: list[Operation] = []
        for operation in batch:
            if len(locked) == MAX_LOCKED:
                left.append(operation)
                continue
            error = self._commit([operation], again=True)
            if error is not None:
                locked.append(operation)
                self._availability.is_obstructed(error)
        # The locked ones last: another time, others have their turn before them.
        aside = [*left, *locked]
        self._aside |= {id(operation): operation for operation in aside}
        self._reactor.callFromThread(self._reactor.callLater, ASIDE, self._submit_all, aside)
        self._is_back()

    def _submit_all(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            self._submit(operation)


def _fire(deferred: Deferred[Any], result: Any) -> None:
    if isinstance(result, Failure):
        deferred.errback(result)
    else:
        deferred.callback(result)
