# SPDX-License-Identifier: Apache-2.0
"""The doctor asks a real broker: what is there, what differs, what this user may do."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pika
import pytest

from carrot_twisted import conf, doctor, topology, virtual_host
from carrot_twisted.doctor import Finding, Level
from devtools.ports import free_port
from tests.conftest import Broker
from tests.integration.test_connection import memory_alarm

if TYPE_CHECKING:
    from devtools.servers import RabbitMQ

pytestmark = [pytest.mark.once, pytest.mark.django_db]
QUEUE = "to-the-doctor"
PASSWORD = "patient-s3cr3t"


@pytest.fixture
def url(private_broker: RabbitMQ) -> str:
    """Of a user whose permissions the test gives."""
    with suppress(Exception):
        private_broker.ctl("delete_user", "patient")
    private_broker.ctl("add_user", "patient", PASSWORD)
    permit(private_broker, ".*", ".*", ".*")
    return f"amqp://patient:{PASSWORD}@{private_broker.url.partition('@')[2]}"


def permit(broker: RabbitMQ, *patterns: str) -> None:
    broker.ctl("set_permissions", "-p", broker.name, "patient", *patterns)


def told(*levels: Level) -> dict[str, list[Finding]]:
    """By what was looked at; only what is said of brokers and queues."""
    found: dict[str, list[Finding]] = {}
    for one in doctor._brokers():
        if not levels or one.level in levels:
            found.setdefault(one.about.partition(" ")[0], []).append(one)
    assert PASSWORD not in repr(found)
    return found


def test_what_is_wrong_at_the_broker_is_told_and_nothing_is_changed(
    private_broker: RabbitMQ, url: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_host, "BLOCKED_TIMEOUT", 1)
    settings.CARROT = {"default_broker": url, "queues": [{"name": QUEUE}]}
    broker = Broker(private_broker.url)
    for name in (QUEUE, f"{QUEUE}.dead"):
        broker.channel.queue_delete(name)
    broker.channel.exchange_delete(QUEUE)

    # Nothing is there.
    (queue,) = told()["queue"]
    assert (queue.level, queue.text) == (Level.WARNING, f"there is no queue {QUEUE!r} yet")
    texts = [one.text for one in told(Level.OK)["broker"]]
    assert texts[0].startswith("lets us in: RabbitMQ ")
    assert texts[1] == "user 'patient' may publish"
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        broker.connection.channel().queue_declare(QUEUE, passive=True)

    # All is there, with a message, and one that no task can be made of.
    settings_queue = conf.current().queue(QUEUE)
    steps = [*topology.dead_letter_steps(settings_queue), *topology.work_queue(settings_queue)]
    for step in steps:
        getattr(broker.channel, step.method)(**step.arguments)
    for name in (QUEUE, f"{QUEUE}.dead"):
        broker.send(name, b"as it was")
    (well,) = told(Level.OK)["queue"]
    assert well.text == "1 messages, 0 consumers, as set"
    (dead,) = told(Level.WARNING)["queue"]
    assert "1 messages that no task can be made of" in dead.text
    method, _, body = broker.channel.basic_get(QUEUE)
    assert (body, method.redelivered) == (b"as it was", False)

    # It may do nothing.
    permit(private_broker, "^$", "^$", "^$")
    errors = told(Level.ERROR)
    (publish,), (consume,) = errors["broker"], errors["queue"]
    assert publish.text.startswith("user 'patient' may not publish: ACCESS_REFUSED")
    assert "its write pattern" in publish.remedy
    assert consume.text.startswith("user 'patient' may not consume from it: ACCESS_REFUSED")
    assert "its read pattern" in consume.remedy
    declares = [one for one in told(Level.WARNING)["queue"] if "may not declare" in one.text]
    assert len(declares) == 3
    assert all("configure pattern" in one.remedy for one in declares)

    # The queue has other arguments.
    permit(private_broker, ".*", ".*", ".*")
    settings.CARROT = {
        "default_broker": url,
        "queues": [{"name": QUEUE, "queue_arguments": {"x-max-priority": 5}}],
    }
    different = [one for one in told(Level.WARNING)["queue"] if "other arguments" in one.text]
    assert len(different) == 1
    assert "x-max-priority" in different[0].text

    # It takes no messages.
    with memory_alarm(private_broker):
        (alarm,) = told(Level.ERROR)["broker"]
    assert "an alarm for memory or disk" in alarm.text

    # It is not there, or does not know us.
    for wrong, what in (
        (url.replace(PASSWORD, f"{PASSWORD}-no"), "No connection"),
        (f"{url}-no", "No connection"),
        (f"amqp://patient:{PASSWORD}@127.0.0.1:{free_port()}/x", "Refused"),
    ):
        settings.CARROT = {"default_broker": wrong, "queues": [{"name": QUEUE}]}
        (error,) = told(Level.ERROR)["broker"]
        assert what in error.text
        assert "user 'patient'" in error.remedy
    broker.connection.close()
