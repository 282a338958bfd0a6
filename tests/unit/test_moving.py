# SPDX-License-Identifier: Apache-2.0
"""What one row of django-carrot becomes: the same task, or a refusal with its reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from django.db.models.functions import Now

from carrot_twisted import old_rows
from carrot_twisted.exceptions import InvalidMessage, PoisonMessage
from carrot_twisted.message_log import MAX_TASK
from carrot_twisted.models import MessageLog
from carrot_twisted.old_tables import OldMessageLog, OldScheduledTask

TASK = "tests.project.tasks.echo"
LONG_AGO = datetime(2019, 4, 14, 12, 0, tzinfo=UTC)


def old_log(**fields: Any) -> OldMessageLog:
    given: dict[str, Any] = {
        "pk": 1,
        "status": "PUBLISHED",
        "uuid": str(uuid4()),
        "task": TASK,
        "task_args": "()",
        "content": "{}",
        "queue": "default",
        "routing_key": "default",
        "exchange": "",
        "priority": 0,
        "publish_time": LONG_AGO,
    }
    return OldMessageLog(**{**given, **fields})


def old_schedule(**fields: Any) -> OldScheduledTask:
    given: dict[str, Any] = {
        "pk": 7,
        "task_name": "nightly",
        "task": TASK,
        "interval_type": "minutes",
        "interval_count": 5,
        "active": True,
    }
    return OldScheduledTask(**{**given, **fields})


def test_a_log_keeps_its_id_and_all_that_its_message_says() -> None:
    old = old_log(exchange="x", routing_key="r", priority=9, queue="other")
    new = old_rows.new_log(old)
    assert str(new.pk) == old.uuid
    assert (new.status, new.task, new.queue) == (MessageLog.PUBLISHED, TASK, "other")
    assert (new.exchange, new.routing_key, new.priority) == ("x", "r", 9)
    assert new.publish_time == LONG_AGO


def test_a_published_log_waits_for_its_message_and_a_running_one_gets_a_new_one() -> None:
    assert isinstance(old_rows.new_log(old_log()).confirmed_at, Now)
    running = old_rows.new_log(old_log(status="IN_PROGRESS"))
    assert (running.status, running.confirmed_at) == (MessageLog.PUBLISHED, None)


def test_a_finished_log_keeps_its_end_whatever_the_settings_say_today() -> None:
    new = old_rows.new_log(
        old_log(
            status="FAILED",
            task="gone.tasks.work",
            queue="gone",
            exception="no\x00",
            traceback="Traceback",
            log="line",
            failure_time=LONG_AGO,
        )
    )
    assert (new.status, new.exception, new.traceback) == ("FAILED", "no\\x00", "Traceback")
    assert (new.log, new.output, new.failure_time) == ("line", None, LONG_AGO)


@pytest.mark.defect(25)
@pytest.mark.parametrize(
    ("stored", "arguments"),
    [
        (None, []),
        ("()", []),
        ("('a, b',)", ["a, b"]),
        ("([1, 2], {'x': 1, 'y': (None, True)})", [[1, 2], {"x": 1, "y": [None, True]}]),
        ("[1, 'two']", [1, "two"]),
        ("({1: 2.5},)", [{"1": 2.5}]),
    ],
)
def test_the_text_of_a_tuple_becomes_what_its_message_said(stored: Any, arguments: Any) -> None:
    assert json.loads(old_rows.new_log(old_log(task_args=stored)).task_args) == arguments


@pytest.mark.parametrize("stored", [None, "", "{}", '"{}"', '""'])
def test_no_keyword_arguments_were_stored_in_many_ways(stored: Any) -> None:
    assert old_rows.new_log(old_log(content=stored)).content == "{}"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"uuid": "17"}, "uuid '17' is no UUID"),
        ({"task_args": "(datetime.date(2019, 4, 14),)"}, "runs with an AdoptingConsumer"),
        ({"task_args": "({1, 2},)"}, "({1, 2},) cannot be read back"),
        ({"task_args": "(1e999,)"}, "cannot be read back"),
        ({"task_args": "'text'"}, "cannot be read back"),
        ({"task_args": "(" * 500}, "cannot be read back"),
        ({"content": "[1]"}, "no JSON object"),
        ({"content": "{'a': 1}"}, "are not JSON"),
        ({"content": '{"a": NaN}'}, "cannot be sent"),
        ({"queue": "gone"}, "Cannot find queue called gone"),
        ({"task": "os.mkdir"}, "'os' is not in CARROT['task_modules']"),
        ({"task": ""}, "is not in CARROT['task_modules']"),
        ({"priority": 256}, "never was published"),
    ],
)
def test_a_log_that_cannot_be_taken_over_says_why(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        old_rows.new_log(old_log(**fields))
    assert reason in str(caught.value)


def test_the_message_has_the_arguments_that_the_row_cannot_tell() -> None:
    body = b'{"args": [{"\xc3\xa4": 1}], "kwargs": {"k": null}}'
    new = old_rows.new_log(
        old_log(task_args="(OrderedDict(),)", content="?"), old_rows.message_arguments(body)
    )
    assert (new.positionals, new.keywords) == (({"ä": 1},), {"k": None})
    assert old_rows.message_arguments(b"{}") == ("[]", "{}")
    with pytest.raises(PoisonMessage):
        old_rows.message_arguments(b"?")


def test_a_schedule_stays_what_it_was() -> None:
    new = old_rows.new_schedule(
        old_schedule(queue="other", routing_key="r", exchange="x", content='{"a": 1}'), "nightly"
    )
    schedule = new.schedule
    assert (schedule.task_name, schedule.task) == ("nightly", TASK)
    assert schedule.interval_display == "Every 5 minutes"
    assert (schedule.queue, schedule.routing_key, schedule.exchange) == ("other", "r", "x")
    assert (schedule.positional_arguments, schedule.keyword_arguments) == ((), {"a": 1})
    assert schedule.active
    assert (new.trouble, new.note) == ("", "")
    idle = old_rows.new_schedule(old_schedule(active=False), "idle")
    assert (idle.schedule.active, idle.trouble) == (False, "")


@pytest.mark.defect(23)
@pytest.mark.parametrize(
    ("text", "arguments", "note"),
    [
        (None, [], ""),
        (" ", [], ""),
        ("True, 1, 'test', {'foo': 'bar'}", [True, 1, "test", {"foo": "bar"}], "as texts"),
        ("'a, b',", ["a, b"], "as texts"),
        ("[1, 2], {'x': 1, 'y': 2}", [[1, 2], {"x": 1, "y": 2}], "as texts"),
        ("hello, 1", ["hello", "1"], "no literals, and stay texts"),
        ("{1, 2}", ["{1", "2}"], "no literals, and stay texts"),
    ],
)
def test_arguments_of_a_schedule_are_literals_as_documented(
    text: Any, arguments: list[Any], note: str
) -> None:
    new = old_rows.new_schedule(old_schedule(task_args=text), "nightly")
    assert list(new.schedule.positional_arguments) == arguments
    assert note in new.note
    assert bool(new.note) is bool(note)


@pytest.mark.parametrize(
    ("fields", "trouble", "interval"),
    [
        ({"interval_type": "weeks"}, "'weeks' is unknown", "Every 5 days"),
        ({"interval_count": 0}, "the interval was 0", "Every 1 minute"),
        ({"queue": "gone"}, "Cannot find queue called gone", "Every 5 minutes"),
        ({"task": "os.mkdir"}, "'os' is not in", "Every 5 minutes"),
        ({"task": "tests.project.tasks.gone"}, "function called gone", "Every 5 minutes"),
    ],
)
def test_a_schedule_that_would_do_something_else_is_switched_off(
    fields: dict[str, Any], trouble: str, interval: str
) -> None:
    new = old_rows.new_schedule(old_schedule(**fields), "nightly")
    assert trouble in new.trouble
    assert not new.schedule.active
    assert new.schedule.interval_display == interval


def test_a_schedule_whose_keyword_arguments_are_lost_says_so_or_is_refused() -> None:
    new = old_rows.new_schedule(old_schedule(content='"some text"'), "nightly")
    assert new.schedule.keyword_arguments == {}
    assert "never passed" in new.note
    with pytest.raises(InvalidMessage, match="no JSON object"):
        old_rows.new_schedule(old_schedule(content="[1, 2]"), "nightly")


def test_a_made_name_is_the_same_in_every_run_and_nobody_elses() -> None:
    assert old_rows.made_name(old_schedule(), set()) == f"{TASK}-7"
    assert old_rows.made_name(old_schedule(), {f"{TASK}-7"}) == f"{TASK}-7-7"
    long = old_rows.made_name(old_schedule(task="x" * 200), set())
    assert len(long) == MAX_TASK
    assert long.endswith("x-7")
