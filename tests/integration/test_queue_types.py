# SPDX-License-Identifier: Apache-2.0
"""Quorum queues beside classic ones, and what RabbitMQ 4 does otherwise than 3.10.

Most of it is tested by the whole suite on each broker with each type (``run.py brokers``); here
is what only one of them does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db.models.functions import Now

from carrot_twisted import conf, publisher, topology
from carrot_twisted.due import due_in
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import Ledger, StartService, finished, run
from tests.processes import constants, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.servers import RabbitMQ
    from tests.conftest import Broker

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def quorum(served: None, settings: Any) -> None:
    """The tests' queues are quorum queues."""
    queues = [{**queue, "queue_arguments": QUORUM} for queue in settings.CARROT["queues"]]
    settings.CARROT = {**settings.CARROT, "queues": queues}


def return_until_gone(broker: Broker, queue: str) -> int:
    """Return the only message of a queue until the broker takes it off; how often it came."""
    times = 0
    while True:
        method, _, _ = broker.channel.basic_get(queue)
        if method is None:
            return times
        times += 1
        broker.channel.basic_reject(method.delivery_tag, requeue=True)


def forgotten(row: MessageLog) -> None:
    """Let it be long ago that the broker took the row's message."""
    published = MessageLog.objects.filter(pk=row.pk, confirmed_at__isnull=False)
    wait_until(published.exists)
    published.update(confirmed_at=Now() - timedelta(minutes=5))


