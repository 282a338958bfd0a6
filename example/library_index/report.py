# SPDX-License-Identifier: Apache-2.0
"""What a run of ``index_stdlib`` came to, as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from carrot_twisted.models import MessageLog
from library_index.models import Module

STATUSES = {
    MessageLog.COMPLETED: "completed",
    MessageLog.FAILED: "failed",
    MessageLog.CANCELLED: "cancelled",
    MessageLog.IN_PROGRESS: "in progress",
    MessageLog.PUBLISHED: "waiting",
}
#: Shown also where the number is 0.
USUAL = (MessageLog.COMPLETED, MessageLog.FAILED)
FILES_PER_REASON = 10


def lines(logs: Collection[MessageLog]) -> Iterator[str]:
    """The whole report on the tasks of one run."""
    yield from ("", *totals(logs))
    yield from failures([log for log in logs if log.status == MessageLog.FAILED])
    yield from ("", *largest_modules())


def totals(logs: Collection[MessageLog]) -> Iterator[str]:
    """How many tasks came to which end, and how fast."""
    numbers = Counter(log.status for log in logs)
    yield f"{'published':<20}{len(logs):>10,}"
    for status, label in STATUSES.items():
        if numbers[status] or status in USUAL:
            yield f"{label:<20}{numbers[status]:>10,}"
    if ends := [end for log in logs if (end := log.completion_time or log.failure_time)]:
        # From the first publish to the last end, both by the database's clock.
        seconds = (max(ends) - min(log.publish_time for log in logs)).total_seconds()
        yield f"{'seconds':<20}{seconds:>10.1f}"
        yield f"{'tasks per second':<20}{len(ends) / seconds:>10.0f}"


def failures(failed: Collection[MessageLog]) -> Iterator[str]:
    """The failed tasks, grouped by the kind of exception."""
    groups: dict[str, list[str]] = defaultdict(list)
    for log in failed:
        # A traceback ends with the exception: "SyntaxError: invalid syntax".
        kind, _, message = (log.traceback or "unknown").strip().splitlines()[-1].partition(": ")
        groups[kind].append(f"{log.positionals[0]}: {message}")
    for kind, files in sorted(groups.items()):
        yield from ("", f"Failed with {kind}: {len(files):,}")
        yield from (f"  {file}" for file in sorted(files)[:FILES_PER_REASON])
        if len(files) > FILES_PER_REASON:
            yield f"  and {len(files) - FILES_PER_REASON:,} more"


def largest_modules() -> Iterator[str]:
    """A table of the modules with the most definitions."""
    yield "The ten largest modules by definitions"
    yield f"{'definitions':>13}{'lines':>9}{'imports':>9}{'documented':>12}  module"
    for module in Module.objects.order_by("-definitions", "name")[:10]:
        yield (
            f"{module.definitions:>13,}{module.lines:>9,}{module.imports:>9,}"
            f"{module.documented:>12.0%}  {module.name}"
        )
