# SPDX-License-Identifier: Apache-2.0
"""How django-tasks-db does each step."""

from __future__ import annotations

from benchmarks.probe import Rows, Site, main


class TasksDbSite(Site):
    """Calls of django-tasks. What is published is a row, and nothing else."""

    has_rows_first = True

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from django_tasks_db.models import DBTaskResult

        from benchmarks.site_tasks_db.tasks import publish

        self._publish = publish
        self._results = DBTaskResult.objects

    def publish(self, task: str) -> None:
        self._publish(task)

    def count_final(self) -> int:
        return int(self._results.filter(finished_at__isnull=False).count())

    def rows(self) -> Rows:
        from django.db.models import Count, Min, Q

        found = self._results.aggregate(
            total=Count("pk"),
            succeeded=Count("pk", filter=Q(status="SUCCESSFUL")),
            first=Min("started_at"),
        )
        return Rows(
            total=found["total"],
            confirmed=found["total"],
            succeeded=found["succeeded"],
            first_start=found["first"].timestamp() if found["first"] else None,
            repeats=None,
        )


if __name__ == "__main__":
    main(TasksDbSite)
