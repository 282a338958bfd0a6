# SPDX-License-Identifier: Apache-2.0
"""How Celery does each step."""

from __future__ import annotations

from benchmarks.probe import Rows, Site, main


class CelerySite(Site):
    """Celery's own calls. Tuned, each publish returns when the broker has confirmed it."""

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from django_celery_results.models import TaskResult

        from benchmarks.site_celery.tasks import publish

        self._publish = publish
        self._results = TaskResult.objects

    def publish(self, task: str) -> None:
        self._publish(task)

    def count_final(self) -> int:
        return int(self._results.filter(status__in=("SUCCESS", "FAILURE", "REVOKED")).count())

    def rows(self) -> Rows:
        from django.db.models import Count, Min, Q

        # The first row is written when its task has ended; the start of a task is not stored.
        found = self._results.aggregate(
            total=Count("pk"),
            succeeded=Count("pk", filter=Q(status="SUCCESS")),
            first=Min("date_created"),
        )
        return Rows(
            total=found["total"],
            confirmed=0,
            succeeded=found["succeeded"],
            first_start=found["first"].timestamp() if found["first"] else None,
            repeats=None,
        )


if __name__ == "__main__":
    main(CelerySite)
