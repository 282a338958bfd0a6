# SPDX-License-Identifier: Apache-2.0
"""The record of a flow: tasks in steps, of which each begins when all of the one before have ended.

What stands in ``MessageLog`` counts: a flow's row only says which step it has come to. See
``flow_settling`` for how it goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import sync_to_async
from django.db import models, router, transaction
from django.db.models import Count, Exists, OuterRef, Q, Subquery
from django.db.models.functions import Now

from carrot_twisted import flow_plan, outcomes, waiting
from carrot_twisted.exceptions import HasFailed, NotFinished, WasCancelled
from carrot_twisted.flow_plan import Ended, Step
from carrot_twisted.identities import message_id
from carrot_twisted.message_log import MessageLog
from carrot_twisted.running import CancelRequest

if TYPE_CHECKING:
    from carrot_twisted.message_log_set import MessageLogQuerySet

#: Characters that are kept of why a flow has failed.
MAX_ERROR = 1000


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """How far a step is."""

    number: int
    """0 for the first."""
    step: Step
    waiting: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    """Also those that were cancelled."""
    only: Any = None
    """Primary key of its task, if it has one, and that has a row."""

    @property
    def done(self) -> int:
        """How many of its tasks have ended."""
        return self.completed + self.failed

    @property
    def percent(self) -> int:
        """The same, from 0 to 100."""
        return 100 * self.done // self.step.size if self.step.size else 100


class Flow(models.Model):
    """Tasks in steps. Made by ``flows.chain`` and ``flows.group``.

    RUNNING, then COMPLETED, FAILED or CANCELLED. From FAILED it comes back to RUNNING when what had
    failed is run again.
    """

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    STATUS_CHOICES = (
        (RUNNING, "Running"),
        (COMPLETED, "Completed"),
        (FAILED, "Failed"),
        (CANCELLED, "Cancelled"),
    )
    #: Those that may go on.
    OPEN = (RUNNING, FAILED)

    uuid = models.UUIDField(primary_key=True, default=message_id, editable=False)
    status = models.CharField(max_length=9, choices=STATUS_CHOICES, default=RUNNING)
    step = models.PositiveSmallIntegerField(default=0, help_text="The one it is at, from 0 on.")
    shape = models.JSONField(help_text="Its steps: size, group, on_failure and task of each.")
    plan = models.TextField(help_text="The tasks of the steps after the first one, as JSON.")
    error = models.TextField(blank=True, default="", help_text="Why it has failed.")
    to_cancel = models.BooleanField(
        default=False, help_text="What waits of it is still to be cancelled."
    )
    started_at = models.DateTimeField(db_default=Now(), editable=False)
    changed_at = models.DateTimeField(
        db_default=Now(), editable=False, help_text="When it was looked after last."
    )
    finished_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        indexes: ClassVar = [
            models.Index(
                "changed_at",
                name="carrot_flow_open",
                condition=Q(status="RUNNING") | Q(to_cancel=True),
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def steps(self) -> list[Step]:
        """What is known of each step."""
        return flow_plan.steps_of(self.shape)

    @property
    def logs(self) -> MessageLogQuerySet:
        """The rows of its tasks, as far as they were published, in their order."""
        rows = MessageLog.objects.using(self._using).filter(flow=self.pk)
        return rows.order_by("flow_step", "flow_position")

    @property
    def _using(self) -> str:
        return self._state.db or router.db_for_write(Flow)

    def progress(self) -> list[StepProgress]:
        """How far each step is. Two questions, on an index that has tasks of flows only."""
        waiting, running = Q(status=MessageLog.PUBLISHED), Q(status=MessageLog.IN_PROGRESS)
        completed = Q(status=MessageLog.COMPLETED)
        numbers = ("waiting", "running", "completed", "failed")
        conditions = (waiting, running, completed, ~waiting & ~running & ~completed)
        counts = (
            self.logs.order_by()
            .values("flow_step")
            .annotate(
                **{
                    name: Count("pk", filter=one)
                    for name, one in zip(numbers, conditions, strict=True)
                }
            )
        )
        by_step = {
            row[0]: dict(zip(numbers, row[1:], strict=True))
            for row in counts.values_list("flow_step", *numbers)
        }
        steps = self.steps
        single = [n for n, step in enumerate(steps) if step.size == 1]
        keys = dict(self.logs.filter(flow_step__in=single).values_list("flow_step", "pk"))
        return [
            StepProgress(number=n, step=step, only=keys.get(n), **by_step.get(n, {}))
            for n, step in enumerate(steps)
        ]

    def result(self) -> Any:
        """What its last step has returned: that of its task, or the list of those of its group.

        Raises:
            HasFailed, WasCancelled, NotFinished: it has none.
            UnknownResult: a row does not know it, or was deleted.
        """
        if self.status == self.FAILED:
            raise HasFailed(self.error)
        if self.status == self.CANCELLED:
            raise WasCancelled(self.error)
        if self.status == self.RUNNING:
            raise NotFinished(f"Flow {self.pk} has not come to its end yet.")
        return self.results(len(self.shape) - 1)

    def results(self, step: int) -> Any:
        """What a step has returned that is over, as the next one gets it.

        Args:
            step: 0 for the first.

        Raises:
            NotFinished: it is not over, or a task of it has failed.
            UnknownResult: a row does not know it, or was deleted.
        """
        if step > self.step:
            raise NotFinished(f"Step {step + 1} of flow {self.pk} has not begun.")
        return json.loads(flow_plan.result_of(self.steps[step], self.ended(step)))

    def ended(self, step: int) -> list[Ended]:
        """The tasks of a step, as their rows tell of their ends."""
        columns = ("flow_position", "status", "output", "returned", "exception", "exception_class")
        return [
            Ended(
                position=position,
                status=status,
                output=output,
                returned=returned,
                exception=exception,
                exception_class=kind,
            )
            for position, status, output, returned, exception, kind in self.logs.filter(
                flow_step=step
            ).values_list(*columns)
        ]

    def wait(self, timeout: float | None = None) -> Flow:
        """Wait until it has come to its end, or has failed; see ``MessageLog.wait``.

        Returns:
            This flow, as it is then.
        """
        waiting.wait(f"Flow {self.pk}", self._has_ended, timeout, self._using)
        return self

    async def await_result(self, timeout: float | None = None) -> Any:
        """``wait`` and ``result`` in a coroutine."""
        await waiting.wait_async(f"Flow {self.pk}", self._has_ended, timeout, self._using)
        return await sync_to_async(self.result)()

    def _has_ended(self) -> bool:
        self.refresh_from_db(fields=("status", "step", "error", "finished_at"))
        return self.status != self.RUNNING

    def cancel(self, by: str = "", reason: str = "") -> bool:
        """Let nothing more of it begin; what runs is asked to end, as by ``MessageLog.cancel``.

        A task that somebody has locked at this moment is cancelled some seconds later, by a
        service, if it still waits then.

        Args:
            by: who asks, for people.
            reason: why, for people.

        Returns:
            Whether that was in time. False: it has come to its end; nothing has changed.
        """
        using = self._using
        text = _cancel_text(by, reason)
        with transaction.atomic(using=using):
            changed = (
                Flow.objects.using(using)
                .filter(pk=self.pk, status__in=self.OPEN)
                .update(
                    status=self.CANCELLED,
                    error=text,
                    to_cancel=True,
                    finished_at=Now(),
                    changed_at=Now(),
                )
            )
            if changed:
                free = self.logs.unfinished().select_for_update(skip_locked=True)
                keys = list(free.values_list("pk", flat=True))
                rows = MessageLog.objects.using(using).filter(pk__in=keys)
                rows.cancel_alone(by, reason)
        self.refresh_from_db(fields=("status", "error", "finished_at"))
        return bool(changed)

    def resume(self) -> bool:
        """Look once more whether a flow that has failed can go on.

        Where its tasks have all ended well, and the next step could not begin: because its queue
        was not in the settings, for example.

        Returns:
            Whether it has gone on.
        """
        # Not at the top: it imports this module.
        from carrot_twisted import flow_settling

        using = self._using
        with transaction.atomic(using=using):
            flow_settling.settle({self.pk}, using)
        self.refresh_from_db(fields=("status", "step", "error", "finished_at"))
        return self.status in (self.RUNNING, self.COMPLETED)


def _cancel_text(by: str, reason: str) -> str:
    """What is told of a flow that somebody has cancelled."""
    return outcomes.stored(CancelRequest(by=by, reason=reason).text, MAX_ERROR)


def kept_for_flows(using: str) -> Q:
    """Rows that are not to be deleted yet: a flow that runs needs them."""
    going = Flow.objects.using(using).filter(pk=OuterRef("flow"), status=Flow.RUNNING)
    return Q(flow__isnull=False) & Q(Exists(going))


def delete_orphans(limit: int, using: str) -> int:
    """Delete flows that have ended, and of whose tasks no row is left; returns how many.

    Call it in a transaction.

    Args:
        limit: how many at most.
        using: database alias.
    """
    flows = Flow.objects.using(using)
    rows = MessageLog.objects.using(using).filter(flow=OuterRef("pk"))
    # One look at the index for each flow: not whether there are any, in the whole table.
    first = rows.order_by("flow_step", "status", "flow_position").values("pk")[:1]
    orphans = flows.exclude(status=Flow.RUNNING).alias(first=Subquery(first))
    orphans = orphans.filter(first__isnull=True).order_by("pk")
    deleted, _ = flows.filter(pk__in=list(orphans.values_list("pk", flat=True)[:limit])).delete()
    return deleted
