# SPDX-License-Identifier: Apache-2.0
"""Steps inside the project, each a process of its own; the last line is a step's result.

They leave the rows of earlier tasks where they are. Rows of a run are those from a key on: keys
are ordered by time.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import django

from benchmarks.probe import READY, SECONDS_WITHOUT_PROGRESS, wait_for_all

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS_TO_CONFIRM = 600.0
#: Tasks that are published in one transaction, while the ones before are sent.
CHUNK = 10_000
#: So many are published until all are waited for: beyond 100,000 a publisher leaves rows to a
#: service's relay, and none runs yet.
UNCONFIRMED = 5 * CHUNK


def first_key() -> UUID:
    """Below the keys of all rows that are made from now on, which begin with the millisecond."""
    from carrot_twisted.identities import message_id

    return UUID(int=message_id().int >> 80 << 80)


def fill(count: str) -> dict[str, Any]:
    """Make the tables, and rows of tasks that have ended, in the database itself."""
    from django.core.management import call_command

    from benchmarks.pages import rows

    call_command("migrate", verbosity=0)
    if int(count):
        rows.fill_logs(int(count))
    return {}


def publish(count: str) -> dict[str, Any]:
    """Publish tasks that do nothing, to each queue in turn; tells from which key on they are."""
    from benchmarks.site_growth.settings import QUEUES
    from benchmarks.work import no_op
    from carrot_twisted import publisher
    from carrot_twisted.utilities import create_message, publish_many

    publisher.BUDGET = SECONDS_TO_CONFIRM
    first = first_key()
    numbers = iter(range(int(count)))
    published = 0
    while chunk := list(islice(numbers, CHUNK)):
        publish_many(create_message(no_op, QUEUES[number % len(QUEUES)]) for number in chunk)
        published += len(chunk)
        waits = published % UNCONFIRMED == 0 or published == int(count)
        if waits and not publisher.flush(SECONDS_TO_CONFIRM):
            raise SystemExit(f"Not all was confirmed within {SECONDS_TO_CONFIRM:g} s.")
    return {"first": str(first)}


def watch(first: str, count: str) -> dict[str, Any]:
    """Wait until all tasks have ended; tells when that was, and what the rows say."""
    from django.db.models import Count, Min, Q

    from carrot_twisted.models import MessageLog

    expected = int(count)
    unfinished = MessageLog.objects.unfinished()
    print(READY, flush=True)
    final = wait_for_all(lambda: expected - unfinished.count(), expected)
    end = time.time()
    mine = MessageLog.objects.filter(pk__gte=UUID(first))
    found = mine.aggregate(
        rows=Count("pk"),
        succeeded=Count("pk", filter=Q(status=MessageLog.COMPLETED)),
        start=Min("start_time"),
    )
    start = found.pop("start")
    return {
        **found,
        "final": final,
        "first_start": start.timestamp() if start else None,
        "end": end,
    }


def forget(first: str) -> dict[str, Any]:
    """Delete the rows of a run, and what they have left behind in the table."""
    from django.db import connection

    from carrot_twisted.models import MessageLog

    MessageLog.objects.filter(pk__gte=UUID(first))._raw_delete("default")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"VACUUM {MessageLog._meta.db_table}")
    return {}


def schedule(count: str) -> dict[str, Any]:
    """Make schedules that are due every hour, none of them soon."""
    from django.utils import timezone

    from benchmarks.site_growth.settings import QUEUES
    from carrot_twisted.models import ScheduledTask

    later = timezone.now() + timedelta(hours=1)
    ScheduledTask.objects.bulk_create(
        [
            ScheduledTask(
                task_name=f"number {number}",
                task="benchmarks.work.no_op",
                interval_type="hours",
                interval_count=1,
                queue=QUEUES[number % len(QUEUES)],
                next_run_time=later,
            )
            for number in range(int(count))
        ],
        batch_size=1000,
    )
    return {}


def due() -> dict[str, Any]:
    """All schedules are due now; wait until each has a task that has ended."""
    from django.utils import timezone

    from carrot_twisted.models import MessageLog, ScheduledTask

    first = first_key()
    schedules = ScheduledTask.objects.filter(task_name__startswith="number")
    begin = timezone.now()
    count = schedules.update(next_run_time=begin)
    rows = MessageLog.objects.filter(pk__gte=first, task="benchmarks.work.no_op")
    progress, seen = time.monotonic(), 0
    while (ended := rows.filter(status__in=MessageLog.FINAL).count()) < count:
        if ended > seen:
            progress, seen = time.monotonic(), ended
        if time.monotonic() - progress > SECONDS_WITHOUT_PROGRESS:
            raise SystemExit(f"Only {ended:,} of {count:,} schedules have run.")
        time.sleep(0.2)
    last = max(rows.values_list("publish_time", flat=True), default=begin)
    return {
        "first": str(first),
        "rows": rows.count(),
        "published": (last - begin).total_seconds(),
        "ended": (timezone.now() - begin).total_seconds(),
    }


def send(count: str) -> dict[str, Any]:
    """Send so many messages to each handler; wait until all have rows that tell of success."""
    import pika

    from benchmarks.settings import BROKER
    from benchmarks.site_growth.handlers import HANDLED
    from carrot_twisted.models import MessageLog

    first = first_key()
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    connection = pika.BlockingConnection(pika.URLParameters(BROKER))
    channel = connection.channel()
    for name in HANDLED:
        for number in range(int(count)):
            channel.basic_publish("", name, json.dumps({"number": number}).encode(), properties)
    connection.close()
    expected = len(HANDLED) * int(count)
    rows = MessageLog.objects.filter(pk__gte=first, status=MessageLog.COMPLETED)
    end = time.monotonic() + SECONDS_WITHOUT_PROGRESS
    while (found := rows.count()) < expected:
        if time.monotonic() > end:
            raise SystemExit(f"{found:,} of {expected:,} messages were handled.")
        time.sleep(0.2)
    return {"rows": found}


def main() -> None:
    """One step."""
    django.setup()
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        one.__name__: one for one in (fill, publish, watch, forget, schedule, due, send)
    }
    name, *arguments = sys.argv[1:]
    print(json.dumps(steps[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