@pytest.mark.once
def test_a_message_that_came_back_too_often_is_kept_and_its_task_runs(
    quorum: None, start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """RabbitMQ takes it off the queue, to our dead letters; the row is the job."""
    (dead,) = topology.dead_letter_steps(conf.current().queue("default"))
    broker.channel.queue_declare(**dead.arguments)
    row = publish_message(tasks.effect, "late")
    assert publisher.flush(10)
    assert return_until_gone(broker, "default") == topology.DELIVERY_LIMIT + 1
    wait_until(lambda: broker.depth("default.dead") == 1)
    forgotten(row)

    service = start_service(CARROT_TEST_QUEUE_TYPE="quorum")
    assert run(row).status == MessageLog.COMPLETED
    assert ledger() == ["late"]
    assert "1 messages of queue default did not come; they are sent again" in service.log
    assert "exists with other arguments" not in service.log
    properties, _ = broker.get("default.dead")
    assert properties.message_id == str(row.pk)
    assert properties.headers["x-death"][0]["reason"] == "delivery_limit"


@pytest.mark.once
def test_a_plain_quorum_queue_is_used_as_it_is_and_loses_no_task(
    quorum: None, start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """A queue from before, or of others: its broker throws messages away."""
    broker.channel.queue_declare(
        "default", durable=True, arguments={**QUORUM, "x-delivery-limit": 20}
    )
    row = publish_message(tasks.effect, "thrown away")
    assert publisher.flush(10)
    assert return_until_gone(broker, "default") == 21
    forgotten(row)

    service = start_service(CARROT_TEST_QUEUE_TYPE="quorum")
    assert run(row).status == MessageLog.COMPLETED
    assert ledger() == ["thrown away"]
    assert "queue 'default' exists with other arguments and is used as it is" in service.log
    (version,) = {line.rpartition("(RabbitMQ ")[2] for line in connected(service.log)}
    drops = version >= "4"
    assert ("takes a message off it that came back 20 times" in service.log) is drops
    assert service.stop() == 0


def connected(log: str) -> list[str]:
    """The lines that tell of connections."""
    return [line for line in log.splitlines() if "Connected to" in line]


@pytest.mark.once
def test_a_virtual_host_whose_queues_are_quorum_queues_by_default_changes_nothing(
    served: None, settings: Any, private_broker: RabbitMQ
) -> None:
    private_broker.ctl("add_vhost", "quorum", "--default-queue-type", "quorum")
    private_broker.ctl("set_permissions", "-p", "quorum", private_broker.name, ".*", ".*", ".*")
    try:
        settings.CARROT = {
            **settings.CARROT,
            "default_broker": private_broker.url.removesuffix(private_broker.name) + "quorum",
            "queues": [{"name": "default", "queue_arguments": {"x-max-priority": 5}}],
        }
        row = publish_message(tasks.effect, "waits")
        assert publisher.flush(10)
        row.refresh_from_db()
        assert row.publish_error == ""
        listed = private_broker.ctl("list_queues", "-p", "quorum", "name", "type", "messages")
        assert ["default", "classic", "1"] in [line.split() for line in listed.splitlines()]
    finally:
        private_broker.ctl("delete_vhost", "quorum")


@pytest.fixture
def small_messages_only(private_broker: RabbitMQ) -> Iterator[int]:
    """Let the broker refuse large messages, as RabbitMQ 4 does from 16 MiB on; the limit."""

    def limit(size: int) -> None:
        # The first is asked by RabbitMQ 3, the second by 4.
        private_broker.ctl(
            "eval",
            f"application:set_env(rabbit, max_message_size, {size}), "
            f"persistent_term:put(max_message_size, {size}).",
        )

    limit(100_000)
    yield 100_000
    limit(16 * 1024 * 1024)


@pytest.mark.once
def test_a_message_too_large_for_the_broker_is_refused_alone(
    served: None, settings: Any, private_broker: RabbitMQ, small_messages_only: int
) -> None:
    settings.CARROT = {**settings.CARROT, "default_broker": private_broker.url}
    messages = [create_message(tasks.effect, task_args=[str(n)]) for n in range(50)]
    large = create_message(tasks.effect, task_args=["x" * small_messages_only])
    rows = publish_many([*messages[:25], large, *messages[25:]])
    assert publisher.flush(20)

    done = {row.pk: row for row in MessageLog.objects.filter(pk__in=[row.pk for row in rows])}
    refused = done.pop(rows[25].pk)
    assert refused.confirmed_at is None
    assert refused.publish_error.startswith("the message of 1000")
    assert "larger than the broker permits, 100000 bytes" in refused.publish_error
    assert all(row.confirmed_at for row in done.values())
    assert {row.publish_error for row in done.values()} == {""}


@pytest.mark.once
def test_a_queue_that_does_not_answer_stops_no_other_and_loses_nothing(
    quorum: None, start_service: StartService, private_broker: RabbitMQ, ledger: Ledger
) -> None:
    """A quorum queue has no leader while most of its nodes are away."""
    service = start_service(
        CARROT_BROKER_URL=private_broker.url,
        CARROT_TEST_QUEUE_TYPE="quorum",
        **constants({"publishing.SILENCE": 2}),
    )
    service.wait_for("Consuming queue default")
    private_broker.ctl("eval", "sys:suspend(carrot_default).")
    try:
        late = unsent("default", 200)
        silent = "does not confirm messages to default"
        told = MessageLog.objects.filter(publish_error__contains=silent)
        wait_until(lambda: told.count() == 200)
        wait_until(
            lambda: any(silent in text for w in Worker.objects.all() for text in problems(w))
        )
        finished(unsent("other", 20), 20)
        assert ledger() == ["other"] * 20
    finally:
        private_broker.ctl("eval", "sys:resume(carrot_default).")
    done = finished(late, 30)
    assert {(row.status, row.attempts) for row in done} == {(MessageLog.COMPLETED, 1)}
    assert ledger().count("default") == 200
    assert f"The broker {silent}" in service.log
    assert "The broker confirms messages to default again" in service.log
    assert service.stop() == 0


def problems(worker: Worker) -> list[str]:
    """What a worker says is wrong."""
    found: list[str] = worker.state.get("problems", [])
    return found


def unsent(queue: str, count: int) -> list[MessageLog]:
    """Rows that only a relay can send: their publishers died after the commit."""
    rows = [create_message(tasks.effect, task_args=[queue], queue=queue).row for _ in range(count)]
    MessageLog.objects.bulk_create(rows)
    MessageLog.objects.filter(pk__in=[row.pk for row in rows]).update(relay_at=due_in(0))
    return rows


@pytest.mark.once
def test_who_finds_a_deleted_queue_sends_again_what_it_has_lost(
    served: None, start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """A publisher declares it before any service is there to see that it was gone."""
    rows = publish_many(create_message(tasks.effect, task_args=[str(n)]) for n in range(20))
    assert publisher.flush(10)
    broker.channel.queue_delete("default")
    rows.append(publish_message(tasks.effect, "last"))
    assert publisher.flush(10)
    wait_until(lambda: MessageLog.objects.unsent().count() == 20)
    service = start_service("--queue=default")
    done = finished(rows)
    assert {(row.status, row.attempts) for row in done} == {(MessageLog.COMPLETED, 1)}
    assert len(ledger()) == 21
    assert service.stop() == 0


@pytest.mark.once
@pytest.mark.only("rabbitmq4")
def test_a_broker_that_permits_no_transient_queue_gets_a_durable_one_and_all_are_consumed(
    start_service: StartService, strict_broker: RabbitMQ
) -> None:
    service = start_service(
        CARROT_BROKER_URL=strict_broker.url,
        CARROT_TEST_QUEUE_TYPE="classic",
        CARROT_TEST_DURABLE="no",
    )
    service.wait_for("Consuming queue other")
    assert "Set 'durable': True for it" in service.log
    listed = strict_broker.ctl("list_queues", "-p", strict_broker.name, "name", "durable")
    assert ["default", "true"] in [line.split() for line in listed.splitlines()]
    assert service.stop() == 0


@pytest.mark.once
@pytest.mark.only("rabbitmq4.3")
def test_a_consumer_that_is_cancelled_for_its_slowness_comes_back_and_the_task_runs_on(
    quorum: None,
    settings: Any,
    start_service: StartService,
    strict_broker: RabbitMQ,
    ledger: Ledger,
) -> None:
    settings.CARROT = {**settings.CARROT, "default_broker": strict_broker.url}
    service = start_service(CARROT_BROKER_URL=strict_broker.url, CARROT_TEST_QUEUE_TYPE="quorum")
    slow = publish_message(tasks.effect, "slow", 16.0)
    service.wait_for("Queue default is not consumed: the broker cancelled the consumer")
    quick = publish_message(tasks.effect, "quick")
    (slow_row, quick_row) = finished([slow, quick])
    assert (slow_row.status, slow_row.attempts) == (MessageLog.COMPLETED, 1)
    assert (quick_row.status, quick_row.attempts) == (MessageLog.COMPLETED, 1)
    assert sorted(ledger()) == ["quick", "slow"]
    assert service.stop() == 0
