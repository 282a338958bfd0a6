# SPDX-License-Identifier: Apache-2.0
"""Schedules: each slot is published once, by whichever service looks first."""

from __future__ import annotations

import importlib
import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from carrot_twisted import periodic, schedules
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import create_scheduled_task
from tests.conftest import run_python
from tests.pages import DOCS, blocks
from tests.processes import wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]


@pytest.mark.defect(18)
def test_two_services_publish_each_slot_once_and_no_scheduler_means_none(
    start_service: StartService, ledger: Ledger
) -> None:
    schedule = create_scheduled_task(tasks.effect, {"seconds": 1}, key="tick")
    idle = start_service("--no-scheduler")
    with pytest.raises(AssertionError):
        wait_until(ledger, 2.0)
    idle.stop()
    start_service()
    start_service()
    wait_until(lambda: len(ledger()) >= 4)
    schedule.refresh_from_db()
    assert schedule.last_run_time is not None
    assert schedule.next_run_time == schedule.last_run_time + timedelta(seconds=1)
    # One slot a second, and no second row for any of them.
    ScheduledTask.objects.update(active=False)
    rows = list(MessageLog.objects.order_by("publish_time"))
    assert Counter(row.task for row in rows) == {schedule.task: len(rows)}
    gaps = [b.publish_time - a.publish_time for a, b in itertools.pairwise(rows)]
    assert min(gaps) > timedelta(seconds=0.2)


@pytest.mark.usefixtures("served")
def test_missed_slots_are_made_up_for_once_and_the_grid_stays() -> None:
    schedule = create_scheduled_task(tasks.echo, {"minutes": 5}, task_name="report")
    assert schedule.interval_display == "Every 5 minutes"
    long_ago = timezone.now().replace(microsecond=0) - timedelta(minutes=23)
    ScheduledTask.objects.update(next_run_time=long_ago)
    for _ in range(3):
        with transaction.atomic():
            schedules.publish_due("default")
    assert MessageLog.objects.count() == 1
    schedule.refresh_from_db()
    assert schedule.last_run_time == long_ago
    assert schedule.next_run_time == long_ago + timedelta(minutes=25)


@pytest.mark.usefixtures("served")
def test_a_schedule_that_cannot_be_published_stops_none_of_the_others() -> None:
    for name in ("broken", "good"):
        create_scheduled_task(tasks.echo, {"hours": 1}, task_name=name, name=name)
    ScheduledTask.objects.filter(task_name="broken").update(queue="gone")
    ScheduledTask.objects.update(next_run_time=timezone.now() - timedelta(seconds=1))
    with transaction.atomic():
        assert schedules.publish_due("default") == 2
    assert [row.keywords for row in MessageLog.objects.all()] == [{"name": "good"}]


@pytest.mark.usefixtures("served")
def test_10_000_schedules_due_in_the_same_second_are_published_in_one_go() -> None:
    ScheduledTask.objects.bulk_create(
        ScheduledTask(
            task_name=f"s{number}",
            task="tests.project.tasks.echo",
            task_args=f"[{number}]",
            interval_type="hours",
            next_run_time=timezone.now(),
        )
        for number in range(10_000)
    )
    begin = time.monotonic()
    looks = 0
    wait: float | None = 0.0
    while wait == 0:
        with transaction.atomic():
            wait = schedules.look("default")
        looks += 1
    assert time.monotonic() - begin < 20
    assert looks <= 10_000 / schedules.BATCH + 1
    assert MessageLog.objects.count() == 10_000
    due = timezone.now() + timedelta(minutes=59)
    assert ScheduledTask.objects.filter(next_run_time__gt=due, problem="").count() == 10_000


