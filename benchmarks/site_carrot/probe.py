# SPDX-License-Identifier: Apache-2.0
"""How carrot-twisted does each step."""

from __future__ import annotations

from benchmarks.probe import Rows, Site, main
from benchmarks.settings import QUEUE
from benchmarks.work import TASKS

SECONDS_TO_CONFIRM = 120.0


class CarrotSite(Site):
    """The public functions of carrot-twisted, called as a project would."""

    has_rows_first = True
    compares_inserts = True

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from benchmarks.site_carrot.tasks import publish
        from carrot_twisted import publisher, utilities
        from carrot_twisted.models import MessageLog

        # A broker that is busy for a second would leave the rest of a backlog to a service's relay.
        publisher.BUDGET = SECONDS_TO_CONFIRM
        self._flush = publisher.flush
        self._publish = publish
        self._utilities = utilities
        self._logs = MessageLog.objects

    def publish(self, task: str) -> None:
        self._publish(task)

    def publish_all(self, task: str, count: int) -> None:
        self._utilities.publish_many(
            self._utilities.create_message(TASKS[task], QUEUE) for _ in range(count)
        )
        self.settle()

    def settle(self) -> None:
        if not self._flush(SECONDS_TO_CONFIRM):
            raise SystemExit(f"Not all was confirmed within {SECONDS_TO_CONFIRM:g} s.")

    def insert_row(self) -> None:
        # Field for field what publish_message stores.
        self._logs.create(task="benchmarks.work.no_op", queue=QUEUE, routing_key=QUEUE)

    def count_final(self) -> int:
        return self._logs.filter(status__in=self._logs.model.FINAL).count()

    def rows(self) -> Rows:
        from django.db.models import Count, F, Min, Q, Sum

        started = Q(attempts__gt=0)
        found = self._logs.aggregate(
            total=Count("pk"),
            confirmed=Count("confirmed_at"),
            succeeded=Count("pk", filter=Q(status=self._logs.model.COMPLETED)),
            first=Min("start_time"),
            repeats=Sum(F("attempts") - 1, filter=started, default=0),
        )
        return Rows(
            total=found["total"],
            confirmed=found["confirmed"],
            succeeded=found["succeeded"],
            first_start=found["first"].timestamp() if found["first"] else None,
            repeats=found["repeats"],
        )


if __name__ == "__main__":
    main(CarrotSite)
