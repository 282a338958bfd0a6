# SPDX-License-Identifier: Apache-2.0
"""How django-carrot does each step."""

from __future__ import annotations

import pika

from benchmarks.probe import Rows, Site, main
from benchmarks.settings import BROKER, QUEUE


class DjangoCarrotSite(Site):
    """django-carrot's own calls. Each publish has a connection of its own."""

    has_rows_first = True

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from carrot.models import MessageLog

        from benchmarks.site_django_carrot.tasks import publish

        self._publish = publish
        self._logs = MessageLog.objects

    def begin(self) -> None:
        # Its service declares the queue; publishing does not, and loses what comes before.
        connection = pika.BlockingConnection(pika.URLParameters(BROKER))
        connection.channel().queue_declare(
            queue=QUEUE, durable=True, arguments={"x-max-priority": 255}
        )
        connection.close()

    def publish(self, task: str) -> None:
        self._publish(task)

    def count_final(self) -> int:
        return int(self._logs.filter(status__in=("COMPLETED", "FAILED")).count())

    def rows(self) -> Rows:
        from django.db.models import Count, Min, Q

        # The end of the first task: its start is not kept.
        found = self._logs.aggregate(
            total=Count("pk"),
            succeeded=Count("pk", filter=Q(status="COMPLETED")),
            first=Min("completion_time"),
        )
        return Rows(
            total=found["total"],
            confirmed=found["total"],
            succeeded=found["succeeded"],
            first_start=found["first"].timestamp() if found["first"] else None,
            repeats=None,
        )


if __name__ == "__main__":
    main(DjangoCarrotSite)
