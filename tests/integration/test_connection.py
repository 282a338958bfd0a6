# SPDX-License-Identifier: Apache-2.0
"""Connections of the service: how they begin, how they end, and what comes after.

In this process, in the real reactor, against a real RabbitMQ; where a broker cannot be made to
misbehave, a small server of our own takes its place.
"""

from __future__ import annotations

import gc
import inspect
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pika
import pytest
import pytest_twisted
from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import ILogObserver, LogLevel, eventAsText, globalLogPublisher
from zope.interface import implementer

from carrot_twisted import topology
from carrot_twisted.conf import QueueSettings
from carrot_twisted.consumer import Consumer
from carrot_twisted.outbox import Post
from carrot_twisted.publishing import PublishingSession
from carrot_twisted.service import connection as connection_module
from carrot_twisted.service import protocol as protocol_module
from carrot_twisted.service import subscription as subscription_module
from carrot_twisted.service.connection import BrokerConnection
from carrot_twisted.service.subscription import Subscription
from carrot_twisted.virtual_host import VirtualHost
from devtools.ports import free_port
from tests.conftest import Broker
from tests.reactor import (
    contents,
    hasten_heartbeats,
    in_reactor,
    left_clean,
    pause,
    reactor,
    soon,
    until,
)
from tests.settings import CARROT

if TYPE_CHECKING:
    from twisted.logger import LogEvent
    from twisted.python.failure import Failure

    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.service.protocol import CarrotChannel, CarrotProtocol
    from devtools.servers import RabbitMQ

pytestmark = pytest.mark.once

SECRET = "s3cr3t-Wort"
QUEUE = "connections"
#: The shortest that there is, in seconds.
HEARTBEAT = 1
#: A broker's first words.
START = pika.frame.Method(
    0, pika.spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US")
).marshal()
#: What a broker says at any moment when it is going down.
GOING_DOWN = pika.frame.Method(
    0, pika.spec.Connection.Close(320, "CONNECTION_FORCED - going down", 0, 0)
).marshal()
#: What closing may take, however badly the peer behaves.
CLOSE = protocol_module.FAREWELL + 3.0


@pytest.fixture(autouse=True)
def clean_reactor() -> Iterator[None]:
    """Fail a test that leaves timers or connections behind."""
    with left_clean():
        yield


@implementer(ILogObserver)
class Log:
    """What was logged meanwhile."""

    def __init__(self) -> None:
        self.text = ""
        self.failures: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        line = eventAsText(event, includeTraceback=True, includeTimestamp=False)
        self.text += f"{line}\n"
        if event["log_level"] >= LogLevel.error:
            self.failures.append(line)


@pytest.fixture(autouse=True)
def log(clean_reactor: None) -> Iterator[Log]:
    """The log. A test that expects an error in it empties ``failures``."""
    log = Log()
    globalLogPublisher.addObserver(log)
    yield log
    gc.collect()  # a Deferred logs that nobody took its error when it is collected
    globalLogPublisher.removeObserver(log)
    assert log.failures == []


class Link:
    """A BrokerConnection, and what it handed out."""

    def __init__(self, host: VirtualHost, connected: Callable[[CarrotProtocol], None]) -> None:
        self.protocols: list[CarrotProtocol] = []
        self._then = connected
        self.connection = BrokerConnection(host, "testing", self._connected, reactor)
        self.connection.start()

    async def up(self, times: int = 1) -> CarrotProtocol:
        """Wait until it has connected so often."""
        await until(lambda: len(self.protocols) >= times, 20, f"connection number {times}")
        return self.protocols[-1]

    async def stop(self) -> None:
        """Stop; that may not take long."""
        await soon(self.connection.stop(), CLOSE)

    def _connected(self, protocol: CarrotProtocol) -> None:
        self.protocols.append(protocol)
        self._then(protocol)


Connect = Callable[..., Link]


@pytest.fixture
def connect(log: Log) -> Iterator[Connect]:
    """Start a BrokerConnection; it is stopped with the test."""
    links: list[Link] = []

    def start(
        host: VirtualHost | str, connected: Callable[[CarrotProtocol], None] = lambda _: None
    ) -> Link:
        links.append(Link(VirtualHost(host) if isinstance(host, str) else host, connected))
        return links[-1]

    yield start
    for link in links:
        pytest_twisted.blockon(Deferred.fromCoroutine(link.stop()))


