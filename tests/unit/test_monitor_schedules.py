# SPDX-License-Identifier: Apache-2.0
"""The monitor's schedules: seen by all who may look, made and changed by those who may."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from carrot_twisted import helper_tasks, schedules
from carrot_twisted.models import MessageLog, OperatorAction, ScheduledTask, ScheduleRun
from carrot_twisted.monitor import access, registered_tasks, schedule_times
from carrot_twisted.monitor.schedule_form import ScheduleForm, version_of
from tests.clients import client_of
from tests.settings import CARROT

pytestmark = pytest.mark.django_db

EFFECT = "tests.project.tasks.effect"
NOOP = "tests.project.tasks.noop"
BERLIN = ZoneInfo("Europe/Berlin")
LIST = "carrot-schedules"
#: What a browser sends for a form that was filled in.
TYPED = {
    "task_name": "nightly",
    "task": EFFECT,
    "task_args": '["k"]',
    "content": "{}",
    "kind": "interval",
    "interval_count": "5",
    "interval_type": "minutes",
    "cron": "",
    "timezone": "",
    "run_at": "",
    "start_time": "",
    "end_time": "",
    "misfire": "run_once",
    "overlap": "allow",
    "queue": "default",
    "priority": "0",
    "exchange": "",
    "routing_key": "",
    "active": "on",
}


def schedule(name: str = "nightly", **fields: Any) -> ScheduledTask:
    values: dict[str, Any] = {
        "task": EFFECT,
        "task_args": '["k"]',
        "interval_count": 5,
        "interval_type": "minutes",
        "next_run_time": timezone.now() + timedelta(minutes=3),
        **fields,
    }
    return ScheduledTask.objects.create(task_name=name, **values)


def operator(name: str = "olga") -> Client:
    return client_of(access.VIEW, access.SCHEDULE, name=name)


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def new(client: Client, **typed: str) -> Any:
    return client.post(reverse("carrot-schedule-new"), {**TYPED, **typed})


def change(client: Client, one: ScheduledTask, version: str = "", **typed: str) -> Any:
    address = reverse("carrot-schedule-edit", args=[one.pk])
    sent = {**TYPED, "version": version or version_of(read(one)), **typed}
    return client.post(address, sent)


def read(one: ScheduledTask) -> ScheduledTask:
    return ScheduledTask.objects.get(pk=one.pk)


def noted() -> list[tuple[str, str, str]]:
    rows = OperatorAction.objects.order_by("pk")
    return [*rows.values_list("user", "action", "target")]


def test_a_schedule_remembers_its_runs() -> None:
    one, other = schedule(next_run_time=None), schedule("other", active=False)
    slot = timezone.now() - timedelta(minutes=1)
    assert schedules.look("default") == 0.0, "it is planned"
    ScheduledTask.objects.filter(pk=one.pk).update(next_run_time=slot)
    assert schedules.look("default") == 0.0
    done = MessageLog.objects.get()
    MessageLog.objects.filter(pk=done.pk).update(
        status="FAILED", exception="no <b>stock</b>", start_time=slot, failure_time=slot
    )
    by_hand = read(one).publish()
    other.publish()
    answer = client_of(access.VIEW).get(reverse("carrot-schedule", args=[one.pk]))
    (first, its_row), (second, row) = answer.context["runs"]
    assert (first.message, first.slot, its_row) == (by_hand.pk, None, by_hand)
    assert (second.message, row) == (done.pk, done)
    assert abs(second.slot - slot) < timedelta(milliseconds=2)
    page = text_of(answer)
    assert "run by hand" in page
    assert "no &lt;b&gt;stock" in page
    by_hand.delete()
    assert helper_tasks.delete_old_statistics()["runs"] == 1
    assert ScheduleRun.objects.filter(schedule=one.pk).count() == 1


class TestList:
    def test_it_says_when_each_runs_and_how_the_last_run_went(self) -> None:
        done = MessageLog.objects.create(task=EFFECT, queue="default", status="FAILED")
        slot = datetime(2030, 1, 7, 1, 30, tzinfo=UTC)
        schedule(
            "report",
            cron="30 2 * * MON-FRI",
            timezone="Europe/Berlin",
            next_run_time=slot,
            last_run_time=slot - timedelta(days=3),
            last_log=done.pk,
        )
        schedule("prices", declaration="{}", overlap="skip", misfire="skip")
        schedule("done", active=False, next_run_time=None, last_log=uuid4())
        schedule("bad", problem="no such module")
        schedule("stuck", next_run_time=timezone.now() - timedelta(minutes=2))
        seen = text_of(client_of(access.VIEW).get(reverse(LIST)))
        for text in (
            "At 02:30 on Monday through Friday",
            "Mon 2030-01-07 02:30 CET",
            reverse("carrot-task", args=[done.pk]),
            "Every 5 minutes",
            "in the code",
            "not while its last run is unfinished",
            "missed runs are dropped",
            "Cannot run",
            "Off</span>",
            "late:",
        ):
            assert text in seen, text
        assert seen.count("late:") == 1
        places = [seen.index(f">{name}</a>") for name in ("bad", "done", "prices", "report")]
        assert places == sorted(places)

    def test_nothing_there_says_how_to_begin(self) -> None:
        client = client_of(access.VIEW)
        assert "No schedules yet" in text_of(client.get(reverse(LIST)))
        assert "No schedule is like that" in text_of(client.get(reverse(LIST), {"q": "x"}))

    def test_pages_follow_each_other_by_name_and_take_as_many_queries_each(self) -> None:
        names = [f"customer {n:05}" for n in range(120)]
        log = MessageLog.objects.create(task=EFFECT, queue="default")
        ScheduledTask.objects.bulk_create(
            ScheduledTask(task_name=name, task=EFFECT, last_log=log.pk) for name in names
        )
        client = operator()
        client.get(reverse(LIST))
        seen: list[str] = []
        address: str | None = ""
        counts = set()
        while address is not None:
            with CaptureQueriesContext(connection) as queries:
                answer = client.get(f"{reverse(LIST)}?{address}")
            counts.add(len(queries))
            # The session, the user, two for permissions, the schedules, their last runs.
            assert len(queries) <= 8
            assert all(
                "LIMIT" in q["sql"]
                for q in queries
                if "scheduledtask" in q["sql"].lower() and "permission" not in q["sql"]
            )
            seen += [row["schedule"].task_name for row in answer.context["rows"]]
            address = answer.context["next"]
        assert seen == names
        assert len(counts) == 1

    def test_they_are_found_by_state_and_by_a_part_of_name_or_task(self) -> None:
        schedule("Report")
        schedule("other", task=NOOP, active=False)
        schedule("bad", task=NOOP, problem="no")

        def names(**asked: str) -> list[str]:
            rows = client.get(reverse(LIST), asked).context["rows"]
            return [row["schedule"].task_name for row in rows]

        client = client_of(access.VIEW)
        assert names(q="repo") == ["Report"]
        assert names(q="noop") == ["bad", "other"]
        assert names(state="off") == ["other"]
        assert names(state="problem") == ["bad"]
        assert names(state="active", q="noop") == ["bad"]
        assert names(state="nonsense", after="bad") == ["other"]
        assert names(q="\0") == ["Report", "bad", "other"]

    def test_who_may_only_look_is_offered_no_change(self) -> None:
        one = schedule()
        client = client_of(access.VIEW, access.ACT, access.PURGE)
        for name, args in ((LIST, []), ("carrot-schedule", [one.pk])):
            seen = text_of(client.get(reverse(name, args=args)))
            assert "formaction" not in seen
            assert reverse("carrot-schedule-new") not in seen
            assert reverse("carrot-schedule-edit", args=[one.pk]) not in seen
        assert "formaction" in text_of(operator().get(reverse(LIST)))


class TestPage:
    def test_it_shows_what_comes_and_what_was(self) -> None:
        log = MessageLog.objects.create(
            task=EFFECT, queue="default", status="FAILED", exception="ValueError: no customer"
        )
        one = schedule(
            content='{"password": "xyzzy"}',
            cron="30 2 * * *",
            timezone="Europe/Berlin",
            next_run_time=datetime(2030, 1, 7, 1, 30, tzinfo=UTC),
            last_log=log.pk,
            last_run_time=datetime(2030, 1, 6, 1, 30, tzinfo=UTC),
        )
        client = client_of(access.VIEW)
        address = reverse("carrot-schedule", args=[one.pk])
        client.get(address)
        with CaptureQueriesContext(connection) as queries:
            answer = client.get(address)
        assert len(queries) <= 8
        seen = text_of(answer)
        assert [run.text for run in answer.context["plan"].runs] == [
            f"{day} 02:30 CET"
            for day in (
                "Mon 2030-01-07",
                "Tue 2030-01-08",
                "Wed 2030-01-09",
                "Thu 2030-01-10",
                "Fri 2030-01-11",
            )
        ]
        assert reverse("carrot-task", args=[log.pk]) in seen
        assert "ValueError: no customer" in seen
        assert f"{reverse('carrot-tasks')}?task={EFFECT}" in seen
        # Viewers see arguments as on the page of a task.
        assert "xyzzy" not in seen
        assert "[redacted]" in seen

    def test_it_is_the_same_until_something_changes(self) -> None:
        one = schedule(cron="*/5 * * * *", next_run_time=timezone.now() + timedelta(minutes=3))
        client = operator()
        for address in (reverse(LIST), reverse("carrot-schedule", args=[one.pk])):
            first = client.get(address, headers={"HX-Request": "true"})
            assert "csrfmiddlewaretoken" not in text_of(first)
            headers = {"HX-Request": "true", "If-None-Match": first.headers["ETag"]}
            assert client.get(address, headers=headers).status_code == 304

    def test_one_that_is_wrong_says_so_and_can_still_be_seen(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"cron": "61 * * * *"},
            {"cron": "0 0 30 2 *"},
            {"timezone": "Mars", "cron": "* * * * *"},
            {"interval_type": "weeks"},
            {"interval_type": "days", "interval_count": 2**31 - 1},
            {"misfire": "never"},
            {"task_args": "[", "content": "(1,", "task": "no path"},
        ]
        client = operator()
        all_of_them = [
            schedule(f"wrong {n}", problem="It cannot be planned", **fields)
            for n, fields in enumerate(wrong)
        ]
        addresses = [reverse("carrot-schedule", args=[one.pk]) for one in all_of_them]
        addresses += [reverse("carrot-schedule-edit", args=[one.pk]) for one in all_of_them[::2]]
        for address in (reverse(LIST), *addresses):
            assert client.get(address).status_code == 200, address

    @pytest.mark.parametrize("pk", [4711, 10**30])
    def test_one_that_is_not_there_is_told(self, pk: int) -> None:
        client = operator()
        for name in ("", "-edit", "-run", "-on", "-off", "-delete"):
            address = reverse(f"carrot-schedule{name}", args=[pk])
            answer = client.get(address) if name in ("", "-edit") else client.post(address)
            assert answer.status_code == 404, name
            assert "no such schedule any more" in text_of(answer)


class TestTimes:
    def test_words(self) -> None:
        def words(**fields: Any) -> str:
            return schedule_times.words(ScheduledTask(task=NOOP, **fields))

        assert words(interval_count=1, interval_type="hours") == "Every hour"
        assert words(interval_count=90, interval_type="seconds") == "Every 90 seconds"
        assert words(interval_count=2, interval_type="weeks") == "Every 2 weeks"
        assert words(cron="*/15 * * * *") == "Every 15th minute of every hour"
        # Not mistaken for words.
        assert words(cron="nonsense") == "nonsense"
        when = datetime(2030, 7, 1, 12, tzinfo=UTC)
        assert words(run_at=when) == "Once, at Mon 2030-07-01 12:00 UTC"

    def test_clocks_that_are_changed_are_told_with_the_runs_around(self) -> None:
        one = ScheduledTask(task=NOOP, cron="30 2 * * *", timezone="Europe/Berlin")
        first = datetime(2030, 1, 7, 1, 30, tzinfo=UTC)
        spring, autumn = schedule_times.plan(one, first).changes
        assert spring.text == "On 2030-03-31 the clock goes from 02:00 to 03:00."
        # 02:30 does not exist.
        assert [run.text for run in spring.runs] == [
            "Sun 2030-03-31 03:00 CEST",
            "Mon 2030-04-01 02:30 CEST",
        ]
        assert autumn.text == "On 2030-10-27 the clock goes from 03:00 to 02:00."
        # 02:30 comes twice, and the first time counts.
        assert [run.text for run in autumn.runs] == [
            "Sun 2030-10-27 02:30 CEST",
            "Mon 2030-10-28 02:30 CET",
        ]
        assert autumn.runs[0].when == datetime(2030, 10, 27, 0, 30, tzinfo=UTC)

    def test_an_hour_that_comes_twice_has_two_runs_of_every_hour(self) -> None:
        one = ScheduledTask(task=NOOP, cron="0 * * * *", timezone="Europe/Berlin")
        plan = schedule_times.plan(one, datetime(2030, 9, 1, tzinfo=UTC))
        texts = [run.text for run in plan.changes[0].runs]
        assert texts[:2] == ["Sun 2030-10-27 02:00 CEST", "Sun 2030-10-27 02:00 CET"]

    @pytest.mark.parametrize(
        ("cron", "zone"),
        [("30 12 * * *", "Europe/Berlin"), ("* * * * *", "Europe/Berlin"), ("30 2 * * *", "UTC")],
    )
    def test_what_no_change_of_the_clock_concerns_has_none(self, cron: str, zone: str) -> None:
        one = ScheduledTask(task=NOOP, cron=cron, timezone=zone)
        assert not schedule_times.plan(one, datetime(2030, 1, 7, tzinfo=UTC)).changes

    def test_runs_end_with_the_schedule_and_missed_ones_are_made_up_for_once(self) -> None:
        now = timezone.now()
        late = now - timedelta(hours=1)
        one = ScheduledTask(task=NOOP, interval_count=10, interval_type="minutes")
        one.end_time = now + timedelta(minutes=25)
        runs = schedule_times.plan(one, late).runs
        assert runs[0].when == late
        assert [run.when > now for run in runs[1:]] == [True, True]


class TestForm:
    def test_a_schedule_is_made(self) -> None:
        client = operator()
        answer = new(client, cron="30 2 * * *", timezone="Europe/Berlin", kind="cron")
        one = ScheduledTask.objects.get()
        assert answer.status_code == 302
        assert answer.headers["Location"] == reverse("carrot-schedule", args=[one.pk])
        assert (one.task_name, one.task, one.positional_arguments) == ("nightly", EFFECT, ("k",))
        assert (one.cron, one.timezone, one.run_at, one.active) == (
            "30 2 * * *",
            "Europe/Berlin",
            None,
            True,
        )
        assert one.next_run_time is None
        assert noted() == [("olga", "create schedule", "nightly")]

    def test_only_one_kind_of_trigger_is_kept(self) -> None:
        client = operator()
        # What stands in fields that nobody sees is no fault.
        typed = {"cron": "nonsense", "timezone": "Europe/Berlin", "run_at": "never"}
        assert new(client, **typed).status_code == 302
        one = ScheduledTask.objects.get()
        assert (one.cron, one.timezone, one.run_at) == ("", "", None)
        once = {"kind": "once", "run_at": "2030-01-07T12:00:00", "interval_count": "x"}
        assert change(client, one, **once).status_code == 302
        assert read(one).run_at == datetime(2030, 1, 7, 12, tzinfo=UTC)
        assert change(client, one, cron="0 1 * * *", kind="cron").status_code == 302
        assert (read(one).run_at, read(one).cron) == (None, "0 1 * * *")

    @pytest.mark.parametrize(
        ("typed", "field", "text"),
        [
            ({"task_name": ""}, "task_name", "is required"),
            ({"task": "os.system"}, "task", "os.system is not one of"),
            ({"task": "tests.settings.CARROT"}, "task", "not one of"),
            ({"task_args": "1, 2"}, "task_args", "not JSON"),
            ({"task_args": '{"a": 1}'}, "task_args", "are a JSON list"),
            ({"task_args": "[1, 2, 3]"}, "task_args", "too many positional arguments"),
            ({"task_args": "[]"}, "content", "missing a required argument: 'key'"),
            ({"content": '{"key": 1}'}, "content", "multiple values for argument 'key'"),
            ({"content": '{"nope": 1}'}, "content", "unexpected keyword argument 'nope'"),
            ({"content": "[1]"}, "content", "are a JSON object"),
            ({"content": '{"pause": NaN}'}, "content", "NaN is not JSON"),
            ({"kind": "cron"}, "cron", "Write a crontab"),
            ({"kind": "cron", "cron": "61 * * * *"}, "cron", "is no crontab"),
            ({"kind": "cron", "cron": "* * * * *", "timezone": "Mars"}, "timezone", "Mars"),
            ({"kind": "once"}, "run_at", "Give a time"),
            ({"kind": "once", "run_at": "soon"}, "run_at", "valid date"),
            ({"kind": ""}, "kind", "is required"),
            ({"interval_count": "0"}, "interval_count", "1"),
            ({"interval_count": "2147483647", "interval_type": "days"}, "interval_count", "years"),
            ({"interval_count": "9" * 30}, "interval_count", "less than"),
            (
                {"start_time": "2030-01-07T12:00", "end_time": "2030-01-07T11:00"},
                "end_time",
                "not after",
            ),
            ({"start_time": "9999-12-31T23:59:59"}, "start_time", "years 2 to 9998"),
            ({"kind": "once", "run_at": "0001-01-01T00:00:00"}, "run_at", "years 2 to 9998"),
            ({"queue": "gone"}, "queue", "gone"),
            ({"priority": "256"}, "priority", "255"),
            ({"misfire": "never"}, "misfire", "never"),
            ({"routing_key": "x" * 256}, "routing_key", "255"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_would_not_run_is_told_at_its_field(
        self, typed: dict[str, str], field: str, text: str
    ) -> None:
        answer = new(operator(), **typed)
        assert answer.status_code == 200
        assert text in answer.context["form"].errors[field][0]
        assert not ScheduledTask.objects.exists()
        assert not OperatorAction.objects.exists()
        # What was typed is still there, and what is wrong is told while somebody types.
        assert answer.context["form"]["misfire"].value() == typed.get("misfire", "run_once")
        is_gap = text in ("is required", "Write a crontab", "Give a time")
        assert (field in answer.context["form"].faults()) is not is_gap

    def test_a_name_is_there_once(self) -> None:
        schedule()
        answer = new(operator())
        assert "of this name already" in text_of(answer)
        assert ScheduledTask.objects.count() == 1

    def test_a_name_that_is_taken_at_the_last_moment_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look at the names and the insertion."""
        schedule()
        monkeypatch.setattr(ScheduleForm, "validate_unique", lambda _: None)
        answer = new(operator())
        assert "has just taken this name" in text_of(answer)
        assert ScheduledTask.objects.count() == 1

    def test_only_tasks_of_the_settings_modules_can_be_chosen(self, settings: Any) -> None:
        seen = text_of(operator().get(reverse("carrot-schedule-new")))
        assert f'value="{EFFECT}"' in seen
        # Neither what a module imports, nor its classes and private functions.
        assert "tests.project.tasks.periodic_task" not in seen
        settings.CARROT = {
            **CARROT,
            "task_modules": ["no.such.module", "tests.project.misbehaving"],
        }
        assert registered_tasks.functions().keys() == {"tests.project.misbehaving"}

    def test_a_task_that_has_left_the_settings_can_be_kept_but_is_not_imported(self) -> None:
        one = schedule(task="antigravity.fly", task_args="[]")
        client = operator()
        assert change(client, one, task="antigravity.fly", overlap="skip").status_code == 302
        assert read(one).overlap == "skip"
        assert change(client, one, task="antigravity.walk").status_code == 200
        assert "antigravity" not in sys.modules

    def test_while_somebody_types_the_plan_and_the_faults_come_without_a_page(self) -> None:
        client = operator()
        sent = {**TYPED, "task_name": "", "kind": "cron", "cron": "30 2 * * *", "task_args": "["}
        answer = client.post(
            reverse("carrot-schedule-new"),
            {**sent, "timezone": "Europe/Berlin"},
            headers={"HX-Request": "true"},
        )
        seen = text_of(answer)
        assert answer.status_code == 200
        assert "<html" not in seen
        assert "At 02:30 every day" in seen
        assert len(answer.context["plan"].runs) == 5
        assert "effect(key" in seen
        assert 'innerHTML:#error-task_args">These arguments are not JSON' in seen
        # A field that is still empty is no fault yet.
        assert 'innerHTML:#error-task_name"></div>' in seen
        assert not ScheduledTask.objects.exists()

    def test_the_preview_works_without_scripts_and_saves_nothing(self) -> None:
        answer = new(operator(), preview="1")
        assert "<html" in text_of(answer)
        runs = [run.when for run in answer.context["plan"].runs]
        assert [later - one for one, later in pairwise(runs)] == [timedelta(minutes=5)] * 4
        assert not ScheduledTask.objects.exists()

    def test_the_preview_of_a_schedule_starts_with_its_next_run_until_that_changes(self) -> None:
        slot = timezone.now().replace(microsecond=0) + timedelta(seconds=77)
        one = schedule(next_run_time=slot)
        client = operator()
        opened = client.get(reverse("carrot-schedule-edit", args=[one.pk])).context["plan"]
        kept = change(client, one, preview="1", overlap="skip").context["plan"]
        assert opened.runs[0].when == kept.runs[0].when == slot
        moved = change(client, one, preview="1", interval_count="6").context["plan"]
        assert moved.runs[0].when > slot + timedelta(minutes=4)
        assert read(one).interval_count == 5

    def test_what_is_over_has_no_run(self) -> None:
        answer = new(operator(), preview="1", end_time="2020-01-01T00:00:00")
        assert "No run is to come" in text_of(answer)


