# SPDX-License-Identifier: Apache-2.0
"""Purging, ringing again and cleaning up, with a real broker and a service at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pika
import pytest
from django.db import connections
from django.db.models.functions import Now

from carrot_twisted import blocking, helper_tasks, housekeeping, publisher
from carrot_twisted.exceptions import BrokerError, CarrotConfigException
from carrot_twisted.helper_tasks import cleanup
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import (
    create_message,
    publish_many,
    publish_message,
    purge_queue,
    requeue_all,
)
from tests.processes import ServiceProcess, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Broker

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

#: Nothing listens there.
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


def published(count: int, **arguments: Any) -> list[MessageLog]:
    """Tasks whose messages the broker holds."""
    logs = publish_many(
        create_message(tasks.effect, task_args=[f"task {n}"], **arguments) for n in range(count)
    )
    assert publisher.flush(10)
    return logs


def status_of(log: MessageLog) -> str:
    return MessageLog.objects.values_list("status", flat=True).get(pk=log.pk)


# Message.connection_channel and the serializer's publish


@pytest.mark.once
def test_a_connection_channel_finds_its_queue_there(served: None, broker: Broker) -> None:
    message = create_message(tasks.echo, task_args=[1])
    connection, channel = message.connection_channel
    assert channel.is_open
    assert broker.depth("default") == 0

    message.formatter.publish(connection, channel)

    assert connection.is_closed
    properties, body = broker.get("default")
    assert (properties.message_id, properties.delivery_mode) == (message.uuid, 2)
    assert body == b'{"args": [1]}'


@pytest.mark.once
def test_a_queue_that_exists_differently_is_used_as_it_is(served: None, broker: Broker) -> None:
    broker.channel.queue_declare("default", durable=True, arguments={"x-max-priority": 3})
    connection, channel = create_message(tasks.echo).connection_channel
    create_message(tasks.echo).formatter.publish(connection, channel)
    assert broker.depth("default") == 1


@pytest.mark.once
@pytest.mark.parametrize(
    ("address", "text"),
    [
        ({"routing_key": "nowhere"}, "no queue is bound to exchange '' with routing key 'nowhere'"),
        ({"exchange": "no_such"}, "did not confirm the message.*no_such"),
    ],
)
def test_a_message_that_would_be_lost_is_told(
    served: None, address: dict[str, Any], text: str
) -> None:
    message = create_message(tasks.echo, **address)
    connection, channel = message.connection_channel
    with pytest.raises(BrokerError, match=text):
        message.formatter.publish(connection, channel)
    assert connection.is_closed


@pytest.mark.once
def test_a_user_who_may_not_declare_is_told(served: None, broker: Broker, settings: Any) -> None:
    """The broker keeps names that begin with "amq." to itself."""
    settings.CARROT = {**settings.CARROT, "queues": [{"name": "amq.mine"}]}
    with pytest.raises(BrokerError, match=r"'amq\.mine' could not be declared.*ACCESS_REFUSED"):
        _ = create_message(tasks.echo, "amq.mine").connection_channel


@pytest.mark.once
def test_a_broker_that_is_away_is_told_without_the_password(served: None, settings: Any) -> None:
    settings.CARROT = {**settings.CARROT, "default_broker": NOWHERE.replace(":guest@", ":s3cr3t@")}
    with pytest.raises(BrokerError, match=r"No connection to the broker 127\.0\.0\.1:1") as told:
        _ = create_message(tasks.echo).connection_channel
    assert "s3cr3t" not in str(told.value)


# purge_queue


def test_a_purge_works_before_any_queue_exists(served: None) -> None:
    MessageLog.objects.create(task="app.work", queue="default")
    assert purge_queue() == 1
    assert purge_queue() == 0
    assert not MessageLog.objects.exists()


def test_a_purge_deletes_what_is_unfinished_and_its_messages(served: None, broker: Broker) -> None:
    published(30)
    published(5, queue="other")
    running, gone, *final = (
        MessageLog.objects.create(task="app.work", queue=queue, status=status)
        for queue, status in (
            ("default", "IN_PROGRESS"),
            ("gone", "PUBLISHED"),
            *(("default", status) for status in MessageLog.FINAL),
        )
    )
    assert purge_queue("default") == 31
    assert (broker.depth("default"), broker.depth("other")) == (0, 5)
    assert not MessageLog.objects.filter(pk=running.pk).exists()

    assert purge_queue() == 6
    assert broker.depth("other") == 0
    assert set(MessageLog.objects.all()) == set(final)
    assert gone not in final
    with pytest.raises(CarrotConfigException):
        purge_queue("gone")


def test_a_purge_with_a_broker_away_deletes_nothing(
    served: None, broker: Broker, settings: Any
) -> None:
    logs = published(3)
    queues = [{"name": "default"}, {"name": "other", "host": NOWHERE}]
    settings.CARROT = {**settings.CARROT, "queues": queues}
    with pytest.raises(BrokerError, match="No connection to the broker"):
        purge_queue()
    assert [status_of(log) for log in logs] == ["PUBLISHED"] * 3
    assert broker.depth("default") == 3


def test_a_purge_that_the_broker_refuses_deletes_no_row(served: None, broker: Broker) -> None:
    """What it had purged before is sent again."""
    logs = published(2)
    broker.channel.queue_declare("other", exclusive=True)
    with pytest.raises(BrokerError, match=r"Queue 'other' could not be purged.*RESOURCE_LOCKED"):
        purge_queue()
    broker.channel.queue_delete("other")
    assert broker.depth("default") == 0
    assert set(MessageLog.objects.unsent()) == set(logs)


def test_a_broker_that_goes_away_during_a_purge_is_told_and_the_rows_are_gone(
    served: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    published(3)
    passes: list[str] = []
    purge = blocking.purge

    def purge_once(connection: pika.BlockingConnection, queue: str) -> None:
        passes.append(queue)
        if len(passes) > 2:
            connection.close()
        purge(connection, queue)

    monkeypatch.setattr(blocking, "purge", purge_once)
    monkeypatch.setattr(housekeeping, "CHUNK", 1)
    assert purge_queue() == 3
    assert not MessageLog.objects.exists()
    assert "All rows are deleted, but perhaps not all messages" in caplog.text


def test_a_purge_leaves_no_connection_open(
    served: None, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[pika.BlockingConnection] = []
    real = pika.BlockingConnection

    def open_one(parameters: Any) -> pika.BlockingConnection:
        opened.append(real(parameters))
        return opened[-1]

    monkeypatch.setattr(pika, "BlockingConnection", open_one)
    published(1)
    purge_queue()
    assert len(opened) == 2, "one for both queues, before and after the rows"
    assert all(connection.is_closed for connection in opened)


@pytest.mark.defect(8)
def test_a_purge_resurrects_no_row_of_a_running_task(
    start_service: StartService, ledger: Ledger, tmp_path: Path, broker: Broker
) -> None:
    """django-carrot's worker saved the row it had loaded, and so inserted it again."""
    service = start_service("--concurrency", "1")
    go = tmp_path / "go"
    running = publish_message(tasks.wait_for_file, str(go))
    wait_until(lambda: status_of(running) == "IN_PROGRESS")
    published(20)

    assert purge_queue() == 21
    go.touch()

    wait_until(lambda: "saw the file" in ledger())
    after = publish_message(tasks.effect, "after")
    wait_until(lambda: status_of(after) == "COMPLETED")
    assert service.stop() == 0
    assert list(MessageLog.objects.all()) == [after]
    assert service.log.count("Traceback") == 0
    # Of the others the service held some: what it had claimed ran, the rest it gave back.
    done = Counter(ledger())
    assert set(done.values()) == {1}
    assert sum(done.values()) + broker.depth("default") < 15


