# SPDX-License-Identifier: Apache-2.0
"""What the charts show: how many tasks ended and how long they took, and how the queues stood.

Read from the buckets of ``rollups``, one or two queries for a chart, whatever the number of tasks.
What is told task by task comes from coarser buckets than the charts: it has many more rows.
The last bucket of a span is the present one, which is not over yet: services write into it every
ten seconds. Times are this host's; services write those of the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import F, Sum
from django.utils import timezone

from carrot_twisted import histograms, statements
from carrot_twisted.models import QueueStatistics, TaskStatistics
from carrot_twisted.rollups import ALL, start_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from carrot_twisted.histograms import Histogram

#: Rows of the table of tasks: those of which most came to an end.
MAX_TASKS = 20


class Span(Enum):
    """For how long back: the seconds of a bucket, their number, the seconds of one of a task."""

    HOUR = (60, 60, 600)
    DAY = (600, 144, 3600)
    WEEK = (3600, 168, 86_400)

    @property
    def resolution(self) -> int:
        """Seconds of a bucket."""
        return self.value[0]

    def start_of_tasks(self, now: datetime) -> datetime:
        """Since when ``tasks`` counts: the start of the bucket that the first of ours is in."""
        first = self.starts(now)[0].timestamp()
        return datetime.fromtimestamp(start_of(first, self.value[2]), UTC)

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


class QueueSample(NamedTuple):
    """How a queue stood; None each where nobody looked."""

    start: datetime
    """Of the bucket; the look itself was soon after that, as a rule."""
    waiting: int | None = None
    running: int | None = None
    oldest: float | None = None
    """Seconds since the oldest waiting task was published; None also where none waited."""
    unsent: int | None = None


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
    if task is None:
        filters = {"queue": ALL if queue is None else queue, "task": ALL}
    else:
        filters = {"task": task} if queue is None else {"queue": queue, "task": task}
    rows = TaskStatistics.objects.using(using).filter(
        resolution=span.resolution, start__gte=starts[0], **filters
    )
    sums = {row["start"]: row for row in _summed(rows, "start")}
    times = _durations(
        span.resolution, starts[0], using, ["start"], filters.get("queue"), [filters["task"]]
    )
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

    Two queries; MAX_TASKS at most. Counted since ``span.start_of_tasks``, which is a little more
    than the span.

    Args:
        span: how far back.
        using: database alias.
        queue: of this queue only.
    """
    since, resolution = span.start_of_tasks(timezone.now()), span.value[2]
    filters = {} if queue is None else {"queue": queue}
    rows = TaskStatistics.objects.using(using).filter(
        resolution=resolution, start__gte=since, **filters
    )
    most = _summed(rows.exclude(task=ALL), "queue", "task").order_by(
        (F("completed_sum") + F("failed_sum")).desc(), "queue", "task"
    )[:MAX_TASKS]
    found = list(most)
    names = sorted({row["task"] for row in found})
    times = _durations(resolution, since, using, ["queue", "task"], queue, names) if names else {}
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
    found: dict[str, dict[datetime, QueueSample]] = {}
    columns = ("queue", "start", "waiting", "running", "oldest", "unsent")
    for name, start, *stood in rows.order_by("queue").values_list(*columns):
        found.setdefault(name, {})[start] = QueueSample(start, *stood)
    return {
        name: [by_start.get(start) or QueueSample(start) for start in starts]
        for name, by_start in found.items()
    }


def _summed(rows: Any, *by: str) -> Any:
    return (
        rows.order_by()
        .values(*by)
        .annotate(completed_sum=Sum("completed"), failed_sum=Sum("failed"))
    )


def _durations(
    resolution: int,
    since: datetime,
    using: str,
    by: Sequence[str],
    queue: str | None,
    tasks: Sequence[str],
) -> dict[tuple[Any, ...], Histogram]:
    """The histograms, by "wait" or "run" and what they are of."""
    rows = statements.sum_histograms(
        TaskStatistics._meta.db_table, by, resolution, since, using, queue, tasks
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