class TestEdit:
    def test_what_was_edited_is_saved_and_noted_and_the_scheduler_is_left_alone(self) -> None:
        slot = timezone.now() + timedelta(minutes=3)
        one = schedule(next_run_time=slot)
        client = operator()
        assert change(client, one, overlap="skip", priority="3").status_code == 302
        now = read(one)
        assert (now.overlap, now.priority, now.next_run_time) == ("skip", 3, slot)
        assert noted() == [("olga", "change schedule", "nightly: Overlapping runs, Priority")]
        assert change(client, one, interval_count="6", overlap="skip").status_code == 302
        assert read(one).next_run_time is None

    def test_the_scheduler_may_go_on_meanwhile(self) -> None:
        one = schedule()
        opened = version_of(read(one))
        later = timezone.now() + timedelta(hours=1)
        ScheduledTask.objects.filter(pk=one.pk).update(
            next_run_time=later, last_run_time=timezone.now(), last_log=uuid4(), problem="no"
        )
        assert change(operator(), one, opened, priority="3").status_code == 302
        assert read(one).priority == 3

    def test_what_somebody_else_has_changed_is_told_and_not_lost(self) -> None:
        one = schedule()
        opened = version_of(read(one))
        ScheduledTask.objects.filter(pk=one.pk).update(routing_key="theirs")
        client = operator()
        answer = change(client, one, opened, priority="3")
        assert answer.status_code == 409
        seen = text_of(answer)
        assert "changed this schedule meanwhile" in seen
        assert "theirs" in seen
        assert (read(one).routing_key, read(one).priority) == ("theirs", 0)
        assert not OperatorAction.objects.exists()
        # Once that was read, the second try counts.
        again = change(client, one, answer.context["version"], priority="3")
        assert again.status_code == 302
        assert (read(one).routing_key, read(one).priority) == ("", 3)

    def test_one_that_was_deleted_meanwhile_can_be_made_anew(self) -> None:
        one = schedule()
        opened = version_of(one)
        one.delete()
        client = operator()
        address = reverse("carrot-schedule-edit", args=[4711])
        answer = client.post(address, {**TYPED, "version": opened, "priority": "3"})
        assert answer.status_code == 409
        seen = text_of(answer)
        assert "deleted meanwhile" in seen
        assert f'action="{reverse("carrot-schedule-new")}"' in seen
        assert answer.context["form"]["priority"].value() == "3"
        assert not ScheduledTask.objects.exists()

    def test_a_time_that_was_not_touched_keeps_its_microseconds(self) -> None:
        start = datetime(2030, 1, 7, 12, 0, 0, 123456, tzinfo=UTC)
        one = schedule(start_time=start)
        slot = read(one).next_run_time
        client = operator()
        assert (
            change(client, one, start_time="2030-01-07T12:00:00", priority="3").status_code == 302
        )
        assert read(one).start_time == start
        assert read(one).next_run_time == slot

    def test_one_of_the_code_keeps_its_name_and_says_what_becomes_of_edits(self) -> None:
        one = schedule(declaration="{}")
        client = operator()
        seen = text_of(client.get(reverse("carrot-schedule-edit", args=[one.pk])))
        assert "then the code has its way" in seen
        assert change(client, one, task_name="other", priority="3").status_code == 302
        assert (read(one).task_name, read(one).priority) == ("nightly", 3)


