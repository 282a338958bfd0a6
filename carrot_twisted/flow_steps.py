# SPDX-License-Identifier: Apache-2.0
"""A flow begins a step: its tasks' rows are made, and published with the flow's own change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models.functions import Now

from carrot_twisted import conf, failpoints, flow_plan
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.flow import Flow
from carrot_twisted.message_log import MessageLog

if TYPE_CHECKING:
    from uuid import UUID

    from carrot_twisted.flow_plan import Member, Step

#: What to do where results are too large to be sent.
ADVICE = "Let the tasks store their data and return its key."


def begin(flow: Flow, number: int, rows: list[MessageLog], using: str) -> None:
    """Publish a step, and say in the flow's row that it is at that; without rows, that it is over.

    Args:
        flow: in the database already.
        number: of the step.
        rows: its tasks, unsaved.
        using: database alias.
    """
    with transaction.atomic(using=using):
        # First this: where tasks run as soon as they are published, they find it so.
        if rows:
            change(flow, using, step=number, status=Flow.RUNNING, error="", finished_at=None)
            MessageLog.objects.using(using).enqueue(rows)
        else:
            change(flow, using, step=number, status=Flow.COMPLETED, error="", finished_at=Now())
        failpoints.reached("in_flow_step")


def next_rows(
    flow: UUID, steps: list[Step], plan: str, number: int, result: str
) -> tuple[list[MessageLog], int]:
    """The unsaved rows of a step, and its number. Steps without tasks are passed over.

    Args:
        flow: key of the flow.
        steps: all of them.
        plan: the flow's.
        number: of the step; 0 is the first.
        result: of the one before, as JSON.

    Returns:
        No rows: nothing is left to do; the number is that of the last step.

    Raises:
        InvalidMessage: the arguments are too large with the result.
        CarrotConfigException: a queue has left the settings.
        ValueError, TypeError, LookupError: the plan cannot be read.
    """
    while number < len(steps) and not steps[number].size:
        result = "[]"
        number += 1
    if number == len(steps):
        return [], number - 1
    members = flow_plan.members_of(plan, number)
    return [_row(flow, number, n, one, result) for n, one in enumerate(members)], number


def _row(flow: UUID, step: int, position: int, member: Member, result: str) -> MessageLog:
    settings = conf.current()
    settings.queue(member.queue)
    args = member.arguments(result)
    size = len(args.encode()) + len(member.kwargs.encode())
    if size > settings.max_message_size:
        raise InvalidMessage(
            f"The arguments of {member.task} take {size} bytes as JSON, {len(result.encode())} of "
            "them the result of the step before; at most "
            f"{settings.max_message_size} (CARROT['max_message_size']) can be sent. {ADVICE}"
        )
    row = MessageLog.new(
        task=member.task,
        task_args=args,
        content=member.kwargs,
        exchange=member.exchange,
        queue=member.queue,
        routing_key=member.routing_key or member.queue,
        priority=member.priority,
        retention=member.retention,
    )
    row.moments = flow_plan.moment_of(member.run_after), flow_plan.moment_of(member.expires)
    row.join(flow, step, position)
    return row


def change(flow: Flow, using: str, **values: Any) -> None:
    """Write these fields of a flow, in its row and in the object."""
    Flow.objects.using(using).filter(pk=flow.pk).update(**values)
    for name, value in values.items():
        if name != "finished_at":
            setattr(flow, name, value)
