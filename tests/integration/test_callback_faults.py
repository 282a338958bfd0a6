# SPDX-License-Identifier: Apache-2.0
"""Callbacks and ``publish`` when connections, channels, queues and brokers fail.

In this process, in the real reactor, against a real RabbitMQ; see test_connection.py.
"""

from __future__ import annotations

import gc
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pika
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

import carrot_twisted
from carrot_twisted import publisher
from carrot_twisted.exceptions import PublishReturned, PublishTimeout
from carrot_twisted.service import connection as connection_module
from tests.conftest import Broker, versions_of_rabbitmq
from tests.integration.test_broker_outages import short_delivery_timeout
from tests.integration.test_connection import Log, memory_alarm
from tests.reactor import in_reactor, left_clean, pause, soon, until
from tests.settings import CARROT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from carrot_twisted.handlers import Message
    from carrot_twisted.service.consumption import CallbackConsumer
    from devtools.servers import RabbitMQ

    Consume = Callable[..., Coroutine[Deferred[Any], Any, "Desk"]]

QUEUE, OTHER, EXCLUSIVE = "faulty.queue", "faulty.other", "faulty.exclusive"
EXCHANGE = "faulty.exchange"
ARCHIVE = f"{QUEUE}.archived"

# They ask no database; here they run beside those that need PostgreSQL.
pytestmark = pytest.mark.only("postgres")


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """What is logged; nothing is left in the reactor."""
    log = Log()
    with left_clean():
        globalLogPublisher.addObserver(log)
        yield log
        gc.collect()  # a Deferred logs that nobody took its error when it is collected
        globalLogPublisher.removeObserver(log)
    assert log.failures == []


@pytest.fixture
def client(private_broker: RabbitMQ) -> Iterator[Broker]:
    """A plain AMQP client; none of the queues is there, before and after."""

    def delete() -> None:
        other = Broker(private_broker.url)
        for name in (QUEUE, OTHER, ARCHIVE):
            other.channel.queue_delete(name)
        other.channel.exchange_delete(EXCHANGE)
        other.connection.close()

    delete()
    client = Broker(private_broker.url)
    yield client
    if client.connection.is_open:
        client.connection.close()
    delete()


class Desk:
    """A callback that waits for the test, and its consumers."""

    def __init__(self) -> None:
        self.consumers: list[CallbackConsumer] = []
        self.messages: list[Message] = []
        self.running = 0
        self.most = 0
        """Calls that ran at the same moment."""
        self.go = threading.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.running += 1
        self.most = max(self.most, self.running)
        self.go.wait(30)
        self.running -= 1

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    @property
    def protocol(self) -> Any:
        """Of the present connection."""
        return self.consumers[0]._subscription._connection._protocol

    async def cancel(self) -> None:
        self.go.set()
        for consumer in self.consumers:
            await soon(consumer.cancel(), 10)


@pytest.fixture
def desk(client: Broker, log: Log) -> Iterator[Desk]:
    """Its consumers are cancelled with the test."""
    desk = Desk()
    yield desk
    pytest_twisted.blockon(Deferred.fromCoroutine(desk.cancel()))


@pytest.fixture
def consume(desk: Desk, private_broker: RabbitMQ) -> Consume:
    """Consume from QUEUE."""

    async def start(go: bool = True, **options: Any) -> Desk:
        if go:
            desk.go.set()
        given = {"queues": {QUEUE: {}}, "broker": private_broker.url, **options}
        desk.consumers = await soon(carrot_twisted.twisted_consume(desk, **given), 15)
        return desk

    return start


def count_consumers(client: Broker, queue: str = QUEUE) -> int:
    return int(client.channel.queue_declare(queue, passive=True).method.consumer_count)


# The connection and its channels