class TestActions:
    def act(self, one: ScheduledTask, what: str, client: Client | None = None, **get: str) -> Any:
        address = reverse(f"carrot-schedule-{what}", args=[one.pk])
        return (client or operator()).post(address, query_params=get)

    def test_run_now(self) -> None:
        one = schedule(active=False)
        answer = self.act(one, "run")
        row = MessageLog.objects.get()
        assert (row.task, row.positionals) == (EFFECT, ("k",))
        assert read(one).last_log == row.pk
        assert read(one).active is False
        assert answer.headers["Location"] == reverse("carrot-schedule", args=[one.pk])
        assert noted() == [("olga", "run schedule", f"nightly as {row.pk}")]

    @pytest.mark.parametrize("fields", [{"task": "no.such.task"}, {"queue": "gone"}])
    def test_one_that_cannot_run_says_why(self, fields: dict[str, str]) -> None:
        answer = self.act(schedule(**fields), "run")
        assert answer.status_code == 400
        assert next(iter(fields.values())).rpartition(".")[0] in text_of(answer)
        assert not MessageLog.objects.exists()
        assert not OperatorAction.objects.exists()

    def test_off_and_on(self) -> None:
        one = schedule()
        client = operator()
        self.act(one, "off", client)
        # Twice is once.
        self.act(one, "off", client)
        assert read(one).active is False
        self.act(one, "on", client)
        # Planned anew: slots that passed meanwhile are not made up for.
        assert (read(one).active, read(one).next_run_time) == (True, None)
        assert [(action, target) for _, action, target in noted()] == [
            ("switch off schedule", "nightly"),
            ("switch on schedule", "nightly"),
        ]

    def test_one_that_is_over_is_not_switched_on(self) -> None:
        one = schedule(active=False, end_time=timezone.now() - timedelta(days=1))
        answer = self.act(one, "on")
        assert answer.status_code == 400
        assert "is over" in text_of(answer)
        assert read(one).active is False

    def test_nor_is_one_that_no_calendar_knows(self) -> None:
        end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
        one = schedule(active=False, cron="0 0 31 12 *", start_time=end)
        assert self.act(one, "on").status_code == 400
        # Its page is there: it can be changed, or deleted.
        assert operator("a").get(reverse("carrot-schedule", args=[one.pk])).status_code == 200

    def test_delete_asks_first(self) -> None:
        one = schedule()
        client = operator()
        address = reverse("carrot-schedule-delete", args=[one.pk])
        assert "cannot be undone" in text_of(client.get(address))
        assert ScheduledTask.objects.exists()
        assert self.act(one, "delete", client).headers["Location"] == reverse(LIST)
        assert not ScheduledTask.objects.exists()
        assert noted() == [("olga", "delete schedule", "nightly")]

    def test_of_one_in_the_code_it_says_that_it_comes_back(self) -> None:
        one = schedule(declaration="{}")
        address = reverse("carrot-schedule-delete", args=[one.pk])
        assert "made again when a service starts" in text_of(operator().get(address))

    def test_from_the_list_it_leads_back_to_it_and_nowhere_else(self) -> None:
        one = schedule()
        here = f"{reverse(LIST)}?after=abc"
        assert self.act(one, "off", operator("a"), back=here).headers["Location"] == here
        own = reverse("carrot-schedule", args=[one.pk])
        client = operator("b")
        for strange in ("https://evil.example/", "//evil.example/some/where/", "/elsewhere/"):
            assert self.act(one, "off", client, back=strange).headers["Location"] == own

    def test_each_change_takes_its_permission(self) -> None:
        one = schedule()
        client = client_of(access.VIEW, access.ACT, access.PURGE)
        before = version_of(one)
        answers = [self.act(one, what, client) for what in ("run", "on", "off", "delete")]
        answers += [new(client, task_name="other"), change(client, one, priority="3")]
        answers += [
            client.get(reverse("carrot-schedule-new")),
            client.get(reverse("carrot-schedule-edit", args=[one.pk])),
            client.get(reverse("carrot-schedule-delete", args=[one.pk])),
        ]
        for answer in answers:
            assert answer.status_code == 403
            assert access.SCHEDULE in text_of(answer)
        assert version_of(ScheduledTask.objects.get()) == before
        assert not MessageLog.objects.exists()
        assert not OperatorAction.objects.exists()

    def test_by_get_nothing_is_done(self) -> None:
        one = schedule()
        client = operator()
        for what in ("run", "on", "off"):
            assert client.get(reverse(f"carrot-schedule-{what}", args=[one.pk])).status_code == 405

    def test_a_form_of_another_site_does_nothing(self) -> None:
        one = schedule()
        seen = operator()
        client = Client(enforce_csrf_checks=True)
        client.cookies = seen.cookies
        for what in ("run", "off", "delete"):
            assert self.act(one, what, client).status_code == 403
        assert new(client, task_name="other").status_code == 403
        assert change(client, one, priority="3").status_code == 403
        assert [*ScheduledTask.objects.values_list("active", "priority")] == [(True, 0)]


