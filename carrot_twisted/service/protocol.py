# SPDX-License-Identifier: Apache-2.0
"""pika's Twisted adapter, with its faults cured. The only module that knows that adapter.

The adapter is deprecated in pika 1.5 and leaves in 2.0; everything else here works on
``pika.connection.Connection``, so only this file has to follow. What is cured:

- the reason of a close is kept (the adapter tells ``ConnectionDone`` for whatever the broker said,
  and ``AMQPConnectionError(1)`` for a wrong password or a missing virtual host);
- a peer that stopped answering is given up for good: ``loseConnection`` waits for unsent data, or
  for TLS's farewell, for ever, so the transport is aborted after a moment;
- frames written after the loss of the transport are dropped instead of raising AttributeError;
- deliveries come to a plain callback (the adapter's queue loses what it holds on a cancel), those
  too that are on their way when a consumer is cancelled (pika returns them to the queue), and an
  exception in it does not kill the connection;
- a message whose headers pika cannot read does not end the connection;
- a call on a channel that is closing fails once, and is not told as unhandled when it has closed;
- the handshake has a time limit;
- deliveries are read in one step: pika copies all that is buffered for each of their three frames,
  looks for callbacks that there are none of, and reads properties that nobody may ask for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pika
from pika import frame, spec
from pika.adapters.twisted_connection import (
    TwistedChannel,
    TwistedProtocolConnection,
    _TwistedConnectionAdapter,
)
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelWrongStateError,
    ConnectionClosedByBroker,
    StreamLostError,
)
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from txaio.tx import make_logger

_log = make_logger()

#: Frame: type, channel, size of the payload. Content header: class, weight, size of the body.
_FRAME = struct.Struct(">BHL")
_CONTENT = struct.Struct(">HHQ")
#: The same, as they stand in a delivery: a method frame with the method's number; a header frame
#: and one of a body, each after the end of the frame before it.
_METHOD_FRAME = struct.Struct(">BHLL")
_HEADER_FRAME = struct.Struct(">BBHLHHQ")
_BODY_FRAME = struct.Struct(">BBHL")
#: Of Basic.Deliver, between two texts: delivery tag, and whether it was delivered before.
_TAG = struct.Struct(">QB")
#: Seconds that a closing transport gets to send what it holds.
FAREWELL = 2.0
#: Reply codes for a wrong password, and for a virtual host that is missing or not ours.
REFUSALS = (403, 530)
#: Seconds for TCP's peer to finish the AMQP handshake.
HANDSHAKE = 15.0

#: Method, header, and one body.
FRAMES_OF_DELIVERY = 3

OnMessage = Callable[[Any, Any, Any, bytes], None]
"""Gets pika's channel, the method (``Basic.Deliver``, or a ``WholeDelivery``), the properties
(pika's, or encoded as they came) and the body."""


class WholeDelivery(NamedTuple):
    """The frames of a delivery, read: all but the properties, which not everybody asks for."""

    channel_number: int
    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes
    end: int
    """Where the next frame begins."""


def read_delivery(buffer: bytes, start: int) -> WholeDelivery | None:
    """Read the delivery whose first frame begins at ``start``.

    Returns:
        None: something else begins there, or not all of it has come, or it is not of the usual
        kind: one frame for its method, one for its properties, one for its body.
    """
    try:
        kind, channel, size, method = _METHOD_FRAME.unpack_from(buffer, start)
        if method != spec.Basic.Deliver.INDEX or kind != spec.FRAME_METHOD:
            return None
        # The end of the frame, which is the first of the next one's here.
        end = start + _FRAME.size + size
        ended, kind, other, size, _, _, length = _HEADER_FRAME.unpack_from(buffer, end)
        if ended != spec.FRAME_END or kind != spec.FRAME_HEADER or other != channel:
            return None
        properties_at = end + _HEADER_FRAME.size
        properties_end = end + 1 + _FRAME.size + size
        ended, kind, other, size = _BODY_FRAME.unpack_from(buffer, properties_end)
        if ended != spec.FRAME_END or kind != spec.FRAME_BODY or other != channel:
            return None
        body_at = properties_end + _BODY_FRAME.size
        body_end = body_at + size
        if size != length or buffer[body_end] != spec.FRAME_END:
            return None
        at = start + _METHOD_FRAME.size + 1
        tag_at = at + buffer[at - 1]
        delivery_tag, bits = _TAG.unpack_from(buffer, tag_at)
        # Cut out: a length that lies must not bring in what follows.
        exchange, routing_key = _route(buffer[tag_at + _TAG.size : end])
        consumer_tag = buffer[at:tag_at].decode()
    except (struct.error, IndexError, ValueError):
        # The end of the buffer; or texts that are not where they should be, or not in UTF-8.
        return None
    return WholeDelivery(
        channel,
        consumer_tag,
        delivery_tag,
        bool(bits & 1),
        exchange,
        routing_key,
        buffer[properties_at:properties_end],
        buffer[body_at:body_end],
        body_end + 1,
    )


@lru_cache(maxsize=1000)
def _route(encoded: bytes) -> tuple[str, str]:
    """Exchange and routing key, the last two arguments of a method: few differ.

    Raises:
        IndexError, ValueError: this is something else.
    """
    at = 1 + encoded[0]
    end = at + 1 + encoded[at]
    if end != len(encoded):
        raise ValueError("there is something else")
    return encoded[1:at].decode(), encoded[at + 1 : end].decode()


class _Connection(_TwistedConnectionAdapter):
    """The adapter's connection, with an end that comes and a reason that stays."""

    _transport: Any
    _error: Exception | None
    _farewell: Any = None

    def _adapter_disconnect_stream(self) -> None:
        transport = self._transport
        if transport is None or self._farewell is not None:
            return
        transport.loseConnection()
        self._farewell = self._reactor.callLater(FAREWELL, transport.abortConnection)

    def _adapter_emit_data(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            transport.write(data)

    def _on_data_available(self, data_in: bytes) -> None:
        self._frame_buffer += data_in
        while self._frame_buffer:
            if self._take_deliveries():
                continue
            size, value = self._read_frame()
            if not value:
                return
            self._trim_frame_buffer(size)
            self._process_frame(value)

    def _take_deliveries(self) -> bool:
        """Take in all deliveries that the buffer begins with; whether there was any."""
        position = 0
        try:
            while (delivery := read_delivery(self._frame_buffer, position)) is not None:
                channel = self._channels.get(delivery.channel_number)
                consumer = channel and channel._consumers.get(delivery.consumer_tag)
                if consumer is None:
                    break
                position = delivery.end
                self.frames_received += FRAMES_OF_DELIVERY
                consumer(channel, delivery, delivery.properties, delivery.body)
        finally:
            if position:
                self._trim_frame_buffer(position)
        return position > 0

    def _read_frame(self) -> tuple[int, Any]:
        try:
            return super()._read_frame()  # type: ignore[no-any-return]
        except Exception:
            buffer = self._frame_buffer
            kind, channel, size = _FRAME.unpack_from(buffer)
            if kind != spec.FRAME_HEADER:
                raise
            # Headers that pika cannot read would end this connection and, redelivered, each one
            # after it. The message goes on without its properties.
            _, _, length = _CONTENT.unpack_from(buffer, _FRAME.size)
            header = frame.Header(channel, length, pika.BasicProperties())
            return _FRAME.size + size + spec.FRAME_END_SIZE, header

    def connection_lost(self, error: Failure) -> None:
        self._transport = None
        if self._farewell is not None and self._farewell.active():
            self._farewell.cancel()
        # Neither a StreamLostError nor a ConnectionClosedByBroker with any code: before the
        # connection is open, pika takes these for a wrong password, a missing virtual host or
        # another protocol, by how far the handshake had come.
        if self._error is None:
            reason = error.value
            self._error = AMQPConnectionError(
                "the broker closed the connection"
                if isinstance(reason, ConnectionDone)
                else f"{type(reason).__name__}: {reason}"
            )
        elif (
            isinstance(self._error, ConnectionClosedByBroker)
            and self._error.reply_code not in REFUSALS
        ):
            self._error = AMQPConnectionError(
                f"the broker closed the connection: {self._error.reply_text} "
                f"({self._error.reply_code})"
            )
        self._on_stream_terminated(None)


class CarrotChannel(TwistedChannel):
    """A channel whose deliveries come to a callback."""

    @property
    def raw(self) -> pika.channel.Channel:
        """pika's own channel: acknowledgements need no Deferred."""
        return self._channel

    def _wrap_channel_method(self, name: str) -> Callable[..., Deferred[Any]]:
        wrapped: Callable[..., Deferred[Any]] = super()._wrap_channel_method(name)

        def call(*arguments: Any, **options: Any) -> Deferred[Any]:
            if not self._channel.is_open:
                # The adapter would keep a Deferred beside the failed one, for nobody.
                return fail(ChannelWrongStateError("the channel is closing"))
            return wrapped(*arguments, **options)

        return call

    def consume(self, queue: str, on_message: OnMessage) -> Deferred[Any]:
        """Start a consumer; fires with pika's ConsumeOk frame."""

        def guarded(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            try:
                on_message(channel, method, properties, body)
            except Exception:
                _log.failure("A delivery from {queue} could not be taken in", queue=queue)

        consume: Callable[..., Deferred[Any]] = self._wrap_channel_method("basic_consume")
        return consume(queue=queue, on_message_callback=guarded)

    def cancel(self, consumer_tag: str) -> Deferred[Any]:
        """Stop a consumer. What was delivered stays ours to acknowledge or return.

        So does what is delivered until the broker has heard of it: the callback is called for that,
        too.
        """
        cancel: Callable[..., Deferred[Any]] = self._wrap_channel_method("basic_cancel")
        cancelled = cancel(consumer_tag=consumer_tag)
        # pika would return what is on its way, message by message. All of it would come again at
        # once where the consumer is started anew, with another prefetch; and a quorum queue counts.
        self._channel._cancelled.discard(consumer_tag)
        return cancelled


class CarrotProtocol(TwistedProtocolConnection):
    """One AMQP connection in the reactor.

    ``ready`` fires when the handshake is done, or fails with the broker's reason. ``closed``, from
    then on, fires with the reason of the close.
    """

    ready: Deferred[Any] | None

    def __init__(self, parameters: pika.ConnectionParameters, reactor: Any) -> None:
        super().__init__(parameters, custom_reactor=reactor)
        self._impl = _Connection(
            parameters=parameters,
            on_open_callback=self._on_connection_ready,
            on_open_error_callback=self._on_connection_failed,
            on_close_callback=self._on_connection_closed,
            custom_reactor=reactor,
        )
        assert self.ready is not None
        # Cancelling the Deferred on the time limit closes the transport.
        self.ready.addTimeout(HANDSHAKE, reactor, self._on_silence)

    @property
    def connection(self) -> pika.connection.Connection:
        """pika's connection, for code that is shared with other adapters."""
        return self._impl

    @property
    def product(self) -> str:
        """What the broker says it is: "RabbitMQ 4.0.5"."""
        told = self._impl.server_properties or {}
        return f"{told.get('product', 'unknown broker')} {told.get('version', '')}".rstrip()

    @property
    def drops_after_returns(self) -> bool:
        """Whether quorum queues drop a message that came back 20 times: RabbitMQ 4 does."""
        told = self._impl.server_properties or {}
        major = str(told.get("version", "")).partition(".")[0]
        return told.get("product") == "RabbitMQ" and major.isdecimal() and int(major) >= 4

    def abort(self) -> None:
        """End the connection without a farewell."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def close(
        self, reply_code: int = 200, reply_text: str = "Normal shutdown"
    ) -> Deferred[Any] | None:
        """Close the connection, if that has not begun yet; returns ``closed``."""
        if not (self._impl.is_closing or self._impl.is_closed):
            self._impl.close(reply_code, reply_text)
        closed: Deferred[Any] | None = self.closed
        return closed

    def channel(self, channel_number: int | None = None) -> Deferred[CarrotChannel]:
        """Open a channel."""
        opened: Deferred[Any] = Deferred()
        try:
            self._impl.channel(channel_number, opened.callback)
        except AMQPError:
            return _failed()
        self._calls.add(opened)
        opened.addCallback(self._clear_call, opened)
        return opened.addCallback(CarrotChannel)

    def _on_connection_failed(
        self, _connection: Any, error_message: Exception | None = None
    ) -> None:
        ready, self.ready = self.ready, None
        if ready:
            ready.errback(error_message or StreamLostError("the connection failed"))

    def _on_silence(self, value: Any, timeout: float) -> Any:
        self.abort()
        return Failure(StreamLostError(f"no AMQP handshake within {timeout:g} seconds"))


def _failed() -> Deferred[Any]:
    """A Deferred that has failed with the exception being handled."""
    result: Deferred[Any] = Deferred()
    result.errback(Failure())
    return result
