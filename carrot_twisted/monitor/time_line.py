# SPDX-License-Identifier: Apache-2.0
"""The life of a task, step by step, as its row tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from django.utils.translation import gettext

from carrot_twisted.due import GRACE
from carrot_twisted.message_log_set import EXPIRED
from carrot_twisted.models import Attempt, MessageLog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from carrot_twisted.running import CancelRequest


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that has happened, or is awaited."""

    title: str
    kind: str = "done"
    """How it looks: done, waiting, running, or good, bad and off for an end."""
    when: datetime | None = None
    after: timedelta | None = None
    """Time since the step before."""
    text: str = ""


def steps_of(row: MessageLog, earlier: Sequence[Attempt] = ()) -> list[Step]:
    """What is known of this row's life, in its order.

    Args:
        row: the row.
        earlier: attempts that came to nothing, in their order.
    """
    steps = _Steps()
    if not row.is_task:
        steps.add(gettext("Arrived"), row.publish_time)
        steps.add(gettext("Started"), row.start_time, text=_worker(row.worker))
        _add_end(steps, row)
        return steps.found
    steps.add(gettext("Published"), row.publish_time)
    for attempt in earlier:
        _add_attempt(steps, attempt)
    told = any(attempt.number == row.attempts for attempt in earlier)
    if row.start_time is not None and not told:
        # Confirms are noted in batches: one that came too late was not noted, or stands after it.
        if row.confirmed_at is not None and row.confirmed_at <= row.start_time:
            steps.add(gettext("Sent to the broker"), row.confirmed_at)
        _add_start(steps, row.attempts, row.start_time, row.worker)
    if row.status == MessageLog.PUBLISHED:
        _add_wait(steps, row)
    elif row.status == MessageLog.IN_PROGRESS:
        _add_wish(steps, row)
        steps.found.append(Step(title=gettext("Running"), kind="running"))
    else:
        if row.status != MessageLog.CANCELLED:
            _add_wish(steps, row)
        _add_end(steps, row)
    return steps.found


class _Steps:
    def __init__(self) -> None:
        self.found: list[Step] = []
        self._last: datetime | None = None

    def add(self, title: str, when: datetime | None, *, kind: str = "done", text: str = "") -> None:
        after = when - self._last if when is not None and self._last is not None else None
        if after is not None and after.total_seconds() < 0:
            # Two clocks.
            after = None
        self.found.append(Step(title=title, kind=kind, when=when, after=after, text=text))
        self._last = when or self._last


def _add_wait(steps: _Steps, row: MessageLog) -> None:
    if row.limited_by is not None:
        title = gettext("Waiting for %(what)s") % {"what": row.limited_by}
        text = gettext("as many run, or have started, as its limits allow")
        steps.found.append(Step(title=title, kind="waiting", text=text))
        return
    if row.confirmed_at is not None:
        steps.add(gettext("Sent to the broker"), row.confirmed_at)
        text = gettext("in queue %(queue)s") % {"queue": row.queue}
        steps.found.append(Step(title=gettext("Waiting for a worker"), kind="waiting", text=text))
        return
    if row.due_later is not None:
        title = gettext("Next attempt due") if row.attempts else gettext("Due")
        steps.found.append(Step(title=title, kind="waiting", when=row.due_later))
        return
    due = row.relay_at + timedelta(seconds=GRACE)
    # A new row is due at once; what is due later waits for that.
    later = due - (row.run_after or row.publish_time) > timedelta(seconds=2 * GRACE)
    title = gettext("Next try due") if later else gettext("Waiting to be sent to the broker")
    steps.found.append(Step(title=title, kind="waiting", when=due if later else None))


def _add_start(steps: _Steps, number: int, when: datetime, worker: str) -> None:
    title = gettext("Started")
    if number > 1:
        title = gettext("Started, attempt %(number)s") % {"number": number}
    steps.add(title, when, text=_worker(worker))


def _add_attempt(steps: _Steps, attempt: Attempt) -> None:
    if attempt.started is not None:
        _add_start(steps, attempt.number, attempt.started, attempt.worker)
    title = gettext("Attempt %(number)s came to nothing")
    if attempt.outcome == Attempt.RETRIED:
        title = gettext("Attempt %(number)s failed")
    steps.add(
        title % {"number": attempt.number},
        attempt.ended,
        kind="bad",
        text=_what_came_of_it(attempt),
    )


def _what_came_of_it(attempt: Attempt) -> str:
    if attempt.outcome == Attempt.RETRIED:
        return attempt.exception or ""
    return ": ".join(filter(None, [attempt.get_outcome_display(), attempt.exception]))


def _add_end(steps: _Steps, row: MessageLog) -> None:
    if row.status == MessageLog.COMPLETED:
        steps.add(gettext("Completed"), row.completion_time, kind="good")
    elif row.status == MessageLog.FAILED:
        steps.add(gettext("Failed"), row.failure_time, kind="bad")
    else:
        # Where it has run: what it was interrupted with.
        text = row.exception or ""
        if row.exception == EXPIRED:
            text = gettext("expired: it had not started in time")
        elif row.cancel_asked is not None:
            text = _who(row.cancel_asked)
        steps.add(gettext("Cancelled"), row.completion_time, kind="off", text=text)


def _add_wish(steps: _Steps, row: MessageLog) -> None:
    """Somebody has asked that it be cancelled while it ran."""
    asked = row.cancel_asked
    if asked is not None:
        steps.add(gettext("Asked to end"), asked.moment, text=_who(asked))


def _who(asked: CancelRequest) -> str:
    who = gettext("by %(name)s") % {"name": asked.by} if asked.by else ""
    return ": ".join(filter(None, [who, asked.reason]))


def _worker(name: str) -> str:
    return gettext("by worker %(name)s") % {"name": name} if name else ""
