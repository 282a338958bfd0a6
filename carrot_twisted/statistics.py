# SPDX-License-Identifier: Apache-2.0
"""What the charts show: how many tasks ended and how long they took, and how the queues stood.

Read from the buckets of ``rollups``, one or two queries for a chart, whatever the number of tasks.
The last bucket of a span is the present one, which is not over yet: services write into it every
ten seconds. Times are this host's; services write those of the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from django.db.models import F, Sum
from django.utils import timezone

from carrot_twisted import histograms, statements
from carrot_twisted.models import QueueStatistics, TaskStatistics
from carrot_twisted.rollups import start_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from carrot_twisted.histograms import Histogram

#: Rows of the table of tasks: those of which most came to an end.
MAX_TASKS = 500


class Span(Enum):
    """For how long back: the seconds of a bucket, and their number."""

    HOUR = (60, 60)
    DAY = (600, 144)
    WEEK = (3600, 168)

    @property
    def resolution(self) -> int:
        """Seconds of a bucket."""
        return self.value[0]

    def starts(self, now: datetime) -> list[datetime]:
        """Start of each bucket; the last is the one that ``now`` is in."""
        last = datetime.fromtimestamp(start_of(now.timestamp(), self.resolution), UTC)
        return [
            last - n * timedelta(seconds=self.resolution) for n in reversed(range(self.value[1]))
        ]


@dataclass(frozen=True, kw_only=True)
class Durations:
    """In seconds, at most 9 % off; None where nothing came to its end."""

    p50: float | None
    """Half of them took no longer."""
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What came to its end in one bucket."""

    start: datetime
    completed: int
    failed: int
    wait: Durations
    """From publishing to the start of the last attempt."""
    run: Durations


@dataclass(frozen=True, kw_only=True)
class TaskTotals:
    """What came to its end of one task, or handler, in a span."""

    queue: str
    task: str
    completed: int
    failed: int
    wait: Durations
    run: Durations


@dataclass(frozen=True, kw_only=True)
class QueueSample:
    """How a queue stood; None each where nobody looked."""

    start: datetime
    """Of the bucket; the look itself was soon after that, as a rule."""
    waiting: int | None
    running: int | None
    oldest: float | None
    """Seconds since the oldest waiting task was published; None also where none waited."""
    unsent: int | None


def throughput(
    span: Span, using: str, queue: str | None = None, task: str | None = None
) -> list[Throughput]:
    """What came to its end, bucket by bucket, without gaps.

    Two queries.

    Args:
        span: how far back.
        using: database alias.
        queue: of this queue only.
        task: of this task, or handler, only.
    """
    starts = span.starts(timezone.now())
    filters = {} if queue is None else {"queue": queue}
    if task is not None:
        filters["task"] = task
    rows = TaskStatistics.objects.using(using).filter(
        resolution=span.resolution, start__gte=starts[0], **filters
    )
    sums = {row["start"]: row for row in _summed(rows, "start")}
    times = _durations(span, starts[0], using, ["start"], queue, None if task is None else [task])
    return [
        Throughput(
            start=start,
            completed=sums[start]["completed_sum"] if start in sums else 0,
            failed=sums[start]["failed_sum"] if start in sums else 0,
            wait=_of(times, "wait", start),
            run=_of(times, "run", start),
        )
        for start in starts
    ]


def tasks(span: Span, using: str, queue: str | None = None) -> list[TaskTotals]:
    """What came to its end of each task and handler, those first of which it was most.

    Two queries; MAX_TASKS at most.

    Args:
        span: how far back.
        using: database alias.
        queue: of this queue only.
    """
    since = span.starts(timezone.now())[0]
    filters = {} if queue is None else {"queue": queue}
    rows = TaskStatistics.objects.using(using).filter(
        resolution=span.resolution, start__gte=since, **filters
    )
    most = _summed(rows, "queue", "task").order_by(
        (F("completed_sum") + F("failed_sum")).desc(), "queue", "task"
    )[:MAX_TASKS]
    found = list(most)
    names = sorted({row["task"] for row in found})
    times = _durations(span, since, using, ["queue", "task"], queue, names) if names else {}
    return [
        TaskTotals(
            queue=row["queue"],
            task=row["task"],
            completed=row["completed_sum"],
            failed=row["failed_sum"],
            wait=_of(times, "wait", row["queue"], row["task"]),
            run=_of(times, "run", row["queue"], row["task"]),
        )
        for row in found
    ]


def depths(span: Span, using: str, queue: str | None = None) -> dict[str, list[QueueSample]]:
    """How each queue stood, bucket by bucket, without gaps.

    One query.

    Args:
        span: how far back.
        using: database alias.
        queue: this queue only.

    Returns:
        By queue, of those that were sampled in the span.
    """
    starts = span.starts(timezone.now())
    filters = {} if queue is None else {"queue": queue}
    rows = QueueStatistics.objects.using(using).filter(
        resolution=span.resolution, start__gte=starts[0], **filters
    )
    found: dict[str, dict[datetime, QueueStatistics]] = {}
    for row in rows.order_by("queue"):
        found.setdefault(row.queue, {})[row.start] = row
    return {
        name: [_sample(start, by_start.get(start)) for start in starts]
        for name, by_start in found.items()
    }


def _sample(start: datetime, row: QueueStatistics | None) -> QueueSample:
    return QueueSample(
        start=start,
        waiting=row.waiting if row else None,
        running=row.running if row else None,
        oldest=row.oldest if row else None,
        unsent=row.unsent if row else None,
    )


def _summed(rows: Any, *by: str) -> Any:
    return (
        rows.order_by()
        .values(*by)
        .annotate(completed_sum=Sum("completed"), failed_sum=Sum("failed"))
    )


def _durations(
    span: Span,
    since: datetime,
    using: str,
    by: Sequence[str],
    queue: str | None,
    tasks: Sequence[str] | None,
) -> dict[tuple[Any, ...], Histogram]:
    """The histograms, by "wait" or "run" and what they are of."""
    rows = statements.sum_histograms(
        TaskStatistics._meta.db_table, by, span.resolution, since, using, queue, tasks
    )
    found: dict[tuple[Any, ...], Histogram] = {}
    for *key, number, count in rows:
        found.setdefault(tuple(key), {})[number] = count
    return found


def _of(times: Mapping[tuple[Any, ...], Histogram], *key: Any) -> Durations:
    histogram = times.get(key, {})
    return Durations(
        p50=histograms.quantile(histogram, 0.5), p95=histograms.quantile(histogram, 0.95)
    )