def test_hostile_texts_are_text() -> None:
    bad = "<script>alert(1)</script>"
    one = schedule(
        f'"{bad}',
        task=bad,
        cron=bad,
        timezone=bad,
        queue=bad,
        exchange=bad,
        routing_key=bad,
        task_args=bad,
        content=bad,
        problem=bad,
        declaration="{}",
    )
    client = operator()
    addresses = [
        reverse(LIST),
        f"{reverse(LIST)}?q={bad}&after={bad}&state={bad}",
        reverse("carrot-schedule", args=[one.pk]),
        reverse("carrot-schedule-edit", args=[one.pk]),
        reverse("carrot-schedule-delete", args=[one.pk]),
    ]
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200
        assert bad not in text_of(answer), address
    typed = dict.fromkeys(TYPED, bad)
    for headers in ({}, {"HX-Request": "true"}):
        answer = client.post(reverse("carrot-schedule-new"), typed, headers=headers)
        assert answer.status_code == 200
        assert bad not in text_of(answer)


def test_the_form_is_of_all_fields_that_people_write() -> None:
    """A field that the model gets must not be forgotten here."""
    own = {"id", "declaration", *ScheduledTask.OWNED}
    fields = {field.name for field in ScheduledTask._meta.concrete_fields}
    assert {*ScheduleForm.Meta.fields} == fields - own
