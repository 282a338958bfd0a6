# SPDX-License-Identifier: Apache-2.0
"""Claims in the database: each a statement that is a transaction of its own.

They wait for the disk as everything does. An attempt that the database has forgotten would be one
that nobody sees, and that does not count for ``max_crashes``.
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

    def write(self, claims: Sequence[Any]) -> Callable[[], None]:
        """Claim; of rows that cannot be claimed just so, in a second transaction.

        May be repeated: what the first time has claimed is found under its token.

        Returns:
            What tells those who wait for it.
        """
        failpoints.reached("before_claim_commit")
        answers: list[dict[UUID, Claimed | Verdict | Candidate]] = [{} for _ in claims]
        for group in _groups(claims):
            ids = [key for n in group for key in claims[n].ids]
            first = claims[group[0]]
            claimant = self._claimant(first.alone)
            with self._transactions.each():
                taken = records.take(ids, first.token, claimant, self._using, first.barred)
            for n in group:
                answers[n].update((key, taken[key]) for key in claims[n].ids if key in taken)
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


def _groups(claims: Sequence[Claim]) -> list[list[int]]:
    """Positions of those that one statement asks for: claims that have come while it was at work.

    All of a group have one token from now on. So what a statement has taken whose answer was lost
    is found again, also by a claim that is written once more without the others.
    """
    groups: list[list[int]] = []
    known: dict[tuple[bool, tuple[str, ...]], tuple[list[int], set[UUID]]] = {}
    for n, op in enumerate(claims):
        kind = (op.alone, tuple(op.barred))
        group, keys = known.get(kind, ([], set()))
        if not group or not keys.isdisjoint(op.ids):
            # Of two messages of a row, in two queues, one is to run: the second finds it taken.
            group, keys = known[kind] = [], set()
            groups.append(group)
        group.append(n)
        keys.update(op.ids)
        op.token = claims[group[0]].token
    return groups
