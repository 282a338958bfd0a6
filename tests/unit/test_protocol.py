# SPDX-License-Identifier: Apache-2.0
"""One AMQP connection, frame by frame: the test is the broker, and nothing leaves the process."""

from __future__ import annotations

import struct
from typing import Any

import pika
import pytest
from pika import frame, spec
from pika.exceptions import ChannelWrongStateError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from carrot_twisted.properties_reader import read_properties
from carrot_twisted.service import protocol as module
from carrot_twisted.service.protocol import CarrotChannel, CarrotProtocol


class Transport(StringTransport):
    """In memory; notes how it was ended."""

    aborted = False

    def abortConnection(self) -> None:  # noqa: N802
        self.aborted = True
        self.loseConnection()


class Broker:
    """The other end of the line."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.transport = Transport()
        self.protocol = CarrotProtocol(pika.ConnectionParameters(heartbeat=0), self.clock)
        self.ready: list[Any] = []
        assert self.protocol.ready is not None
        self.protocol.ready.addBoth(self.ready.append)
        self.protocol.makeConnection(self.transport)

    def send(self, method: Any, channel: int = 0) -> None:
        """A method frame for the service."""
        self.protocol.dataReceived(frame.Method(channel, method).marshal())
        self.clock.advance(0)

    def shake_hands(self) -> None:
        """All of the handshake."""
        self.send(spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US"))
        self.send(spec.Connection.Tune(channel_max=10, frame_max=131072, heartbeat=0))
        self.send(spec.Connection.OpenOk())

    def open_channel(self) -> CarrotChannel:
        """A channel for the service."""
        opened: list[CarrotChannel] = []
        self.protocol.channel().addCallback(opened.append)
        self.send(spec.Channel.OpenOk(), 1)
        return opened[0]

    def consume(self, channel: CarrotChannel, on_message: Any) -> None:
        """The service consumes."""
        channel.consume("default", on_message)
        (self.tag,) = channel.raw.consumer_tags
        self.send(spec.Basic.ConsumeOk(self.tag), 1)

    def deliver(self, tag: int, properties: bytes, body: bytes = b"{}") -> None:
        """A message; its properties as they are on the wire."""
        for part in self.frames(tag, properties, body):
            self.protocol.dataReceived(part)
        self.clock.advance(0)

    def frames(self, tag: int, properties: bytes, *bodies: bytes) -> list[bytes]:
        """The frames of a message, whose body comes in so many of them."""
        method = spec.Basic.Deliver(self.tag, tag, False, "", "default")
        payload = struct.pack(">HHQ", spec.Basic.INDEX, 0, sum(map(len, bodies))) + properties
        head = struct.pack(">BHL", spec.FRAME_HEADER, 1, len(payload))
        return [
            frame.Method(1, method).marshal(),
            head + payload + bytes([spec.FRAME_END]),
            *(frame.Body(1, body).marshal() for body in bodies),
        ]


@pytest.fixture
def broker() -> Broker:
    return Broker()


def with_headers(table: bytes) -> bytes:
    """Properties that hold nothing but headers, already encoded."""
    return struct.pack(">HL", 1 << 13, len(table)) + table


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


def read(properties: Any) -> pika.BasicProperties:
    """Of a delivery that came in pieces they are read already."""
    return read_properties(properties) if isinstance(properties, bytes) else properties


def plain(**properties: Any) -> bytes:
    return b"".join(pika.BasicProperties(**properties).encode())


def test_the_handshake_makes_it_ready(broker: Broker) -> None:
    broker.shake_hands()
    assert len(broker.ready) == 1
    assert broker.protocol.is_open


def test_without_an_answer_it_is_given_up(broker: Broker) -> None:
    broker.clock.advance(module.HANDSHAKE - 0.1)
    assert broker.ready == []
    broker.clock.advance(0.2)
    assert "no AMQP handshake within 15 seconds" in str(broker.ready[0].value)
    assert broker.transport.aborted


def test_the_reason_of_a_refusal_is_kept(broker: Broker) -> None:
    broker.send(spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US"))
    broker.send(spec.Connection.Close(403, "ACCESS_REFUSED - Login was refused", 0, 0))
    broker.protocol.connectionLost(Failure(ConnectionDone()))
    assert isinstance(broker.ready[0].value, pika.exceptions.ProbableAuthenticationError)


def test_a_loss_in_the_handshake_is_not_taken_for_a_refusal(broker: Broker) -> None:
    broker.send(spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US"))
    broker.protocol.connectionLost(Failure(ConnectionDone()))
    assert type(broker.ready[0].value) is pika.exceptions.AMQPConnectionError


def test_the_reason_of_a_close_is_kept(broker: Broker) -> None:
    broker.shake_hands()
    reasons: list[Any] = []
    assert broker.protocol.closed is not None
    broker.protocol.closed.addBoth(reasons.append)
    broker.send(spec.Connection.Close(320, "CONNECTION_FORCED - shutdown", 0, 0))
    broker.protocol.connectionLost(Failure(ConnectionDone()))
    assert "CONNECTION_FORCED" in str(reasons[0])


def test_the_reason_of_a_loss_is_kept(broker: Broker) -> None:
    broker.shake_hands()
    reasons: list[Any] = []
    assert broker.protocol.closed is not None
    broker.protocol.closed.addBoth(reasons.append)
    broker.protocol.connectionLost(Failure(ConnectionLost("reset by peer")))
    assert "reset by peer" in str(reasons[0])
    assert not broker.protocol.is_open


def test_deliveries_come_to_the_callback(broker: Broker) -> None:
    broker.shake_hands()
    got: list[tuple[int, str, bytes]] = []

    def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got.append((method.delivery_tag, read(properties).message_id, body))

    broker.consume(broker.open_channel(), on_message)
    broker.deliver(1, plain(message_id="a"), b"body")
    broker.deliver(2, plain(message_id="b"), b"other")
    assert got == [(1, "a", b"body"), (2, "b", b"other")]


def test_however_they_are_cut_deliveries_are_the_same(broker: Broker) -> None:
    """TCP knows no frames, and other frames may stand between those of a delivery."""
    broker.shake_hands()
    got: list[tuple[int, str | None, Any, bytes]] = []

    def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
        found = read(properties)
        got.append((method.delivery_tag, found.message_id, found.headers, body))

    broker.consume(broker.open_channel(), on_message)
    heartbeat = heartbeat_frame()
    method, header, body = broker.frames(6, plain(message_id="f"), b"six")
    stream = b"".join(
        [
            *broker.frames(1, plain(message_id="a"), b"one"),
            *broker.frames(2, plain(message_id="b"), b"two"),
            *broker.frames(3, plain(message_id="c")),
            *broker.frames(4, plain(message_id="d"), b"fo", b"ur"),
            heartbeat,
            *broker.frames(5, with_headers(HOSTILE_HEADERS["a text cut short"]), b"five"),
            *(method, heartbeat, header, body),
            *broker.frames(7, plain(message_id="g"), b"seven"),
        ]
    )
    expected = [
        *((1, "a", None, b"one"), (2, "b", None, b"two"), (3, "c", None, b"")),
        # The text that is shorter than it says does not get what follows.
        *((4, "d", None, b"four"), (5, None, {"x": "a"}, b"five")),
        *((6, "f", None, b"six"), (7, "g", None, b"seven")),
    ]
    connection = broker.protocol.connection
    before = connection.frames_received, connection.bytes_received
    broker.protocol.dataReceived(stream)
    assert got == expected
    one = connection.frames_received - before[0]
    assert connection.bytes_received - before[1] == len(stream)
    for cut in range(1, len(stream), 3):
        got.clear()
        before = connection.frames_received, connection.bytes_received
        broker.protocol.dataReceived(stream[:cut])
        broker.protocol.dataReceived(stream[cut:])
        assert got == expected, cut
        # Heartbeats are checked by these.
        assert connection.frames_received - before[0] == one, cut
        assert connection.bytes_received - before[1] == len(stream), cut


def test_a_frame_without_its_end_ends_the_connection(broker: Broker) -> None:
    broker.shake_hands()
    got: list[bytes] = []
    broker.consume(broker.open_channel(), lambda *message: got.append(message[3]))
    method, header, body = broker.frames(1, plain(), b"one")
    with pytest.raises(pika.exceptions.InvalidFrameError):
        broker.protocol.dataReceived(method + header + body[:-1] + b"x" + heartbeat_frame())
    assert got == []


def heartbeat_frame() -> bytes:
    return frame.Heartbeat().marshal()  # type: ignore[no-any-return]


def test_a_callback_that_fails_does_not_end_the_connection(broker: Broker) -> None:
    broker.shake_hands()
    tags: list[int] = []

    def on_message(_channel: Any, method: Any, *_: Any) -> None:
        tags.append(method.delivery_tag)
        raise RuntimeError("in our code")

    broker.consume(broker.open_channel(), on_message)
    broker.deliver(1, plain())
    broker.deliver(2, plain())
    assert tags == [1, 2]
    assert broker.protocol.is_open


def test_what_is_on_its_way_when_a_consumer_is_cancelled_is_not_returned(broker: Broker) -> None:
    """With another prefetch a consumer is started anew: all of it would come again at once."""
    broker.shake_hands()
    channel = broker.open_channel()
    tags: list[int] = []
    broker.consume(channel, lambda _, method, *__: tags.append(method.delivery_tag))
    cancelled: list[Any] = []
    channel.cancel(broker.tag).addCallback(cancelled.append)
    broker.transport.clear()
    broker.deliver(1, plain())
    broker.protocol.dataReceived(b"".join(broker.frames(2, plain(), b"two ", b"frames")))
    assert (tags, broker.transport.value(), cancelled) == ([1, 2], b"", [])
    broker.send(spec.Basic.CancelOk(broker.tag), 1)
    assert len(cancelled) == 1
    assert channel.raw.consumer_tags == []
    broker.deliver(3, plain())
    assert tags == [1, 2]


HOSTILE_HEADERS = {
    "a float that is no number": field(b"x", b"d", struct.pack(">d", float("nan"))),
    "an infinite float": field(b"x", b"f", struct.pack(">f", float("inf"))),
    "a time after the year 9999": field(b"x", b"T", struct.pack(">Q", 2**63)),
    "a type that nobody knows": field(b"x", b"?", b"\0" * 4),
    "a text cut short": field(b"x", b"S", struct.pack(">L", 1000) + b"a"),
}


@pytest.mark.parametrize("what", HOSTILE_HEADERS)
def test_headers_that_pika_cannot_read_do_not_end_the_connection(broker: Broker, what: str) -> None:
    """Any client may send them. The message would come again with each new connection, for ever."""
    broker.shake_hands()
    got: list[tuple[int, Any]] = []

    def on_message(_channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        got.append((method.delivery_tag, read(properties).message_id))

    broker.consume(broker.open_channel(), on_message)
    broker.deliver(1, with_headers(HOSTILE_HEADERS[what]))
    broker.deliver(2, plain(message_id="next"))
    assert [tag for tag, _ in got] == [1, 2]
    assert got[1] == (2, "next")
    assert broker.protocol.is_open


def test_a_silent_peer_is_aborted_a_moment_after_the_close(broker: Broker) -> None:
    broker.shake_hands()
    broker.protocol.connection._adapter_disconnect_stream()
    assert broker.transport.disconnecting
    assert not broker.transport.aborted
    broker.clock.advance(module.FAREWELL)
    assert broker.transport.aborted


def test_frames_after_the_loss_are_dropped(broker: Broker) -> None:
    broker.shake_hands()
    channel = broker.open_channel()
    broker.protocol.connectionLost(Failure(ConnectionDone()))
    sent = broker.transport.value()
    broker.protocol.connection._adapter_emit_data(b"late")
    assert broker.transport.value() == sent
    assert not channel.is_open


def test_on_a_closed_connection_no_channel_can_be_opened(broker: Broker) -> None:
    broker.shake_hands()
    broker.protocol.connectionLost(Failure(ConnectionDone()))
    failures: list[Any] = []
    broker.protocol.channel().addErrback(failures.append)
    assert isinstance(failures[0].value, pika.exceptions.AMQPError)


def test_a_call_on_a_channel_that_is_closing_fails_once(broker: Broker) -> None:
    """As a consumer that is started anew while the connection is closed for good."""
    broker.shake_hands()
    channel = broker.open_channel()
    broker.protocol.close()
    told: list[Any] = []
    for call in (channel.consume("default", print), channel.basic_qos(prefetch_count=1)):
        call.addErrback(lambda failure: told.append(failure.type))
    assert told == [ChannelWrongStateError] * 2
    assert not channel._calls, "what would fail a second time, with nobody to hear it"
