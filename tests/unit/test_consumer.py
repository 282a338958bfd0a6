# SPDX-License-Identifier: Apache-2.0
"""What a project subclasses: django-carrot's constructor, and callbacks that harm nobody."""

from __future__ import annotations

import inspect
import logging
from typing import Any
from uuid import uuid4

import pytest

from carrot_twisted.consumer import Consumer, make_consumer
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.execution import Run
from carrot_twisted.models import MessageLog
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


class Mine(Consumer):
    """A project's consumer."""


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
