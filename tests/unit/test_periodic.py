# SPDX-License-Identifier: Apache-2.0
"""Schedules that live in the code: what is refused there, and how rows follow the code."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from carrot_twisted import periodic, schedules
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.periodic import periodic_task, sync
from tests.project.tasks import echo, noop

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
NOOP, ECHO = "tests.project.tasks.noop", "tests.project.tasks.echo"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No declarations but the test's."""
    empty: dict[str, Any] = {}
    monkeypatch.setattr(periodic, "_declared", empty)
    return empty


def names() -> list[str]:
    return list(ScheduledTask.objects.order_by("task_name").values_list("task_name", flat=True))


# Declarations


def test_the_function_stays_what_it_is() -> None:
    assert periodic_task(minutes=5)(noop) is noop


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "exactly one of seconds, minutes, hours, days and cron"),
        ({"seconds": 1, "hours": 1}, "exactly one of"),
        ({"seconds": 1, "cron": "* * * * *"}, "exactly one of"),
        ({"seconds": 0}, "a whole number, 1 or more, not 0"),
        ({"days": 1.5}, "a whole number"),
        ({"cron": "often"}, "is no crontab"),
        ({"cron": "* * * * *", "timezone": "Mars"}, "no time zone 'Mars'"),
        ({"hours": 1, "timezone": "Europe/Berlin"}, "only together with cron"),
        ({"hours": 1, "priority": 256}, "from 0 to 255"),
        ({"hours": 1, "args": [object()]}, "cannot be sent as JSON"),
        ({"hours": 1, "kwargs": {1: 2}}, "would arrive changed"),
        ({"hours": 1, "misfire": "perhaps"}, "must be run_once or skip"),
        ({"hours": 1, "overlap": "maybe"}, "must be allow or skip"),
        ({"hours": 1, "start_time": NOON, "end_time": NOON}, "end_time is not after"),
        ({"hours": 1, "start_time": datetime(2024, 1, 1)}, "a datetime with a time zone"),
        ({"hours": 1, "end_time": "2024-01-01"}, "a datetime with a time zone"),
        ({"hours": 1, "task_name": "x" * 201}, "at most 200 characters"),
        ({"hours": 1, "task_name": "a\x00b"}, "can be printed"),
        ({"seconds": 3_000_000_000}, "An interval is 2147483647 seconds"),
    ],
    ids=repr,
)
def test_a_bad_declaration_is_told_where_it_stands(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidMessage, match=text):
        periodic_task(**arguments)(noop)
    assert periodic._declared == {}


def test_an_unknown_queue_is_told() -> None:
    with pytest.raises(CarrotConfigException, match="gone"):
        periodic_task(hours=1, queue="gone")


def test_settings_without_the_default_queue_are_no_mistake_of_the_declaration(
    settings: Any,
) -> None:
    settings.CARROT = {"queues": [{"name": "mail"}]}
    periodic_task(hours=1)(noop)


@pytest.mark.parametrize("what", [lambda: None, "noop", type("C", (), {"m": noop})().m, 5])
def test_only_what_a_worker_can_find_is_decorated(what: Any) -> None:
    def nested() -> None: ...

    with pytest.raises(InvalidMessage, match="at the top of a module"):
        periodic_task(hours=1)(nested)
    if what is not getattr(what, "__func__", None) and not hasattr(what, "__self__"):
        with pytest.raises(InvalidMessage, match="at the top of a module"):
            periodic_task(hours=1)(what)


def test_a_name_is_given_once() -> None:
    periodic_task(hours=1, task_name="a")(noop)
    with pytest.raises(InvalidMessage, match="Two schedules are named 'a'"):
        periodic_task(hours=1, task_name="a")(echo)
    with pytest.raises(InvalidMessage, match="another task_name"):
        periodic_task(hours=2, task_name="a")(noop)
    periodic_task(hours=2, task_name="b")(noop)


def test_a_module_may_be_loaded_again(registry: dict[str, Any]) -> None:
    def again() -> None: ...

    again.__module__, again.__qualname__ = noop.__module__, noop.__qualname__
    periodic_task(hours=1)(noop)
    periodic_task(hours=2)(again)
    assert registry[NOOP].fields["interval_count"] == 2


# Rows


