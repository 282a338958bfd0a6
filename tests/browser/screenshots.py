# SPDX-License-Identifier: Apache-2.0
"""The pictures of the monitor in README and docs, made anew by ``python3 run.py screenshots``.

No test: it is not collected with them. A shop's day is made up, the same each time.
"""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted import histograms, rollups
from carrot_twisted.models import (
    MessageLog,
    OperatorAction,
    QueueStatistics,
    ScheduledTask,
    Worker,
)
from tests.settings import CARROT

if TYPE_CHECKING:
    from tests.browser.conftest import Visitor

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
QUEUES = {"default": 1.0, "mail": 0.6, "images": 0.3}
TASKS = {
    "shop.orders.confirm": ("default", 0.08),
    "shop.orders.book": ("default", 0.4),
    "shop.mail.send_invoice": ("mail", 0.25),
    "shop.images.resize": ("images", 2.2),
}
WORKERS = ("web-1-4711-ab12cd", "web-2-3022-77aa01")
LOG = """\
default-1  2026-11-28 09:14:02,118 INFO:: booking order 80231
default-1  2026-11-28 09:14:02,150 DEBUG:: 3 items, 41.70 EUR
default-1  2026-11-28 09:14:02,305 WARNING:: the warehouse answers slowly
default-1  2026-11-28 09:14:02,512 ERROR:: item 4711 is not in stock"""
TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/shop/orders.py", line 88, in book
    warehouse.reserve(item, amount)
  File "/srv/shop/warehouse.py", line 31, in reserve
    raise OutOfStock(item)
shop.warehouse.OutOfStock: item 4711"""


def made_up() -> MessageLog:
    """A shop's day; gives back a task that failed."""
    dice = random.Random(7)
    now = datetime.now(UTC)
    for resolution, count in ((60, 60), (600, 144)):
        for n in range(count):
            at = rollups.start_of(now.timestamp(), resolution) - n * resolution
            start = datetime.fromtimestamp(at, UTC)
            counted: dict[rollups.Key, rollups.Totals] = {}
            for task, (queue, seconds) in TASKS.items():
                times: histograms.Histogram = {}
                waits: histograms.Histogram = {}
                for _ in range(30):
                    histograms.add(times, dice.lognormvariate(math.log(seconds), 0.5))
                    histograms.add(waits, dice.lognormvariate(math.log(0.02), 0.8))
                completed = int(resolution * QUEUES[queue] * (3 + 2 * math.sin(n / 9)))
                new = rollups.Totals(completed=completed, wait=waits, run=times)
                new.failed = dice.choice([0, 0, 0, 0, 1, 4])
                for key in rollups.counted_in((resolution, at, queue, task)):
                    counted.setdefault(key, rollups.Totals()).add(new)
            rollups.write(list(counted.items()), WORKERS[0], "default")
            for queue, share in QUEUES.items():
                waiting = max(0, int(90 * share * math.sin(n / 7)))
                QueueStatistics.objects.create(
                    **{"resolution": resolution, "start": start, "queue": queue},
                    **{"waiting": waiting, "running": 3, "oldest": waiting / 9, "unsent": 0},
                )
    states = [MessageLog.COMPLETED] * 8 + [MessageLog.FAILED]
    states += [MessageLog.IN_PROGRESS] * 2 + [MessageLog.PUBLISHED] * 2
    failed = None
    for n in range(60):
        task, (queue, seconds) = dice.choice(list(TASKS.items()))
        status = dice.choice(states) if n else MessageLog.FAILED
        published = now - timedelta(seconds=3 + 5 * n)
        started = published + timedelta(seconds=0.05)
        ended = started + timedelta(seconds=dice.lognormvariate(math.log(seconds), 0.4))
        row = MessageLog(
            status=status,
            task=task,
            queue=queue,
            routing_key=queue,
            content=json.dumps({"order": 80_000 + n, "token": "x"}),
            attempts=0 if status == MessageLog.PUBLISHED else 1,
            worker="" if status == MessageLog.PUBLISHED else WORKERS[n % 2],
            confirmed_at=published,
        )
        if status != MessageLog.PUBLISHED:
            row.start_time = started
        if status == MessageLog.COMPLETED:
            row.completion_time, row.output = ended, "true"
        if status == MessageLog.FAILED:
            row.failure_time, row.exception = ended, "OutOfStock: item 4711"
            row.traceback, row.log = TRACEBACK, LOG
        row.save()
        MessageLog.objects.filter(pk=row.pk).update(publish_time=published)
        failed = failed or row
    for n, name in enumerate(WORKERS):
        running = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS, worker=name)
        Worker.objects.create(
            **{"name": name, "host": name[:5], "pid": 4711 + n, "version": "0.1", "threads": 8},
            queues="\n".join(QUEUES),
            state={
                "running": [
                    {"thread": f"{row.queue}-{m}", "task": row.task, "uuid": str(row.pk)}
                    | {"seconds": 1.2 + m, "stuck": False}
                    for m, row in enumerate(running[:4], 1)
                ]
            },
        )
    ScheduledTask.objects.create(
        task_name="nightly report", task="tests.project.tasks.add", interval_type="hours"
    )
    OperatorAction.note("ann", "requeue", "12 tasks: failed, shop.mail.send_invoice", 12)
    assert failed is not None
    return failed


@pytest.fixture(autouse=True)
def shop(settings: Any) -> None:
    """Its queues."""
    settings.CARROT = {**CARROT, "queues": [{"name": name} for name in QUEUES]}


def test_screenshots(visitor: Visitor) -> None:
    failed = made_up()
    FOLDER.mkdir(exist_ok=True)
    for name, path, scheme, width in (
        ("overview", "", "light", 1280),
        ("tasks", "tasks/", "dark", 1280),
        ("task", f"tasks/{failed.pk}/", "light", 1280),
        ("telephone", "", "dark", 390),
    ):
        page = visitor.open(path, scheme=scheme, width=width)
        page.wait_for_timeout(500)
        page.screenshot(path=str(FOLDER / f"{name}.png"))