@pytest.mark.defect(17)
def test_a_killed_service_leaves_no_slot_out_and_none_twice(
    start_service: StartService, ledger: Ledger
) -> None:
    """Also live edits, a one-off and a periodic task of the code, to start few services."""
    environment = {"CARROT_TEST_PERIODIC": "1"}
    tick = create_scheduled_task(tasks.effect, {"seconds": 1}, "tick", "default", key="tick")
    services = [start_service(**environment), start_service(**environment)]
    wait_until(lambda: ledger().count("tick") >= 2)
    services[0].kill()
    services[0] = start_service(**environment)
    count = ledger().count("tick")
    wait_until(lambda: ledger().count("tick") >= count + 2)
    create_scheduled_task("tests.project.tasks.effect", {"seconds": 1}, "new", key="new")
    wait_until(lambda: "new" in ledger(), 4)
    once = ScheduledTask.objects.create(
        task_name="once",
        task="tests.project.tasks.effect",
        content='{"key": "once"}',
        run_at=timezone.now(),
    )
    wait_until(lambda: "once" in ledger(), 4)
    ScheduledTask.objects.get(task_name="new").delete()
    for service in services:
        service.kill()

    rows = list(MessageLog.objects.order_by("publish_time"))
    keys = [row.keywords["key"] for row in rows]
    tick.refresh_from_db()
    assert tick.last_log in {row.pk for row in rows}
    # Slots are on whole seconds, and published within that second. On a machine that is very busy
    # one run may make up for two slots.
    slots = [int(row.publish_time.timestamp()) for row in rows if row.keywords["key"] == "tick"]
    assert len(set(slots)) == len(slots)
    assert slots[-1] - slots[0] + 1 - len(slots) in (0, 1)
    assert keys.count("once") == 1
    once.refresh_from_db()
    assert not once.active
    assert keys.count("periodic") >= 3
    assert ScheduledTask.objects.filter(task_name="from the code").count() == 1


@pytest.mark.once
@pytest.mark.usefixtures("served")
def test_it_runs_in_any_reactor_without_a_service(broker_url: str) -> None:
    """By the code of docs/scheduling.md."""
    program = """
import sys
import django; django.setup()
from twisted.internet import reactor
begin, end = sys.argv[1:]
names = {}
reactor.callWhenRunning(exec, begin, names)
reactor.callLater(3, exec, end, names)
reactor.callLater(3, reactor.stop)
reactor.run()
from carrot_twisted.publisher import flush
assert flush(10)
"""
    (text,) = (
        one for one in blocks(DOCS / "scheduling.md", "python") if "ScheduledTaskManager" in one
    )
    begin, end, _ = text.replace("reports", "other").partition("manager.stop()")
    create_scheduled_task(tasks.echo, {"seconds": 1}, queue="other")
    create_scheduled_task(tasks.noop, {"seconds": 1})
    done = run_python(program, broker_url, begin.replace("run_now=False", "run_now=True"), end)
    assert done.returncode == 0, done.stdout
    assert MessageLog.objects.count() in (2, 3)
    assert not MessageLog.objects.exclude(queue="other").exists()
    assert not MessageLog.objects.unsent().exists()


@pytest.mark.usefixtures("served")
def test_a_schedule_that_makes_no_sense_is_refused() -> None:
    for interval in ({}, {"weeks": 1}, {"seconds": 0}, {"seconds": 1, "days": 1}, {"days": 1.5}):
        with pytest.raises(InvalidMessage, match="interval"):
            create_scheduled_task(tasks.echo, interval)
    create_scheduled_task(tasks.echo, {"seconds": 1})
    with pytest.raises(InvalidMessage, match="already"):
        create_scheduled_task(tasks.echo, {"seconds": 1})
    with pytest.raises(IntegrityError), transaction.atomic():
        ScheduledTask.objects.update(interval_count=0)
    assert ScheduledTask.objects.count() == 1


@pytest.mark.usefixtures("served")
def test_rows_that_another_service_has_in_its_hands_are_left_to_it() -> None:
    """PostgreSQL locks them; SQLite lets one write at a time."""
    create_scheduled_task(tasks.echo, {"hours": 1})
    ScheduledTask.objects.update(next_run_time=timezone.now() - timedelta(seconds=1))

    def other() -> float | None:
        try:
            with transaction.atomic():
                return schedules.look("default")
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            assert schedules.look("default") == 0.0
            answer = pool.submit(other)
            if connection.vendor == "postgresql":
                assert answer.result(10) is None
        assert answer.result(30) is None
    assert MessageLog.objects.count() == 1


