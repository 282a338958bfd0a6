# SPDX-License-Identifier: Apache-2.0
"""The record of a task: its id, what can be read from it, and publishing it again."""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from django.core.management import call_command
from django.db import transaction
from hypothesis import example, given
from hypothesis import strategies as st

from carrot_twisted import wire
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.identities import message_id
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import create_message
from tests.unit.test_wire import any_texts, json_values

if TYPE_CHECKING:
    from tests.unit.conftest import RecordingPublisher

NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


# message_id


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_999_999)
    for noise in (bytes(10), b"\xff" * 10, bytes(range(10))):
        monkeypatch.setattr(os, "urandom", lambda size, noise=noise: noise[:size])
        one = message_id()
        assert (one.version, one.variant) == (7, uuid.RFC_4122)
        assert one.int >> 80 == 1_700_000_000_123


def test_ids_are_unique_and_of_many_random_bits() -> None:
    ids = {message_id() for _ in range(5000)}
    assert len(ids) == 5000
    varying = 0
    first = next(iter(ids)).int
    for one in ids:
        varying |= one.int ^ first
    assert (varying & ((1 << 76) - 1)).bit_count() == 74


def test_ids_of_later_milliseconds_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for milliseconds in (0, 1, 255, 256, 65_536, 1_700_000_000_000, 2**47):
        monkeypatch.setattr(time, "time_ns", lambda now=milliseconds: now * 1_000_000)
        ids.append(message_id())
    assert ids == sorted(ids)
    assert [str(one) for one in ids] == sorted(str(one) for one in ids)


# What can be read from a row.


def test_arguments_are_read_from_json() -> None:
    log = MessageLog(task_args='[1, ["a, b"]]', content='{"a": {"b": null}}')
    assert log.positionals == (1, ["a, b"])
    assert log.keywords == {"a": {"b": None}}


def test_without_arguments_they_are_empty() -> None:
    for log in (MessageLog(), MessageLog(task_args="", content="")):
        assert (log.positionals, log.keywords) == ((), {})


@pytest.mark.parametrize("args", [(), (1,), ("a, b", [1, 2]), (True, None, {"foo": "bar"})])
def test_a_row_of_django_carrot_holds_the_text_of_a_tuple(args: tuple[Any, ...]) -> None:
    assert MessageLog(task_args=str(args)).positionals == args


@pytest.mark.parametrize(
    ("published", "started", "wait"),
    [(0, None, None), (0, 2.5, 2.5), (0, 0, 0), (5, 3, 0)],
)
def test_queue_wait_is_from_publishing_to_the_start(
    published: float, started: float | None, wait: float | None
) -> None:
    """Never below zero: a retry may have been published on another clock."""
    log = MessageLog(
        publish_time=after(published), start_time=None if started is None else after(started)
    )
    assert log.queue_wait == (None if wait is None else timedelta(seconds=wait))


def test_run_time_is_from_the_start_to_the_end() -> None:
    assert MessageLog().run_time is None
    assert MessageLog(start_time=after(1)).run_time is None
    assert MessageLog(completion_time=after(1)).run_time is None
    completed = MessageLog(start_time=after(1), completion_time=after(3))
    failed = MessageLog(start_time=after(1), failure_time=after(4))
    backwards = MessageLog(start_time=after(9), failure_time=after(4))
    assert completed.run_time == timedelta(seconds=2)
    assert failed.run_time == timedelta(seconds=3)
    assert backwards.run_time == timedelta(0)


def test_the_virtual_host_is_a_url_without_the_password(settings: Any) -> None:
    settings.CARROT = {
        "queues": [{"name": "default", "host": "amqps://me:s3cr3t@h:1/v"}],
    }
    assert MessageLog(queue="default").virtual_host == "amqps://me@h:1/v"


def test_of_a_queue_that_left_the_settings_there_is_none() -> None:
    assert MessageLog(queue="gone").virtual_host is None


def test_a_row_reads_as_its_task() -> None:
    assert str(MessageLog(task="app.tasks.work")) == "app.tasks.work"


def test_the_choices_are_the_states() -> None:
    states = {value for value, _ in MessageLog.STATUS_CHOICES}
    assert states == {*MessageLog.UNFINISHED, *MessageLog.FINAL}
    assert not {*MessageLog.UNFINISHED} & {*MessageLog.FINAL}


# In the database.


@pytest.mark.django_db
def test_the_migrations_are_complete() -> None:
    call_command("makemigrations", "carrot_twisted", check=True, dry_run=True, verbosity=0)