@in_reactor
async def test_a_channel_that_the_broker_closes_while_nothing_happens_is_followed_by_another(
    consume: Consume, client: Broker, log: Log
) -> None:
    """fedora-messaging has a zombie then: no consumer, and nobody is told."""
    desk = await consume()
    (consumer,) = desk.consumers
    # 406, unknown delivery tag.
    consumer._subscription._channel.raw.basic_ack(999)  # type: ignore[union-attr]
    await until(lambda: not consumer.running)
    assert consumer.problem is not None
    await until(lambda: consumer.running)
    assert f"Queue {QUEUE} is not consumed: " in log.text
    assert "unknown delivery tag" in log.text
    client.send(QUEUE, b"after")
    await until(lambda: desk.bodies == [b"after"])
    assert count_consumers(client) == 1
    assert not consumer.result.called


@in_reactor
@pytest.mark.parametrize("has_id", [True, False])
async def test_after_many_reconnections_there_is_one_consumer_and_one_callback_at_a_time(
    consume: Consume, client: Broker, monkeypatch: pytest.MonkeyPatch, has_id: bool
) -> None:
    monkeypatch.setattr(connection_module, "LAST_DELAY", 0.1)
    desk = await consume(go=False)
    for number in range(3):
        named = {"message_id": str(number)} if has_id else {}
        client.send(QUEUE, str(number).encode(), delivery_mode=2, **named)
    await until(lambda: desk.bodies == [b"0"])
    seen = set()
    for _ in range(5):
        seen.add(desk.protocol)
        desk.protocol.abort()
        await until(lambda: desk.protocol not in {*seen, None})
        await until(lambda: desk.consumers[0].running)
    # All that it delivers again is here.
    await until(lambda: client.depth(QUEUE) == 0)
    await until(lambda: count_consumers(client) == 1)
    assert desk.bodies == [b"0"]
    desk.go.set()
    # Of a message without an id nobody knows whether it is the one that was running.
    expected = [b"0", b"1", b"2"] if has_id else [b"0", b"0", b"1", b"2"]
    await until(lambda: len(desk.bodies) == len(expected) and not desk.running)
    assert desk.bodies == expected
    assert desk.most == 1
    assert len(seen) == 5
    await desk.cancel()
    assert client.depth(QUEUE) == 0


@pytest.mark.skipif(
    "rabbitmq4.3" in versions_of_rabbitmq(),
    reason="it cancels consumers of quorum queues instead; see test_callbacks.py",
)
@in_reactor
async def test_a_callback_longer_than_the_brokers_delivery_timeout_runs_once_and_is_told(
    consume: Consume, client: Broker, private_broker: RabbitMQ, log: Log
) -> None:
    """The broker closes the channel, and delivers the message again."""
    with short_delivery_timeout(private_broker, 1000):
        desk = await consume(go=False)
        client.send(QUEUE, b"long", message_id="1")
        client.send(QUEUE, b"behind", message_id="2")
        await until(lambda: desk.bodies == [b"long"])
        await until(lambda: not desk.consumers[0].running)
        await until(lambda: desk.consumers[0].running)
        desk.go.set()
        await until(lambda: desk.bodies == [b"long", b"behind"])
        await desk.cancel()
    assert client.depth(QUEUE) == 0
    assert "delivery acknowledgement on channel" in log.text
    assert "has kept a message for longer than the broker's consumer_timeout" in log.text


@in_reactor
async def test_a_callback_that_takes_longer_than_heartbeats_does_not_cost_the_connection(
    consume: Consume, client: Broker, private_broker: RabbitMQ, settings: Any
) -> None:
    """The broker gives up a client that does not answer for two heartbeats."""
    settings.CARROT = {**CARROT, "heartbeat": 1}
    desk = await consume(go=False)
    protocol = desk.protocol
    client.send(QUEUE, b"long")
    await until(lambda: desk.running)
    looking = deferToThread(private_broker.ctl, "list_channels", "consumer_count", "confirm")
    await pause(3.5)
    # fedora-messaging has confirms on each of its channels.
    assert ["1", "false"] in map(str.split, (await looking).splitlines())
    desk.go.set()
    await until(lambda: not desk.running)
    assert desk.protocol is protocol
    await desk.cancel()
    assert desk.bodies == [b"long"]
    assert client.depth(QUEUE) == 0


