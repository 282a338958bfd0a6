# SPDX-License-Identifier: Apache-2.0
"""Schedules: each slot once, no drift, and one that is wrong keeps no other from running."""

from __future__ import annotations

import itertools
import random
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ValidationError
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import DateTimeField, F, Value
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from carrot_twisted import schedules, statements
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.scheduler import ScheduledTaskManager
from carrot_twisted.schedules import PENALTY, look, publish_due
from carrot_twisted.utilities import create_scheduled_task
from tests.project.tasks import noop

if TYPE_CHECKING:
    from collections.abc import Callable

TASK = "tests.project.tasks.noop"
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def schedule(name: str = "a", late: float | None = 1.0, **fields: Any) -> ScheduledTask:
    """A schedule whose slot was so many seconds ago."""
    values: dict[str, Any] = {"task": TASK, "interval_count": 60, **fields}
    one = ScheduledTask.objects.create(
        task_name=name,
        next_run_time=None if late is None else Now() - timedelta(seconds=late),
        **values,
    )
    one.refresh_from_db()
    return one


def read(name: str = "a") -> ScheduledTask:
    return ScheduledTask.objects.get(task_name=name)


def next_of(name: str = "a") -> datetime | None:
    return read(name).next_run_time


def wait_of(name: str = "a") -> timedelta:
    """Time until the next slot."""
    slot = next_of(name)
    assert slot is not None
    return slot - datetime.now(UTC)


def published() -> list[tuple[Any, ...]]:
    return [log.positionals for log in MessageLog.objects.order_by("task_args")]