@pytest.mark.django_db
def test_the_questions_of_the_query_set() -> None:
    for status in (*MessageLog.UNFINISHED, *MessageLog.FINAL):
        for confirmed in (None, NOW):
            MessageLog.objects.create(
                task="t", queue="default", status=status, confirmed_at=confirmed
            )
    assert MessageLog.objects.unfinished().count() == 4
    (unsent,) = MessageLog.objects.unsent()
    assert (unsent.status, unsent.confirmed_at) == ("PUBLISHED", None)


@pytest.mark.django_db
@pytest.mark.parametrize("status", [*MessageLog.UNFINISHED, *MessageLog.FINAL])
def test_requeue_makes_a_new_row_that_names_the_old_one_and_deletes_that(status: str) -> None:
    old = MessageLog.objects.create(
        task="app.work",
        task_args="[1]",
        content='{"a": 2}',
        exchange="x",
        queue="other",
        routing_key="key",
        priority=7,
        status=status,
        attempts=3,
        crashes=2,
        worker="w",
        token=5,
        start_time=NOW,
        failure_time=NOW,
        exception="no",
        confirmed_at=NOW,
    )
    pk = old.pk
    new = old.requeue()
    assert list(MessageLog.objects.all()) == [new]
    new.refresh_from_db()
    assert new.retry_of == pk != new.pk
    assert (new.status, new.task, new.queue) == ("PUBLISHED", "app.work", "other")
    assert (new.exchange, new.routing_key, new.priority) == ("x", "key", 7)
    assert (new.task_args, new.content) == ("[1]", '{"a": 2}')
    assert (new.attempts, new.crashes, new.worker) == (0, 0, "")
    assert new.token not in (None, 5)
    assert (new.start_time, new.failure_time, new.exception, new.confirmed_at) == (None,) * 4


@pytest.mark.django_db(transaction=True)
def test_the_new_row_is_handed_over_when_the_old_one_is_gone(
    handed_over: RecordingPublisher,
) -> None:
    old = MessageLog.objects.create(task="app.work", queue="default")
    with transaction.atomic():
        new = old.requeue()
        assert handed_over.rows == []
    assert handed_over.rows == [new]


