# SPDX-License-Identifier: Apache-2.0
"""How flows go on: in the transaction in which one of their tasks comes to its end.

Nothing is counted up. Who has brought tasks of a flow to their end locks the flow's row, changes
it, and then asks whether others of the step have not ended: who comes second sees what the first
has committed. So of all who bring the last ones to their end at the same moment one finds that
nothing is left, moves the flow on and publishes the next step; and who repeats a transaction that
was committed after all finds the flow at its next step already.

Whoever holds the row of a flow waits for no other row: it is locked last, several in the order of
their keys, and what is to be cancelled is passed over where somebody else has it.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import DatabaseError
from django.db.models import Count, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Coalesce, Length, Now

from carrot_twisted import conf, flow_plan, flow_steps, outcomes, statements, tracing
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.flow import MAX_ERROR, Flow
from carrot_twisted.flow_steps import ADVICE, change
from carrot_twisted.message_log import MessageLog
from carrot_twisted.statements import Look

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from uuid import UUID

    from carrot_twisted.flow_plan import Step

_logger = logging.getLogger("carrot_twisted.flows")

#: A running flow of whose step none is left is looked after when nobody has done so for so many
#: seconds: its rows were changed, or deleted, past this package.
AGE = 10.0
#: Flows that one sweep looks after, and tasks that it cancels of each.
SWEPT, CANCELLED_AT_ONCE = 100, 2000
#: So many times what a message may have is read of results, to say how large they are exactly.
MAX_LENGTH = 4
#: Why a flow has failed of which this package has not written the row.
UNREADABLE = "Its row cannot be read: the column shape says nothing of the step it is at."
#: States that decide how a flow goes on.
_ASKED = (*MessageLog.UNFINISHED, MessageLog.FAILED, MessageLog.CANCELLED)


def settle(keys: Collection[UUID], using: str) -> None:
    """Let those flows go on that can. Call it in a transaction, as the last that it does.

    Three statements, whatever the number of flows and of their tasks; more for each that goes on.

    Args:
        keys: of flows of which tasks have ended, or wait again. Some may be gone.
        using: database alias.
    """
    if not keys:
        return
    flows = Flow.objects.using(using)
    chosen = flows.filter(pk__in=keys, status__in=Flow.OPEN).order_by("pk").select_for_update()
    held = list(chosen.values_list("pk", flat=True))
    if not held:
        return
    # A statement of its own after the locks: it sees what those have committed who had them. And a
    # change, not a lock alone: at stricter isolation levels who waited for it is told to repeat.
    flows.filter(pk__in=held).update(changed_at=Now())
    firsts = {f"first_{state}": _first(state, using) for state in _ASKED}
    looked = flows.filter(pk__in=held).defer("plan").order_by("pk").annotate(**firsts)
    for flow in list(looked):
        there = {state for state in _ASKED if getattr(flow, f"first_{state}") is not None}
        _settle(flow, there, using)


def _first(state: str, using: str) -> Subquery:
    """Of a flow: the first task of its step that is in this state; NULL: there is none.

    In the order of the index: whether there is any at all would be asked of the whole table where
    many of its rows are of the flow.
    """
    members = MessageLog.objects.using(using).filter(
        flow=OuterRef("pk"), flow_step=OuterRef("step"), status=state
    )
    return Subquery(members.order_by("flow_position").values("pk")[:1])


def _settle(flow: Flow, there: Collection[str], using: str) -> None:
    """Do what comes of the state in which its tasks are.

    Args:
        flow: locked.
        there: of the states that are ASKED those in which some are.
        using: database alias.
    """
    try:
        step = flow.steps[flow.step]
    except (ValueError, TypeError, LookupError):
        # Somebody has written into the row. It must not stop the service, nor others' flows.
        change(flow, using, status=Flow.FAILED, error=UNREADABLE, finished_at=Now())
        return
    broken = MessageLog.FAILED in there or MessageLog.CANCELLED in there
    waits = MessageLog.PUBLISHED in there or MessageLog.IN_PROGRESS in there
    if broken and step.on_failure != flow_plan.CONTINUE:
        if flow.status == Flow.RUNNING:
            _fail(flow, _first_failure(flow, using), using)
    elif not waits:
        _go_on(flow, using)
    elif flow.status == Flow.FAILED:
        # Somebody has run again what had failed.
        change(flow, using, status=Flow.RUNNING, error="", to_cancel=False, finished_at=None)


def _go_on(flow: Flow, using: str) -> None:
    """Its step has ended: begin the next one, or end."""
    steps = flow.steps
    step = steps[flow.step]
    rows_of_step = flow.logs.order_by().filter(flow_step=flow.step)
    length = Coalesce(Length("output"), 0) + Coalesce(Length("exception"), 0)
    found = rows_of_step.aggregate(count=Count("pk"), length=Sum(length))
    missing = step.size - found["count"]
    if missing > 0 and step.on_failure != flow_plan.CONTINUE:
        _fail(flow, f"Rows of {missing} of its tasks were deleted.", using)
        return
    if flow.step + 1 == len(steps):
        change(flow, using, status=Flow.COMPLETED, error="", finished_at=Now())
        return
    plan = Flow.objects.using(using).values_list("plan", flat=True).get(pk=flow.pk)
    number = flow.step
    try:
        result = _result(flow, step, plan, found["length"] or 0)
        rows, number = flow_steps.next_rows(flow.pk, steps, plan, number + 1, result)
    except Exception as error:
        # Whatever it is: nobody else's task may have to wait for it.
        _fail(flow, _why_not(number + 1, error), using)
        return
    try:
        with tracing.below(_trace_of(flow) if tracing.is_on() else None):
            flow_steps.begin(flow, number, rows, using)
    except DatabaseError as error:
        if not outcomes.is_refusal(error):
            raise
        _fail(flow, _why_not(number, error), using)


def _trace_of(flow: Flow) -> str | None:
    """OpenTelemetry's context of the step that has ended; None: it was not traced."""
    rows = flow.logs.filter(flow_step=flow.step, trace__isnull=False)
    return rows.values_list("trace", flat=True).first()


