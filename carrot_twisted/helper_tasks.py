# SPDX-License-Identifier: Apache-2.0
"""Tasks of this package itself. They count as registered without standing in ``task_modules``."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from django.db import router, transaction
from django.db.models.functions import Now

from carrot_twisted import attempt, conf, housekeeping, rollups, schedule_run
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.periodic import periodic_task

if TYPE_CHECKING:
    from datetime import timedelta

    from django.db.models import QuerySet

#: A child of "carrot", whose lines are kept with the task.
_logger = logging.getLogger("carrot.cleanup")

#: Rows per transaction.
CHUNK = 1000
#: Seconds after which a run leaves the rest to the next one. Less than the service's
#: "shutdown_timeout", so that a run which is due to end ends by itself.
BUDGET = 20.0
#: When a row came to its end, by its final state. Each has an index with that condition.
ENDED = {
    MessageLog.COMPLETED: "completion_time",
    MessageLog.FAILED: "failure_time",
    MessageLog.CANCELLED: "publish_time",
}


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

    In short transactions, with pauses for the writes of others. Safe to run at any time, also
    several at once, and to be killed: what is left goes with the next run.

    Returns:
        How many rows were deleted, for each state whose rows are not kept for ever.
    """
    using = router.db_for_write(MessageLog)
    retention = conf.current().retention
    deleted = dict.fromkeys(retention, 0)
    unfinished = set(retention)
    end = time.monotonic() + BUDGET
    while unfinished and time.monotonic() < end:
        # A chunk of each in turn: many completed rows must not keep the others from being deleted.
        for state in sorted(unfinished):
            started = time.monotonic()
            with transaction.atomic(using=using):
                expired = expired_rows(state, retention[state], using)
                count = housekeeping.delete_some(expired, CHUNK, skip_locked=True)
            deleted[state] += count
            if count < CHUNK:
                unfinished.discard(state)
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

    And attempts and runs of schedules whose tasks' rows are gone.

    Returns:
        How many buckets, attempts and runs were deleted.
    """
    using = router.db_for_write(MessageLog)
    deleted = {"buckets": rollups.delete_old(using), "attempts": 0, "runs": 0}
    end = time.monotonic() + BUDGET
    for what, delete in (
        ("attempts", attempt.delete_orphans),
        ("runs", schedule_run.delete_orphans),
    ):
        count = CHUNK
        while count == CHUNK and time.monotonic() < end:
            with transaction.atomic(using=using):
                count = delete(CHUNK, using)
            deleted[what] += count
    _logger.info(
        "Deleted old statistics: %(buckets)s buckets, and of deleted tasks %(attempts)s attempts "
        "and %(runs)s runs of schedules",
        deleted,
    )
    return deleted


def expired_rows(state: str, age: timedelta, using: str) -> QuerySet[MessageLog]:
    """The rows of a final state that ended longer ago than ``age``, oldest first."""
    ended = ENDED[state]
    rows = MessageLog.objects.using(using).filter(status=state)
    return rows.filter(**{f"{ended}__lt": Now() - age}).order_by(ended)
