# SPDX-License-Identifier: Apache-2.0
"""The clean-up deletes exactly what is due, in chunks, and never waits for long."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext

from carrot_twisted import conf, helper_tasks, periodic
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.helper_tasks import ENDED, cleanup
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import publish_message

pytestmark = pytest.mark.django_db


def stored(status: str, days: float, **fields: Any) -> MessageLog:
    """A row that ended so many days ago, published long before."""
    at = {"publish_time": Now() - timedelta(days=1000)}
    if status in ENDED:
        at[ENDED[status]] = Now() - timedelta(days=days)
    return MessageLog.objects.create(
        task="app.work", queue="default", status=status, **{**at, **fields}
    )


def left() -> set[Any]:
    return set(MessageLog.objects.values_list("pk", flat=True))


def test_of_each_state_what_is_older_than_its_retention_goes(settings: Any) -> None:
    settings.CARROT = {"retention": {"COMPLETED": 3, "FAILED": 7, "CANCELLED": 0.5}}
    kept = {
        stored("COMPLETED", 2.99).pk,
        stored("FAILED", 6.99).pk,
        stored("CANCELLED", 0.49).pk,
        stored("PUBLISHED", 0).pk,
        stored("IN_PROGRESS", 0, start_time=Now() - timedelta(days=999)).pk,
    }
    for state, days in (("COMPLETED", 3.01), ("FAILED", 7.01), ("CANCELLED", 0.51)):
        for more in (0, 10, 900):
            stored(state, days + more)
    assert cleanup() == {"COMPLETED": 3, "FAILED": 3, "CANCELLED": 3}
    assert left() == kept
    assert cleanup() == {"COMPLETED": 0, "FAILED": 0, "CANCELLED": 0}


def test_by_default_completed_rows_go_after_three_days_and_failed_ones_never(settings: Any) -> None:
    settings.CARROT = {}
    kept = {stored("COMPLETED", 2.9).pk, stored("FAILED", 999).pk}
    stored("COMPLETED", 3.1)
    assert cleanup() == {"COMPLETED": 1, "CANCELLED": 0}
    assert left() == kept


def test_switched_off_it_deletes_nothing(
    settings: Any, caplog: pytest.LogCaptureFixture, django_assert_num_queries: Any
) -> None:
    settings.CARROT = {"retention": None}
    for state in MessageLog.FINAL:
        stored(state, 999)
    with django_assert_num_queries(0), caplog.at_level(logging.INFO, "carrot"):
        assert cleanup() == {}
    assert len(left()) == 3
    assert caplog.messages == ["Deleted old rows: none, all are kept"]


def test_it_goes_in_chunks_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(helper_tasks, "CHUNK", 2)
    rows = [stored("COMPLETED", days) for days in (10, 30, 20, 50, 40)]
    order: list[Any] = []

    def deleted(instance: MessageLog, **_: Any) -> None:
        order.append(instance.pk)

    post_delete.connect(deleted, sender=MessageLog)
    try:
        with caplog.at_level(logging.INFO, "carrot"):
            assert cleanup()["COMPLETED"] == 5
    finally:
        post_delete.disconnect(deleted, sender=MessageLog)
    oldest_first = [rows[n].pk for n in (3, 4, 1, 2, 0)]
    assert [set(order[n : n + 2]) for n in (0, 2, 4)] == [
        set(oldest_first[n : n + 2]) for n in (0, 2, 4)
    ]
    assert caplog.messages == ["Deleted old rows: 5 COMPLETED, 0 CANCELLED"]


def test_it_ends_in_time_and_goes_on_the_next_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A chunk of each state in turn: many of one must not keep the others waiting."""
    monkeypatch.setattr(helper_tasks, "CHUNK", 1)
    ticks = iter(range(1000))
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)), sleep=pauses.append)
    monkeypatch.setattr(helper_tasks, "time", clock)
    monkeypatch.setattr(helper_tasks, "BUDGET", 3)
    for _ in range(4):
        stored("COMPLETED", 10)
    stored("CANCELLED", 10)
    with caplog.at_level(logging.INFO, "carrot"):
        first = cleanup()
    assert first["CANCELLED"] == 1
    assert 1 <= first["COMPLETED"] < 4
    assert caplog.messages[0].endswith("; the rest goes with the next run")
    assert pauses == [1.0] * sum(first.values()), "as long as the chunk took, for others' writes"
    monkeypatch.setattr(helper_tasks, "BUDGET", 900)
    assert cleanup()["COMPLETED"] == 4 - first["COMPLETED"]
    assert left() == set()


def test_no_text_of_a_row_is_loaded(settings: Any) -> None:
    """They may be large: a chunk would be gigabytes."""
    stored("COMPLETED", 10, log="x" * 1000)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert cleanup()["COMPLETED"] == 1
    for column in ("log", "output", "traceback", "content", "task_args"):
        assert not any(f'"{column}"' in query["sql"] for query in queries)


def test_where_deletions_are_listened_to_the_texts_are_not_loaded_either() -> None:
    stored("COMPLETED", 10)
    heard: list[set[str]] = []

    def deleted(instance: MessageLog, **_: Any) -> None:
        heard.append(instance.get_deferred_fields())

    post_delete.connect(deleted, sender=MessageLog)
    try:
        assert cleanup()["COMPLETED"] == 1
    finally:
        post_delete.disconnect(deleted, sender=MessageLog)
    assert {"log", "output", "content"} <= heard[0]


def test_a_mistake_in_the_setting_is_told(settings: Any) -> None:
    settings.CARROT = {"retention": 3}
    with pytest.raises(CarrotConfigException, match=r"CARROT\['retention'\]"):
        cleanup()


def test_it_is_a_task_like_any_other() -> None:
    assert publish_message(cleanup).task == "carrot_twisted.helper_tasks.cleanup"
    assert publish_message("carrot_twisted.helper_tasks.cleanup").status == "PUBLISHED"
    assert helper_tasks.__name__ in conf.OWN_TASK_MODULES


# The schedule.


@pytest.mark.parametrize(
    ("queues", "wanted"),
    [
        ([], "default"),
        ([{"name": "mail"}, {"name": "default"}], "default"),
        ([{"name": "mail", "consumable": False}, {"name": "rest"}, {"name": "last"}], "rest"),
        ([{"name": "default", "consumable": False}, {"name": "rest"}], "rest"),
        ([{"name": "mail", "consumable": False}], "mail"),
    ],
)
def test_it_runs_on_a_queue_that_is_consumed_from(
    settings: Any, queues: list[dict[str, Any]], wanted: str
) -> None:
    settings.CARROT = {"queues": queues}
    assert helper_tasks.queue_for_our_tasks() == wanted


def test_it_is_scheduled_every_hour_unless_it_is_switched_off(settings: Any) -> None:
    settings.CARROT = {}
    periodic.sync("default")
    schedule = ScheduledTask.objects.get(task_name="carrot: cleanup")
    assert schedule.task == "carrot_twisted.helper_tasks.cleanup"
    assert (schedule.interval, schedule.queue) == (timedelta(hours=1), "default")
    assert schedule.active
    settings.CARROT = {"retention": None}
    periodic.sync("default")
    assert not ScheduledTask.objects.filter(task_name="carrot: cleanup").exists()
    settings.CARROT = {"retention": {"COMPLETED": None, "FAILED": 1, "CANCELLED": None}}
    periodic.sync("default")
    assert ScheduledTask.objects.filter(task_name="carrot: cleanup").exists()
