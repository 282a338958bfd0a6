# SPDX-License-Identifier: Apache-2.0
"""Deliveries, and the acknowledgements of one channel.

A delivery tag belongs to the channel that gave it: acknowledged on another one it would settle
somebody else's message, and a second acknowledgement closes the channel. So each delivery carries
its channel's ``Settler``, and is settled once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        #: Tags not settled yet, or settled but behind one that is not; ascending.
        self._outstanding: deque[int] = deque()
        #: Acknowledged by the caller, not yet sent.
        self._acked: set[int] = set()
        #: Sent one by one, still in ``_outstanding``.
        self._sent: set[int] = set()

    @property
    def is_open(self) -> bool:
        """Whether settling still means anything."""
        return bool(self._channel.is_open)

    def delivered(self, tag: int) -> None:
        """A delivery arrived with this tag."""
        self._outstanding.append(tag)

    def ack(self, tag: int) -> None:
        """This delivery is done with; sent by the next ``flush``."""
        self._acked.add(tag)

    def requeue(self, tag: int) -> None:
        """Give this delivery back to the queue, at once."""
        self._sent.add(tag)
        if self.is_open:
            self._channel.basic_nack(tag, requeue=True)

    def flush(self) -> None:
        """Send what was acknowledged since the last call."""
        if not self.is_open:
            self._outstanding.clear()
            self._acked.clear()
            self._sent.clear()
            return
        mark, run = 0, 0
        outstanding, acked, sent = self._outstanding, self._acked, self._sent
        while outstanding:
            tag = outstanding[0]
            if tag in acked:
                acked.discard(tag)
                mark, run = tag, run + 1
            elif tag in sent:
                sent.discard(tag)
            else:
                break
            outstanding.popleft()
        if run:
            self._channel.basic_ack(mark, multiple=run > 1)
        for tag in sorted(acked):
            self._channel.basic_ack(tag)
            sent.add(tag)
        acked.clear()


@dataclass(slots=True, eq=False)
class Delivery:
    """One hand-over of a message to this service."""

    settler: Settler
    tag: int
    properties: pika.BasicProperties
    body: bytes
    exchange: str
    routing_key: str

    def ack(self) -> None:
        """Done with; sent when the settler is flushed."""
        self.settler.ack(self.tag)

    def requeue(self) -> None:
        """Back to the queue."""
        self.settler.requeue(self.tag)
