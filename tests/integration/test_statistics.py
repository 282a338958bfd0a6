# SPDX-License-Identifier: Apache-2.0
"""What services tell of their work while it goes on, and of how it went: for the monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from carrot_twisted import statistics
from carrot_twisted.models import Attempt, MessageLog, QueueStatistics, TaskStatistics
from carrot_twisted.statistics import Span
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import finished, run
from tests.processes import ServiceProcess, carrot, constants, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

StartService = Callable[..., ServiceProcess]

QUICK = constants({"service.tally.INTERVAL": 0.3})
LIVE = constants({"service.live_logs.INTERVAL": 0.2, "service.live_logs.LONG": 0.2})


def totals() -> dict[str, tuple[int, int]]:
    """Completed and failed of the last hour, by task."""
    found = statistics.tasks(Span.HOUR, "default")
    return {one.task.rpartition(".")[2]: (one.completed, one.failed) for one in found}


def test_two_services_count_every_task_once_and_sample_once(
    start_service: StartService, tmp_path: Path
) -> None:
    services = [start_service("--no-scheduler", **QUICK) for _ in range(2)]
    rows = publish_many(
        [
            *(create_message(tasks.noop) for _ in range(400)),
            *(create_message(tasks.fail, task_args=["on purpose"]) for _ in range(3)),
        ]
    )
    done = finished(rows)
    last = publish_message(tasks.effect, "last", 0.3)
    wait_until(lambda: totals().get("effect") == (1, 0))
    wait_until(QueueStatistics.objects.exists)
    assert totals() == {"noop": (400, 0), "fail": (0, 3), "effect": (1, 0)}
    hour = statistics.throughput(Span.HOUR, "default")
    assert (sum(one.completed for one in hour), sum(one.failed for one in hour)) == (401, 3)
    (effect,) = (one for one in statistics.tasks(Span.HOUR, "default") if one.completed == 1)
    assert effect.run.p50 is not None
    assert 0.27 < effect.run.p50 < 1
    longest = max(row.queue_wait.total_seconds() for row in done if row.queue_wait)
    waited = max(one.wait.p95 or 0 for one in hour)
    assert 0 < waited < longest * 1.1
    # Each minute has one sample, whoever wrote it; the minute may have turned meanwhile.
    samples = QueueStatistics.objects.filter(queue="default", resolution=60)
    assert 1 <= samples.count() <= 2

    # What was counted since the last write is written when the service stops.
    finished([publish_message(tasks.noop) for _ in range(5)])
    assert [service.stop() for service in services] == [0, 0]
    assert totals()["noop"] == (405, 0)
    assert TaskStatistics.objects.values("worker").distinct().count() == 2
    assert MessageLog.objects.filter(pk=last.pk, status="COMPLETED").exists()


def log_of(row: MessageLog) -> str | None:
    return MessageLog.objects.values_list("log", flat=True).get(pk=row.pk)


def test_a_log_is_seen_while_its_task_runs_and_kept_where_that_comes_to_nothing(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service("--no-scheduler", **LIVE)
    row = publish_message(tasks.talk, str(tmp_path / "file"))
    wait_until(lambda: "attempt 1 has begun" in (log_of(row) or ""))
    assert MessageLog.objects.get(pk=row.pk).status == "IN_PROGRESS"
    service.kill()

    second = start_service("--no-scheduler", **LIVE, **carrot(shutdown_timeout=0.2))
    wait_until(lambda: "attempt 2 has begun" in (log_of(row) or ""), 40)
    assert "attempt 1" not in (log_of(row) or "")
    # The task does not end in time.
    second.stop()

    start_service("--no-scheduler", **LIVE)
    (tmp_path / "file").touch()
    done = run(row)
    assert (done.status, done.attempts, done.crashes) == ("COMPLETED", 3, 1)
    assert (done.log or "").count("has begun") == 1
    lost, released = Attempt.objects.filter(message=row.pk).order_by("number")
    assert (lost.number, lost.outcome) == (1, Attempt.LOST)
    assert lost.log.endswith("attempt 1 has begun")
    assert (released.number, released.outcome) == (2, Attempt.RELEASED)
    assert released.log.endswith("attempt 2 has begun")
    assert len({lost.worker, released.worker, done.worker}) == 3
    assert lost.started is not None
    assert lost.started <= lost.ended <= released.ended


@pytest.mark.only("postgres")
def test_a_task_that_has_locked_its_row_holds_nothing_up(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service("--no-scheduler", **LIVE)
    rows = [
        publish_message(tasks.talk, str(tmp_path / "file"), lock=True),
        publish_message(tasks.talk, str(tmp_path / "file")),
    ]
    wait_until(lambda: "attempt 1 has begun" in (log_of(rows[1]) or ""))
    assert run(publish_message(tasks.noop)).status == "COMPLETED"
    assert log_of(rows[0]) is None
    (tmp_path / "file").touch()
    assert {row.status for row in finished(rows)} == {"COMPLETED"}
    assert "attempt 1 has begun" in (log_of(rows[0]) or "")
    assert "does not take everything" not in service.log