class Peer(Protocol):
    """One connection to a listener: says its greeting, and hears nothing or hangs up."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def connectionMade(self) -> None:
        self._listener.open += 1
        self._listener.accepted += 1
        self.transport.write(self._listener.greeting)  # type: ignore[union-attr]
        if self._listener.hangs_up:
            self.transport.loseConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._listener.open -= 1


class Listener(Factory):
    """A TCP server that is no broker."""

    noisy = False

    def __init__(self, greeting: bytes, hangs_up: bool, port: int) -> None:
        self.greeting = greeting
        self.hangs_up = hangs_up
        self.accepted = 0
        self.open = 0
        self.port = reactor.listenTCP(port, self, interface="127.0.0.1")

    @property
    def url(self) -> str:
        return f"://carrot:{SECRET}@127.0.0.1:{self.port.getHost().port}/"

    def buildProtocol(self, addr: Any) -> Peer:
        return Peer(self)


Listen = Callable[..., Listener]


@pytest.fixture
def listen(clean_reactor: None) -> Iterator[Listen]:
    """Start a listener."""
    listeners: list[Listener] = []

    def start(greeting: bytes = b"", hangs_up: bool = False, port: int = 0) -> Listener:
        listeners.append(Listener(greeting, hangs_up, port))
        return listeners[-1]

    yield start
    for listener in listeners:
        pytest_twisted.blockon(listener.port.stopListening())


@pytest.fixture
def client(private_broker: RabbitMQ) -> Iterator[Broker]:
    """A plain AMQP client, and an empty queue."""
    client = Broker(private_broker.url)
    for queue in (QUEUE, f"{QUEUE}.dead"):
        client.channel.queue_delete(queue)
    client.channel.exchange_delete(QUEUE)
    yield client
    if client.connection.is_open:
        client.connection.close()


# Beginning and end


@in_reactor
async def test_it_connects_hands_the_connection_out_and_closes_it(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    link = connect(private_broker.url)
    assert not link.connection.is_open
    protocol = await link.up()
    assert protocol.is_open
    assert link.connection.is_open
    await link.stop()
    assert not link.connection.is_open
    assert f"Connected to 127.0.0.1:{private_broker.port}, virtual host 'carrot'" in log.text
    assert "Lost" not in log.text
    assert len(link.protocols) == 1


@in_reactor
async def test_stopping_at_any_moment_leaves_nothing_behind(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    for moment in (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.05):
        link = connect(private_broker.url)
        await pause(moment)
        await link.stop()
        assert not link.connection.is_open
    assert "No connection" not in log.text


@pytest.mark.parametrize("greeting", [b"", START], ids=["nothing", "start"])
@in_reactor
async def test_stopping_in_the_middle_of_the_handshake_closes_the_connection(
    connect: Connect, listen: Listen, greeting: bytes
) -> None:
    listener = listen(greeting)
    link = connect(f"amqp{listener.url}")
    await until(lambda: listener.open)
    await link.stop()
    await until(lambda: not listener.open, CLOSE, "the connection is closed")


@in_reactor
async def test_stopping_twice_does_no_harm(private_broker: RabbitMQ, connect: Connect) -> None:
    link = connect(private_broker.url)
    await link.up()
    first = Deferred.fromCoroutine(link.connection.stop())
    await link.stop()
    await soon(first, CLOSE)


@in_reactor
async def test_a_broker_that_answers_no_more_does_not_hold_up_a_stop(
    private_broker: RabbitMQ, connect: Connect
) -> None:
    link = connect(private_broker.url)
    protocol = await link.up()
    await protocol.channel()
    private_broker.pause()
    try:
        await link.stop()
    finally:
        private_broker.resume()
        if link.connection.is_open:
            protocol.abort()


@in_reactor
async def test_whoever_cannot_use_the_new_connection_gets_another_one(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    calls = []

    def connected(protocol: CarrotProtocol) -> None:
        calls.append(protocol)
        if len(calls) == 1:
            raise ValueError("not today")

    link = connect(private_broker.url, connected)
    await link.up(2)
    assert link.connection.is_open
    assert "ValueError: not today" in log.failures.pop()


@in_reactor
async def test_stopping_while_an_unused_connection_closes_does_no_harm(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    def connected(protocol: CarrotProtocol) -> None:
        raise ValueError("not today")

    link = connect(private_broker.url, connected)
    await link.up()
    log.failures.clear()
    await link.stop()


# Refusals


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"password": SECRET}, "user 'carrot' or its password is refused"),
        ({"username": "nobody", "password": SECRET}, "user 'nobody' or its password is refused"),
        ({"name": "nowhere"}, "virtual host 'nowhere': does it exist, and may user 'carrot' use"),
    ],
)
@in_reactor
async def test_a_refusal_tells_whom_and_never_the_password(
    private_broker: RabbitMQ,
    connect: Connect,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    wrong: dict[str, Any],
    expected: str,
) -> None:
    caplog.set_level("INFO")
    right = VirtualHost(private_broker.url)
    given = {"name": right.name, "username": right.username, "password": right.password}
    host = VirtualHost(host="127.0.0.1", port=right.port, **{**given, **wrong})
    before = contents()
    connect(host)
    await until(lambda: "No connection" in log.text)

    assert expected in log.text
    for password in (right.password, SECRET):
        assert password not in log.text
        assert password not in caplog.text
    # What the broker refuses on purpose is not asked for again at once.
    delays = [c.getTime() - reactor.seconds() for c in reactor.getDelayedCalls() if c not in before]
    assert 0.4 < max(delays) < 20
    await pause(0.6)
    assert log.text.count("No connection") == 1


@in_reactor
async def test_a_server_that_does_not_listen_is_tried_again_soon_and_told_once(
    connect: Connect, listen: Listen, log: Log
) -> None:
    port = free_port()
    link = connect(f"amqp://carrot:{SECRET}@127.0.0.1:{port}/")
    assert "is about to be made" in (link.connection.problem or "")
    await until(lambda: "No connection" in log.text)
    assert f"No connection to 127.0.0.1:{port}/%2F for testing: " in log.text
    assert "refused" in log.text
    assert SECRET not in log.text
    problem = link.connection.problem or ""
    assert problem.startswith(f"no connection to 127.0.0.1:{port}/%2F for testing: ")
    assert "refused" in problem
    await pause(1.5)
    assert log.text.count("No connection") == 1
    listener = listen(port=port)
    await until(lambda: listener.accepted, 4)


@in_reactor
async def test_a_broker_that_ends_each_connection_at_once_is_not_asked_all_the_time(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    link = connect(private_broker.url, lambda protocol: protocol.close())
    await link.up(4)
    delays = [call.getTime() - reactor.seconds() for call in reactor.getDelayedCalls()]
    await pause(1.0)
    assert len(link.protocols) < 6, delays
    assert log.text.count("Lost the connection") == 1
    assert log.text.count("Connected to") == 2


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of a cluster are tried as they stand in the settings, not by chance."""
    monkeypatch.setattr(VirtualHost, "shuffled", lambda host: list(host.servers))


