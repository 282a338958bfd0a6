# SPDX-License-Identifier: Apache-2.0
"""What a project subclasses: django-carrot's constructor, and callbacks that harm nobody."""

from __future__ import annotations

import contextlib
import inspect
import logging
from typing import Any
from uuid import uuid4

import pika
import pytest
from django.db import DatabaseError, transaction

from carrot_twisted import execution, task_logging
from carrot_twisted.consumer import Consumer, make_consumer
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.execution import Run
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import DefaultMessageSerializer
from carrot_twisted.service.serving import Properties
from carrot_twisted.virtual_host import VirtualHost

HOST = VirtualHost("amqp://u:p@h/v")


def consumer() -> Consumer:
    return Consumer(HOST, "default", logging.getLogger("carrot"), "default-consumer")


def run_of(log: MessageLog) -> Run:
    return Run(
        uuid=log.pk,
        token=1,
        task=log.task,
        task_args="[]",
        content="{}",
        queue="default",
        attempt=1,
        published=0.0,
        header=log.task,
        body=b"{}",
    )


def test_the_constructor_is_django_carrots() -> None:
    ours = inspect.signature(Consumer).parameters
    assert [(p.name, p.default) for p in ours.values()][:4] == [
        (name, inspect.Parameter.empty) for name in ("host", "queue", "logger", "name")
    ]
    assert [(p.name, p.default) for p in ours.values()][4:] == [
        ("durable", True),
        ("queue_arguments", None),
        ("exchange_arguments", None),
    ]


def test_it_knows_its_queue() -> None:
    one = Consumer(HOST, "q", logging.getLogger("x"), "q-consumer", False, {"a": 1}, {"b": 2})
    assert (one.host, one.queue, one.exchange, one.name) == (HOST, "q", "q", "q-consumer")
    assert (one.durable, one.queue_arguments, one.exchange_arguments) == (False, {"a": 1}, {"b": 2})
    assert one.logger.name == "x"


def test_two_consumers_share_no_callbacks() -> None:
    one, two = consumer(), consumer()
    one.add_failure_callback(lambda log, error: None)
    assert two.failure_callbacks == []
    assert two.failure_hook() is None
    assert one.failure_hook() is not None


