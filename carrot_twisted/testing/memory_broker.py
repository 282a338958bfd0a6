# SPDX-License-Identifier: Apache-2.0
"""A broker in memory, seen through the part of pika's asynchronous interface that we use.

It passes the tests that a real RabbitMQ passes (``tests/contract``), as far as publishing goes:
declarations, bindings, routing, confirms, returns and refusals, messages that expire.

Nothing is called back before ``MemoryConnection.run``: as with a real broker, an answer comes in a
later turn. Calls are checked against the signatures of pika itself.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pika
from pika import spec
from pika.channel import Channel
from pika.exceptions import (
    ChannelClosedByBroker,
    ChannelClosedByClient,
    ChannelWrongStateError,
    ConnectionWrongStateError,
    StreamLostError,
)
from pika.frame import Method
from twisted.internet.task import Clock

Function = TypeVar("Function", bound=Callable[..., Any])


def as_in_pika(function: Function) -> Function:
    """Refuse a call that the method of this name of pika's own channel would refuse."""
    signature = inspect.signature(getattr(Channel, function.__name__))

    @functools.wraps(function)
    def checked(self: MemoryChannel, *args: Any, **kwargs: Any) -> Any:
        if not self.is_open:
            raise ChannelWrongStateError("Channel is closed.")
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        return function(**bound.arguments)

    return checked  # type: ignore[return-value]


#: Exchanges that each virtual host has.
PREDECLARED = {f"amq.{kind}": kind for kind in ("direct", "fanout", "topic")}


class MemoryBroker:
    """Exchanges, queues, bindings and messages."""

    def __init__(self) -> None:
        self.exchanges: dict[str, dict[str, Any]] = {
            name: {"type": kind, "durable": True, "arguments": {}}
            for name, kind in PREDECLARED.items()
        }
        self.queues: dict[str, dict[str, Any]] = {}
        self.bindings: set[tuple[str, str, str]] = set()
        """(exchange, routing key, queue)."""
        self.messages: list[tuple[str, Any, bytes]] = []
        """(queue, properties, body) in order of arrival."""
        self.origins: dict[int, tuple[str, str, float]] = {}
        """Of a message, by the ``id()`` of its properties: exchange and routing key that it was
        published with, and when it came, in seconds of ``seconds``."""
        self.seconds = 0.0
        """The time, as far as messages expire by it."""
        self.declared: list[str] = []
        """Names that were declared or looked up, each time."""
        self.confirms_at_once = True
        self.max_message_size = 128 * 1024 * 1024
        self.permits_transient_queues = True

    def route(self, exchange: str, key: str) -> list[str]:
        """Names of the queues that get a message."""
        if not exchange:
            return [key] if key in self.queues else []
        kind = self.exchanges[exchange].get("type", "direct")
        bound = {q for e, k, q in self.bindings if e == exchange and _matches(kind, k, key)}
        return sorted(bound)

    def put(self, exchange: str, key: str, properties: Any, body: bytes) -> list[str]:
        """Put a message into the queues that get it; returns their names."""
        queues = self.route(exchange, key)
        for queue in queues:
            # Each queue has a message of its own.
            own = copy.copy(properties)
            self.origins[id(own)] = (exchange, key, self.seconds)
            self.messages.append((queue, own, body))
        return queues

    def take(self, message: tuple[str, Any, bytes]) -> None:
        """A message is acknowledged."""
        self.messages.remove(message)
        self.origins.pop(id(message[1]), None)

    def advance(self, seconds: float) -> None:
        """Let time pass: messages of queues with ``x-message-ttl`` go where their queue says."""
        self.seconds += seconds
        for message in list(self.messages):
            queue, properties, body = message
            arguments = self.queues[queue]["arguments"]
            *_, came = self.origins[id(properties)]
            if self.seconds - came < arguments.get("x-message-ttl", math.inf) / 1000:
                continue
            self.take(message)
            if "x-dead-letter-exchange" in arguments:
                key = arguments.get("x-dead-letter-routing-key", queue)
                self.put(arguments["x-dead-letter-exchange"], key, properties, body)

    @property
    def ids(self) -> list[str]:
        """Message ids in order of arrival."""
        return [properties.message_id for _, properties, _ in self.messages]