@pytest.mark.usefixtures("in_order")
@in_reactor
async def test_the_next_server_of_a_cluster_takes_over(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    right = VirtualHost(private_broker.url)
    host = VirtualHost(
        host=[f"127.0.0.1:{free_port()}", f"localhost:{right.port}"],
        name=right.name,
        username=right.username,
        password=right.password,
    )
    link = connect(host)
    await link.up()
    assert f"Connected to localhost:{right.port}" in log.text
    assert log.text.count("No connection") == 1


@contextmanager
def black_hole() -> Iterator[str]:
    """``host:port`` that does not even refuse: a listener whose queue is full drops what comes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        guests = [socket.socket() for _ in range(3)]
        for guest in guests:
            guest.setblocking(False)
            guest.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        for guest in guests:
            guest.close()


@pytest.mark.usefixtures("in_order")
@in_reactor
async def test_a_server_that_cannot_be_reached_holds_up_nobody(
    private_broker: RabbitMQ, connect: Connect, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT", 0.5)
    with black_hole() as nowhere:
        await connect(private_broker.url.replace("@", f"@{nowhere},")).up()
    assert "TimeoutError" in log.text
    assert f"Connected to 127.0.0.1:{private_broker.port}" in log.text


@pytest.mark.parametrize(
    ("scheme", "greeting"),
    [
        ("amqp", b""),
        ("amqp", b"\x01\x00\x00"),
        ("amqp", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("amqp", START),
        ("amqps", b""),
    ],
    ids=["nothing", "half a frame", "HTTP", "start only", "no TLS"],
)
@in_reactor
async def test_a_peer_without_a_handshake_is_given_up_and_tried_again(
    connect: Connect,
    listen: Listen,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    greeting: bytes,
) -> None:
    monkeypatch.setattr(protocol_module, "HANDSHAKE", 0.3)
    listener = listen(greeting)
    connect(f"{scheme}{listener.url}")
    await until(lambda: listener.accepted >= 2)
    assert "no AMQP handshake within 0.3 seconds" in log.text
    assert listener.open <= 1
    assert SECRET not in log.text


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (b"", "the broker closed the connection"),
        (b"AMQP\x00\x01\x00\x00", "the broker closed the connection"),
        (START, "the broker closed the connection"),
        (START + GOING_DOWN, "CONNECTION_FORCED - going down"),
    ],
    ids=["nothing", "version", "start", "going down"],
)
@in_reactor
async def test_a_server_that_hangs_up_in_the_handshake_is_told_as_such(
    connect: Connect, listen: Listen, log: Log, greeting: bytes, expected: str
) -> None:
    listener = listen(greeting, hangs_up=True)
    connect(f"amqp{listener.url}")
    # A broker that restarts, or a load balancer without one: nothing is wrong with the password,
    # and it may be there in a moment.
    await until(lambda: listener.accepted == 2, 5)
    assert expected in log.text
    assert "password" not in log.text


# Losses


@in_reactor
async def test_a_close_by_the_broker_is_told_with_its_reason_and_it_connects_again(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    link = connect(private_broker.url)
    first = await link.up()
    private_broker.ctl("close_all_connections", "--global", "spring cleaning")
    second = await link.up(2)
    assert not first.is_open
    assert second.is_open
    lost = log.text.partition("Lost the connection")[2]
    assert "320" in lost
    assert "CONNECTION_FORCED - spring cleaning" in lost


@in_reactor
async def test_a_connection_that_is_cut_is_replaced(
    private_broker: RabbitMQ, connect: Connect, log: Log
) -> None:
    link = connect(private_broker.url)
    first = await link.up()
    channel = await first.channel()
    first.abort()
    with pytest.raises(Exception, match="ConnectionAborted"):
        await soon(channel.basic_qos(prefetch_count=1), CLOSE)
    second = await link.up(2)
    assert (await soon(second.channel(), CLOSE)).is_open
    assert "Lost the connection" in log.text


@in_reactor
async def test_a_peer_that_falls_silent_is_given_up_although_data_wait_to_be_sent(
    private_broker: RabbitMQ,
    connect: Connect,
    log: Log,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grace = hasten_heartbeats(monkeypatch)
    settings.CARROT = {**CARROT, "heartbeat": HEARTBEAT}
    link = connect(private_broker.url)
    protocol = await link.up()
    channel = await protocol.channel()
    with private_broker.frozen():
        for _ in range(16):
            channel.raw.basic_publish("", "no such queue", b"x" * 1024 * 1024)
        await pause(0.5)
        assert protocol.transport in reactor.getWriters()
        limit = 2 * (HEARTBEAT + grace) + protocol_module.FAREWELL + 1
        await until(lambda: "Lost the connection" in log.text, limit)
    await link.up(2)
    assert "heartbeat" in log.text.partition("Lost the connection")[2].lower()


@pytest.mark.defect(14)
@in_reactor
async def test_any_number_of_reconnections_leaves_the_stack_as_it_was(
    private_broker: RabbitMQ, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "FIRST_DELAY", 0.0)
    depths: list[int] = []

    def connected(protocol: CarrotProtocol) -> None:
        depths.append(len(inspect.stack()))
        protocol.abort()

    link = connect(VirtualHost(private_broker.url), connected)
    await until(lambda: len(depths) > 60, 30)
    assert set(depths[5:60]) == {depths[1]}
    await link.stop()


@pytest.mark.defect(15)
@in_reactor
async def test_heartbeats_go_on_while_a_task_takes_long(
    private_broker: RabbitMQ, connect: Connect, settings: Any
) -> None:
    """RabbitMQ closes a connection that has been silent for two heartbeats."""
    settings.CARROT = {**CARROT, "heartbeat": HEARTBEAT}
    link = connect(private_broker.url)
    protocol = await link.up()
    await threads.deferToThread(time.sleep, 4)
    assert protocol.is_open
    assert link.protocols == [protocol]


# Consuming


@in_reactor
async def test_an_error_in_a_consumers_callback_kills_no_connection(
    private_broker: RabbitMQ, connect: Connect, client: Broker, log: Log
) -> None:
    client.channel.queue_declare(QUEUE)
    for number in range(3):
        client.send(QUEUE, str(number).encode())
    bodies: list[bytes] = []

    def on_message(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        bodies.append(body)
        if body == b"1":
            raise ValueError("cannot read this")

    protocol = await connect(private_broker.url).up()
    channel = await protocol.channel()
    await channel.consume(QUEUE, on_message)
    await until(lambda: len(bodies) == 3)
    assert bodies == [b"0", b"1", b"2"]
    assert channel.is_open
    (failure,) = log.failures
    assert f"A delivery from {QUEUE} could not be taken in" in failure
    assert "ValueError: cannot read this" in failure
    log.failures.clear()


@in_reactor
async def test_deliveries_in_flight_at_a_cancel_are_ours_to_settle_or_the_queues(
    private_broker: RabbitMQ, connect: Connect, client: Broker
) -> None:
    total = 300
    client.channel.queue_declare(QUEUE)
    for number in range(total):
        client.send(QUEUE, str(number).encode())
    tags: list[int] = []
    cancelled: list[Deferred[Any]] = []

    def on_message(raw: Any, method: Any, _properties: Any, _body: bytes) -> None:
        tags.append(method.delivery_tag)
        if not cancelled:
            # The read that brought this message holds more of them.
            cancelled.append(channel.cancel(method.consumer_tag))

    link = connect(private_broker.url)
    channel: CarrotChannel = await (await link.up()).channel()
    await channel.consume(QUEUE, on_message)
    await until(lambda: cancelled)
    await soon(cancelled[0], CLOSE)
    await until(lambda: client.depth(QUEUE) == total - len(tags))
    for tag in tags[::2]:
        channel.raw.basic_ack(tag)
    await soon(channel.basic_qos(prefetch_count=1), CLOSE)  # answered after the acknowledgements
    await link.stop()
    await until(lambda: client.depth(QUEUE) == total - len(tags[::2]))


# A broker that takes no messages


@contextmanager
def memory_alarm(broker: RabbitMQ) -> Iterator[None]:
    """Let the broker think that its memory is used up."""
    broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.6")


def post(body: bytes) -> Post:
    """A message to the queue."""
    return Post(
        message_id=body.decode(),
        token=None,
        exchange="",
        routing_key=QUEUE,
        body=body,
        properties=pika.BasicProperties(message_id=body.decode()),
        steps=(),
    )


@in_reactor
async def test_a_memory_alarm_blocks_publishing_and_nothing_else(
    private_broker: RabbitMQ, connect: Connect, client: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    client.channel.queue_declare(QUEUE)
    for number in range(3):
        client.send(QUEUE, str(number).encode())
    settled: dict[str, str | None] = {}
    sessions: list[PublishingSession] = []

    def publishing(protocol: CarrotProtocol) -> None:
        sessions.append(
            PublishingSession(
                protocol.connection,
                lambda post, error: settled.update({post.message_id: error}),
                lambda: None,
            )
        )

    await connect(private_broker.url, publishing).up()
    sessions[0].publish([post(b"before")])
    await until(lambda: settled == {"before": None}, what=settled)
    stopped = connect(private_broker.url)
    (await (await stopped.up()).channel()).raw.basic_publish("", "no such queue", b"")
    with memory_alarm(private_broker):
        sessions[0].publish([post(b"in the alarm")])
        await until(lambda: "takes no messages for now" in caplog.text)
        assert sessions[0].alarm
        sessions[0].publish([post(b"later")])
        refusal = f"the broker takes no messages for now: {sessions[0].alarm}"
        assert settled.pop("later") == refusal

        bodies: list[bytes] = []

        def on_message(raw: Any, method: Any, _properties: Any, body: bytes) -> None:
            bodies.append(body)
            raw.basic_ack(method.delivery_tag)

        channel = await (await connect(private_broker.url).up()).channel()
        await channel.basic_qos(prefetch_count=1)
        await soon(channel.consume(QUEUE, on_message), CLOSE)
        await until(lambda: len(bodies) == 4)
        assert bodies == [b"0", b"1", b"2", b"before"]
        assert settled == {"before": None}
    await until(lambda: len(settled) == 2, what=settled)
    assert sessions[0].alarm is None
    sessions[0].publish([post(b"later")])
    await until(lambda: len(settled) == 3, what=settled)
    assert set(settled.values()) == {None}
    await until(lambda: bodies[4:] == [b"in the alarm", b"later"])


@in_reactor
async def test_a_connection_that_a_memory_alarm_blocks_can_be_stopped(
    private_broker: RabbitMQ, connect: Connect
) -> None:
    link = connect(private_broker.url)
    protocol = await link.up()
    channel = await protocol.channel()
    with memory_alarm(private_broker):
        blocked: list[object] = []
        protocol.connection.add_on_connection_blocked_callback(lambda *_: blocked.append(True))
        channel.raw.basic_publish("", "no such queue", b"")
        await until(lambda: blocked)
        try:
            await link.stop()
        finally:
            if link.connection.is_open:
                protocol.abort()


# The watch over a queue


class Pace:
    """Prefetch that never changes."""

    concurrency = 2
    prefetch = 10
    claimed = 10
    least = 2
    headroom = 0


class Taker:
    """Stands in for a dispatcher: acknowledges what it gets, a turn of the reactor later."""

    pace: ClassVar[Pace] = Pace()

    def __init__(self) -> None:
        self.on_settled: Callable[[], None] = lambda: None
        self.bodies: list[bytes] = []
        self.settling = True
        self.waiting: list[Delivery] = []
        self.last: Delivery | None = None
        self._due = False

    def deliver(self, delivery: Delivery) -> None:
        self.waiting.append(delivery)
        self.last = delivery
        if self.settling and not self._due:
            self._due = True
            reactor.callLater(0, self._settle)

    def _settle(self) -> None:
        self._due = False
        waiting, self.waiting = self.waiting, []
        for delivery in waiting:
            if delivery.settler.is_open:
                self.bodies.append(delivery.body)
                delivery.ack()
                delivery.settler.flush()
        self.on_settled()

    def forget_closed(self) -> None:
        self.waiting = [d for d in self.waiting if d.settler.is_open]

    def return_surplus(self, keep: int) -> None:
        while len(self.waiting) > keep:
            self.waiting.pop().requeue()

    def take_custody(self, deadline: float) -> None:
        """Nothing runs here."""


class Watch:
    """A Subscription on a connection, and what reached its taker."""

    def __init__(self, connect: Connect, url: str, kind: type[Consumer] | None = None) -> None:
        self.taker = Taker()
        self.lost: list[QueueSettings] = []
        settings = QueueSettings(
            name=QUEUE,
            host=VirtualHost(url),
            concurrency=2,
            consumable=True,
            durable=True,
            queue_arguments={},
            exchange_arguments={},
            consumer_class="carrot_twisted.consumer.Consumer",
            prefetch=None,
            signing=False,
        )
        self.consumer = (kind or Consumer)(
            settings.host, QUEUE, logging.getLogger("carrot"), f"{QUEUE}-consumer"
        )
        self.link = connect(settings.host, lambda protocol: self.subscription.connected(protocol))
        self.subscription: Subscription = Subscription(
            settings,
            self.consumer,
            self.link.connection,
            cast("Any", self.taker),
            self.lost.append,
            reactor,
        )
        self.subscription.start()

    async def consuming(self) -> None:
        """Wait until the broker delivers."""
        await until(lambda: self.subscription.consuming)

    async def takes(self, *bodies: bytes) -> None:
        """Wait until exactly these have been taken."""
        await until(lambda: len(self.taker.bodies) >= len(bodies), what=bodies)
        assert self.taker.bodies == list(bodies)


@pytest.fixture
def watch(
    private_broker: RabbitMQ, connect: Connect, client: Broker, monkeypatch: pytest.MonkeyPatch
) -> Watch:
    """Consume the queue."""
    monkeypatch.setattr(subscription_module, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(connection_module, "FIRST_DELAY", 0.05)
    return Watch(connect, private_broker.url)


@in_reactor
async def test_a_queue_is_declared_with_its_dead_letter_queue_and_consumed(
    watch: Watch, client: Broker, log: Log
) -> None:
    await watch.consuming()
    client.send(QUEUE, b"one")
    await watch.takes(b"one")
    assert client.depth(topology.dead_letter_queue(QUEUE)) == 0
    assert f"Consuming queue {QUEUE} with 2 threads" in log.text
    await soon(watch.subscription.stop(), CLOSE)
    assert not watch.subscription.consuming
    client.send(QUEUE, b"two")
    await pause(0.2)
    await watch.takes(b"one")


@in_reactor
async def test_consuming_goes_on_after_the_broker_closed_the_channel(
    watch: Watch, client: Broker, log: Log
) -> None:
    await watch.consuming()
    client.send(QUEUE, b"one")
    await watch.takes(b"one")
    delivery = watch.taker.last
    assert delivery is not None
    delivery.ack()
    delivery.settler.flush()
    # A second acknowledgement: 406 PRECONDITION_FAILED.
    delivery.settler._channel.basic_ack(delivery.tag)
    await until(lambda: not watch.subscription.consuming)
    await watch.consuming()
    assert f"Queue {QUEUE} is not consumed: " in log.text
    assert watch.subscription.problem is None
    assert "406" in log.text
    assert "unknown delivery tag" in log.text
    assert log.text.count(f"Consuming queue {QUEUE}") == 2
    client.send(QUEUE, b"two")
    await watch.takes(b"one", b"two")
    assert len(watch.link.protocols) == 1
    assert len(watch.lost) == 1, "once, when the queue was new"


@in_reactor
async def test_consuming_goes_on_after_the_queue_was_deleted(
    watch: Watch, client: Broker, log: Log
) -> None:
    # A queue that is new has no message of any row, either.
    for number in range(1, 4):
        await watch.consuming()
        client.channel.queue_delete(QUEUE)
        await until(lambda: not watch.subscription.consuming)
        await until(lambda number=number: len(watch.lost) > number)  # type: ignore[misc]
    await watch.consuming()
    told = (
        f"Queue {QUEUE} is not consumed: the broker cancelled the consumer: was the queue deleted?"
    )
    assert log.text.count(told) == 1
    assert [queue.name for queue in watch.lost] == [QUEUE] * 4
    client.send(QUEUE, b"one")
    await watch.takes(b"one")
    assert len(watch.link.protocols) == 1


@in_reactor
async def test_consuming_goes_on_after_the_connection_was_closed(
    watch: Watch, private_broker: RabbitMQ, client: Broker
) -> None:
    await watch.consuming()
    watch.taker.settling = False
    client.send(QUEUE, b"one", delivery_mode=2)
    await until(lambda: watch.taker.waiting)
    client.connection.close()
    private_broker.ctl("close_all_connections", "--global", "spring cleaning")
    watch.taker.settling = True
    await watch.link.up(2)
    await watch.takes(b"one")
    assert watch.subscription.consuming


@in_reactor
async def test_a_queue_that_another_consumer_has_to_itself_is_consumed_when_it_is_free(
    watch: Watch, client: Broker, log: Log
) -> None:
    await watch.consuming()
    await soon(watch.subscription.want(False), CLOSE)
    tag = client.channel.basic_consume(QUEUE, lambda *_: None, exclusive=True)
    watch.subscription.want(True)
    await until(lambda: "is not consumed" in log.text)
    assert "403" in log.text
    problem = watch.subscription.problem or ""
    assert problem.startswith(f"queue {QUEUE} is not consumed: ")
    assert "in exclusive use" in problem
    client.channel.basic_cancel(tag)
    await watch.consuming()
    assert watch.subscription.problem is None
    client.send(QUEUE, b"one")
    await watch.takes(b"one")


@in_reactor
async def test_consuming_on_and_off_under_load_loses_nothing(watch: Watch, client: Broker) -> None:
    total = 1000
    await watch.consuming()
    client.channel.confirm_delivery()
    for number in range(total):
        client.send(QUEUE, str(number).encode())
        if number % 10 == 0:
            watch.subscription.want(number % 20 == 0)
            await pause(0.001)
    await soon(watch.subscription.want(True), CLOSE)
    await until(lambda: len(set(watch.taker.bodies)) == total, what="all messages")
    # Each was acknowledged when it was taken, and so came once.
    assert len(watch.taker.bodies) == total
    assert client.depth(QUEUE) == 0
    assert len(watch.link.protocols) == 1


@in_reactor
async def test_what_is_wanted_outlives_the_connection(watch: Watch, client: Broker) -> None:
    await watch.consuming()
    await soon(watch.subscription.want(False), CLOSE)
    client.channel.queue_delete(QUEUE)
    away = f"queue {QUEUE} is not consumed: the database is away"
    assert watch.subscription.problem == away
    watch.link.protocols[0].abort()
    await until(lambda: not watch.link.connection.is_open)
    problem = watch.subscription.problem or ""
    assert problem.startswith(f"queue {QUEUE} is not consumed: no connection to 127.0.0.1:")
    await watch.link.up(2)
    await pause(0.3)
    assert not watch.subscription.consuming
    assert watch.subscription.problem == away
    client.send(QUEUE, b"one")
    await pause(0.1)
    assert watch.taker.bodies == []
    watch.subscription.want(True)
    await watch.takes(b"one")


@in_reactor
async def test_a_queue_that_is_deleted_while_nothing_is_consumed_comes_back(
    watch: Watch, client: Broker
) -> None:
    await watch.consuming()
    await soon(watch.subscription.want(False), CLOSE)
    client.channel.queue_delete(QUEUE)
    watch.subscription.want(True)
    await watch.consuming()
    client.send(QUEUE, b"one")
    await watch.takes(b"one")


@in_reactor
async def test_cuts_under_load_lose_nothing(watch: Watch, client: Broker) -> None:
    total = 1000
    await watch.consuming()
    for number in range(total):
        client.send(QUEUE, str(number).encode(), delivery_mode=2)
        if number % 100 == 0:
            watch.link.protocols[-1].abort()
            watch.subscription.want(number % 200 == 0)
        if number % 10 == 0:
            await pause(0.005)
    watch.subscription.want(True)
    await until(lambda: len(set(watch.taker.bodies)) == total, what="all messages")
    await until(lambda: client.depth(QUEUE) == 0)
    assert len(watch.link.protocols) > 3
    await watch.consuming()


class Diary(Consumer):
    """Writes down which of its hooks are called, with what."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def arguments(self, name: str) -> tuple[Any, ...]:
        """Of the last call of a hook."""
        return next(args for called, args in reversed(self.calls) if called == name)


def _noting(name: str) -> Callable[..., Any]:
    def hook(self: Diary, *args: Any) -> Any:
        self.calls.append((name, args))
        return getattr(super(Diary, self), name)(*args)

    return hook


HOOKS = (
    "run",
    "connect",
    "reconnect",
    "start_consuming",
    "stop_consuming",
    "stop",
    "close_connection",
    "on_connection_open",
    "on_connection_closed",
    "on_channel_open",
    "on_channel_closed",
    "on_exchange_declare",
    "on_queue_declare",
    "on_bind",
    "on_consumer_cancelled",
    "on_cancel",
)
for _name in HOOKS:
    setattr(Diary, _name, _noting(_name))
#: From the connection to the first delivery, in django-carrot's order.
OPENING = [
    "on_connection_open",
    "on_channel_open",
    "on_exchange_declare",
    "on_queue_declare",
    "on_bind",
    "start_consuming",
]


@pytest.fixture
def diary(
    private_broker: RabbitMQ, connect: Connect, client: Broker, monkeypatch: pytest.MonkeyPatch
) -> Callable[[type[Consumer]], Watch]:
    """Consume the queue with a consumer of this class."""
    monkeypatch.setattr(subscription_module, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(connection_module, "FIRST_DELAY", 0.05)
    return lambda kind: Watch(connect, private_broker.url, kind)


@in_reactor
async def test_the_hooks_of_a_consumer_are_called_at_their_moments(
    diary: Callable[[type[Consumer]], Watch], client: Broker
) -> None:
    watch = diary(Diary)
    consumer = cast("Diary", watch.consumer)
    await watch.consuming()
    assert consumer.names == ["run", "connect", *OPENING]
    assert consumer.connection is consumer.arguments("on_connection_open")[0]
    assert isinstance(consumer.connection, pika.connection.Connection)
    assert consumer.channel is consumer.arguments("on_channel_open")[0]
    for name, method in (
        ("on_exchange_declare", pika.spec.Exchange.DeclareOk),
        ("on_queue_declare", pika.spec.Queue.DeclareOk),
        ("on_bind", pika.spec.Queue.BindOk),
    ):
        (frame,) = consumer.arguments(name)
        assert isinstance(frame.method, method), name

    # The queue is deleted: a cancel by the broker, a new channel, no new connection.
    consumer.calls.clear()
    client.channel.queue_delete(QUEUE)
    await until(lambda: consumer.names[-1:] == ["start_consuming"])
    assert consumer.names == [
        "on_consumer_cancelled",
        "on_channel_closed",
        *OPENING[1:],
    ]
    (frame,) = consumer.arguments("on_consumer_cancelled")
    assert isinstance(frame.method, pika.spec.Basic.Cancel)

    # The project stops and starts consuming, from any thread.
    await watch.consuming()
    consumer.calls.clear()
    await threads.deferToThread(consumer.stop_consuming)
    await until(lambda: "on_cancel" in consumer.names)
    assert not watch.subscription.consuming
    assert isinstance(consumer.arguments("on_cancel")[0].method, pika.spec.Basic.CancelOk)
    await threads.deferToThread(consumer.start_consuming)
    await watch.consuming()
    client.send(QUEUE, b"after the pause")
    await watch.takes(b"after the pause")

    # The project closes the connection: the service makes another one.
    consumer.calls.clear()
    old = consumer.connection
    consumer.close_connection()
    await until(lambda: consumer.names[-1:] == ["start_consuming"])
    assert [n for n in consumer.names if n != "on_channel_closed"] == [
        "close_connection",
        "on_connection_closed",
        "reconnect",
        "connect",
        *OPENING,
    ]
    assert consumer.arguments("on_connection_closed") == (old, 200, "Normal shutdown")
    assert consumer.connection is not old

    consumer.calls.clear()
    await watch.consuming()
    await soon(watch.subscription.stop(), CLOSE)
    assert consumer.names == ["stop", "stop_consuming", "on_cancel"]
    assert consumer.shutdown_requested
    watch.subscription.leave()
    await watch.link.stop()
    assert consumer.names[3:5] == ["close_connection", "on_connection_closed"] or (
        consumer.names[3:] == ["close_connection", "on_channel_closed", "on_connection_closed"]
    )
    assert (consumer.connection, consumer.channel) == (None, None)


class Broken(Consumer):
    """Every hook of its raises."""


def _raising(name: str) -> Callable[..., Any]:
    def hook(self: Broken, *args: Any) -> Any:
        raise RuntimeError(f"{name} is broken")

    return hook


for _name in HOOKS:
    setattr(Broken, _name, _raising(_name))


@in_reactor
async def test_hooks_that_raise_keep_no_message_from_coming(
    diary: Callable[[type[Consumer]], Watch], client: Broker, log: Log
) -> None:
    watch = diary(Broken)
    await watch.consuming()
    client.send(QUEUE, b"one")
    await watch.takes(b"one")
    client.channel.queue_delete(QUEUE)
    await until(lambda: "on_consumer_cancelled is broken" in log.text)
    await watch.consuming()
    protocol = await watch.link.up()
    protocol.abort()
    await watch.link.up(2)
    await watch.consuming()
    client.send(QUEUE, b"two")
    await watch.takes(b"one", b"two")
    await soon(watch.subscription.stop(), CLOSE)
    assert not watch.subscription.consuming
    await watch.link.stop()
    for name in HOOKS:
        if name not in ("connect", "stop_consuming", "close_connection"):
            # Those are called by others that are broken themselves.
            assert f"{name} is broken" in log.text
    log.failures.clear()


class Reluctant(Consumer):
    """Decides itself when to begin."""

    def start_consuming(self) -> None:
        """Not yet."""


@in_reactor
async def test_a_consumer_that_does_not_start_is_told_and_may_start_later(
    diary: Callable[[type[Consumer]], Watch], client: Broker, log: Log
) -> None:
    watch = diary(Reluctant)
    await until(lambda: "start_consuming of Reluctant has not called its base's" in log.text)
    assert watch.subscription.problem == (
        f"queue {QUEUE} is not consumed: start_consuming of Reluctant has not called its base's"
    )
    client.send(QUEUE, b"waiting")
    await pause(0.2)
    assert watch.taker.bodies == []
    Consumer.start_consuming(watch.consumer)
    await watch.takes(b"waiting")


class Patient(Consumer):
    """Connects in its own time, as django-carrot's does after ``reconnect_timeout``."""

    def run(self) -> None:
        """Not yet: the test says when."""

    def reconnect(self) -> None:
        """Not yet either."""


@in_reactor
async def test_a_consumer_that_connects_late_is_told_and_then_consumes(
    diary: Callable[[type[Consumer]], Watch], client: Broker, log: Log
) -> None:
    """Another queue of the same broker has made the connection meanwhile."""
    watch = diary(Patient)
    watch.link.connection.start()
    for round_ in (1, 2):
        protocol = await watch.link.up(round_)
        await until(lambda: "run or reconnect of Patient has not called connect" in log.text)
        assert not watch.subscription.consuming
        assert watch.subscription.problem == (
            f"queue {QUEUE} is not consumed: run or reconnect of Patient has not called connect"
        )
        await threads.deferToThread(watch.consumer.connect)
        watch.consumer.connect()
        await watch.consuming()
        client.send(QUEUE, str(round_).encode())
        await until(lambda n=round_: len(watch.taker.bodies) == n)  # type: ignore[misc]
        assert len(protocol.connection._channels) == 1
        if round_ == 1:
            protocol.abort()
            await until(lambda: not watch.subscription.consuming)
    assert watch.taker.bodies == [b"1", b"2"]
    await soon(watch.subscription.stop(), CLOSE)
    assert "the service stops" in (watch.subscription.problem or "")
    await watch.link.stop()


class Strict(Consumer):
    """Its hooks take one frame, and it looks after its channel in its own way."""

    def on_channel_open(self, channel: Any) -> None:
        self.channel = None
        self.frames: list[Any] = []

    def on_queue_declare(self, frame: Any) -> None:
        self.frames.append(frame)


@in_reactor
async def test_a_queue_that_exists_with_other_arguments_is_declared_for_the_hooks(
    diary: Callable[[type[Consumer]], Watch], client: Broker, log: Log
) -> None:
    client.channel.queue_declare(QUEUE, durable=True, arguments={"x-max-length": 10})
    watch = diary(Strict)
    await watch.consuming()
    assert cast("Strict", watch.consumer).frames == [None]
    client.send(QUEUE, b"one")
    await watch.takes(b"one")
    delivery = watch.taker.last
    assert delivery is not None
    assert delivery.channel is not None, "hooks have to get one, whatever the project keeps"
    await soon(watch.subscription.stop(), CLOSE)
    await watch.link.stop()