# The queue


@in_reactor
async def test_a_queue_that_another_connection_has_to_itself_is_told_and_waited_for(
    consume: Consume, client: Broker, private_broker: RabbitMQ, log: Log
) -> None:
    """An own connection that is lost may have it still, until the broker knows of the loss."""
    other = Broker(private_broker.url)
    other.channel.queue_declare(EXCLUSIVE, exclusive=True)
    waiting = consume(queues={EXCLUSIVE: {"exclusive": True, "durable": False}})
    started = Deferred.fromCoroutine(waiting)
    told = f"Queue {EXCLUSIVE} is not consumed: queue '{EXCLUSIVE}' could not be declared: RESOURCE"
    await until(lambda: told in log.text)
    other.connection.close()
    desk = await started
    client.send(EXCLUSIVE, b"mine")
    await until(lambda: desk.bodies == [b"mine"])


# Publishing


@pytest.fixture
def publish(private_broker: RabbitMQ, client: Broker) -> Iterator[Callable[..., None]]:
    """``carrot_twisted.publish`` by a publisher that has not connected yet."""
    publisher.install(None)

    def send(body: Any, exchange: str = "", key: str = QUEUE, **options: Any) -> None:
        carrot_twisted.publish(body, exchange, key, broker=private_broker.url, **options)

    yield send
    leaving = publisher.install(None)
    if isinstance(leaving, publisher.ThreadPublisher):
        leaving.close(5)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Call all at the same moment; what they return or raise."""
    gate = threading.Barrier(len(calls))

    def call(function: Callable[[], Any]) -> Any:
        gate.wait(10)
        try:
            return function()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_threads_that_publish_first_at_the_same_moment_share_one_connection_and_all_are_confirmed(
    publish: Callable[..., None], client: Broker, private_broker: RabbitMQ
) -> None:
    client.channel.queue_declare(QUEUE)
    results = at_once([lambda: publish("text") for _ in range(20)])
    assert results == [None] * 20
    assert client.depth(QUEUE) == 20
    # Of all that there are, only those that publish have confirms.
    assert private_broker.ctl("list_channels", "confirm").splitlines().count("true") == 1


def test_an_exchange_that_is_missing_is_told_at_once_to_all_and_costs_the_others_nothing(
    publish: Callable[..., None], client: Broker
) -> None:
    client.channel.queue_declare(QUEUE)
    lost, good = (lambda: publish("lost", EXCHANGE)), (lambda: publish("good"))
    began = time.monotonic()
    results = at_once([lost, good] * 8)
    assert time.monotonic() - began < 5
    assert results[1::2] == [None] * 8
    assert all(isinstance(error, PublishReturned) for error in results[::2])
    assert {str(error).count("no exchange") for error in results[::2]} == {1}
    assert client.depth(QUEUE) == 8


def test_an_exchange_that_is_deleted_while_it_is_used_is_told_soon_and_used_when_it_is_back(
    publish: Callable[..., None], client: Broker
) -> None:
    client.channel.queue_declare(QUEUE)

    def declare() -> None:
        client.channel.exchange_declare(EXCHANGE, "fanout")
        client.channel.queue_bind(QUEUE, EXCHANGE)

    declare()
    publish("one", EXCHANGE)
    client.channel.exchange_delete(EXCHANGE)
    began = time.monotonic()
    results = at_once([lambda: publish("two", EXCHANGE), lambda: publish("three")] * 4)
    assert time.monotonic() - began < 5
    assert {type(result) for result in results[::2]} == {PublishReturned}
    assert results[1::2] == [None] * 4
    declare()
    publish("four", EXCHANGE)
    bodies = [client.get(QUEUE)[1] for _ in range(client.depth(QUEUE))]
    # What was under way when the channel was closed is sent again, and may have come before.
    assert (bodies[0], bodies[-1]) == (b"one", b"four")
    assert set(bodies[1:-1]) == {b"three"}
    assert len(bodies) >= 6


@in_reactor
async def test_in_a_memory_alarm_callbacks_are_settled_and_publish_says_what_it_waits_for(
    consume: Consume,
    client: Broker,
    private_broker: RabbitMQ,
    publish: Callable[..., None],
) -> None:
    desk = await consume(go=False)
    client.channel.queue_declare(OTHER)
    for number in range(3):
        client.send(QUEUE, str(number).encode())
    await until(lambda: desk.running)
    with memory_alarm(private_broker):
        desk.go.set()
        await until(lambda: len(desk.bodies) == 3 and not desk.running)
        # The first one is on its way when the broker tells of the alarm, the second one is not.
        for number, seconds in enumerate((1.0, 0.5)):
            with pytest.raises(PublishTimeout, match="takes no messages for now: low on memory"):
                publish(str(number), key=OTHER, timeout=seconds)
        await pause(0)
    publish("after", key=OTHER)
    await desk.cancel()
    assert client.depth(QUEUE) == 0
    bodies = [client.get(OTHER)[1] for _ in range(client.depth(OTHER))]
    # "The broker may have it all the same."
    assert bodies in ([b"0", b"after"], [b"after"])


# Other programs


@in_reactor
async def test_what_a_program_publishes_that_is_not_python_is_called_back(
    consume: Consume, private_broker: RabbitMQ
) -> None:
    """amqp-publish, of Debian's amqp-tools: written in C, it sets no message_id."""
    binding = {"exchange": "amq.topic", "routing_keys": ["faulty.#"]}
    desk = await consume(bindings=binding)

    def amqp_publish(key: str, body: str | bytes, *options: str) -> None:
        subprocess.run(
            [
                "amqp-publish",
                f"--url={private_broker.url}",
                "--exchange=amq.topic",
                f"--routing-key={key}",
                *options,
            ],
            input=body if isinstance(body, bytes) else body.encode(),
            check=True,
            timeout=10,
        )

    amqp_publish("faulty.json", '{"n": "ä"}', "--content-type=application/json", "--persistent")
    amqp_publish("faulty.bytes", b"\x00\xff", "--content-type=application/octet-stream")
    amqp_publish("faulty.plain", "text")
    await until(lambda: len(desk.messages) == 3)
    as_json, as_bytes, plain = desk.messages
    assert (as_json.content, as_json.body) == ({"n": "ä"}, '{"n": "ä"}'.encode())
    assert (as_json.exchange, as_json.routing_key) == ("amq.topic", "faulty.json")
    assert as_json.properties.delivery_mode == 2
    assert as_bytes.content == b"\x00\xff"
    assert plain.content == "text"
    assert [message.properties.message_id for message in desk.messages] == [None] * 3


@in_reactor
async def test_what_fedora_messaging_publishes_is_called_back(
    consume: Consume, client: Broker
) -> None:
    """As version 3.9.1 has sent it."""
    desk = await consume(bindings={"exchange": "amq.topic", "routing_keys": ["faulty.#"]})
    headers = {
        "fedora_messaging_schema": "base.message",
        "fedora_messaging_schema_package": "fedora_messaging",
        "fedora_messaging_severity": 20,
        "sent-at": "2026-11-28T03:56:27+00:00",
        "priority": 0,
    }
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        message_id="5869c2b7-71f0-40e0-9588-32e73ebe22fd",
        headers=headers,
    )
    body = b'{"hello": "\\u00e4"}'
    client.channel.basic_publish("amq.topic", "faulty.org.example", body, properties)
    await until(lambda: desk.messages)
    (message,) = desk.messages
    assert message.content == {"hello": "ä"}
    assert message.headers == headers
    assert message.properties.message_id == properties.message_id
