# SPDX-License-Identifier: Apache-2.0
"""Deliveries, and the acknowledgements of one channel.

A delivery tag belongs to the channel that gave it: acknowledged on another one it would settle
somebody else's message, and a second acknowledgement closes the channel. So each delivery carries
its channel's ``Settler``, and is settled once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.python.threadable import isInIOThread

from carrot_twisted.properties_reader import read_properties

if TYPE_CHECKING:
    import pika


class Settler:
    """Acknowledges on one channel, with as few frames as possible.

    Tags that are settled without a gap from the oldest are acknowledged by one frame
    (``multiple``); what was settled beyond a task that still runs, one by one.

    Args:
        channel: an open pika channel; after its close nothing is sent any more.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        #: Tags of which the broker has not heard yet; ascending. No others: thousands may be
        #: settled in a second behind one that waits for minutes.
        self._outstanding: dict[int, None] = {}
        #: Acknowledged by the caller, not yet sent.
        self._acked: set[int] = set()
        #: Not settled by anybody: a project's hook may be there before the service, or after it.
        self._open: set[int] = set()

    @property
    def is_open(self) -> bool:
        """Whether settling still means anything."""
        return bool(self._channel.is_open)

    def delivered(self, tag: int) -> None:
        """A delivery arrived with this tag."""
        self._outstanding[tag] = None
        self._open.add(tag)

    def ack(self, tag: int) -> None:
        """This delivery is done with; sent by the next ``flush``."""
        if tag in self._open:
            self._open.discard(tag)
            self._acked.add(tag)

    def requeue(self, tag: int) -> None:
        """Give this delivery back to the queue, at once."""
        self._nack(tag, requeue=True)

    def take(self, tag: int, requeue: bool | None) -> None:
        """A project's hook settles this delivery, at once; the first word about a delivery counts.

        Args:
            tag: of the delivery.
            requeue: back to the queue, or (False) dead-lettered or dropped by the broker; None
                acknowledges.
        """
        if requeue is None:
            self.ack(tag)
            self.flush()
        else:
            self._nack(tag, requeue)

    def _nack(self, tag: int, requeue: bool) -> None:
        if tag in self._open:
            self._open.discard(tag)
            del self._outstanding[tag]
            if self.is_open:
                self._channel.basic_nack(tag, requeue=requeue)

    def flush(self) -> None:
        """Send what was acknowledged since the last call."""
        outstanding, acked = self._outstanding, self._acked
        if not self.is_open:
            outstanding.clear()
            acked.clear()
            self._open.clear()
            return
        mark, run = 0, 0
        for tag in outstanding:
            if tag not in acked:
                break
            mark, run = tag, run + 1
        if run:
            self._channel.basic_ack(mark, multiple=run > 1)
        for tag in acked:
            del outstanding[tag]
        if run < len(acked):
            for tag in sorted(acked):
                if tag > mark:
                    self._channel.basic_ack(tag)
        acked.clear()


class Delivery:
    """One hand-over of a message to this service.

    Args:
        settler: of its channel.
        tag: of the delivery, on that channel.
        properties: of the message; as they came, encoded, they are read when somebody asks.
        body: of the message.
        exchange: that it was published to.
        routing_key: that it was published with.
        redelivered: it was handed over before, perhaps not to this service.
        channel: for the hooks of a project's consumer.
    """

    __slots__ = (
        "_properties",
        "body",
        "channel",
        "exchange",
        "redelivered",
        "routing_key",
        "seen",
        "settler",
        "tag",
    )

    def __init__(
        self,
        settler: Settler,
        tag: int,
        properties: pika.BasicProperties | bytes,
        body: bytes,
        exchange: str,
        routing_key: str,
        redelivered: bool = False,
        channel: SafeChannel | None = None,
    ) -> None:
        self.settler = settler
        self.tag = tag
        self._properties = properties
        self.body = body
        self.exchange = exchange
        self.routing_key = routing_key
        self.redelivered = redelivered
        self.channel = channel
        self.seen: float | None = None
        """When it was first found waiting behind others, by those who look now and then."""

    @property
    def properties(self) -> pika.BasicProperties:
        """Of the message; the same object each time. From any thread."""
        properties = self._properties
        if isinstance(properties, bytes):
            # Two threads that come at the same time read the same.
            properties = self._properties = read_properties(properties)
        return properties

    def ack(self) -> None:
        """Done with; sent when the settler is flushed."""
        self.settler.ack(self.tag)

    def requeue(self) -> None:
        """Back to the queue."""
        self.settler.requeue(self.tag)

    def reject(self) -> None:
        """Not wanted: the broker dead-letters it, or throws it away."""
        self.settler.take(self.tag, requeue=False)


class SafeChannel:
    """A channel for a project's hooks: it settles from any thread.

    Every other attribute is pika's channel's, for the reactor's thread only.

    Args:
        channel: pika's.
        settler: the channel's.
        reactor: Twisted's reactor.
    """

    def __init__(self, channel: pika.channel.Channel, settler: Settler, reactor: Any) -> None:
        self._channel = channel
        self._settler = settler
        self._reactor = reactor
        #: Messages that hooks have in hand, and whether one has given it back; None: not settled.
        self._watched: dict[int, bool | None] = {}

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message: the broker forgets it.

        Raises:
            ValueError: ``multiple``: it would settle messages that other threads work on.
        """
        self._settle(delivery_tag, None, multiple)

    def basic_nack(self, delivery_tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Give a message back, or let the broker dead-letter or drop it.

        Raises:
            ValueError: ``multiple``: it would settle messages that other threads work on.
        """
        self._settle(delivery_tag, requeue, multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = True) -> None:
        """Give a message back, or let the broker dead-letter or drop it."""
        self._settle(delivery_tag, requeue, False)

    def watch(self, delivery_tag: int) -> None:
        """A hook is about to get this message: note how it settles it."""
        self._watched[delivery_tag] = None

    def forget(self, delivery_tag: int) -> bool:
        """The hook is done with the message; returns whether it has given it back."""
        return bool(self._watched.pop(delivery_tag, None))

    def _settle(self, tag: int, requeue: bool | None, multiple: bool) -> None:
        if multiple:
            raise ValueError("Settle one message at a time: others are being worked on.")
        if self._watched.get(tag, False) is None:
            self._watched[tag] = requeue is not None
        self._reactor.callFromThread(self._settler.take, tag, requeue)

    def __getattr__(self, name: str) -> Any:
        if not isInIOThread():
            raise RuntimeError(
                f"channel.{name} is for the reactor's thread: use reactor.callFromThread. From "
                "here a message can be settled by basic_ack, basic_nack and basic_reject."
            )
        return getattr(self._channel, name)