def _matches(kind: str, pattern: str, key: str) -> bool:
    """Whether an exchange of this type sends a message with this key to a binding."""
    if kind == "topic":
        return _fits(pattern.split("."), key.split("."))
    return kind == "fanout" or pattern == key


def _fits(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    first, *rest = pattern
    if first == "#":
        return any(_fits(rest, words[count:]) for count in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _fits(rest, words[1:])


class MemoryConnection:
    """An open connection to a broker in memory."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self.params = pika.ConnectionParameters("broker.example", 5672)
        self.is_open = True
        self.channels: list[MemoryChannel] = []
        self.clock = Clock()
        self._events: deque[Callable[[], None]] = deque()
        self._on_blocked: list[Callable[..., None]] = []
        self._on_unblocked: list[Callable[..., None]] = []

    def add_on_connection_blocked_callback(self, callback: Callable[..., None]) -> None:
        self._on_blocked.append(callback)

    def add_on_connection_unblocked_callback(self, callback: Callable[..., None]) -> None:
        self._on_unblocked.append(callback)

    def channel(self, on_open_callback: Callable[[MemoryChannel], None]) -> MemoryChannel:
        if not self.is_open:
            raise ConnectionWrongStateError("Channel allocation requires an open connection")
        channel = MemoryChannel(self, len(self.channels) + 1)
        self.channels.append(channel)
        self.soon(lambda: on_open_callback(channel), channel)
        return channel

    def _adapter_call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        return self.clock.callLater(delay, callback)

    def _adapter_remove_timeout(self, timeout_id: Any) -> None:
        timeout_id.cancel()

    def soon(self, event: Callable[[], None], channel: MemoryChannel) -> None:
        """Something that the broker does later, unless the channel is closed by then."""
        self._events.append(lambda: event() if channel.is_open else None)

    def run(self, seconds: float = 0.0) -> None:
        """Let the broker answer, and answer the answers; before that, some time may pass."""
        self.clock.advance(seconds)
        while self._events:
            self._events.popleft()()

    def lose(self, text: str = "the cable was cut") -> None:
        """The connection is lost; every channel is told."""
        self.is_open = False
        for channel in self.channels:
            channel.closed(StreamLostError(text))

    def block(self, reason: str = "low on memory") -> None:
        for callback in self._on_blocked:
            callback(self, Method(0, spec.Connection.Blocked(reason)))

    def unblock(self) -> None:
        for callback in self._on_unblocked:
            callback(self, Method(0, spec.Connection.Unblocked()))

    @property
    def open_channels(self) -> list[MemoryChannel]:
        return [channel for channel in self.channels if channel.is_open]


class MemoryChannel:
    """A channel; publishes are numbered from 1 once confirms are selected."""

    def __init__(self, connection: MemoryConnection, number: int) -> None:
        self.is_open = True
        self.number = number
        self.published: list[Any] = []
        """Properties of each message that was sent, in order: the first has tag 1."""
        self.arrived = 0
        """How many of them the broker has seen: it confirms no others."""
        self.confirming = False
        self._connection = connection
        self._broker = connection.broker
        self._on_close: list[Callable[..., None]] = []
        self._on_return: list[Callable[..., None]] = []
        self._on_confirm: Callable[[Any], None] = lambda frame: None

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self._on_close.append(callback)

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self._on_return.append(callback)

    def closed(self, reason: object) -> None:
        """The channel is closed: by the broker, by us, or with its connection."""
        if self.is_open:
            self.is_open = False
            for callback in self._on_close:
                callback(self, reason)

    @as_in_pika
    def close(self, reply_code: int, reply_text: str) -> None:
        self._connection.soon(
            lambda: self.closed(ChannelClosedByClient(reply_code, reply_text)), self
        )

    @as_in_pika
    def confirm_delivery(
        self, ack_nack_callback: Callable[[Any], None], callback: Callable[[Any], None]
    ) -> None:
        self._on_confirm = ack_nack_callback

        def select_ok() -> None:
            self.confirming = True
            callback(Method(self.number, spec.Confirm.SelectOk()))

        self._connection.soon(select_ok, self)

    @as_in_pika
    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
        mandatory: bool,
    ) -> None:
        assert self.confirming, "published before SelectOk"
        assert mandatory, "an unroutable message would be lost in silence"
        self.published.append(properties)
        tag = len(self.published)

        def arrive() -> None:
            self.arrived = tag
            if len(body) > self._broker.max_message_size:
                self.refuse(
                    406,
                    f"PRECONDITION_FAILED - message size {len(body)} is larger than configured "
                    f"max size {self._broker.max_message_size}",
                )
                return
            if exchange and exchange not in self._broker.exchanges:
                self.refuse(404, f"NOT_FOUND - no exchange '{exchange}'")
                return
            if not self._broker.put(exchange, routing_key, properties, body):
                self.give_back(tag, exchange, routing_key, body)
            if self._broker.confirms_at_once:
                self.confirm(tag)

        self._connection.soon(arrive, self)

    def give_back(self, tag: int, exchange: str = "", key: str = "", body: bytes = b"") -> None:
        """Basic.Return for the message of this tag."""
        method = spec.Basic.Return(312, "NO_ROUTE", exchange, key)
        for callback in self._on_return:
            callback(self, method, self.published[tag - 1], body)

    def confirm(self, tag: int, multiple: bool = False, nack: bool = False) -> None:
        """Basic.Ack or Basic.Nack for this tag, or all up to it."""
        kind = spec.Basic.Nack if nack else spec.Basic.Ack
        self._on_confirm(Method(self.number, kind(tag, multiple)))

    def refuse(self, code: int, text: str) -> None:
        """Channel.Close by the broker."""
        self.closed(ChannelClosedByBroker(code, text))

    @as_in_pika
    def exchange_declare(
        self,
        exchange: str,
        exchange_type: Any,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Any,
        callback: Callable[[Any], None],
    ) -> None:
        wanted = {"type": exchange_type, "durable": durable, "arguments": arguments or {}}
        self._declare(self._broker.exchanges, exchange, wanted, passive, callback)

    @as_in_pika
    def queue_declare(
        self,
        queue: str,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Any,
        callback: Callable[[Any], None],
    ) -> None:
        if not (durable or passive or self._broker.permits_transient_queues):
            text = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated. (541)"
            self._connection.soon(lambda: self._connection.lose(text), self)
            return
        wanted = {"durable": durable, "arguments": arguments or {}}
        self._declare(self._broker.queues, queue, wanted, passive, callback)

    def _declare(
        self,
        known: dict[str, dict[str, Any]],
        name: str,
        wanted: dict[str, Any],
        passive: bool,
        callback: Callable[[Any], None],
    ) -> None:
        def arrive() -> None:
            self._broker.declared.append(name)
            if passive and name not in known:
                self.refuse(404, f"NOT_FOUND - no '{name}'")
            elif not passive and known.setdefault(name, wanted) != wanted:
                self.refuse(406, f"PRECONDITION_FAILED - inequivalent arg of '{name}'")
            else:
                callback(None)

        self._connection.soon(arrive, self)

    @as_in_pika
    def queue_bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str | None,
        arguments: Any,
        callback: Callable[[Any], None],
    ) -> None:
        def arrive() -> None:
            if queue not in self._broker.queues or exchange not in self._broker.exchanges:
                self.refuse(404, f"NOT_FOUND - '{queue}' or '{exchange}'")
            else:
                self._broker.bindings.add((exchange, routing_key or queue, queue))
                callback(None)

        self._connection.soon(arrive, self)