@pytest.mark.django_db
class TestPublishing:
    def test_a_due_schedule_is_published_with_all_that_it_says(self) -> None:
        schedule(queue="other", task_args="[1]", content='{"a": 2}', routing_key="key", priority=7)
        assert publish_due("default") == 1
        log = MessageLog.objects.get()
        assert (log.task, log.queue, log.routing_key) == (TASK, "other", "key")
        assert (log.positionals, log.keywords, log.priority) == ((1,), {"a": 2}, 7)
        assert log.status == "PUBLISHED"
        assert read().last_log == log.pk

    def test_how_late_each_one_is_published_is_told(self) -> None:
        schedule("a", late=30.0)
        schedule("b", late=None)
        late: list[float] = []
        assert look("default", None, late.append) == 0
        assert late == [], "one that is new was planned"
        assert look("default", None, late.append) == 0
        (seconds,) = late
        assert 30 <= seconds < 60
        look("default", None, late.append)
        assert len(late) == 1

    def test_each_slot_is_published_once(self) -> None:
        one = schedule()
        publish_due("default")
        assert publish_due("default") == 0
        assert MessageLog.objects.count() == 1
        after = read()
        assert after.last_run_time == one.next_run_time
        assert one.next_run_time is not None
        assert after.next_run_time == one.next_run_time + timedelta(seconds=60)

    def test_who_comes_second_publishes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where nothing is locked: another service has moved the slot meanwhile."""
        schedule()
        move = statements.move_schedules

        def later(*arguments: Any) -> set[int]:
            ScheduledTask.objects.update(next_run_time=NOON)
            return move(*arguments)

        monkeypatch.setattr(statements, "move_schedules", later)
        assert publish_due("default") == 0
        assert not MessageLog.objects.exists()
        assert next_of() == NOON

    def test_a_slot_that_the_database_wrote_itself_is_published(self) -> None:
        """SQLite's own times have three digits after the point, Django's have six."""
        schedule()
        ScheduledTask.objects.update(next_run_time=Now())
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE carrot_twisted_scheduledtask "
                "SET next_run_time = strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', '-1 second')",
                [],
            )
        assert publish_due("default") == 1
        assert MessageLog.objects.count() == 1

    def test_a_new_schedule_waits_for_one_interval(self) -> None:
        schedule(late=None)
        assert publish_due("default") == 1
        assert not MessageLog.objects.exists()
        assert timedelta(seconds=58) < wait_of() <= timedelta(seconds=61)

    def test_neither_inactive_nor_future_ones_run(self) -> None:
        schedule("inactive", active=False)
        schedule("future", -10.0)
        assert publish_due("default") == 0
        assert not MessageLog.objects.exists()

    def test_a_crontab_runs_at_its_slots(self) -> None:
        schedule(cron="*/5 * * * *", late=None)
        publish_due("default")
        first = next_of()
        assert first is not None
        assert (first.minute % 5, first.second) == (0, 0)
        assert wait_of() <= timedelta(minutes=5)
        ScheduledTask.objects.update(next_run_time=first - timedelta(minutes=10))
        publish_due("default")
        assert MessageLog.objects.count() == 1
        assert next_of() == first

    def test_a_one_off_runs_once_and_switches_itself_off(self) -> None:
        run_at = datetime.now(UTC) - timedelta(hours=3)
        schedule(run_at=run_at, late=None)
        for _ in range(3):
            publish_due("default")
        assert MessageLog.objects.count() == 1
        after = read()
        assert (after.active, after.next_run_time, after.last_run_time) == (False, None, run_at)
        # Switched on again by mistake, or by a process that had read it before: it has run.
        ScheduledTask.objects.update(active=True)
        for _ in range(3):
            publish_due("default")
        assert MessageLog.objects.count() == 1
        assert not read().active

    def test_a_one_off_that_may_not_be_late_says_so(self) -> None:
        schedule(run_at=NOON, misfire="skip", late=None)
        for _ in range(2):
            publish_due("default")
        assert not MessageLog.objects.exists()
        after = read()
        assert (after.active, after.problem[:15]) == (False, "Its time passed")

    def test_after_its_end_a_schedule_switches_itself_off(self) -> None:
        schedule(end_time=datetime.now(UTC) + timedelta(seconds=30))
        publish_due("default")
        assert MessageLog.objects.count() == 1
        assert not read().active

    def test_missed_slots_can_be_dropped(self) -> None:
        schedule(late=1000.0, misfire="skip")
        publish_due("default")
        assert not MessageLog.objects.exists()
        assert timedelta(0) < wait_of() <= timedelta(seconds=60)

    @pytest.mark.parametrize("status", [s for s, _ in MessageLog.STATUS_CHOICES])
    def test_runs_need_not_overlap(self, status: str) -> None:
        log = MessageLog.objects.create(task="t", queue="default", status=status)
        schedule("skip", overlap="skip", last_log=log.pk, task_args="[1]")
        schedule("allow", overlap="allow", last_log=log.pk, task_args="[2]")
        schedule("gone", overlap="skip", last_log=uuid.uuid4(), task_args="[3]")
        log.task_args = "[0]"
        log.save()
        publish_due("default")
        runs = [(0,), (2,), (3,)] if status in MessageLog.UNFINISHED else [(0,), (1,), (2,), (3,)]
        assert published() == runs
        assert wait_of("skip") > timedelta(seconds=50)

    def test_more_than_a_batch_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedules, "BATCH", 2)
        for number in range(5):
            schedule(f"s{number}", task_args=f"[{number}]")
        assert [look("default") for _ in range(4)] == [0.0, 0.0, 0.0, None]
        assert published() == [(number,) for number in range(5)]

    def test_only_those_that_a_filter_leaves(self) -> None:
        schedule("a", task_args='["a"]')
        schedule("b", task_args='["b"]', queue="other")
        look("default", {"queue": "other"})
        assert look("default", {"queue": "other", "active": False}) is None
        assert published() == [("b",)]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"queue": "gone"}, "Cannot find queue called gone"),
    ({"task": "tests.project.tasks.no_such"}, "function called no_such"),
    ({"task": "no.such.module.task"}, "Unable to find the module: no.such.module"),
    ({"task": "tests.unit.raises_on_import.task"}, "SystemExit: 3"),
    ({"task_args": "not json"}, "arguments are not JSON"),
    ({"task_args": "5"}, "are a JSON list"),
    ({"task_args": "null"}, "are a JSON list"),
    ({"content": "[1]"}, "are a JSON object"),
    ({"content": "{"}, "arguments are not JSON"),
    ({"content": "{}{}"}, "arguments are not JSON"),
    ({"interval_type": "weeks"}, "interval_type is 'weeks'"),
    ({"interval_count": 2**31 - 1, "interval_type": "days"}, "a hundred years at most"),
    ({"cron": "61 * * * *"}, "is no crontab"),
    ({"cron": "* * * * *", "timezone": "Mars"}, "no time zone 'Mars'"),
    ({"start_time": NOON, "end_time": NOON}, "end_time is not after start_time"),
    ({"misfire": "perhaps"}, "misfire is 'perhaps'"),
    ({"overlap": "maybe"}, "overlap is 'maybe'"),
]


@pytest.mark.django_db
class TestProblems:
    @pytest.fixture(autouse=True)
    def broken_module(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A module of tasks that ends the process when it is imported, or tries to."""
        import tests.unit

        (tmp_path / "raises_on_import.py").write_text("raise SystemExit(3)\n")
        monkeypatch.setattr(tests.unit, "__path__", [*tests.unit.__path__, str(tmp_path)])

    @pytest.mark.parametrize(("wrong", "text"), WRONG, ids=lambda value: repr(value)[:50])
    @pytest.mark.parametrize("late", [9.0, None], ids=["due", "new"])
    @pytest.mark.defect(21)
    def test_one_that_is_wrong_says_so_and_keeps_no_other_from_running(
        self, wrong: dict[str, Any], text: str, late: float | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A row may have been written by other programs, or brought over from django-carrot."""
        schedule("wrong", late, **{"task_args": '["wrong"]', **wrong})
        schedule("good", task_args='["good"]')
        schedule("new", None)
        while look("default") == 0.0:
            pass
        assert published() == [("good",)]
        assert next_of("new") is not None
        if late is None and not read("wrong").problem:
            # What is wrong with it shows when it is due.
            ScheduledTask.objects.filter(task_name="wrong").update(
                next_run_time=Now() - timedelta(seconds=1)
            )
            publish_due("default")
        assert text in read("wrong").problem
        assert "Schedule 'wrong' cannot be published" in caplog.text
        assert PENALTY - timedelta(minutes=1) < wait_of("wrong") <= PENALTY
        assert published() == [("good",)]

    @pytest.mark.parametrize("way", ["save", "update", "start", "hour"])
    @pytest.mark.parametrize(
        "trigger", [{"run_at": NOON.replace(year=2204)}, {"cron": "0 3 1 1 *"}]
    )
    def test_one_that_could_not_be_planned_does_not_run_early(
        self, way: str, trigger: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That it is tried again is no slot of its."""
        schedule(late=None, misfire="bogus", **trigger)
        publish_due("default")
        assert read().problem.startswith("It cannot be planned: misfire is 'bogus'")
        one = read()
        if way == "save":
            one.misfire = "run_once"
            one.save()
        elif way == "update":
            ScheduledTask.objects.update(misfire="run_once")
        else:
            with connection.cursor() as cursor:
                cursor.execute("UPDATE carrot_twisted_scheduledtask SET misfire = 'run_once'")
        if way == "start":
            schedules.try_again("default")
        elif way == "hour":
            ScheduledTask.objects.update(next_run_time=Now() - timedelta(seconds=1))
        publish_due("default")
        publish_due("default")
        assert not MessageLog.objects.exists()
        after = read()
        assert (after.problem, after.active) == ("", True)
        assert after.next_run_time is not None
        assert (after.next_run_time.hour, after.next_run_time.minute) in ((12, 0), (3, 0))

    def test_an_import_that_does_not_end_keeps_no_other_from_running(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(schedules, "PATIENCE", 0.1)
        flag = tmp_path / "flag"
        (tmp_path / "never_ends.py").write_text(
            f"import os, time\nend = time.monotonic() + 60\n"
            f"while not os.path.exists({str(flag)!r}) and time.monotonic() < end:\n"
            "    time.sleep(0.01)\ndef task():\n    pass\n"
        )
        schedule("hangs", task="never_ends.task")
        schedule("good", task_args='["good"]')
        publish_due("default")
        assert published() == [("good",)]
        assert "never_ends is still being imported" in read("hangs").problem
        # A service that imports slowly publishes soon, and does not wait again.
        assert wait_of("hangs") <= schedules.SOON
        late = {"next_run_time": Now() - timedelta(seconds=1)}
        monkeypatch.setattr(schedules, "PATIENCE", 60.0)
        ScheduledTask.objects.filter(task_name="hangs").update(**late)
        publish_due("default")
        assert caplog.text.count("'hangs' cannot be published") == 1
        monkeypatch.setattr(schedules, "HANGING", 0.0)
        ScheduledTask.objects.filter(task_name="hangs").update(**late)
        publish_due("default")
        assert wait_of("hangs") > timedelta(minutes=50)
        flag.touch()
        assert schedules._imports["never_ends"].ended(30)
        ScheduledTask.objects.filter(task_name="hangs").update(**late)
        publish_due("default")
        assert len(published()) == 2
        assert not read("hangs").problem

    def test_a_module_that_fails_is_imported_once_a_look(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Hundreds of schedules may name it, and each import may take its time."""
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "fails.py").write_text(
            f"with open({str(tmp_path / 'count')!r}, 'a') as file:\n    file.write('x')\n"
            "raise ValueError('no')\n"
        )
        for number in range(5):
            schedule(f"s{number}", task="fails.task")
        publish_due("default")
        assert (tmp_path / "count").read_text() == "x"
        problems = ScheduledTask.objects.filter(problem="ValueError: no")
        assert problems.count() == 5

    def test_a_bug_in_one_stops_no_other(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        new_row = ScheduledTask.new_row

        def buggy(self: ScheduledTask) -> MessageLog:
            return new_row(self) if self.task_name == "good" else 1 / 0  # type: ignore[return-value]

        monkeypatch.setattr(ScheduledTask, "new_row", buggy)
        schedule("bad", 9.0)
        schedule("good", task_args='["good"]')
        publish_due("default")
        assert published() == [("good",)]
        assert read("bad").problem == "ZeroDivisionError: division by zero"
        assert "Traceback" in caplog.text

    def test_what_no_database_could_store_is_stored(self) -> None:
        schedule("wrong", cron="\x00 * * * *")
        schedule("good", task_args='["good"]')
        publish_due("default")
        assert published() == [("good",)]
        assert "is no crontab" in read("wrong").problem

    def test_it_is_tried_again_later_and_keeps_its_grid(self) -> None:
        one = schedule(queue="gone", last_run_time=NOON)
        publish_due("default")
        with connection.cursor() as cursor:  # mended by another program
            cursor.execute("UPDATE carrot_twisted_scheduledtask SET queue = 'default'")
        ScheduledTask.objects.update(next_run_time=F("next_run_time") - HOUR)
        assert publish_due("default") == 1
        after = read()
        assert (after.problem, MessageLog.objects.count()) == ("", 1)
        assert one.last_run_time is not None
        assert after.next_run_time is not None
        assert after.last_run_time is not None
        for slot in (after.next_run_time, after.last_run_time):
            assert (slot - one.last_run_time) % timedelta(seconds=60) == timedelta(0)

    @pytest.mark.parametrize("way", ["save", "update"])
    @pytest.mark.parametrize(("misfire", "runs"), [("run_once", 1), ("skip", 0)])
    def test_once_mended_it_is_tried_at_once(self, way: str, misfire: str, runs: int) -> None:
        stale = schedule(queue="gone", misfire=misfire)
        publish_due("default")
        assert read().problem
        if way == "save":
            stale.queue = "default"
            stale.save()
        else:
            ScheduledTask.objects.update(queue="default")
        while look("default") == 0.0:
            pass
        assert MessageLog.objects.count() == runs
        assert read().problem == ""
        assert timedelta(0) < wait_of() <= timedelta(seconds=61)


@pytest.mark.django_db
class TestEdits:
    def test_a_process_that_read_the_row_before_never_turns_it_back(self) -> None:
        stale = schedule()
        publish_due("default")
        moved = read()
        stale.task_args = '["edited"]'
        stale.save()
        after = read()
        for name in (*ScheduledTask.OWNED, "active"):
            assert getattr(after, name) == getattr(moved, name), name
        assert after.task_args == '["edited"]'
        assert publish_due("default") == 0
        assert MessageLog.objects.count() == 1

    def test_nor_switches_it_on_again(self) -> None:
        stale = schedule(run_at=NOON)
        publish_due("default")
        stale.priority = 1
        stale.save()
        assert not read().active

    @pytest.mark.parametrize(
        "edit",
        [
            {"interval_type": "hours"},
            {"interval_count": 5},
            {"cron": "* * * * *"},
            {"timezone": "Europe/Berlin"},
            {"run_at": NOON},
            {"start_time": NOON},
            {"end_time": NOON},
        ],
        ids=lambda edit: next(iter(edit)),
    )
    @pytest.mark.parametrize("way", ["save", "update_fields", "update", "bulk_update"])
    def test_with_another_trigger_it_is_planned_anew(self, edit: dict[str, Any], way: str) -> None:
        one = schedule(late=-500.0, problem="old")
        if way == "update":
            ScheduledTask.objects.update(**edit)
        else:
            for name, value in edit.items():
                setattr(one, name, value)
            if way == "bulk_update":
                ScheduledTask.objects.bulk_update([one], [*edit])
            else:
                one.save(update_fields=[*edit] if way == "update_fields" else None)
                assert one.next_run_time is None
        after = read()
        assert (after.next_run_time, after.problem) == (None, "")
        assert set(edit.items()) <= {(name, getattr(after, name)) for name in edit}

    @pytest.mark.parametrize("way", ["save", "update"])
    def test_other_edits_leave_its_slot_alone(self, way: str) -> None:
        one = schedule(late=-500.0)
        before = next_of()
        if way == "save":
            one.content = '{"a": 1}'
            one.save()
        else:
            ScheduledTask.objects.update(content='{"a": 1}', active=True)
            ScheduledTask.objects.update(active=False)
        assert (next_of(), read().content) == (before, '{"a": 1}')

    @pytest.mark.parametrize("way", ["save", "update"])
    def test_switched_on_again_it_is_planned_anew(self, way: str) -> None:
        one = schedule(late=5000.0, active=False)
        if way == "save":
            one.active = True
            one.save()
        else:
            ScheduledTask.objects.update(active=True)
        assert next_of() is None
        publish_due("default")
        assert not MessageLog.objects.exists()

    def test_a_slot_that_is_assigned_is_saved(self) -> None:
        one = schedule()
        one.next_run_time = NOON
        one.save()
        assert next_of() == NOON

    def test_the_second_save_is_like_the_first(self) -> None:
        one = ScheduledTask.objects.create(task_name="a", task=TASK, interval_count=60)
        publish_due("default")
        planned = next_of()
        one.save()
        assert next_of() == planned
        one.interval_count = 5
        one.save()
        publish_due("default")
        planned = next_of()
        one.save()
        assert next_of() == planned is not None

    def test_deferred_fields_are_not_fetched(self) -> None:
        schedule()
        one = ScheduledTask.objects.defer("cron").get()
        one.priority = 3
        one.save()
        assert "cron" in one.get_deferred_fields()
        assert (read().priority, read().cron) == (3, "")

    def test_what_was_assigned_is_kept_until_it_is_saved(self) -> None:
        """Also if a deferred field is fetched, or other fields are saved, in between."""
        schedule()
        one = ScheduledTask.objects.defer("cron").get()
        one.active = False
        assert one.cron == ""
        one.save(update_fields=["task"])
        one.refresh_from_db(fields=["priority"])
        one.save()
        assert not read().active

    def test_a_row_that_was_not_read_can_be_saved(self) -> None:
        pk = schedule(late=-500.0).pk
        one = ScheduledTask(pk=pk, task_name="b", task=TASK)
        one._state.adding = False
        one.save()
        assert read("b").next_run_time is None

    def test_a_deleted_one_does_not_come_back(self) -> None:
        one = schedule()
        ScheduledTask.objects.all().delete()
        with pytest.raises(DatabaseError), transaction.atomic():
            one.save()
        assert not ScheduledTask.objects.exists()

    @pytest.mark.parametrize("adding", [True, False])
    def test_a_copy_has_slots_of_its_own(self, adding: bool) -> None:
        """Made as Django's documentation says, and as people do."""
        schedule(declaration="{}", problem="old", interval_type="hours")
        publish_due("default")
        copy = read()
        copy.pk, copy.task_name, copy.cron = None, "copy", "0 3 1 1 *"
        copy._state.adding = adding
        copy.save()
        new, old = read("copy"), read()
        assert (new.next_run_time, new.last_run_time, new.last_log) == (None, None, None)
        # It does not live in the code: the next start of a service would delete it.
        assert new.declaration == ""
        assert old.last_log is not None
        assert (old.cron, old.declaration) == ("", "{}")
        publish_due("default")
        slot = next_of("copy")
        assert slot is not None
        assert (slot.month, slot.day, slot.hour) == (1, 1, 3)
        assert MessageLog.objects.count() == 1

    def test_a_copy_keeps_a_slot_that_it_was_given(self) -> None:
        copy = schedule()
        copy.pk, copy.task_name, copy.next_run_time = None, "copy", NOON
        copy.save()
        assert next_of("copy") == NOON

    def test_a_service_of_the_release_before_can_insert_rows(self) -> None:
        """During a rolling upgrade. It names the columns that it knows, and gives them values."""
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO carrot_twisted_scheduledtask (task_name, task, interval_type, "
                "interval_count, exchange, routing_key, queue, task_args, content, active) "
                "VALUES ('old', %s, 'hours', 1, '', '', 'default', '[]', '{}', true)",
                [TASK],
            )
        assert publish_due("default") == 1
        after = read("old")
        assert after.next_run_time is not None
        assert (after.misfire, after.overlap, after.problem) == ("run_once", "allow", "")

    @pytest.mark.defect(20)
    def test_the_database_refuses_what_can_never_be(self) -> None:
        schedule()
        for wrong in ({"interval_count": 0}, {"priority": 256}):
            with pytest.raises(IntegrityError), transaction.atomic():
                ScheduledTask.objects.update(**wrong)


@pytest.mark.django_db
class TestRunNow:
    def test_it_publishes_at_once_and_leaves_the_slot_alone(self) -> None:
        one = schedule(late=-500.0, active=False, priority=3, task_args="[1]")
        log = one.publish()
        assert (log.positionals, log.priority, log.status) == ((1,), 3, "PUBLISHED")
        after = read()
        assert (after.next_run_time, after.last_run_time) == (one.next_run_time, None)
        assert after.last_log == one.last_log == log.pk
        # django-carrot's way to call it
        assert one.publish(0).priority == one.publish(priority=0).priority == 0
        one.save()
        assert read().next_run_time == one.next_run_time

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            ({"queue": "gone"}, CarrotConfigException),
            ({"content": "[1]"}, InvalidMessage),
            ({"task": "tests.project.tasks.no_such"}, AttributeError),
        ],
    )
    def test_it_tells_what_is_wrong(self, wrong: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            schedule(**wrong).publish()
        assert not MessageLog.objects.exists()

    @pytest.mark.defect(23)
    def test_arguments_arrive_as_they_are(self) -> None:
        """django-carrot passed the text of each."""
        log = schedule(task_args='[true, 1, "test", {"foo": "bar"}]').publish()
        assert log.positionals == (True, 1, "test", {"foo": "bar"})


@pytest.mark.django_db
class TestClean:
    def test_a_good_schedule_passes(self) -> None:
        good: list[dict[str, Any]] = [
            {},
            {"cron": "30 2 * * *", "timezone": "Europe/Berlin"},
            {"run_at": NOON},
            {"start_time": NOON, "end_time": NOON + HOUR, "overlap": "skip", "misfire": "skip"},
        ]
        for fields in good:
            ScheduledTask(task_name="a", task=TASK, **fields).full_clean()

    @pytest.mark.parametrize(
        ("fields", "where", "text"),
        [
            ({"cron": "61 * * * *"}, "cron", "is no crontab"),
            ({"cron": "* * * * *", "timezone": "Mars"}, "timezone", "no time zone 'Mars'"),
            ({"cron": "* * * * *", "run_at": NOON}, "run_at", "not both"),
            ({"run_at": NOON, "end_time": NOON - HOUR}, "run_at", "lies outside"),
            ({"start_time": NOON, "end_time": NOON}, "end_time", "not after start_time"),
            (
                {"run_at": datetime(2024, 2, 29), "start_time": NOON},
                "run_at",
                "a time with a time zone",
            ),
            ({"task_args": "1, 2"}, "task_args", "not JSON"),
            ({"content": "[1]"}, "content", "are a JSON object"),
            ({"queue": "gone"}, "queue", "Cannot find queue called gone"),
            ({"task": "noop"}, "task", "module.function"),
            ({"priority": 256}, "priority", "255"),
            ({"interval_count": 0}, "interval_count", "1"),
            ({"interval_type": "weeks"}, "interval_type", "weeks"),
            (
                {"interval_type": "days", "interval_count": 2**31 - 1},
                "interval_count",
                "a hundred years at most",
            ),
            (
                {"start_time": datetime(9999, 12, 31, tzinfo=UTC)},
                "start_time",
                "years 2 to 9998",
            ),
            ({"task_args": '["' + "x" * 2_000_000 + '"]'}, "__all__", "max_message_size"),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_a_form_tells_what_would_not_run(
        self, fields: dict[str, Any], where: str, text: str
    ) -> None:
        with pytest.raises(ValidationError) as caught:
            ScheduledTask(**{"task_name": "a", "task": TASK, **fields}).full_clean()
        assert [*caught.value.message_dict] == [where]
        assert text in caught.value.message_dict[where][0]


@pytest.mark.django_db
class TestCreateScheduledTask:
    def test_the_quick_start_example_of_django_carrot_works(self) -> None:
        one = create_scheduled_task(noop, {"seconds": 5}, hello=True)
        one = ScheduledTask.objects.get(pk=one.pk)
        assert (one.task_name, one.task, one.queue) == (TASK, TASK, "default")
        assert (one.interval_display, one.active) == ("Every 5 seconds", True)
        assert (one.positional_arguments, one.keyword_arguments) == ((), {"hello": True})

    @pytest.mark.parametrize(
        ("arguments", "named", "name", "queue"),
        [
            (("report",), {}, "report", "default"),
            (("report", "other"), {}, "report", "other"),
            ((), {"task_name": "report", "queue": "other"}, "report", "other"),
            ((), {"queue": "other"}, TASK, "other"),
            # The documentation's form: the queue comes third.
            (("other",), {}, TASK, "other"),
            (("other", "default"), {}, "other", "default"),
            (("other",), {"task_name": "report"}, "report", "other"),
            (("other",), {"queue": "default"}, "other", "default"),
            # Said by keyword, nothing is guessed.
            ((), {"task_name": "other"}, "other", "default"),
        ],
    )
    def test_name_and_queue_in_both_forms(
        self, arguments: tuple[str, ...], named: dict[str, str], name: str, queue: str
    ) -> None:
        one = create_scheduled_task(TASK, {"hours": 1}, *arguments, **named)
        assert (one.task_name, one.queue) == (name, queue)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("report", "other", "more"), {}),
            (("report",), {"task_name": "another"}),
            (("report", "other"), {"queue": "default"}),
        ],
    )
    def test_what_could_only_be_guessed_is_refused(
        self, arguments: tuple[str, ...], named: dict[str, str]
    ) -> None:
        with pytest.raises(InvalidMessage, match="It is not clear which of 'report'"):
            create_scheduled_task(TASK, {"hours": 1}, *arguments, **named)
        assert not ScheduledTask.objects.exists()

    @pytest.mark.parametrize(
        ("interval", "text"),
        [
            ("30 2 * * MON-FRI", "Cron 30 2 * * MON-FRI"),
            ({"cron": "0 3 * * *"}, "Cron 0 3 * * *"),
            (
                {"cron": "0 3 * * *", "timezone": "Europe/Berlin"},
                "Cron 0 3 * * * (Europe/Berlin)",
            ),
        ],
    )
    def test_a_crontab_is_accepted_too(self, interval: Any, text: str) -> None:
        assert create_scheduled_task(TASK, interval).interval_display == text

    @pytest.mark.parametrize(
        "interval",
        [5, None, "often", {"timezone": "UTC"}, {"cron": "* * * * *", "hours": 1}, {"cron": 5}],
        ids=repr,
    )
    def test_what_makes_no_sense_is_refused(self, interval: Any) -> None:
        with pytest.raises(InvalidMessage):
            create_scheduled_task(TASK, interval)
        assert not ScheduledTask.objects.exists()

    @pytest.mark.defect(22)
    def test_a_name_is_given_once(self) -> None:
        create_scheduled_task(TASK, {"hours": 1})
        with pytest.raises(InvalidMessage, match="There is a schedule named"):
            create_scheduled_task(TASK, {"hours": 2})
        assert ScheduledTask.objects.get().interval_count == 1


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


def test_crontabs_and_one_offs_can_be_read_too() -> None:
    assert ScheduledTask(cron="0 3 * * *").interval_display == "Cron 0 3 * * *"
    in_berlin = ScheduledTask(cron="0 3 * * *", timezone="Europe/Berlin")
    assert in_berlin.interval_display == "Cron 0 3 * * * (Europe/Berlin)"
    assert ScheduledTask(run_at=NOON).interval_display == "Once at 2024-02-29 12:00:00 UTC"


# What it costs.


@pytest.mark.django_db
@pytest.mark.defect(19)
def test_an_idle_look_is_one_query_on_the_index(django_assert_num_queries: Any) -> None:
    for number in range(20):
        schedule(f"future{number}", -5000.0)
        schedule(f"off{number}", None, active=False)
    with django_assert_num_queries(1) as queries:
        assert look("default") is None
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + queries.captured_queries[0]["sql"])
        plan = " ".join(str(row) for row in cursor.fetchall())
    assert plan.count("carrot_due") == 2
    assert "SCAN carrot_twisted" not in plan