@pytest.mark.only("postgres")
@pytest.mark.usefixtures("served")
def test_a_start_waits_for_no_row_that_somebody_has_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service does nothing else meanwhile. A long transaction may hold a row for hours."""
    monkeypatch.setattr(periodic, "_declared", {})
    periodic.periodic_task(hours=1, task_name="locked")(tasks.noop)
    periodic.periodic_task(hours=1, task_name="unborn")(tasks.noop)
    periodic.periodic_task(hours=1, task_name="good")(tasks.noop)
    soon = timezone.now() + timedelta(seconds=30)
    for name, at in (("locked", soon - timedelta(seconds=40)), ("later", soon)):
        problem = "no" if name == "locked" else ""
        ScheduledTask.objects.create(
            task_name=name, task="t.t", problem=problem, interval_count=60, next_run_time=at
        )
    monkeypatch.setattr(schedules, "AHEAD", timedelta(minutes=1))

    def start() -> bool:
        try:
            with transaction.atomic():
                done = periodic.sync("default")
            with transaction.atomic():
                schedules.try_again("default")
            return done
        finally:
            connection.close()

    def look() -> float | None:
        try:
            wait: float | None = 0.0
            while wait == 0.0:
                with transaction.atomic():
                    wait = schedules.look("default")
            return wait
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            ScheduledTask.objects.filter(task_name="locked").update(priority=1)
            ScheduledTask.objects.create(task_name="unborn", task="t.t", active=False)
            assert pool.submit(start).result(10) is False
            assert ScheduledTask.objects.filter(task_name="good").exclude(declaration="").exists()
            # The others keep their moment, too.
            wait = pool.submit(look).result(10)
            assert wait is not None
            assert 0 < wait <= 30
        assert pool.submit(start).result(10) is True
    assert not ScheduledTask.objects.exclude(task_name="later").filter(declaration="").exists()


@pytest.mark.only("postgres")
@pytest.mark.usefixtures("served")
def test_a_module_or_a_condition_that_spoils_its_transaction_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "from contextlib import suppress\nfrom django.db import DatabaseError, connection\n"
        "def spoil():\n"
        "    with suppress(DatabaseError), connection.cursor() as cursor:\n"
        "        cursor.execute('SELECT * FROM nowhere')\n"
        "    return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harmless.py").write_text(code)
    (tmp_path / "spoils.py").write_text(
        "import harmless\nharmless.spoil()\ndef task():\n    pass\n"
    )
    spoil = importlib.import_module("harmless").spoil
    monkeypatch.setattr(periodic, "_declared", {})
    periodic.periodic_task(hours=1, task_name="a", when=spoil)(tasks.noop)
    ago = timezone.now() - timedelta(seconds=1)
    for name, task in (("spoils", "spoils.task"), ("good", "tests.project.tasks.noop")):
        ScheduledTask.objects.create(
            task_name=name, task=task, interval_type="hours", next_run_time=ago
        )
    with transaction.atomic():
        assert schedules.publish_due("default") == 2
    with transaction.atomic():
        assert periodic.sync("default")
    assert MessageLog.objects.count() == 2
    assert ScheduledTask.objects.filter(task_name="a").exists()


@pytest.mark.only("postgres")
@pytest.mark.usefixtures("served")
def test_an_idle_look_uses_the_index_of_postgresql() -> None:
    later = timezone.now() + timedelta(hours=1)
    ScheduledTask.objects.bulk_create(
        ScheduledTask(task_name=f"s{n}", task="t.t", active=n % 2 == 0, next_run_time=later)
        for n in range(10_000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE carrot_twisted_scheduledtask")
        with CaptureQueriesContext(connection) as queries:
            assert schedules.look("default") is None
        (query,) = queries.captured_queries
        cursor.execute("EXPLAIN " + query["sql"])
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert plan.count("carrot_due") == 2
    assert "Seq Scan" not in plan