@pytest.mark.django_db
class TestSync:
    def test_what_is_missing_is_made(self) -> None:
        periodic_task(minutes=5)(noop)
        periodic_task(
            cron="30 2 * * *",
            timezone="Europe/Berlin",
            task_name="nightly",
            queue="other",
            priority=3,
            args=[1],
            kwargs={"a": 2},
            misfire="skip",
            overlap="skip",
            start_time=NOON,
        )(echo)
        sync("default")
        one, two = ScheduledTask.objects.order_by("interval_type")
        assert (one.task_name, one.task, one.interval_display) == (NOOP, NOOP, "Every 5 minutes")
        assert (two.task_name, two.task) == ("nightly", ECHO)
        assert two.interval_display == "Cron 30 2 * * * (Europe/Berlin)"
        assert (two.queue, two.priority, two.misfire, two.overlap) == ("other", 3, "skip", "skip")
        assert (two.positional_arguments, two.keyword_arguments) == ((1,), {"a": 2})
        assert (two.start_time, two.end_time) == (NOON, None)
        assert one.active
        assert two.active

    def test_it_is_published(self) -> None:
        periodic_task(seconds=1, args=[5])(echo)
        sync("default")
        schedules.publish_due("default")
        ScheduledTask.objects.update(next_run_time=NOON)
        schedules.publish_due("default")
        assert MessageLog.objects.get().positionals == (5,)

    def test_what_a_person_changed_stays_until_the_code_changes(
        self, registry: dict[str, Any]
    ) -> None:
        periodic_task(minutes=5)(noop)
        sync("default")
        ScheduledTask.objects.update(active=False, interval_count=7, next_run_time=NOON)
        sync("default")
        row = ScheduledTask.objects.get()
        assert (row.active, row.interval_count, row.next_run_time) == (False, 7, NOON)
        registry.clear()
        periodic_task(minutes=6)(noop)
        sync("default")
        row = ScheduledTask.objects.get()
        assert (row.active, row.interval_count, row.next_run_time) == (True, 6, None)

    def test_a_second_start_writes_nothing(self, django_assert_num_queries: Any) -> None:
        periodic_task(minutes=5, start_time=NOON)(noop)
        sync("default")
        with django_assert_num_queries(1):
            sync("default")

    def test_what_left_the_code_is_deleted_and_only_that(self, registry: dict[str, Any]) -> None:
        ScheduledTask.objects.create(task_name="by hand", task=NOOP)
        periodic_task(minutes=5, task_name="old")(noop)
        periodic_task(minutes=5, task_name="kept")(noop)
        sync("default")
        del registry["old"]
        sync("default")
        assert names() == ["by hand", "kept"]

    def test_one_made_by_hand_becomes_the_codes(self) -> None:
        """For those who turn create_scheduled_task into a decorator."""
        ScheduledTask.objects.create(
            task_name="a", task=ECHO, run_at=NOON, last_run_time=NOON, content='{"x": 1}'
        )
        periodic_task(hours=2, task_name="a")(noop)
        sync("default")
        row = ScheduledTask.objects.get()
        assert (row.task, row.interval_display, row.content) == (NOOP, "Every 2 hours", "{}")
        assert row.last_run_time == NOON

    def test_a_condition_decides_at_each_start(self) -> None:
        wanted = [True]
        periodic_task(hours=1, task_name="a", when=lambda: wanted[0])(noop)
        sync("default")
        assert names() == ["a"]
        wanted[0] = False
        sync("default")
        assert names() == []

    def test_a_condition_that_fails_leaves_all_as_it_is(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        answers = [True]
        periodic_task(hours=1, task_name="a", when=lambda: answers.pop())(noop)
        sync("default")
        periodic_task(hours=1, task_name="b")(noop)
        sync("default")
        assert names() == ["a", "b"]
        assert "'when' of schedule 'a' failed" in caplog.text

    def test_a_condition_that_does_not_end_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(periodic, "PATIENCE", 0.05)
        release = threading.Event()
        periodic_task(hours=1, task_name="a", when=lambda: release.wait(60))(noop)
        periodic_task(hours=1, task_name="b")(noop)
        assert sync("default")
        release.set()
        assert names() == ["b"]
        assert "'when' of schedule 'a' takes longer than 0.05 seconds" in caplog.text

    def test_one_that_the_database_refuses_stops_no_other(
        self, registry: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in "ab":
            periodic_task(hours=1, task_name=name)(noop)
        # Whatever the checks of a declaration let pass.
        registry["a"].fields["interval_count"] = 2**70
        assert sync("default")
        assert names() == ["b"]
        assert "The database refuses schedule 'a' of the code" in caplog.text

    def test_two_services_that_start_at_once_make_one_row(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other one's rows come between this one's question and its insert."""
        periodic_task(hours=1, task_name="a")(noop)
        store = periodic._store

        def slowly(*arguments: Any) -> None:
            monkeypatch.setattr(periodic, "_store", store)
            sync("default")
            store(*arguments)

        monkeypatch.setattr(periodic, "_store", slowly)
        sync("default")
        assert names() == ["a"]