@pytest.mark.django_db
class TestFailureCallbacks:
    @pytest.fixture
    def log(self) -> MessageLog:
        return MessageLog.objects.create(task="app.work", queue="default")

    def fail(self, one: Consumer, log: MessageLog, error: BaseException) -> None:
        hook = one.failure_hook()
        assert hook is not None
        hook(run_of(log), error)

    def test_each_is_called_in_order_with_the_log_and_the_error(self, log: MessageLog) -> None:
        one, error, called = consumer(), ValueError("no"), []
        for number in range(2):
            one.add_failure_callback(lambda *args, n=number: called.append((n, *args)))
        self.fail(one, log, error)
        assert called == [(0, log, error), (1, log, error)]

    @pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
    def test_one_that_fails_is_told_in_the_log_and_the_next_is_called(
        self, log: MessageLog, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
    ) -> None:
        """django-carrot's words."""
        one, called = consumer(), []

        def bad(*_: Any) -> None:
            raise kind("broken")

        def good(*_: Any) -> None:
            called.append(True)

        one.add_failure_callback(bad)
        one.add_failure_callback(good)
        with caplog.at_level(logging.INFO, "carrot"):
            self.fail(one, log, ValueError())
        assert called == [True]
        assert caplog.messages[1:] == [
            "Failure callback bad failed due to an error: broken",
            "Failure callback good succeeded",
        ]

    def test_a_callback_may_delete_the_log(self, log: MessageLog) -> None:
        """django-carrot's recipe for a retry."""
        one = consumer()
        one.add_failure_callback(lambda log, error: log.delete())
        self.fail(one, log, ValueError())
        assert not MessageLog.objects.exists()

    def test_without_a_row_nothing_is_called_and_nothing_is_raised(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = consumer()
        one.add_failure_callback(lambda log, error: pytest.fail("called"))
        self.fail(one, MessageLog(pk=uuid4(), task="app.gone"), ValueError())
        assert "The failure callbacks of app.gone were not called" in caplog.text

    def test_a_callback_happens_as_a_whole_or_not_at_all(self, log: MessageLog) -> None:
        one = consumer()

        def half(log: MessageLog, _: object) -> None:
            MessageLog.objects.create(task="app.half", queue="default")
            log.delete()
            raise ValueError("half way")

        def good(log: MessageLog, _: object) -> None:
            MessageLog.objects.create(task=f"app.after.{log.pk}", queue="default")

        key = log.pk
        one.add_failure_callback(half)
        one.add_failure_callback(good)
        self.fail(one, log, ValueError())
        tasks = set(MessageLog.objects.values_list("task", flat=True))
        assert tasks == {"app.work", f"app.after.{key}"}

    def test_a_coroutine_is_awaited(self, log: MessageLog) -> None:
        one = consumer()

        async def callback(log: MessageLog, _: object) -> None:
            await log.adelete()

        one.add_failure_callback(callback)
        self.fail(one, log, ValueError())
        assert not MessageLog.objects.exists()

    def test_fail_may_be_a_coroutine(self, log: MessageLog) -> None:
        class Asynchronous(Consumer):
            async def fail(  # type: ignore[override]
                self, log: MessageLog, err: str | BaseException
            ) -> None:
                await log.adelete()

        self.fail(Asynchronous(**arguments()), log, ValueError())
        assert not MessageLog.objects.exists()

    def test_an_override_that_raises_harms_nobody(
        self, log: MessageLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(Consumer):
            def fail(self, log: MessageLog, err: str | BaseException) -> None:
                raise SystemExit(1)

        self.fail(Broken(**arguments()), log, ValueError())
        assert "Broken.fail raised SystemExit(1)" in caplog.text


@pytest.mark.django_db(transaction=True)
class TestCallbacksAndTransactions:
    """Without a transaction around the test."""

    @pytest.fixture
    def log(self) -> MessageLog:
        return MessageLog.objects.create(task="app.work", queue="default")

    def test_one_that_leaves_its_transaction_open_is_told_and_undone(
        self, log: MessageLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        one, called = consumer(), []

        def leak(log: MessageLog, _: object) -> None:
            MessageLog.objects.create(task="app.leaked", queue="default")
            transaction.atomic().__enter__()

        def good(log: MessageLog, _: object) -> None:
            called.append(log)
            MessageLog.objects.create(task="app.kept", queue="default")

        one.add_failure_callback(leak)
        one.add_failure_callback(good)
        one.fail(log, "no luck")
        assert not execution.in_transaction("default")
        tasks = set(MessageLog.objects.values_list("task", flat=True))
        assert (called, tasks) == ([log], {"app.work", "app.kept"})
        assert "leak failed due to an error: it left a transaction open" in caplog.text

    def test_one_that_catches_a_database_error_is_told_not_to_have_happened(
        self, log: MessageLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        """PostgreSQL undoes all of it, and answers COMMIT as if nothing had been."""
        one = consumer()

        def careless(log: MessageLog, _: object) -> None:
            MessageLog.objects.filter(pk=log.pk).update(queue="other")
            with contextlib.suppress(DatabaseError):
                MessageLog.objects.create(pk=log.pk, task="app.work", queue="default")

        one.add_failure_callback(careless)
        with caplog.at_level(logging.INFO, "carrot"):
            one.fail(log, "no luck")
        happened = MessageLog.objects.get().queue == "other"
        assert ("careless succeeded" in caplog.text) is happened
        assert ("careless failed" in caplog.text) is not happened


@pytest.mark.django_db
class TestFailOutsideOfARun:
    """A project calls it by itself."""

    @pytest.mark.parametrize("status", MessageLog.UNFINISHED)
    @pytest.mark.parametrize("error", ["a text", ValueError("a text")])
    def test_it_makes_an_unfinished_row_failed(
        self, status: str, error: str | BaseException
    ) -> None:
        log = MessageLog.objects.create(task="app.work", queue="default", status=status)
        consumer().fail(log, error)
        log.refresh_from_db()
        assert (log.status, log.exception) == (MessageLog.FAILED, "a text")
        assert log.failure_time is not None
        assert (log.traceback or "").endswith("ValueError: a text\n") is not isinstance(error, str)

    @pytest.mark.parametrize("status", MessageLog.FINAL)
    def test_it_touches_no_final_row(self, status: str) -> None:
        log = MessageLog.objects.create(task="app.work", queue="default", status=status)
        consumer().fail(log, "too late")
        log.refresh_from_db()
        assert (log.status, log.exception) == (status, None)

    def test_a_callback_that_fails_to_delete_the_row_does_not_hide_the_failure(self) -> None:
        log = MessageLog.objects.create(task="app.work", queue="default")
        one = consumer()

        def deletes(log: MessageLog, _: object) -> None:
            log.delete()
            raise ValueError("and publishes nothing")

        one.add_failure_callback(deletes)
        one.fail(log, "no luck")
        assert MessageLog.objects.get().status == MessageLog.FAILED

    def test_what_a_callback_has_deleted_stays_deleted(self) -> None:
        log = MessageLog.objects.create(task="app.work", queue="default")
        one = consumer()
        one.add_failure_callback(lambda log, _: log.delete())
        one.add_failure_callback(lambda log, _: None)
        one.fail(log, "no luck")
        assert not MessageLog.objects.exists()


class Mine(Consumer):
    """A project's consumer."""


class Serializer(DefaultMessageSerializer):
    """A project's serializer."""


def overriding(hook: str) -> Consumer:
    kind: type[Mine] = type("Kind", (Mine,), {hook: lambda *_: None})
    return kind(**arguments())


class TestWhatReadsMessages:
    """Only such a consumer's hooks are called for each message: the others pay nothing."""

    def test_neither_the_base_nor_other_hooks(self) -> None:
        assert not Mine(**arguments()).reads_messages
        for hook in ("fail", "run", "connect", "on_channel_open", "start_consuming", "stop"):
            assert not overriding(hook).reads_messages

    def test_each_of_the_three_hooks_and_the_serializer(self) -> None:
        for hook in ("on_message", "get_message_log", "get_task_type"):
            assert overriding(hook).reads_messages
        assert type("Kind", (Mine,), {"serializer": Serializer})(**arguments()).reads_messages

    def test_also_where_the_object_alone_has_them(self) -> None:
        for name, own in (("on_message", print), ("serializer", Serializer)):
            one = Mine(**arguments())
            setattr(one, name, own)
            assert one.reads_messages
        one = Mine(**arguments())
        one.fail = print  # type: ignore[method-assign,assignment]
        assert one.failure_hook() is not None


class TestGetTaskType:
    def test_it_reads_the_header_of_properties_or_of_headers(self) -> None:
        """django-carrot 1.5.0 documents the one and passes the other."""
        headers = {"type": "app.work"}
        properties = pika.BasicProperties(headers=headers)
        one = consumer()
        for given in (properties, Properties(properties), headers):
            assert one.get_task_type(given, b"") == "app.work"

    def test_the_serializer_names_the_header(self) -> None:
        one = consumer()
        one.serializer = type("Other", (Serializer,), {"type_header": "job"})
        assert one.get_task_type(pika.BasicProperties(headers={"job": "app.work"}), b"") == (
            "app.work"
        )

    @pytest.mark.parametrize("headers", [None, {}, {"other": 1}])
    def test_without_it_there_is_a_key_error(self, headers: dict[str, Any] | None) -> None:
        with pytest.raises(KeyError, match="type"):
            consumer().get_task_type(pika.BasicProperties(headers=headers), b"")

    def test_the_service_passes_properties_that_read_like_headers(self) -> None:
        both = Properties(pika.BasicProperties(headers={"type": "app.work"}, app_id="shop"))
        assert (both["type"], both.get("type"), both.get("x", 5)) == ("app.work", "app.work", 5)
        assert "type" in both
        assert "x" not in both
        assert both.app_id == "shop"
        assert Properties(pika.BasicProperties()).get("type") is None


@pytest.mark.django_db
class TestGetMessageLog:
    def test_it_is_the_row_with_the_messages_id_in_any_state(self) -> None:
        for status, _ in MessageLog.STATUS_CHOICES:
            log = MessageLog.objects.create(task="app.work", queue="default", status=status)
            properties = pika.BasicProperties(message_id=str(log.pk))
            assert consumer().get_message_log(properties, b"") == log

    @pytest.mark.parametrize("message_id", [None, "", "5", str(uuid4())])
    def test_there_may_be_none(self, message_id: str | None) -> None:
        properties = pika.BasicProperties(message_id=message_id)
        assert consumer().get_message_log(properties, b"") is None


@pytest.mark.django_db(transaction=True)
class TestWhatTheThreadIsDoing:
    def test_the_active_row_and_its_lines_are_those_of_the_task_that_runs_here(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = consumer()
        log = MessageLog.objects.create(task="app.work", queue="default")
        seen: list[Any] = []

        def task() -> None:
            task_logging.current.get().add("a line")  # type: ignore[union-attr]
            seen.extend((one.active_message_log, one.task_log))

        limits = execution.Limits(result=100, log=100)
        execution.execute(run_of(log), limits, prepare=lambda _: (task, (), {}))
        assert seen == [log, ["a line"]]

    def test_outside_of_a_task_there_are_none(self) -> None:
        assert consumer().active_message_log is None
        assert consumer().task_log == []


def arguments() -> dict[str, Any]:
    return {
        "host": HOST,
        "queue": "default",
        "logger": logging.getLogger("carrot"),
        "name": "default-consumer",
    }


def test_the_class_that_the_setting_names_is_made() -> None:
    one = make_consumer(f"{__name__}.Mine", **arguments())
    assert type(one) is Mine
    assert one.queue == "default"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no.such.Consumer", "consumer_class 'no.such.Consumer': No module named 'no'"),
        (f"{__name__}.Other", "does not define"),
        ("pathlib.Path", "is not a subclass of carrot_twisted.consumer.Consumer"),
        (f"{__name__}.consumer", "is not a subclass"),
    ],
)
def test_what_is_no_consumer_is_refused(path: str, text: str) -> None:
    with pytest.raises(CarrotConfigException, match=text):
        make_consumer(path, **arguments())
