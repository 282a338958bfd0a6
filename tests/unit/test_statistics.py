# SPDX-License-Identifier: Apache-2.0
"""From what services have counted to what charts show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from carrot_twisted import helper_tasks, rollups, statistics
from carrot_twisted.models import MessageLog, QueueStatistics, TaskStatistics
from carrot_twisted.rollups import Key, Totals, start_of
from carrot_twisted.statistics import Span

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC)
MINUTE = datetime(2026, 3, 1, 12, 34, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    COUNTED.clear()


#: By worker and bucket, what was counted of each task.
COUNTED: dict[tuple[str, Key], dict[tuple[str, str], Totals]] = {}


def write(
    worker: str = "one",
    *,
    resolution: int = 60,
    ago: float = 0.0,
    queue: str = "default",
    task: str = "t",
    **totals: Any,
) -> None:
    """As a service does, with the totals of queues."""
    start = start_of(NOW.timestamp() - ago, resolution)
    values = {"completed": 1, "failed": 0, "wait": {0: 1}, "run": {40: 1}, **totals}
    rows = []
    for key in rollups.counted_in((resolution, start, queue, task)):
        counted = COUNTED.setdefault((worker, key), {})
        counted[queue, task] = Totals(**values)
        summed = Totals()
        for one in counted.values():
            summed.add(one)
        rows.append((key, summed))
    rollups.write(rows, worker, "default")


def counts(span: Span, **filters: Any) -> dict[int, tuple[int, int]]:
    """Completed and failed, by position of the bucket, of those that are not empty."""
    return {
        n: (one.completed, one.failed)
        for n, one in enumerate(statistics.throughput(span, "default", **filters))
        if one.completed or one.failed
    }


def test_totals_written_twice_replace_each_other() -> None:
    write(completed=1)
    write(completed=5, failed=2, run={40: 7})
    row = TaskStatistics.objects.get(task="t")
    assert (row.completed, row.failed, row.run) == (5, 2, {"40": 7})


def test_one_statement_writes_them_all(django_assert_num_queries: Any) -> None:
    rows = [((60, n * 60, "default", "t"), Totals(completed=n)) for n in range(50)]
    with django_assert_num_queries(1):
        rollups.write(rows, "one", "default")
    assert TaskStatistics.objects.count() == 50


def test_a_span_has_all_its_buckets_the_last_one_is_now() -> None:
    for span, seconds, number in (
        (Span.HOUR, 60, 60),
        (Span.DAY, 600, 144),
        (Span.WEEK, 3600, 168),
    ):
        found = statistics.throughput(span, "default")
        assert len(found) == number
        assert found[-1].start <= NOW < found[-1].start + timedelta(seconds=seconds)
        assert {b.start - a.start for a, b in pairwise(found)} == {timedelta(seconds=seconds)}
        assert {(one.completed, one.failed, one.run.p50, one.wait.p95) for one in found} == {
            (0, 0, None, None)
        }


def test_the_counts_of_all_services_add_up_and_so_do_their_times(
    django_assert_num_queries: Any,
) -> None:
    write("one", completed=3, run={0: 3})
    write("two", completed=1, failed=2, run={40: 97})
    write("two", ago=60, completed=7)
    write("two", ago=3600, completed=7)
    write("two", resolution=600, completed=9)
    with django_assert_num_queries(2):
        found = statistics.throughput(Span.HOUR, "default")
    assert counts(Span.HOUR) == {58: (7, 0), 59: (4, 2)}
    assert found[-1].start == MINUTE
    assert found[-1].run.p50 == pytest.approx(1.0, rel=0.1)
    assert found[-1].wait.p50 == 0.001
    assert found[-2].run.p95 == pytest.approx(1.0, rel=0.1)
    assert counts(Span.DAY) == {143: (9, 0)}


def test_they_can_be_of_one_queue_or_task() -> None:
    write(completed=1)
    write(completed=2, task="u", run={80: 1})
    write(completed=4, task="u", queue="other")
    assert counts(Span.HOUR) == {59: (7, 0)}
    assert counts(Span.HOUR, queue="default") == {59: (3, 0)}
    assert counts(Span.HOUR, task="u") == {59: (6, 0)}
    assert counts(Span.HOUR, queue="default", task="u") == {59: (2, 0)}
    last = statistics.throughput(Span.HOUR, "default", queue="default", task="u")[-1]
    assert last.run.p50 == pytest.approx(962, rel=0.01)


def test_tasks_are_summed_over_the_span_the_busiest_first(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    runs: tuple[dict[str, Any], ...] = (
        {"task": "few", "failed": 1, "completed": 0, "run": {80: 1}},
        {"task": "many", "completed": 5},
        {"task": "many", "completed": 5, "worker": "two", "ago": 1200},
        {"task": "many", "completed": 9, "ago": 4400},
        {"task": "many", "completed": 9, "resolution": 60},
        {"task": "many", "queue": "other", "completed": 2},
    )
    for given in runs:
        write(**{"resolution": 600, **given})
    with django_assert_num_queries(2):
        found = statistics.tasks(Span.HOUR, "default")
    assert [(one.queue, one.task, one.completed, one.failed) for one in found] == [
        ("default", "many", 10, 0),
        ("other", "many", 2, 0),
        ("default", "few", 0, 1),
    ]
    assert found[2].run.p50 == pytest.approx(962, rel=0.01)
    assert found[0].run.p50 == pytest.approx(1.0, rel=0.1)
    assert [one.task for one in statistics.tasks(Span.HOUR, "default", "other")] == ["many"]
    monkeypatch.setattr(statistics, "MAX_TASKS", 1)
    assert len(statistics.tasks(Span.HOUR, "default")) == 1


def test_tasks_are_counted_since_the_start_of_a_coarser_bucket() -> None:
    first = {span: span.start_of_tasks(NOW) for span in Span}
    assert first == {
        Span.HOUR: datetime(2026, 3, 1, 11, 30, tzinfo=UTC),
        Span.DAY: datetime(2026, 2, 28, 12, tzinfo=UTC),
        Span.WEEK: datetime(2026, 2, 22, tzinfo=UTC),
    }
    assert all(start <= span.starts(NOW)[0] for span, start in first.items())


def test_without_any_counts_there_are_no_tasks() -> None:
    assert statistics.tasks(Span.WEEK, "default") == []
    assert statistics.depths(Span.WEEK, "default") == {}


def row(queue: str = "default", **fields: Any) -> MessageLog:
    return MessageLog.objects.create(task="t", queue=queue, **fields)


def test_a_sample_tells_of_each_queue(django_assert_num_queries: Any) -> None:
    row(publish_time=Now() - timedelta(seconds=100), confirmed_at=Now())
    row(relay_at=Now() - timedelta(seconds=50))
    row(status="IN_PROGRESS", publish_time=Now() - timedelta(seconds=900))
    row(status="COMPLETED")
    row("gone", confirmed_at=Now())
    with django_assert_num_queries(4):
        assert rollups.sample(["default", "mail"], NOW.timestamp(), "default")
    assert QueueStatistics.objects.count() == 12
    with django_assert_num_queries(1):
        found = statistics.depths(Span.HOUR, "default")
    assert set(found) == {"default", "mail", "gone"}
    one = found["default"][-1]
    assert (one.start, one.waiting, one.running, one.unsent) == (MINUTE, 2, 1, 1)
    assert one.oldest == pytest.approx(100, abs=5)
    idle = found["mail"][-1]
    assert (idle.waiting, idle.running, idle.oldest, idle.unsent) == (0, 0, None, 0)
    assert found["gone"][-1].waiting == 1
    assert {one.waiting for one in found["default"][:-1]} == {None}
    assert len(statistics.depths(Span.WEEK, "default")["default"]) == 168
    assert set(statistics.depths(Span.DAY, "default", "mail")) == {"mail"}


def test_one_sample_a_minute_is_enough_and_the_first_one_counts(
    django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rollups.sample(["default"], NOW.timestamp(), "default")
    row()
    with django_assert_num_queries(1):
        assert not rollups.sample(["default"], NOW.timestamp() + 3, "default")
    # Two look at the very same time: neither has seen the other's.
    with monkeypatch.context() as patch:
        patch.setattr("django.db.models.QuerySet.exists", lambda _: False)
        assert rollups.sample(["default"], NOW.timestamp(), "default")
    assert set(QueueStatistics.objects.values_list("resolution", "waiting")) == {
        (60, 0),
        (600, 0),
        (3600, 0),
        (86_400, 0),
    }
    assert rollups.sample(["default"], NOW.timestamp() + 60, "default")
    assert QueueStatistics.objects.filter(waiting=1).count() == 1, "of the finest resolution"


def test_what_is_older_than_any_chart_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    present = datetime.now(UTC)
    for resolution, age in rollups.KEPT.items():
        for ago in (age - timedelta(seconds=30), age + timedelta(seconds=30)):
            start = present - ago
            key = {"resolution": resolution, "queue": "default", "start": start}
            QueueStatistics.objects.create(waiting=0, running=0, unsent=0, **key)
            TaskStatistics.objects.create(
                task="t", worker="w", completed=1, failed=0, wait={}, run={}, **key
            )
    assert helper_tasks.delete_old_statistics()["buckets"] == 8
    for model in (QueueStatistics, TaskStatistics):
        ages = {one.resolution: present - one.start for one in model._default_manager.all()}
        assert ages.keys() == rollups.KEPT.keys()
        assert all(ages[resolution] < age for resolution, age in rollups.KEPT.items())
