# SPDX-License-Identifier: Apache-2.0
"""The helpers for the tests of projects, as such tests use them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import unittest
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction

import carrot_twisted
from carrot_twisted import Concurrency, Rate, publisher, task, task_paths, testing
from carrot_twisted.exceptions import PublishReturned
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.testing import TaskFailed, in_memory
from carrot_twisted.utilities import (
    create_message,
    create_scheduled_task,
    publish_many,
    publish_message,
)
from tests.project import tasks

if TYPE_CHECKING:
    from carrot_twisted.testing import InMemory

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"

pytestmark = pytest.mark.django_db


def test_what_is_published_is_seen_and_runs_when_the_test_says(carrot: InMemory) -> None:
    publish_message(tasks.echo, 1, two=2)
    (log,) = carrot.published
    assert (log.task, log.status) == ("tests.project.tasks.echo", "PUBLISHED")
    (log,) = carrot.run_pending()
    assert (log.status, log.attempts, log.worker) == ("COMPLETED", 1, "test")
    assert log.output == '{"args": [1], "kwargs": {"two": 2}}'
    assert carrot.published == [log]
    assert carrot.run_pending() == []


def see(task: str) -> None:
    """A task that asks the database."""
    MessageLog.objects.get(task=task)


def test_the_transaction_of_the_test_is_left_alone(carrot: InMemory) -> None:
    MessageLog.objects.create(task="before", queue="other")
    publish_message(tasks.noop)
    publish_message(see, "before")
    carrot.run_pending(queue="default")
    assert connection.in_atomic_block
    assert MessageLog.objects.filter(task="before").exists()


def test_log_lines_are_kept(carrot: InMemory) -> None:
    publish_message(tasks.log_lines, "Ada")
    (log,) = carrot.run_pending()
    assert "Ada" in str(log.log)
    assert logging.getLogger("tests.project.tasks").isEnabledFor(logging.INFO)


def test_a_failure_is_an_error_of_the_test_unless_it_is_expected(carrot: InMemory) -> None:
    publish_message(tasks.fail, "one")
    publish_message(tasks.noop)
    with pytest.raises(TaskFailed, match=r"tests.project.tasks.fail has failed: .*one") as caught:
        carrot.run_pending()
    assert caught.value.log.status == "FAILED"
    assert "one" in str(caught.value.__cause__)
    # The other one has run all the same.
    assert [log.status for log in carrot.published] == ["FAILED", "COMPLETED"]
    publish_message(tasks.fail, "two")
    (log,) = carrot.run_pending(check=False)
    assert "two" in str(log.traceback)


def publish_two() -> None:
    """A task that publishes others."""
    publish_many([create_message(tasks.noop) for _ in range(2)])


def test_tasks_that_tasks_publish_run_too_in_the_order_of_their_priority(carrot: InMemory) -> None:
    publish_message(publish_two)
    publish_many([create_message(tasks.noop, priority=priority) for priority in (0, 9, 5)])
    run = carrot.run_pending()
    assert [log.priority for log in run[:2]] == [9, 5]
    assert len(run) == len(carrot.published) == 6


def again() -> None:
    """A task that never comes to an end of its own."""
    publish_message(again)


def test_a_task_that_publishes_itself_is_found(
    carrot: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "LIMIT", 20)
    publish_message(again)
    with pytest.raises(AssertionError, match=r"test_testing\.again\. Does a task publish itself"):
        carrot.run_pending()
    assert MessageLog.objects.filter(status="COMPLETED").count() == 20


def test_what_is_rolled_back_was_never_published(carrot: InMemory) -> None:
    with transaction.atomic():
        publish_message(tasks.noop)
        transaction.set_rollback(True)
    assert carrot.published == []
    assert carrot.run_pending() == []


def test_eager_tasks_run_where_they_are_published() -> None:
    with in_memory(eager=True) as carrot:
        log = publish_message(tasks.echo, "now")
        log.refresh_from_db()
        assert log.status == "COMPLETED"
        with pytest.raises(TaskFailed):
            publish_message(tasks.fail, "now")
        publish_message(publish_two)
        statuses = [log.status for log in carrot.published]
        assert statuses == ["COMPLETED", "FAILED", *["COMPLETED"] * 3]


@task(rate=Rate(5, per=3600, key="{server}"))
def ask(server: str) -> None:
    """Five an hour."""


def test_rates_let_more_start_as_time_passes(carrot: InMemory) -> None:
    publish_many(ask.options().message("a") for _ in range(12))
    assert len(carrot.run_pending()) == 5
    assert carrot.run_pending() == []
    (waiting, *_) = [log for log in carrot.published if log.status == "PUBLISHED"]
    assert waiting.limited_by == "the rate of a"
    carrot.advance(hours=1.1)
    assert len(carrot.run_pending()) == 5
    carrot.advance(hours=1.1)
    assert len(carrot.run_pending()) == 2


@task(concurrency=Concurrency(1))
def alone(inner: bool = False) -> None:
    """Publish another one of this kind, which has to wait."""
    if not inner:
        log = publish_message(alone, inner=True)
        log.refresh_from_db()
        assert log.limited_by == "a slot of tests.unit.test_testing.alone"


def test_an_eager_task_waits_for_the_slot_of_the_one_that_has_published_it() -> None:
    with in_memory(eager=True) as carrot:
        publish_message(alone)
        assert [log.status for log in carrot.published] == ["COMPLETED"] * 2


def test_schedules_publish_a_task_for_each_slot_that_comes(carrot: InMemory) -> None:
    every_20 = create_scheduled_task(tasks.noop, {"minutes": 20}, task_name="often")
    create_scheduled_task(tasks.echo, {"hours": 1}, task_name="seldom")
    carrot.advance(minutes=19, seconds=50)
    assert carrot.published == []
    carrot.advance(timedelta(seconds=20))
    assert [log.task for log in carrot.published] == ["tests.project.tasks.noop"]
    carrot.advance(hours=1)
    names = [log.task.rpartition(".")[2] for log in carrot.published]
    assert sorted(names) == ["echo", "noop", "noop", "noop", "noop"]
    assert len(carrot.run_pending()) == 5
    every_20.refresh_from_db()
    assert every_20.problem == ""
    ScheduledTask.objects.update(active=False)
    carrot.advance(days=1)
    assert len(carrot.published) == 5


@task(unique=True)
def only_one(number: int) -> None:
    """A task that waits or runs once, for each number."""


_calls: list[str] = []


@task(max_retries=2, retry_backoff=60, retry_jitter=0)
def flaky() -> str:
    """A task that works at the third attempt."""
    _calls.append("called")
    if len(_calls) < 3:
        raise ValueError("not yet")
    return "at last"


def test_retries_and_delayed_tasks_wait_for_their_time(carrot: InMemory) -> None:
    _calls.clear()
    flaky.options(run_after=timedelta(hours=1)).publish()
    assert carrot.run_pending() == []
    carrot.advance(hours=1)
    (log,) = carrot.run_pending()
    assert (log.status, log.retries, _calls) == ("PUBLISHED", 1, ["called"])
    assert carrot.run_pending() == []
    carrot.advance(seconds=59)
    assert carrot.run_pending() == []
    carrot.advance(seconds=1)
    carrot.run_pending()
    carrot.advance(minutes=2)
    (log,) = carrot.run_pending()
    assert (log.status, log.attempts, log.output) == ("COMPLETED", 3, "at last")


def test_a_task_that_does_not_start_in_time_expires(carrot: InMemory) -> None:
    only_one.options(expires=60).publish(1)
    only_one.options(expires=120).publish(2)
    carrot.advance(seconds=61)
    assert [log.status for log in carrot.run_pending()] == ["CANCELLED", "COMPLETED"]


def test_of_a_unique_task_one_is_published(carrot: InMemory) -> None:
    first, second = (only_one.options().publish(1) for _ in range(2))
    assert (second.pk, second.duplicate) == (first.pk, True)
    assert carrot.published == [first]
    carrot.run_pending()
    only_one.options().publish(1)
    assert len(carrot.published) == 2


def test_messages_that_are_no_tasks_go_to_the_broker_in_memory(carrot: InMemory) -> None:
    with pytest.raises(PublishReturned, match="NO_ROUTE"):
        carrot_twisted.publish({"n": 1}, exchange="amq.topic", routing_key="order.paid")
    carrot.broker.queues["orders"] = {"durable": True, "arguments": {}}
    carrot.broker.bindings.add(("amq.topic", "order.*", "orders"))
    carrot_twisted.publish({"n": 1}, exchange="amq.topic", routing_key="order.paid")
    ((queue, properties, body),) = carrot.broker.messages
    assert (queue, properties.content_type, body) == ("orders", "application/json", b'{"n": 1}')


@pytest.mark.django_db(transaction=True)
def test_committed_tasks_are_sent_and_acknowledged(carrot: InMemory) -> None:
    log = publish_message(tasks.noop)
    assert [message[0] for message in carrot.broker.messages] == ["default"]
    log.refresh_from_db()
    assert log.confirmed_at is not None
    carrot.run_pending()
    assert carrot.broker.messages == []


def test_expired_messages_go_where_their_queue_says(carrot: InMemory) -> None:
    arguments = {"x-message-ttl": 5000, "x-dead-letter-exchange": ""}
    arguments["x-dead-letter-routing-key"] = "work"
    carrot.broker.queues["retry"] = {"durable": True, "arguments": arguments}
    carrot.broker.queues["work"] = {"durable": True, "arguments": {}}
    carrot_twisted.publish(b"later", routing_key="retry")
    carrot.advance(seconds=4.9)
    assert [queue for queue, _, _ in carrot.broker.messages] == ["retry"]
    carrot.advance(seconds=0.2)
    assert [queue for queue, _, _ in carrot.broker.messages] == ["work"]


def test_all_is_as_before_in_the_end() -> None:
    before = publisher.current()
    with in_memory() as carrot:
        assert publisher.current() is not before
    assert publisher.current() is before
    publish_message(tasks.noop)
    assert carrot.published == []


def test_the_examples_of_the_page_run(carrot: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("myapp.tasks")
    exec(  # noqa: S102 - the task of the README
        "def greet(name, times=1):\n    return f'hello {name} ' * times", module.__dict__
    )
    module.greet.__module__ = "myapp.tasks"
    monkeypatch.setitem(sys.modules, "myapp", ModuleType("myapp"))
    monkeypatch.setitem(sys.modules, "myapp.tasks", module)
    # Other pages have a task of that name, too.
    monkeypatch.setattr(task_paths, "_resolved", {})
    names: dict[str, Any] = {"__name__": "examples"}
    for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(text, names)  # noqa: S102 - ours
    names["test_a_greeting"](carrot)
    names["test_an_order_is_told"](carrot)
    result = unittest.TestResult()
    unittest.TestSuite([names["Greeting"]("test_a_greeting")]).run(result)
    assert (result.testsRun, result.failures, result.errors) == (1, [], [])


def test_the_plugin_of_pytest_loads_nothing_of_django() -> None:
    """pytest loads it in each project that has the package, whatever is tested there."""
    code = "import sys, carrot_twisted.pytest_plugin; sys.exit('django' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