@pytest.mark.django_db(transaction=True)
def test_where_the_old_row_cannot_be_deleted_there_is_no_new_one(
    monkeypatch: pytest.MonkeyPatch, handed_over: RecordingPublisher
) -> None:
    old = MessageLog.objects.create(task="app.work", queue="default")
    monkeypatch.setattr(MessageLog, "delete", lambda self, using: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        old.requeue()
    assert list(MessageLog.objects.all()) == [old]
    assert handed_over.rows == []


@pytest.mark.django_db(transaction=True)
def test_a_row_is_requeued_once(handed_over: RecordingPublisher) -> None:
    """Two people may press the button, each on a page of his own."""
    MessageLog.objects.create(task="app.work", queue="default")
    one, two = MessageLog.objects.get(), MessageLog.objects.get()
    new = one.requeue()
    with pytest.raises(MessageLog.DoesNotExist, match="requeued or deleted meanwhile"):
        two.requeue()
    assert handed_over.rows == list(MessageLog.objects.all()) == [new]


@pytest.mark.django_db
def test_a_row_of_a_queue_that_left_the_settings_is_kept_when_requeued() -> None:
    old = MessageLog.objects.create(task="app.work", queue="gone", status="FAILED")
    with pytest.raises(CarrotConfigException, match="Cannot find queue called gone in"):
        old.requeue()
    assert list(MessageLog.objects.all()) == [old]


@pytest.mark.django_db
@pytest.mark.parametrize("wrong", [{"task_args": "5"}, {"content": "[1, 2]"}], ids=repr)
def test_a_row_whose_arguments_cannot_be_read_is_kept_when_requeued(wrong: dict[str, str]) -> None:
    old = MessageLog.objects.create(task="app.work", queue="default", **wrong)
    with pytest.raises(InvalidMessage):
        old.requeue()
    assert list(MessageLog.objects.all()) == [old]


@pytest.mark.django_db
def test_a_row_of_django_carrot_is_requeued_as_it_was_sent() -> None:
    """Its text of a tuple becomes the JSON of its message, where inner tuples were lists."""
    old = MessageLog.objects.create(
        task="app.work", queue="default", task_args="('a, b', [1, 2], (3,), None)"
    )
    assert json.loads(old.requeue().task_args) == ["a, b", [1, 2], [3], None]


@pytest.mark.defect(25)
@pytest.mark.django_db
@pytest.mark.parametrize(
    "args",
    [["a, b"], [[1, 2], [3]], [{"a": 1, "b": 2}], [None], ["é 漢\x00\ud800'\""], []],
    ids=repr,
)
def test_arguments_with_commas_can_be_requeued(args: list[Any]) -> None:
    """django-carrot split its text at every comma; one such row made "retry all" fail half-way."""
    old = MessageLog.objects.create(
        task="app.work", queue="default", task_args=wire.exact_json(args, "args")
    )
    new = old.requeue()
    new.refresh_from_db()
    assert new.positionals == tuple(args)


@pytest.mark.defect(26)
@pytest.mark.parametrize(
    "text", ["5", '{"a": 1}', "('a'", "a, b", "x" * 10_000, '"text"', "1," * 60_000, "(" * 5000]
)
def test_arguments_that_are_no_list_or_object_are_told(text: str) -> None:
    """django-carrot stored any JSON and met an error when it published it."""
    log = MessageLog(task_args=text, content="[1, 2]")
    with pytest.raises(InvalidMessage, match="Positional arguments are a JSON list, not "):
        _ = log.positionals
    with pytest.raises(InvalidMessage, match=r"Keyword arguments are a JSON object, not '\[1, 2"):
        _ = log.keywords
    schedule = ScheduledTask(task_args=text, content="[1, 2]")
    with pytest.raises(InvalidMessage):
        _ = schedule.positional_arguments
    with pytest.raises(InvalidMessage):
        _ = schedule.keyword_arguments


@given(
    st.lists(json_values | any_texts, max_size=3),
    st.dictionaries(any_texts, json_values | any_texts, max_size=3),
)
def test_requeued_arguments_are_exactly_equal(args: list[Any], kwargs: dict[str, Any]) -> None:
    """Whatever was accepted. Without a database: the row is what counts."""
    try:
        old = MessageLog(
            task_args=wire.exact_json(args, "args"), content=wire.exact_json(kwargs, "kwargs")
        )
    except InvalidMessage:
        return
    kept: list[MessageLog] = []
    again = _requeue_without_database(old, kept)
    assert kept == [again]
    assert repr(again.positionals) == repr(tuple(args))
    assert repr(again.keywords) == repr(kwargs)
    body = wire.body(again.task_args, again.content)
    assert [*wire.arguments(body)[0]] == args
    assert wire.arguments(body)[1] == kwargs
    assert json.loads(again.task_args) == args


@pytest.mark.django_db
@hypothesis.settings(max_examples=25)
@given(
    st.lists(json_values | any_texts, max_size=3),
    st.dictionaries(any_texts, json_values | any_texts, max_size=3),
)
@example(["a, b", [1, [2, 3]], {"k": 1, "l": 2}, None, "é漢\x00\ud800"], {"x, y": {"a": 1, "b": 2}})
def test_what_was_published_can_be_requeued_in_every_database(
    args: list[Any], kwargs: dict[str, Any]
) -> None:
    try:
        message = create_message(
            "tests.project.tasks.noop", "other", 7, args, "x", "key", task_kwargs=kwargs
        )
    except InvalidMessage:
        return
    old = MessageLog.objects.get(pk=message.publish().pk)
    new = MessageLog.objects.get(pk=old.requeue().pk)
    assert repr((new.positionals, new.keywords)) == repr((tuple(args), kwargs))
    assert (new.queue, new.priority, new.exchange, new.routing_key) == ("other", 7, "x", "key")


def _requeue_without_database(old: MessageLog, kept: list[MessageLog]) -> MessageLog:
    class Manager:
        def using(self, alias: str) -> Manager:
            return self

        def enqueue(self, rows: list[MessageLog]) -> list[MessageLog]:
            kept.extend(rows)
            return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MessageLog, "objects", Manager())
        patch.setattr(MessageLog, "delete", lambda self, using: (1, {}))
        patch.setattr(transaction, "atomic", _Nothing)
        return old.requeue()


class _Nothing:
    def __init__(self, using: str) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_new_row_is_what_django_makes_by_name() -> None:
    given = {"task": "app.work", "task_args": "[1]", "queue": "q", "priority": 3}
    new, other = MessageLog.new(**given), MessageLog(**given)
    assert new.pk != MessageLog.new(**given).pk
    assert new._state.adding
    assert vars(new).keys() == vars(other).keys()
    for field in MessageLog._meta.concrete_fields:
        one, two = getattr(new, field.attname), getattr(other, field.attname)
        # The database's own defaults are expressions, which do not compare.
        assert type(one) is type(two)
        assert field.primary_key or field.has_db_default() or one == two
    with pytest.raises(KeyError, match="colour"):
        MessageLog.new(colour="red")
