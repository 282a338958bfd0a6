# SPDX-License-Identifier: Apache-2.0
"""Claims in the database: each a transaction of its own that does not wait for the disk.

So their tasks start sooner. A database that is killed in the next moment forgets them, and all that
came after them: their rows wait as if nobody had claimed them. So what runs here is claimed once
more when the connection was lost.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import failpoints, records
from carrot_twisted.admission_decision import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.outcomes import Verdict
    from carrot_twisted.records import Claimant, Claimed
    from carrot_twisted.service.admission_transactions import AdmissionTransactions
    from carrot_twisted.service.bounded_transactions import BoundedTransactions
    from carrot_twisted.service.operations import Claim

_log = make_logger()

#: Of PostgreSQL's parameters, for claims. Where the project waits for no disk at all, nor do these.
NOT_ON_DISK = {"synchronous_commit": "off"}


class ClaimTransactions:
    """On the writer's thread.

    Args:
        claimant: in whose name rows are claimed; asked with whether nothing else runs.
        using: database alias.
        transactions: on the writer's connection.
        admissions: of the rows that are under limits.
    """

    def __init__(
        self,
        claimant: Callable[[bool], Claimant],
        using: str,
        transactions: BoundedTransactions,
        admissions: AdmissionTransactions,
    ) -> None:
        self._claimant = claimant
        self._using = using
        self._transactions = transactions
        self._admissions = admissions
        self.runs: Callable[[], Sequence[Claimed]] = lambda: ()
        """What is claimed here, and has not ended."""

    def write(self, claims: Sequence[Any]) -> Callable[[], None]:
        """Claim; of rows that cannot be claimed just so, in a second transaction.

        May be repeated: what the first time has claimed is found under its token.

        Returns:
            What tells those who wait for it.
        """
        parameters = {**NOT_ON_DISK, **self._transactions.bounds()}
        failpoints.reached("before_claim_commit")
        answers: list[dict[UUID, Claimed | Verdict | Candidate]] = []
        for op in claims:
            claimant = self._claimant(op.alone)
            answers.append(
                {**records.take(op.ids, op.token, claimant, self._using, op.barred, parameters)}
            )
        left = [
            (op, answer, [key for key in op.ids if key not in answer])
            for op, answer in zip(claims, answers, strict=True)
            if len(answer) < len(op.ids)
        ]
        if left:
            with self._transactions.begin():
                for op, answer, keys in left:
                    claimant = self._claimant(op.alone)
                    more = records.judge(keys, op.token, claimant, self._using, op.barred)
                    answer.update(more)
        failpoints.reached("after_claim_commit")
        return partial(self._tell, claims, answers)

    def _tell(
        self,
        claims: Sequence[Claim],
        answers: Sequence[Mapping[UUID, Claimed | Verdict | Candidate]],
    ) -> None:
        limited = []
        for op, answer in zip(claims, answers, strict=True):
            mine = [one for one in answer.values() if isinstance(one, Candidate)]
            for candidate in mine:
                candidate.delivered = candidate.uuid not in op.placeless
            if mine:
                limited.append((op, mine))
            known = {k: v for k, v in answer.items() if not isinstance(v, Candidate)}
            if known:
                op.answer(known)
        self._admissions.are_left(limited, [])

    def write_again(self) -> None:
        """A connection was lost: claim what the database may have forgotten."""
        runs = self.runs()
        if runs:
            with self._transactions.begin():
                worker = self._claimant(False).worker
                forgotten = records.take_again(runs, worker, self._using)
            if forgotten:
                _log.warn("The database had forgotten that {n} tasks run here", n=forgotten)
