# SPDX-License-Identifier: Apache-2.0
"""Tasks of this package itself. They count as registered without standing in ``task_modules``."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from django.db import router, transaction
from django.db.models.functions import Coalesce, Now

from carrot_twisted import (
    attempt,
    conf,
    flow,
    housekeeping,
    limit_state,
    rollups,
    schedule_run,
    statements,
)
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.periodic import periodic_task

if TYPE_CHECKING:
    from django.db.models import QuerySet

#: A child of "carrot", whose lines are kept with the task.
_logger = logging.getLogger("carrot.cleanup")

#: Rows per transaction.
CHUNK = 1000
#: Seconds after which a run leaves the rest to the next one. Less than the service's
#: "shutdown_timeout", so that a run which is due to end ends by itself.
BUDGET = 20.0
#: The time by which rows of a final state are indexed. None of them came to its end before that.
ENDED = {
    MessageLog.COMPLETED: "completion_time",
    MessageLog.FAILED: "failure_time",
    MessageLog.CANCELLED: "publish_time",
}
#: Counts rows of tasks that say themselves how long they are kept.
OWN = "OWN RETENTION"


def is_switched_on() -> bool:
    """Whether any rows are to be deleted."""
    return bool(conf.current().retention)


def queue_for_our_tasks() -> str:
    """The queue for tasks of ours: the default one, or else the first that is consumed from."""
    queues = conf.current().queues
    consumed = [queue.name for queue in queues.values() if queue.consumable] or [*queues]
    return conf.DEFAULT_QUEUE if conf.DEFAULT_QUEUE in consumed else consumed[0]


@periodic_task(
    hours=1,
    task_name="carrot: cleanup",
    queue=queue_for_our_tasks(),
    overlap=ScheduledTask.SKIP,
    when=is_switched_on,
)
def cleanup() -> dict[str, int]:
    """Delete rows whose end is longer ago than ``CARROT["retention"]`` says, oldest first.

    Or than their tasks say themselves: see ``carrot_twisted.task``.

    In short transactions, with pauses for the writes of others. Safe to run at any time, also
    several at once, and to be killed: what is left goes with the next run.

    Returns:
        How many rows were deleted, for each state whose rows are not kept for ever, and of tasks
        with a retention of their own, if there are any.
    """
    using = router.db_for_write(MessageLog)
    retention = conf.current().retention
    deleted = dict.fromkeys(retention, 0)
    unfinished: dict[str, Expired] = {
        state: OfState(state, age, using) for state, age in sorted(retention.items())
    }
    if retention:
        for seconds in statements.retentions(MessageLog._meta.db_table, using):
            deleted[OWN] = 0
            unfinished[f"{OWN} {seconds}"] = OfRetention(seconds, using)
    end = time.monotonic() + BUDGET
    while unfinished and time.monotonic() < end:
        # A chunk of each in turn: many completed rows must not keep the others from being deleted.
        for name, expired in list(unfinished.items()):
            started = time.monotonic()
            with transaction.atomic(using=using):
                count = housekeeping.delete_some(expired.rows(), CHUNK, skip_locked=True)
            deleted[name if name in deleted else OWN] += count
            if count < CHUNK:
                del unfinished[name]
            else:
                time.sleep(time.monotonic() - started)
    _logger.info(
        "Deleted old rows: %s%s",
        ", ".join(f"{count} {state}" for state, count in deleted.items()) or "none, all are kept",
        "; the rest goes with the next run" if unfinished else "",
    )
    return deleted


@periodic_task(
    hours=1,
    task_name="carrot: statistics",
    queue=queue_for_our_tasks(),
    overlap=ScheduledTask.SKIP,
)
def delete_old_statistics() -> dict[str, int]:
    """Delete what was counted for charts and is older than they reach (``rollups.KEPT``).

    And attempts, runs of schedules and flows whose tasks' rows are gone, and limits that nobody
    uses.

    Returns:
        How many buckets, attempts, runs, flows and limits were deleted.
    """
    using = router.db_for_write(MessageLog)
    deleted = {"buckets": rollups.delete_old(using)}
    deleted |= dict.fromkeys(("attempts", "runs", "flows", "limits"), 0)
    end = time.monotonic() + BUDGET
    for what, delete in (
        ("attempts", attempt.delete_orphans),
        ("runs", schedule_run.delete_orphans),
        ("flows", flow.delete_orphans),
        ("limits", limit_state.delete_idle),
    ):
        count = CHUNK
        while count == CHUNK and time.monotonic() < end:
            with transaction.atomic(using=using):
                count = delete(CHUNK, using)
            deleted[what] += count
    _logger.info(
        "Deleted old statistics: %(buckets)s buckets, of deleted tasks %(attempts)s attempts, "
        "%(runs)s runs of schedules and %(flows)s flows, and %(limits)s unused limits",
        deleted,
    )
    return deleted


class Expired(Protocol):
    """Rows that are to be deleted."""

    def rows(self) -> QuerySet[MessageLog]:
        """Those that are left, oldest first."""


class OfState:
    """The rows of a final state that ended longer ago than ``age``, and are kept no longer."""

    def __init__(self, state: str, age: timedelta, using: str) -> None:
        self._ended = ENDED[state]
        old = MessageLog.objects.using(using).filter(status=state, retention__isnull=True)
        old = old.filter(**{f"{self._ended}__lt": Now() - age})
        old = old.exclude(flow.kept_for_flows(using))
        if state == MessageLog.CANCELLED:
            # One that was cancelled long after it was published.
            old = old.exclude(completion_time__gte=Now() - age)
        self._old = old.order_by(self._ended)

    def rows(self) -> QuerySet[MessageLog]:
        """Those that are left, oldest first."""
        # Rows that are kept longer may stand before them, by the million: passed by once.
        first = self._old.values_list(self._ended, flat=True).first()
        if first is None:
            return self._old.none()
        # SQLite's texts of one time are not all equal.
        self._old = self._old.filter(**{f"{self._ended}__gte": first - timedelta(seconds=1)})
        return self._old


class OfRetention:
    """The rows that are to be kept for so many seconds, and ended longer ago."""

    def __init__(self, seconds: int, using: str) -> None:
        ended = Coalesce("completion_time", "failure_time", "publish_time")
        own = MessageLog.objects.using(using).filter(retention=seconds, status__in=MessageLog.FINAL)
        old = own.alias(ended=ended).filter(ended__lt=Now() - timedelta(seconds=seconds))
        old = old.exclude(flow.kept_for_flows(using))
        self._old = old.order_by("ended")

    def rows(self) -> QuerySet[MessageLog]:
        """Those that are left, oldest first."""
        return self._old
