# SPDX-License-Identifier: Apache-2.0
"""Whether something has changed in our tables, whoever has changed it, at next to no cost.

For pages that show them: ``marker`` is read again and again, and what differs is worth another
look. It reads the newest rows of some indexes, and small tables. On PostgreSQL the server's own
counters are asked as well: they know of each change, but sometimes tell of the last one some
seconds late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import Count, Max

from carrot_twisted.models import MessageLog, PausedQueue, ScheduledTask, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    Marker = Mapping[str, tuple[Any, ...]]

#: In the META of a request that a service answers: path of its stream of changes.
STREAM = "carrot_twisted.changes"
#: What may change, and where it is.
TABLES = {
    "tasks": MessageLog,
    "queues": PausedQueue,
    "workers": Worker,
    "schedules": ScheduledTask,
}
_COUNTERS = (
    "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables "
    "WHERE relid = ANY(%s::regclass[])"
)


def marker(using: str) -> Marker:
    """What tells the present state from others, for each of TABLES.

    Args:
        using: database alias.

    Raises:
        DatabaseError: the database does not answer.
    """
    logs = MessageLog.objects.using(using)
    running = logs.filter(status=MessageLog.IN_PROGRESS)
    ended = (
        logs.filter(status=status).aggregate(at=Max(field))["at"]
        for status, field in (
            (MessageLog.COMPLETED, "completion_time"),
            (MessageLog.FAILED, "failure_time"),
        )
    )
    found: dict[str, tuple[Any, ...]] = {
        "tasks": (
            logs.order_by("-pk").values_list("pk", flat=True).first(),
            *running.aggregate(count=Count("pk"), at=Max("start_time")).values(),
            *ended,
            logs.filter(status=MessageLog.CANCELLED).count(),
        ),
        "queues": tuple(PausedQueue.objects.using(using).order_by("pk").values_list()),
        "workers": tuple(
            Worker.objects.using(using).order_by("pk").values_list("pk", "heartbeat_at", "command")
        ),
        "schedules": tuple(ScheduledTask.objects.using(using).order_by("pk").values_list()),
    }
    counters = _counters(using)
    return {name: (*value, counters.get(name)) for name, value in found.items()}


def _counters(using: str) -> dict[str, tuple[int, ...]]:
    """How many rows were inserted, updated and deleted, as PostgreSQL counts."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return {}
    names = {model._meta.db_table: name for name, model in TABLES.items()}
    with connection.cursor() as cursor:
        cursor.execute(_COUNTERS, [[connection.ops.quote_name(table) for table in names]])
        return {names[row[0]]: row[1:] for row in cursor.fetchall()}


def changed(before: Marker, after: Marker) -> list[str]:
    """Names of what differs between two states."""
    return [name for name in after if before.get(name) != after[name]]