def _result(flow: Flow, step: Step, plan: str, length: int) -> str:
    """What a step has returned, as JSON; if nobody wants it, it is not read.

    Args:
        flow: at that step, which is not the last one.
        step: the same.
        plan: of the flow.
        length: characters that its tasks' rows have for it.

    Raises:
        InvalidMessage: it is far too large to be sent.
        UnknownResult: a row does not know it.
        ValueError, TypeError, LookupError: the plan cannot be read.
    """
    if not any(member.takes_result for member in flow_plan.members_of(plan, flow.step + 1)):
        return "null"
    limit = conf.current().max_message_size
    if length > MAX_LENGTH * limit:
        raise InvalidMessage(
            f"The results of {step.size} tasks take {length} characters; at most {limit} bytes "
            f"(CARROT['max_message_size']) can be sent. {ADVICE}"
        )
    return flow_plan.result_of(step, flow.ended(flow.step))


def _fail(flow: Flow, why: str, using: str) -> None:
    step = flow.steps[flow.step]
    cancels = step.on_failure == flow_plan.CANCEL and flow.status == Flow.RUNNING
    error = outcomes.stored(why, MAX_ERROR)
    change(flow, using, status=Flow.FAILED, error=error, to_cancel=cancels, finished_at=Now())
    _logger.warning("Flow %s has failed: %s", flow.pk, outcomes.one_line(error, 200))
    if cancels:
        _cancel_waiting(flow.pk, using)


def _first_failure(flow: Flow, using: str) -> str:
    rows = MessageLog.objects.using(using).filter(
        flow=flow.pk,
        flow_step=flow.step,
        status__in=(MessageLog.FAILED, MessageLog.CANCELLED),
    )
    first = rows.order_by("flow_position").values_list("task", "pk", "status", "exception").first()
    if first is None:
        return ""
    task, pk, status, exception = first
    reason = f": {exception}" if exception else ""
    return f"Task {task} ({pk}) is {status}{reason}"


def _why_not(number: int, error: Exception) -> str:
    text = outcomes.exception_text(error, MAX_ERROR)
    return f"Step {number + 1} could not begin: {type(error).__name__}: {text}"


def _cancel_waiting(flow: UUID, using: str) -> bool:
    """Cancel what waits of a flow, but for what others have locked; whether nothing is left."""
    waiting = MessageLog.objects.using(using).filter(flow=flow, status=MessageLog.PUBLISHED)
    # Any order but that of the keys, by which the whole table could be gone through.
    waiting = waiting.order_by("flow_step", "flow_position")
    free = waiting.select_for_update(skip_locked=True)
    keys = list(free.values_list("pk", flat=True)[:CANCELLED_AT_ONCE])
    if keys:
        rows = MessageLog.objects.using(using).filter(pk__in=keys, status=MessageLog.PUBLISHED)
        rows.cancel_alone("", "its flow does not go on")
    return waiting.values_list("pk", flat=True).first() is None


#: For flows that run, which an index has, and no others.
UNDER_WAY = Look(table=Flow._meta.db_table, condition="status = 'RUNNING' OR to_cancel")


def is_any(using: str) -> bool:
    """Whether a flow runs: one question on an index that has no others."""
    return statements.is_any([UNDER_WAY], using)


def sweep(using: str) -> int:
    """Look after flows that should have gone on, and have not. Call it in a transaction.

    Returns:
        How many were looked after.
    """
    flows = Flow.objects.using(using)
    firsts = {f"first_{state}": _first(state, using) for state in MessageLog.UNFINISHED}
    none_is_left = Q(**{f"{name}__isnull": True for name in firsts})
    old = Q(status=Flow.RUNNING, changed_at__lt=Now() - timedelta(seconds=AGE))
    chosen = flows.alias(**firsts).filter((old & none_is_left) | Q(to_cancel=True))
    chosen = chosen.order_by("changed_at")
    free = chosen.select_for_update(skip_locked=True).values_list("pk", "to_cancel")
    found = list(free[:SWEPT])
    for pk, to_cancel in found:
        if to_cancel and _cancel_waiting(pk, using):
            flows.filter(pk=pk).update(to_cancel=False)
    settle([pk for pk, _ in found], using)
    return len(found)


def rejoin(rows: Iterable[MessageLog], using: str) -> set[UUID]:
    """Rows of flows are to be published again: keep those in their flows that have not gone on.

    Args:
        rows: unsaved; others run by themselves then.
        using: database alias.

    Returns:
        The flows that are to be settled when the rows are written.
    """
    members = [row for row in rows if row.flow is not None]
    if not members:
        return set()
    flows = Flow.objects.using(using).filter(
        pk__in={row.flow for row in members}, status__in=Flow.OPEN
    )
    steps = dict(flows.values_list("pk", "step"))
    for row in members:
        if row.flow is not None and steps.get(row.flow) != row.flow_step:
            row.flow = row.flow_step = row.flow_position = None
    return {row.flow for row in members if row.flow is not None}
