# SPDX-License-Identifier: Apache-2.0
"""Tasks under limits are let start: what batches have left to do for them, and its transactions.

Each is one of its own, after those of its batch: it locks its limits in order, and nothing else
waits for these.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from carrot_twisted import admission, failpoints
from carrot_twisted.admission import Request
from carrot_twisted.identities import new_token
from carrot_twisted.outcomes import Verdict
from carrot_twisted.service.operations import Admit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.admission import Admitted
    from carrot_twisted.admission_decision import Candidate
    from carrot_twisted.records import Claimant, Claimed
    from carrot_twisted.service.bounded_transactions import BoundedTransactions
    from carrot_twisted.service.operations import Claim, Finish


class AdmissionTransactions:
    """On the writer's thread, where all of its callbacks are called, too.

    Args:
        claimant: in whose name rows are claimed; asked with whether nothing else runs.
        using: database alias.
        transactions: on the writer's connection.
    """

    def __init__(
        self, claimant: Callable[[bool], Claimant], using: str, transactions: BoundedTransactions
    ) -> None:
        self._claimant = claimant
        self._using = using
        self._transactions = transactions
        #: What is left to do of a batch that is written.
        self._left: list[Admit] = []
        self.places: Callable[[Mapping[str, int]], Mapping[str, int]] = lambda _: {}
        """How many tasks may run here whose message is not here, by queue; it is told how many
        threads have become free."""
        self.hand_over: Callable[[Sequence[Claimed]], None] = lambda _: None
        """Has them run."""
        self.on_ring: Callable[[], None] = lambda: None
        """Called when rows were put into the outbox."""
        self.on_look: Callable[[float], None] = lambda _: None
        """Called with seconds until somebody should look at limits."""

    def are_left(
        self, limited: Sequence[tuple[Claim, Sequence[Candidate]]], finishes: Sequence[Finish]
    ) -> None:
        """A batch is written: keep what is left to do for rows that are, or were, under limits.

        Args:
            limited: claims, each with those of its rows that are under limits.
            finishes: of runs, of which some may have had a slot that another row waits for.
        """
        freed = Counter(op.freed[0] for op in finishes if op.freed)
        if not limited and not freed:
            return
        rows = [one for _, mine in limited for one in mine]
        admit = Admit(
            request=Request(token=new_token(), rows=rows, freed=freed),
            claims=limited,
            ended=Counter(op.freed[1] for op in finishes if op.freed),
        )
        self._left.append(admit)

    def take_left(self) -> list[Admit]:
        """What is left to do; it is the caller's then."""
        left, self._left = self._left, []
        return left

    def write(self, admit: Admit) -> Callable[[], None]:
        """Let tasks start, if the time for that has come.

        Returns:
            What tells those who wait for it.
        """
        if not (admit.tried or admission.is_due(admit.request, self._using)):
            return partial(admit.done, None)
        with self._transactions.begin():
            # Not just of this attempt: it may have been put aside.
            again, admit.tried = admit.tried, True
            worker = self._claimant(False).worker
            places = self.places(admit.ended)
            admitted = admission.admit(admit.request, worker, places, self._using, again=again)
            failpoints.reached("before_admission_commit")
        failpoints.reached("after_admission_commit")
        return partial(self._tell, admit, admitted)

    def _tell(self, admit: Admit, admitted: Admitted) -> None:
        runs = dict(admitted.runs)
        for claim, rows in admit.claims:
            answer: dict[UUID, Claimed | Verdict] = {}
            for one in rows:
                waits = Verdict.LIMITED if one.uuid in admitted.waiting else Verdict.MISSING
                answer[one.uuid] = runs.pop(one.uuid, waits)
            claim.answer(answer)
        if runs:
            self.hand_over(list(runs.values()))
        admit.done(admitted.next_look)
        if admitted.has_rung:
            self.on_ring()
        if admitted.next_look is not None:
            self.on_look(admitted.next_look)
