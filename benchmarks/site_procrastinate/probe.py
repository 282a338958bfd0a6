# SPDX-License-Identifier: Apache-2.0
"""How procrastinate does each step."""

from __future__ import annotations

from benchmarks.probe import Rows, Site, main

BATCH = 1000


class ProcrastinateSite(Site):
    """procrastinate's own calls. What is published is a row, and nothing else."""

    has_rows_first = True

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from procrastinate.contrib.django.models import ProcrastinateEvent, ProcrastinateJob

        from benchmarks.site_procrastinate import tasks

        self._calls = tasks
        self._jobs = ProcrastinateJob.objects
        self._events = ProcrastinateEvent.objects

    def begin(self) -> None:
        from django.db import connection

        # Django leaves these tables alone: they are procrastinate's own.
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE procrastinate_jobs, procrastinate_events CASCADE")

    def publish(self, task: str) -> None:
        self._calls.publish(task)

    def publish_all(self, task: str, count: int) -> None:
        for begin in range(0, count, BATCH):
            self._calls.publish_all(task, min(BATCH, count - begin))

    def count_final(self) -> int:
        return int(self._jobs.exclude(status__in=("todo", "doing")).count())

    def rows(self) -> Rows:
        from django.db.models import Count, Min, Q

        found = self._jobs.aggregate(
            total=Count("pk"), succeeded=Count("pk", filter=Q(status="succeeded"))
        )
        started = self._events.filter(type="started").aggregate(first=Min("at"))
        return Rows(
            total=found["total"],
            confirmed=found["total"],
            succeeded=found["succeeded"],
            first_start=started["first"].timestamp() if started["first"] else None,
            repeats=None,
        )


if __name__ == "__main__":
    main(ProcrastinateSite)
