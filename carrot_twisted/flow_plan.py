# SPDX-License-Identifier: Apache-2.0
"""What a flow does after its first step, as its row keeps it: values, and their JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from carrot_twisted import outcomes
from carrot_twisted.exceptions import NotFinished, UnknownResult
from carrot_twisted.task_options import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from carrot_twisted.task_options import Moment

#: What comes of a step of which a task fails, or is cancelled: the flow is FAILED, and the others
#: run on; or those that wait are cancelled, too; or the next step gets what came of each.
STOP, CANCEL, CONTINUE = "stop", "cancel", "continue"
POLICIES = (STOP, CANCEL, CONTINUE)
#: The state of a task whose row was deleted.
DELETED = "DELETED"
#: States in which a task has come to its end; the first is a good one.
_ENDS = ("COMPLETED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One task of a later step. Its arguments were checked when the flow was published."""

    task: str
    args: str
    """Positional arguments as JSON."""
    kwargs: str
    """Keyword arguments as JSON."""
    queue: str
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0
    run_after: float | str | None = None
    """Seconds from when the step begins, or a time (ISO 8601)."""
    expires: float | str | None = None
    retention: int | None = None
    takes_result: bool = False
    """Its first argument is the result of the step before."""

    def arguments(self, result: str) -> str:
        """The positional arguments as JSON.

        Args:
            result: of the step before, as JSON.
        """
        if not self.takes_result:
            return self.args
        rest = self.args[1:-1]
        return f"[{result}, {rest}]" if rest else f"[{result}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is known of a step without its tasks."""

    size: int
    is_group: bool
    """Its result is a list, that of the results of its tasks; else that of its only task."""
    on_failure: str
    task: str
    """Dotted path of its first task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task of a step that has ended, as its row tells."""

    position: int
    status: str
    output: str | None
    returned: str | None
    exception: str | None
    exception_class: str | None


def result_of(step: Step, ended: Sequence[Ended]) -> str:
    """What the next step gets, as JSON.

    Args:
        step: that has ended.
        ended: its tasks, in their order; those whose rows were deleted are missing.

    Raises:
        NotFinished: not all have ended, or not all well.
        UnknownResult: of a task its row does not know what it has returned, or is gone.
    """
    continues = step.on_failure == CONTINUE
    left = sum(one.status not in (_ENDS if continues else _ENDS[:1]) for one in ended)
    if left:
        raise NotFinished(f"{left} of {step.size} tasks have not completed.")
    if continues:
        by_position = {one.position: one for one in ended}
        texts = [_outcome(by_position.get(n)) for n in range(step.size)]
    elif len(ended) < step.size:
        raise UnknownResult(f"Rows of {step.size - len(ended)} of {step.size} tasks are gone.")
    else:
        texts = [outcomes.json_of(one.output, one.returned) for one in ended]
    return f"[{', '.join(texts)}]" if step.is_group else texts[0]


def _outcome(one: Ended | None) -> str:
    if one is None:
        return json.dumps({"status": DELETED, "result": None, "error": None, "error_class": None})
    failed = one.status != _ENDS[0]
    rest = {
        "error": one.exception or one.status if failed else None,
        "error_class": one.exception_class if failed else None,
    }
    result = "null" if failed else outcomes.json_of(one.output, one.returned)
    more = json.dumps(rest, ensure_ascii=False)[1:-1]
    return f'{{"status": "{one.status}", "result": {result}, {more}}}'


def shape(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Steps for the row."""
    return [
        {
            "size": step.size,
            "group": step.is_group,
            "on_failure": step.on_failure,
            "task": step.task,
        }
        for step in steps
    ]


def steps_of(value: Any) -> list[Step]:
    """Those of a row."""
    return [
        Step(
            size=int(one["size"]),
            is_group=bool(one["group"]),
            on_failure=str(one["on_failure"]),
            task=str(one["task"]),
        )
        for one in value
    ]


def plan_text(members: Sequence[Sequence[Member]]) -> str:
    """The tasks of all steps for the row, as JSON; those of the first are none: they have rows."""
    return json.dumps([[_given(member) for member in step] for step in members], ensure_ascii=True)


def members_of(plan: str, step: int) -> list[Member]:
    """The tasks of one step.

    Raises:
        ValueError, TypeError, LookupError: the row holds no such plan.
    """
    return [Member(**one) for one in json.loads(plan)[step]]


def _given(member: Member) -> dict[str, Any]:
    values = {name: getattr(member, name) for name in Member.__slots__}
    return {name: value for name, value in values.items() if value not in (None, "", 0, False)}


def kept_moment(moment: Moment | None) -> float | str | None:
    """A moment as a plan keeps it."""
    if moment is None:
        return None
    return moment.isoformat() if isinstance(moment, datetime) else seconds_of(moment)


def moment_of(value: float | str | None) -> Moment | None:
    """The moment that a plan has kept."""
    return datetime.fromisoformat(value) if isinstance(value, str) else _seconds(value)


def _seconds(value: float | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)