def test_what_is_published_during_a_purge_is_run(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    """Its message may be purged with the others: it gets a new one."""
    published(3)
    late: list[MessageLog] = []

    def delete_some(*args: Any, **kwargs: Any) -> int:
        if not late:
            late.append(publish_message(tasks.effect, "late"))
            assert publisher.flush(10)
        return delete(*args, **kwargs)

    delete = housekeeping.delete_some
    monkeypatch.setattr(housekeeping, "delete_some", delete_some)
    assert purge_queue() == 3
    start_service()
    wait_until(lambda: status_of(late[0]) == "COMPLETED")
    assert ledger() == ["late"]


# requeue_all


@pytest.mark.defect(7)
def test_requeue_all_starts_nothing_twice(start_service: StartService, ledger: Ledger) -> None:
    """django-carrot left the old messages at the broker, and published running tasks again."""
    logs = publish_many(
        create_message(tasks.effect, task_args=[f"task {n}", 0.4]) for n in range(4)
    )
    assert publisher.flush(10)
    assert requeue_all() == 4
    service = start_service("--concurrency", "1")
    wait_until(lambda: status_of(logs[0]) == "IN_PROGRESS")
    assert requeue_all() <= 3
    wait_until(lambda: "task 0" in ledger())
    assert requeue_all() < 3
    wait_until(lambda: all(status_of(log) == "COMPLETED" for log in logs))
    assert requeue_all() == 0
    assert service.stop() == 0
    assert Counter(ledger()) == {f"task {n}": 1 for n in range(4)}
    assert set(MessageLog.objects.values_list("attempts", flat=True)) == {1}


def test_lost_messages_are_sent_again_at_once(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    published(3)
    broker.channel.queue_purge("default")
    service = start_service()
    assert requeue_all() == 3
    wait_until(lambda: len(ledger()) == 3, 10)
    assert service.stop() == 0


# cleanup


def test_clean_ups_at_the_same_time_share_the_work(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper_tasks, "CHUNK", 50)
    old = Now() - timedelta(days=4)
    rows = [MessageLog(task="app.work", queue="default") for _ in range(2000)]
    MessageLog.objects.bulk_create(rows)
    MessageLog.objects.update(status="COMPLETED", completion_time=old)
    kept = MessageLog.objects.create(task="app.work", queue="default")

    def run(_: int) -> int:
        try:
            return cleanup()["COMPLETED"]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(run, range(3)))
    assert sum(counts) == 2000
    assert list(MessageLog.objects.all()) == [kept]


def test_the_service_runs_the_clean_up(start_service: StartService) -> None:
    old, kept = (
        MessageLog.objects.create(
            task="app.work",
            queue="default",
            status="COMPLETED",
            completion_time=Now() - timedelta(days=days),
        )
        for days in (4, 2)
    )
    start_service()
    task = publish_message(cleanup)
    wait_until(lambda: status_of(task) == "COMPLETED")
    task.refresh_from_db()
    assert task.output == '{"COMPLETED": 1, "CANCELLED": 0}'
    assert "Deleted old rows: 1 COMPLETED, 0 CANCELLED" in str(task.log)
    assert set(MessageLog.objects.all()) == {kept, task}
    assert old not in MessageLog.objects.all()


def test_the_service_schedules_the_clean_up_by_itself(start_service: StartService) -> None:
    """Nobody has to list its module; "run now" publishes it like any other."""
    start_service()
    name = "carrot: cleanup"
    wait_until(lambda: ScheduledTask.objects.filter(task_name=name, active=True).exists())
    row = ScheduledTask.objects.get(task_name=name).publish()
    wait_until(lambda: status_of(row) == "COMPLETED")
    assert row.task == "carrot_twisted.helper_tasks.cleanup"
