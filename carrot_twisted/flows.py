# SPDX-License-Identifier: Apache-2.0
"""``chain`` and ``group``: tasks that follow each other, or run side by side with one after all.

See docs/flows.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import router, transaction

from carrot_twisted import flow_plan, flow_steps, utilities
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.flow_plan import Member, Step
from carrot_twisted.models import Flow, MessageLog
from carrot_twisted.objects import Message
from carrot_twisted.signature import Signature, check_not_unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Chain", "Flow", "Signature", "chain", "group", "signature"]

Part = Message | Signature | utilities.Task
"""One task of a flow. A function, or its path, stands for its signature without arguments."""


class _Group:
    """The tasks of one step."""

    def __init__(self, parts: Sequence[Message | Signature], is_group: bool, policy: str) -> None:
        self.parts = parts
        task = parts[0].row.task if parts else ""
        self.step = Step(size=len(parts), is_group=is_group, on_failure=policy, task=task)

    def rows(self) -> list[MessageLog]:
        """Those of a first step."""
        for part in self.parts:
            if isinstance(part, Signature):
                part.check(takes_result=False)
        return [part.row for part in self.parts]

    def members(self) -> list[Member]:
        """The tasks of a later step."""
        for part in self.parts:
            if isinstance(part, Signature):
                part.check(takes_result=True)
        return [_member(part) for part in self.parts]


class Chain:
    """Steps that are not published yet. Made by ``chain`` and ``group``."""

    def __init__(self, steps: Sequence[_Group]) -> None:
        self.steps = steps

    def publish(self) -> Flow:
        """Publish the first step, and write down the others, in the caller's transaction.

        All of it or nothing: if that is rolled back, there is no flow and no task.

        Returns:
            The flow. Its ``logs`` are the rows of the tasks.

        Raises:
            InvalidMessage: a task does not take what it gets, or this was published already.
            CarrotConfigException: a queue is not in the settings.
        """
        using = router.db_for_write(MessageLog)
        first, *later = self.steps
        rows = first.rows()
        if any(not row._state.adding for row in rows):
            raise InvalidMessage("This was published already: make its messages anew.")
        shapes = [one.step for one in self.steps]
        plan = flow_plan.plan_text([[], *(one.members() for one in later)])
        flow = Flow(shape=flow_plan.shape(shapes), plan=plan)
        for n, row in enumerate(rows):
            row.join(flow.pk, 0, n)
        with transaction.atomic(using=using):
            flow.save(force_insert=True, using=using)
            if rows:
                MessageLog.objects.using(using).enqueue(rows)
            else:
                following, number = flow_steps.next_rows(flow.pk, shapes, plan, 0, "null")
                flow_steps.begin(flow, number, following, using)
        return flow


def chain(*steps: Part | Chain) -> Chain:
    """Tasks that run one after the other: each begins when the one before has COMPLETED.

    Each gets the result of the one before as its first argument, if it is a signature, or a plain
    function; a ``Message`` has all its arguments. A step may be a ``group``: the next one gets the
    list of its results.

    Args:
        steps: at least one.

    Raises:
        InvalidMessage: there is none, or one is nothing that can be a step.
    """
    if not steps:
        raise InvalidMessage("A chain has at least one step.")
    groups: list[_Group] = []
    for one in steps:
        if isinstance(one, Chain):
            groups += one.steps
        else:
            groups.append(_Group([_part(one)], False, flow_plan.STOP))
    return Chain(groups)


def group(
    parts: Iterable[Part], then: Part | Chain | None = None, on_failure: str = flow_plan.STOP
) -> Chain:
    """Tasks that run side by side, and one that runs when all of them have ended.

    Args:
        parts: of any number.
        then: gets the list of their results, in their order, as its first argument, if it is a
            signature or a plain function.
        on_failure: what comes of a task that fails, or is cancelled: "stop", the flow is FAILED,
            and ``then`` does not run, until somebody runs that task again and it succeeds; the
            others go on. "cancel", the same, and those that have not started are cancelled.
            "continue", ``then`` runs when all have ended, and gets what came of each:
            ``{"status", "result", "error", "error_class"}``.

    Raises:
        InvalidMessage: ``on_failure`` is none of these, or a part is no task.
    """
    if on_failure not in flow_plan.POLICIES:
        raise InvalidMessage(
            f"on_failure is {on_failure!r}. It is one of: {', '.join(flow_plan.POLICIES)}."
        )
    both = Chain([_Group([_part(one) for one in parts], True, on_failure)])
    return both if then is None else chain(both, then)


def signature(task: utilities.Task, *args: Any, **kwargs: Any) -> Signature:
    """A call of a task in a flow; see ``Signature``. With options: ``task.options().signature()``.

    Raises:
        InvalidMessage, CarrotConfigException, ImportError, AttributeError: see ``create_message``.
    """
    return Signature(utilities.validate_task(task), args, kwargs)


def _part(one: Any) -> Message | Signature:
    if isinstance(one, Message):
        check_not_unique(one.task)
        return one
    if isinstance(one, Signature):
        return one
    if isinstance(one, Chain):
        raise InvalidMessage(
            "The parts of a group are single tasks: no chains, and no groups. Make a flow of each "
            "chain, or one chain of groups."
        )
    return Signature(utilities.validate_task(one))


def _member(part: Message | Signature) -> Member:
    row = part.row
    run_after, expires = row.moments
    return Member(
        task=row.task,
        args=row.task_args,
        kwargs=row.content,
        queue=row.queue,
        exchange=row.exchange,
        routing_key=row.routing_key,
        priority=row.priority,
        run_after=flow_plan.kept_moment(run_after),
        expires=flow_plan.kept_moment(expires),
        retention=row.retention,
        takes_result=isinstance(part, Signature),
    )
