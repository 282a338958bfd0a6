# SPDX-License-Identifier: Apache-2.0
"""The first page: is all well, how much comes to its end, how long it waits and takes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from carrot_twisted import statistics, status
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import charts
from carrot_twisted.monitor.charts import Series
from carrot_twisted.monitor.page import Page
from carrot_twisted.statistics import Span
from carrot_twisted.templatetags.carrot_twisted import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from django.http import HttpRequest

    from carrot_twisted.monitor.charts import Chart
    from carrot_twisted.statistics import QueueSample, Throughput
    from carrot_twisted.status import Status

SPANS = {
    "hour": (Span.HOUR, gettext_lazy("Last hour")),
    "day": (Span.DAY, gettext_lazy("Last day")),
    "week": (Span.WEEK, gettext_lazy("Last week")),
}
#: Lines of a chart: more of them nobody can tell apart.
MAX_LINES = 5


class Overview(Page):
    """How everything fares, and fared."""

    template: ClassVar[str] = "overview.html"
    section: ClassVar[str] = "carrot-monitor"

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Numbers of now, charts of the span that is asked for."""
        using = router.db_for_read(MessageLog)
        name = request.GET.get("span", "hour")
        name = name if name in SPANS else "hour"
        span, _title = SPANS[name]
        now = status.read(using)
        queue = request.GET.get("queue", "")
        known = [one.name for one in now.queues]
        queue = queue if queue in known else ""
        buckets = statistics.throughput(span, using, queue or None)
        samples = statistics.depths(span, using, queue or None)
        return {
            "status": now,
            "span": name,
            "spans": [(key, title) for key, (_span, title) in SPANS.items()],
            "queue": queue,
            "queues": known,
            "clock": "H:i" if span is not Span.WEEK else "D H:i",
            "numbers": _numbers(now, buckets, queue),
            "charts": [
                ("throughput", _("Tasks that came to their end"), _ended(buckets)),
                ("depth", _("Tasks that wait"), _waiting(samples)),
                ("wait", _("Wait in the queue"), _durations(buckets, "wait")),
                ("run", _("Run time"), _durations(buckets, "run")),
                ("age", _("Age of the oldest waiting task"), _oldest(samples)),
                ("unsent", _("Messages that the broker should have"), _unsent(samples)),
            ],
            "tasks": statistics.tasks(span, using, queue or None),
            "tasks_since": span.start_of_tasks(timezone.now()),
        }


def _numbers(now: Status, buckets: Sequence[Throughput], queue: str) -> dict[str, Any]:
    queues = [one for one in now.queues if queue in ("", one.name)]
    workers = [one for one in now.workers if one.alive and (not queue or queue in one.queues)]
    completed = sum(one.completed for one in buckets)
    failed = sum(one.failed for one in buckets)
    return {
        "completed": completed,
        "failed": failed,
        "share": failed / (completed + failed) if failed else 0,
        "waiting": sum(one.waiting for one in queues),
        "waiting_is_exact": all(one.waiting_is_exact for one in queues),
        "oldest": max((one.oldest for one in queues if one.oldest is not None), default=None),
        "running": sum(one.running for one in queues),
        "unsent": sum(one.unsent for one in queues),
        "unsent_is_exact": all(one.unsent_is_exact for one in queues),
        "workers": len(workers),
        "threads": sum(one.threads for one in workers),
    }


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _starts(buckets: Sequence[Throughput] | Sequence[QueueSample]) -> list[datetime]:
    return [one.start for one in buckets]


def _ended(buckets: Sequence[Throughput]) -> Chart:
    return charts.stacked(
        _starts(buckets),
        [
            Series(name=_("completed"), kind="good", values=[one.completed for one in buckets]),
            Series(name=_("failed"), kind="bad", values=[one.failed for one in buckets]),
        ],
        _whole,
    )


def _durations(buckets: Sequence[Throughput], what: str) -> Chart:
    times = [getattr(one, what) for one in buckets]
    return charts.lines(
        _starts(buckets),
        [
            Series(name=_("half of them"), kind="line-1", values=[one.p50 for one in times]),
            Series(name=_("95 of 100"), kind="line-2", values=[one.p95 for one in times]),
        ],
        duration,
    )


def _of_queues(what: str, shown: Any, samples: Mapping[str, Sequence[QueueSample]]) -> Chart:
    values = {name: [getattr(one, what) for one in found] for name, found in samples.items()}
    largest = sorted(values, key=lambda name: -max(value or 0 for value in values[name]))
    return charts.lines(
        _starts(next(iter(samples.values()), [])),
        [
            Series(name=name, kind=f"line-{n}", values=values[name])
            for n, name in enumerate(largest[:MAX_LINES], 1)
        ],
        shown,
    )


_waiting = partial(_of_queues, "waiting", _whole)
_unsent = partial(_of_queues, "unsent", _whole)
_oldest = partial(_of_queues, "oldest", duration)
