# SPDX-License-Identifier: Apache-2.0
"""Statistics in buckets of time, so that no chart ever counts MessageLogs.

Each service writes what it has counted itself, under its own name, as totals of a bucket: written
twice it is the same, and no two services write the same row. How the queues stand is sampled once a
minute by whichever service comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar

from django.db import models
from django.db.models.functions import Now

from carrot_twisted import histograms
from carrot_twisted.message_log import MAX_TASK, MessageLog

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from carrot_twisted.histograms import Histogram

#: Seconds of a bucket, and for how long such buckets are kept.
KEPT = {
    60: timedelta(hours=3),
    600: timedelta(days=2),
    3600: timedelta(days=8),
    86_400: timedelta(days=35),
}
#: The finest of them.
FINEST = 60
#: Stands for the tasks beyond those that are counted one by one.
OTHERS = "(others)"
#: Stands for all tasks of a queue, or of all queues: a chart of these is not added up task by task.
ALL = ""


def start_of(seconds: float, resolution: int) -> int:
    """Start of the bucket in which a time lies; both in seconds since the epoch."""
    return int(seconds // resolution) * resolution


class TaskStatistics(models.Model):
    """What one service has counted of one task, handler, or queue, in one bucket of time."""

    resolution = models.PositiveIntegerField(help_text="Length of the bucket in seconds.")
    start = models.DateTimeField()
    queue = models.CharField(max_length=255)
    task = models.CharField(max_length=MAX_TASK, help_text="Dotted path; of a handler, too.")
    worker = models.CharField(max_length=100, help_text="Name of the service that has counted.")
    completed = models.PositiveIntegerField()
    failed = models.PositiveIntegerField()
    wait = models.JSONField(help_text="Histogram of the times from publishing to the start.")
    run = models.JSONField(help_text="Histogram of the run times.")

    class Meta:
        constraints: ClassVar = [
            # Its index is also that of the charts, and of what deletes old buckets.
            models.UniqueConstraint(
                fields=["resolution", "start", "queue", "task", "worker"],
                name="carrot_task_statistics_key",
            )
        ]

    def __str__(self) -> str:
        return f"{self.task} {self.start}"


class QueueStatistics(models.Model):
    """How one queue stood at one moment of a bucket of time, its first as a rule."""

    resolution = models.PositiveIntegerField(help_text="Length of the bucket in seconds.")
    start = models.DateTimeField()
    queue = models.CharField(max_length=255)
    waiting = models.PositiveIntegerField(help_text="Tasks that are PUBLISHED.")
    running = models.PositiveIntegerField(help_text="Tasks that are IN_PROGRESS.")
    oldest = models.FloatField(
        null=True, help_text="Seconds since the oldest waiting task was published."
    )
    unsent = models.PositiveIntegerField(
        help_text="Waiting tasks whose message the broker should have by now, and has not."
    )
    limited = models.PositiveIntegerField(
        null=True,
        help_text="Waiting tasks that their limits do not let start; empty: nobody has looked.",
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["resolution", "start", "queue"], name="carrot_queue_statistics_key"
            )
        ]

    def __str__(self) -> str:
        return f"{self.queue} {self.start}"


@dataclass(slots=True, kw_only=True)
class Totals:
    """What was counted in one bucket."""

    completed: int = 0
    failed: int = 0
    wait: Histogram = field(default_factory=dict)
    run: Histogram = field(default_factory=dict)
    wait_seconds: float = 0.0
    """Of all waits together. No chart asks for it, so no row has it."""
    run_seconds: float = 0.0

    def add(self, other: Totals) -> None:
        """Count all that the other one has, too."""
        self.completed += other.completed
        self.failed += other.failed
        histograms.merge(self.wait, other.wait)
        histograms.merge(self.run, other.run)
        self.wait_seconds += other.wait_seconds
        self.run_seconds += other.run_seconds

    def copy(self) -> Totals:
        """The same, as it is now."""
        copied = Totals()
        copied.add(self)
        return copied


#: Resolution, start in seconds since the epoch, queue, task.
Key = tuple[int, int, str, str]


def counted_in(key: Key) -> tuple[Key, Key, Key]:
    """In which buckets something is counted: its task's, its queue's, that of all queues."""
    resolution, start, queue, _task = key
    return key, (resolution, start, queue, ALL), (resolution, start, ALL, ALL)


def write(totals: Sequence[tuple[Key, Totals]], worker: str, using: str) -> None:
    """Write totals of this worker's, over what it has written before. Call it in a transaction.

    One statement; SQLite takes about a hundred rows in one.

    Args:
        totals: each key once.
        worker: name of who has counted.
        using: database alias.
    """
    rows = [
        TaskStatistics(
            resolution=resolution,
            start=datetime.fromtimestamp(start, UTC),
            queue=queue,
            task=task,
            worker=worker,
            completed=one.completed,
            failed=one.failed,
            wait=one.wait,
            run=one.run,
        )
        for (resolution, start, queue, task), one in totals
    ]
    TaskStatistics.objects.using(using).bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["resolution", "start", "queue", "task", "worker"],
        update_fields=["completed", "failed", "wait", "run"],
    )


def sample(queues: Collection[str], now: float, using: str) -> bool:
    """Write how the queues stand, unless that is known of this minute. Call it in a transaction.

    Args:
        queues: names from the settings; queues that only rows know are sampled, too.
        now: the database's time, in seconds since the epoch.
        using: database alias.

    Returns:
        Whether this call has looked. Another one, at the very same time, may have been first.
    """
    samples = QueueStatistics.objects.using(using)
    minute = datetime.fromtimestamp(start_of(now, FINEST), UTC)
    if samples.filter(resolution=FINEST, start=minute).exists():
        return False
    logs = MessageLog.objects.using(using)
    depths, unsent = logs.depths(), logs.outbox_state()
    rows = []
    for name in sorted({*queues, *depths}):
        depth, left = depths.get(name), unsent.get(name)
        rows += [
            QueueStatistics(
                resolution=resolution,
                start=datetime.fromtimestamp(start_of(now, resolution), UTC),
                queue=name,
                waiting=depth.waiting if depth else 0,
                running=depth.running if depth else 0,
                oldest=depth.oldest if depth else None,
                unsent=left.count if left else 0,
                limited=depth.limited if depth else 0,
            )
            for resolution in KEPT
        ]
    samples.bulk_create(rows, ignore_conflicts=True)
    return True


def delete_old(using: str) -> int:
    """Delete buckets that were kept long enough; returns how many."""
    deleted = 0
    for model in (TaskStatistics, QueueStatistics):
        for resolution, age in KEPT.items():
            old = model._default_manager.using(using)
            old = old.filter(resolution=resolution, start__lt=Now() - age)
            deleted += old.delete()[0]
    return deleted
