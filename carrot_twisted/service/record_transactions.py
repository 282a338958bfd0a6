# SPDX-License-Identifier: Apache-2.0
"""One transaction for all of a batch that records something: ends, logs, confirms, entries."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import failpoints, outbox, records
from carrot_twisted.service.operations import CancelLook, Confirmed, Entry, Finish, Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from carrot_twisted.service.admission_transactions import AdmissionTransactions
    from carrot_twisted.service.bounded_transactions import BoundedTransactions
    from carrot_twisted.service.operations import Operation

_log = make_logger()


class RecordTransactions:
    """On the writer's thread.

    Args:
        using: database alias.
        reactor: Twisted's reactor.
        clock_offset: seconds that the database's clock is ahead of this host's.
        transactions: on the writer's connection.
        admissions: of the rows that wait for what ends.
    """

    def __init__(
        self,
        using: str,
        reactor: Any,
        clock_offset: Callable[[], float],
        transactions: BoundedTransactions,
        admissions: AdmissionTransactions,
    ) -> None:
        self._using = using
        self._reactor = reactor
        self._clock_offset = clock_offset
        self._transactions = transactions
        self._admissions = admissions

    def write(self, batch: Sequence[Operation], again: bool) -> Callable[[], None]:
        """One transaction for everything but claims, admissions and calls.

        Args:
            batch: what to write.
            again: it was tried before, and may have been committed then.

        Returns:
            What tells those who wait for it.
        """
        finishes = [op for op in batch if isinstance(op, Finish)]
        confirmed = [post for op in batch if isinstance(op, Confirmed) for post in op.posts]
        entries = [op for op in batch if isinstance(op, Entry)]
        lines = [op for op in batch if isinstance(op, Lines)]
        looks = [op for op in batch if isinstance(op, CancelLook)]
        logged: set[UUID] = set()
        is_alone = all(isinstance(op, Finish) and records.is_alone(op.finished) for op in batch)
        with nullcontext() if is_alone else self._transactions.begin():
            if finishes:
                failpoints.reached("before_finish_commit")
                runs = [op.finished for op in finishes]
                bounds = self._transactions.bounds() if is_alone else {}
                changed = records.finish(runs, self._clock_offset(), self._using, bounds)
                if changed < len(runs) and not again:
                    _log.warn(
                        "{n} of {all} ended tasks had been taken over or deleted meanwhile",
                        n=len(runs) - changed,
                        all=len(runs),
                    )
            if confirmed:
                outbox.note_confirmed(confirmed, self._using)
            if entries:
                records.add([op.row() for op in entries], self._using)
            if lines:
                logs = [(op.uuid, op.token, op.text(), op.progress) for op in lines]
                logged = records.log(logs, self._using)
            wishes = [records.cancel_requests(look.worker, self._using) for look in looks]
            # The last: who holds a flow waits for no other row.
            records.settle_flows([op.finished for op in finishes], self._using)
        if finishes:
            failpoints.reached("after_finish_before_ack")

        def tell() -> None:
            self._admissions.are_left([], finishes)
            if finishes:
                self._reactor.callFromThread(_tell_written, finishes)
            for entry in entries:
                entry.done(None)
            for one in lines:
                one.done(one.uuid in logged)
            for look, wish in zip(looks, wishes, strict=True):
                look.answer(wish)

        return tell


def _tell_written(finishes: Sequence[Finish]) -> None:
    by_owner: dict[Callable[[list[Any]], None], list[Any]] = {}
    for op in finishes:
        by_owner.setdefault(op.written, []).append(op.job)
    for written, jobs in by_owner.items():
        written(jobs)
