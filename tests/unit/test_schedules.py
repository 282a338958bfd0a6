# SPDX-License-Identifier: Apache-2.0
"""Schedules: each slot once, no drift, and one that is wrong keeps no other from running."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import schedules
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.schedules import publish_due
from carrot_twisted.triggers import next_slot

TASK = "tests.project.tasks.noop"
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


@given(
    st.timedeltas(timedelta(0), timedelta(days=4000)),
    st.timedeltas(timedelta(seconds=1), timedelta(days=400)),
)
def test_the_next_slot_is_the_first_after_now_on_the_same_grid(
    late: timedelta, interval: timedelta
) -> None:
    now = NOON + late
    slot = next_slot(NOON, now, interval)
    assert now < slot <= now + interval
    assert (slot - NOON) % interval == timedelta(0)


def schedule(name: str, late: float | None = 1.0, **fields: Any) -> ScheduledTask:
    """A schedule whose slot was so many seconds ago."""
    values: dict[str, Any] = {"task": TASK, "interval_count": 60, **fields}
    return ScheduledTask.objects.create(
        task_name=name,
        next_run_time=None if late is None else Now() - timedelta(seconds=late),
        **values,
    )


def published() -> list[tuple[Any, ...]]:
    return [log.positionals for log in MessageLog.objects.order_by("task_args")]


@pytest.mark.django_db
class TestPublishing:
    def test_a_due_schedule_is_published_with_all_that_it_says(self) -> None:
        schedule("a", queue="other", task_args="[1]", content='{"a": 2}', routing_key="key")
        assert publish_due("default") == 1
        log = MessageLog.objects.get()
        assert (log.task, log.queue, log.routing_key) == (TASK, "other", "key")
        assert (log.positionals, log.keywords) == ((1,), {"a": 2})
        assert log.status == "PUBLISHED"

    def test_each_slot_is_published_once(self) -> None:
        one = schedule("a", 1.0)
        one.refresh_from_db()
        publish_due("default")
        assert publish_due("default") == 0
        assert MessageLog.objects.count() == 1
        after = ScheduledTask.objects.get()
        assert after.last_run_time == one.next_run_time
        assert one.next_run_time is not None
        assert after.next_run_time == one.next_run_time + timedelta(seconds=60)

    def test_missed_slots_are_made_up_for_by_one_run(self) -> None:
        schedule("a", 1000.0)
        publish_due("default")
        assert MessageLog.objects.count() == 1
        after = ScheduledTask.objects.get()
        assert after.next_run_time is not None
        assert after.next_run_time > datetime.now(UTC) - timedelta(seconds=1)

    def test_a_new_schedule_waits_for_one_interval(self) -> None:
        schedule("a", None)
        assert publish_due("default") == 0
        after = ScheduledTask.objects.get()
        assert after.next_run_time is not None
        wait = after.next_run_time - datetime.now(UTC)
        assert timedelta(seconds=50) < wait <= timedelta(seconds=61)

    def test_neither_inactive_nor_future_ones_run(self) -> None:
        schedule("inactive", active=False)
        schedule("future", -10.0)
        assert publish_due("default") == 0
        assert not MessageLog.objects.exists()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"queue": "gone"},
            {"task_args": "not json"},
            {"task_args": "5"},
            {"task_args": "null"},
            {"content": "[1]"},
            {"content": "{"},
            {"content": "{}{}"},
            {"interval_type": "weeks"},
        ],
        ids=repr,
    )
    def test_one_that_is_wrong_keeps_no_other_from_running(
        self, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A row may have been written by other programs, or brought over from django-carrot."""
        schedule("wrong", 9.0, task_args=wrong.pop("task_args", '["wrong"]'), **wrong)
        schedule("good", task_args='["good"]')
        publish_due("default")
        assert published() == [("good",)]
        assert "wrong" in caplog.text

    def test_nor_does_a_new_one(self) -> None:
        schedule("wrong", None, interval_type="weeks")
        schedule("new", None)
        schedule("good", task_args='["good"]')
        publish_due("default")
        assert published() == [("good",)]
        assert ScheduledTask.objects.get(task_name="new").next_run_time is not None

    def test_more_than_a_batch_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedules, "BATCH", 2)
        for number in range(5):
            schedule(f"s{number}", task_args=f"[{number}]")
        assert [publish_due("default") for _ in range(4)] == [2, 2, 1, 0]
        assert published() == [(number,) for number in range(5)]


@pytest.mark.parametrize(
    ("kind", "count", "text", "seconds"),
    [
        ("seconds", 1, "Every 1 second", 1),
        ("minutes", 5, "Every 5 minutes", 300),
        ("hours", 1, "Every 1 hour", 3600),
        ("days", 2, "Every 2 days", 172_800),
    ],
)
def test_an_interval_reads_as_in_django_carrot(
    kind: str, count: int, text: str, seconds: int
) -> None:
    one = ScheduledTask(task_name="a", interval_type=kind, interval_count=count)
    assert one.interval_display == text
    assert one.interval == timedelta(seconds=seconds)
    assert str(one) == "a"
