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
        self.send(spec.Basic.Deliver(self.tag, tag, False, "", "default"), 1)
        payload = struct.pack(">HHQ", spec.Basic.INDEX, 0, len(body)) + properties
        head = struct.pack(">BHL", spec.FRAME_HEADER, 1, len(payload))
        self.protocol.dataReceived(head + payload + bytes([spec.FRAME_END]))
        self.protocol.dataReceived(frame.Body(1, body).marshal())
        self.clock.advance(0)


@pytest.fixture
def broker() -> Broker:
    return Broker()


def with_headers(table: bytes) -> bytes:
    """Properties that hold nothing but headers, already encoded."""
    return struct.pack(">HL", 1 << 13, len(table)) + table


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


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
        got.append((method.delivery_tag, properties.message_id, body))

    broker.consume(broker.open_channel(), on_message)
    broker.deliver(1, plain(message_id="a"), b"body")
    broker.deliver(2, plain(message_id="b"), b"other")
    assert got == [(1, "a", b"body"), (2, "b", b"other")]


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
        got.append((method.delivery_tag, properties.message_id))

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
