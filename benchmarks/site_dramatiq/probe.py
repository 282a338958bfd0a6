# SPDX-License-Identifier: Apache-2.0
"""How Dramatiq does each step."""

from __future__ import annotations

from benchmarks.probe import Rows, Site, main


class DramatiqSite(Site):
    """Dramatiq's own calls. Each publish returns when the broker has confirmed, with a row then."""

    has_rows_first = True

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from django_dramatiq.models import Task

        from benchmarks.site_dramatiq.tasks import publish

        self._publish = publish
        self._tasks = Task.tasks

    def publish(self, task: str) -> None:
        self._publish(task)

    def count_final(self) -> int:
        return int(self._tasks.filter(status__in=("done", "failed", "skipped")).count())

    def rows(self) -> Rows:
        from django.db.models import Count, Min, Q

        # The last change of a row: the start of a task is not kept.
        done = Q(status="done")
        found = self._tasks.aggregate(
            total=Count("pk"),
            succeeded=Count("pk", filter=done),
            first=Min("updated_at", filter=done),
        )
        return Rows(
            total=found["total"],
            confirmed=found["total"],
            succeeded=found["succeeded"],
            first_start=found["first"].timestamp() if found["first"] else None,
            repeats=None,
        )


if __name__ == "__main__":
    main(DramatiqSite)