@pytest.mark.django_db
def test_many_schedules_cost_as_many_queries_as_two() -> None:
    costs = []
    for count in (2, 300):
        for number in range(count):
            schedule(f"s{number}", overlap="skip" if number % 2 else "allow", last_log=uuid.uuid4())
        with CaptureQueriesContext(connection) as queries:
            assert look("default") == 0.0
        assert MessageLog.objects.count() == count
        costs.append(len(queries))
        ScheduledTask.objects.all().delete()
        MessageLog.objects.all().delete()
    # The two looks, those that are new and due, their last runs, the move, the insert in a
    # savepoint, their history.
    assert costs == [9, 9]


# The loop around it, on a clock of its own.


class Direct:
    """A database on the reactor's thread."""

    away = False
    broken: Exception | None = None

    def call(
        self, function: Callable[[], Any], if_any: Callable[[], bool] | None = None
    ) -> Deferred[Any]:
        if self.broken is not None:
            return fail(self.broken)
        if if_any is not None and not if_any():
            return succeed(None)
        with transaction.atomic():
            return succeed(function())


class Service:
    """A scheduler with a clock that also is the database's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock = Clock()
        self.database = Direct()
        # It asks the database's own clock.
        monkeypatch.setattr(schedules, "is_any_due", lambda _using: True)
        self.manager = ScheduledTaskManager(database=self.database, reactor=self.clock, **options)
        monkeypatch.setattr(
            schedules, "clock", lambda: Value(self.now, output_field=DateTimeField())
        )

    @property
    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.clock.seconds())

    def run(self, seconds: float, lag: Callable[[], float] = lambda: 0.0) -> list[float]:
        """Let time pass, from one timer to the next; when something was published."""
        end = self.clock.seconds() + seconds
        moments = []
        count = MessageLog.objects.count()
        while (calls := self.clock.getDelayedCalls()) and calls[0].getTime() <= end:
            self.clock.advance(max(0.0, calls[0].getTime() - self.clock.seconds()) + lag())
            new = MessageLog.objects.count() - count
            moments += [self.clock.seconds()] * new
            count += new
        self.clock.advance(max(0.0, end - self.clock.seconds()))
        return moments


@pytest.mark.django_db
class TestScheduledTaskManager:
    @pytest.mark.defect(19)
    def test_60_runs_at_2_seconds_have_a_mean_period_of_2_seconds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a reactor that is late for every timer by up to 50 ms."""
        noise = random.Random(1)
        service = Service(monkeypatch)
        service.clock.advance(0.37)
        schedule(late=None, interval_count=2)
        service.manager.start()
        moments = service.run(123.0, lambda: noise.uniform(0.001, 0.05))
        assert len(moments) >= 60
        periods = [b - a for a, b in itertools.pairwise(moments[:60])]
        assert 1.99 <= sum(periods) / len(periods) <= 2.01
        assert max(abs(period - 2) for period in periods) < 0.15
        service.manager.stop()
        assert service.clock.getDelayedCalls() == []

    def test_a_slot_between_two_looks_is_published_at_its_moment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = Service(monkeypatch)
        schedule("a", late=None, run_at=NOON + timedelta(seconds=3.25))
        schedule("b", late=None, run_at=NOON + timedelta(seconds=3.5))
        service.manager.start()
        assert service.run(10) == pytest.approx([3.25, 3.5], abs=0.002)

    @pytest.mark.defect(24)
    def test_new_ones_edits_and_deletions_are_seen_within_two_seconds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = Service(monkeypatch)
        service.manager.start()
        assert service.run(10.5) == []
        one = schedule(late=None, interval_count=1)
        assert service.run(3)[0] <= 13.5
        one.interval_count = 3600
        one.save()
        assert len(service.run(60)) <= 1
        ScheduledTask.objects.update(interval_count=2)
        assert len(service.run(21)) in (10, 11)
        ScheduledTask.objects.all().delete()
        assert service.run(10) == []

    @pytest.mark.defect(21)
    def test_an_error_does_not_end_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        service = Service(monkeypatch)
        schedule(late=None, interval_count=5)
        service.manager.start()
        service.run(2)
        service.database.away = True
        service.database.broken = DatabaseError("gone")
        assert service.run(20) == []
        service.database.broken = None
        assert len(service.run(2)) == 1

    def test_what_fails_before_the_first_look_stops_no_schedule(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers: list[Any] = [False, ValueError("no"), True]
        calls = []

        def before() -> Any:
            calls.append(service.clock.seconds())
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        service = Service(monkeypatch, before=[before])
        schedule(late=None, interval_count=5)
        service.database.away = True  # So that nothing is logged as a test's failure.
        service.manager.start()
        assert service.run(7) == [6.0]
        service.run(60)
        assert calls == [0.0, 10.0, 20.0]

    def test_two_of_them_publish_each_slot_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        service = Service(monkeypatch)
        other = ScheduledTaskManager(database=Direct(), reactor=service.clock)
        schedule(late=None, interval_count=2)
        service.manager.start()
        service.clock.advance(0.3)
        other.start()
        assert Counter(service.run(20.5)).most_common(1)[0][1] == 1

    def test_run_now_publishes_what_is_active_once_at_the_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """django-carrot's options."""
        service = Service(monkeypatch, run_now=True, filters={"queue": "other"})
        schedule("wanted", None, queue="other", task_args='["wanted"]')
        schedule("off", None, queue="other", active=False)
        schedule("broken", None, queue="other", content="[")
        schedule("other", None)
        service.manager.start()
        service.run(20)
        assert published() == [("wanted",)]

    @pytest.mark.defect(17)
    def test_a_restart_neither_forgets_nor_repeats(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A daily task of a service that is restarted twice a day runs daily."""
        day = 86_400.0
        service = Service(monkeypatch)
        schedule(late=None, interval_type="days", interval_count=1)
        moments = []
        for _ in range(10):
            service.manager.start()
            moments += service.run(10)
            service.manager.stop()
            service.clock.advance(day / 2 - 10)
        assert len(moments) == 4
        for number, moment in enumerate(moments, 1):
            assert 0 <= moment - number * day <= day / 2

    def test_at_its_start_it_tries_again_what_could_not_be_published(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The start may be that of the version that has the task."""
        service = Service(monkeypatch)
        schedule(problem="no such task", late=-1000.0)
        service.manager.start()
        service.clock.advance((datetime.now(UTC) - NOON).total_seconds())
        assert MessageLog.objects.count() == 1
        assert read().problem == ""

    def test_add_task_looks_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        service = Service(monkeypatch)
        one = schedule(run_at=NOON, late=None)
        service.manager.add_task(one)
        assert not MessageLog.objects.exists()
        ScheduledTask.objects.update(active=False)
        service.manager.start()
        service.run(0.5)
        ScheduledTask.objects.update(active=True)
        service.manager.add_task(one)
        assert MessageLog.objects.count() == 1

    def test_a_look_that_takes_long_is_not_doubled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waiting: list[Deferred[Any]] = []

        class Slow(Direct):
            def call(
                self, function: Callable[[], Any], if_any: Callable[[], bool] | None = None
            ) -> Deferred[Any]:
                waiting.append(Deferred())
                return waiting[-1]

        clock = Clock()
        manager = ScheduledTaskManager(database=Slow(), reactor=clock)
        manager.start()
        manager.add_task(ScheduledTask())
        clock.advance(5)
        assert len(waiting) == 1
        waiting[0].callback(None)
        # Asked for meanwhile, so once more.
        assert len(waiting) == 2
        manager.stop()
        waiting[1].callback(0.5)
        assert len(waiting) == 2
        assert clock.getDelayedCalls() == []
