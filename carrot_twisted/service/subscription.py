# SPDX-License-Identifier: Apache-2.0
"""Keeps one queue consumed: declares it, opens a channel, consumes, and does so again after a loss.

The wanted state (``consume`` or not, which prefetch) and the present one are compared by
``_adjust``, which brings the one to the other; whoever changes the wanted state calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pika.exceptions import AMQPError
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import deferLater
from txaio.tx import make_logger

from carrot_twisted import declaring, topology
from carrot_twisted.service.delivery import Delivery, Settler
from carrot_twisted.service.prefetch import worth_changing

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.declaring import Refusal
    from carrot_twisted.service.dispatcher import Dispatcher
    from carrot_twisted.service.protocol import CarrotChannel, CarrotProtocol

_log = make_logger()

#: Seconds before a closed channel or a cancelled consumer is tried again; doubled up to the last.
FIRST_DELAY = 0.5
LAST_DELAY = 15.0


class Subscription:
    """The consumer of one queue.

    Args:
        queue: its settings.
        dispatcher: takes the deliveries.
        on_queue_lost: called when the queue is there again after it had been deleted.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        queue: QueueSettings,
        dispatcher: Dispatcher,
        on_queue_lost: Callable[[QueueSettings], None],
        reactor: Any,
    ) -> None:
        self._on_queue_lost = on_queue_lost
        self._cancelled = False
        self._queue = queue
        self._dispatcher = dispatcher
        self._reactor = reactor
        self._wanted = True
        self._stopping = False
        self._channel: CarrotChannel | None = None
        self._settler: Settler | None = None
        self._tag: str | None = None
        self._prefetch = 0
        self._lock = DeferredLock()
        self._told: set[str] = set()
        self._retry: Deferred[Any] | None = None
        dispatcher.on_settled = self._follow_pace

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers to us now."""
        return self._tag is not None

    def connected(self, protocol: CarrotProtocol) -> None:
        """There is a new connection: consume on it."""
        Deferred.fromCoroutine(self._run(protocol)).addErrback(self._broken)

    def want(self, consume: bool) -> Deferred[None]:
        """Consume, or cancel the consumer; what was delivered can be settled all the same."""
        self._wanted = consume
        return self._adjust_soon()

    def stop(self) -> Deferred[None]:
        """Cancel for good."""
        self._stopping = True
        if self._retry is not None:
            self._retry.cancel()
        return self.want(False)

    async def _run(self, protocol: CarrotProtocol) -> None:
        delay = FIRST_DELAY
        while protocol.is_open and not self._stopping:
            try:
                await self._declare(protocol)
                channel = await protocol.channel()
                started = self._reactor.seconds()
                reason = await self._hold(channel)
            except AMQPError as error:
                reason = error
                started = self._reactor.seconds()
            self._channel = self._settler = self._tag = None
            self._dispatcher.forget_closed()
            if not protocol.is_open or self._stopping:
                return
            if self._reactor.seconds() - started > LAST_DELAY:
                delay = FIRST_DELAY
            _log.warn(
                "Queue {queue} is not consumed: {reason}. Next try in {delay:g} s",
                queue=self._queue.name,
                reason=reason,
                delay=delay,
            )
            self._retry = deferLater(self._reactor, delay)
            try:
                await self._retry
            except CancelledError:
                return
            finally:
                self._retry = None
            delay = min(LAST_DELAY, delay * 2)

    async def _hold(self, channel: CarrotChannel) -> object:
        """Consume on this channel until it closes; returns why it did."""
        self._channel = channel
        self._settler = Settler(channel.raw)
        self._tag = None
        self._prefetch = 0
        channel.raw.add_on_cancel_callback(self._on_broker_cancel)
        await self._adjust_soon()
        return await channel.on_closed

    async def _declare(self, protocol: CarrotProtocol) -> None:
        done: Deferred[list[Refusal]] = Deferred()
        steps = [*topology.dead_letter_steps(self._queue.name), *topology.work_queue(self._queue)]
        declaring.declare(protocol.connection, steps, done.callback)
        for refusal in await done:
            if refusal.exists_differently:
                text = f"{refusal.step.name} exists with other arguments and is used as it is: "
            elif refusal.forbidden:
                # A user with few permissions may still consume what others have declared.
                text = f"{refusal.step.name} may not be declared by this user, and has to exist: "
            else:
                raise AMQPError(f"{refusal.step.name} could not be declared: {refusal.text}")
            text += refusal.text
            if text not in self._told:
                self._told.add(text)
                _log.warn("{text}", text=text)

    def _adjust_soon(self) -> Deferred[None]:
        adjusted: Deferred[None] = self._lock.run(lambda: Deferred.fromCoroutine(self._adjust()))
        return adjusted.addErrback(self._broken)

    async def _adjust(self) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        prefetch = self._dispatcher.pace.prefetch
        if not self._prefetch or worth_changing(self._prefetch, prefetch):
            wanted_prefetch = prefetch
        else:
            wanted_prefetch = self._prefetch
        if self._tag is not None and (not self._wanted or wanted_prefetch != self._prefetch):
            tag, self._tag = self._tag, None
            await channel.cancel(tag)
            self._dispatcher.return_surplus(wanted_prefetch if self._wanted else 0)
        if self._wanted and self._tag is None:
            await channel.basic_qos(prefetch_count=wanted_prefetch)
            frame = await channel.consume(self._queue.name, self._on_message)
            self._tag = frame.method.consumer_tag
            if self._cancelled:
                self._cancelled = False
                self._on_queue_lost(self._queue)
            if not self._prefetch:
                _log.info(
                    "Consuming queue {queue} with {n} threads",
                    queue=self._queue.name,
                    n=self._dispatcher.pace.concurrency,
                )
            self._prefetch = wanted_prefetch

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        settler = self._settler
        assert settler is not None
        settler.delivered(method.delivery_tag)
        self._dispatcher.deliver(
            Delivery(
                settler,
                method.delivery_tag,
                properties,
                body,
                method.exchange,
                method.routing_key,
            )
        )

    def _on_broker_cancel(self, _frame: Any) -> None:
        """The queue was deleted, or its node went away. The channel stays open."""
        _log.warn("The broker cancelled the consumer of {queue}", queue=self._queue.name)
        self._tag = None
        self._cancelled = True
        channel = self._channel
        if channel is not None and channel.is_open:
            # A new channel comes with new declarations; messages of the old one return to the
            # broker, or are gone with their queue, and the relay rings again for their rows.
            channel.close()

    def _follow_pace(self) -> None:
        if self._tag is not None and worth_changing(self._prefetch, self._dispatcher.pace.prefetch):
            self._adjust_soon()

    def _broken(self, failure: Any) -> None:
        # An AMQP error here closes the channel, and with that _run goes on.
        if failure.check(AMQPError) is None:
            _log.failure("Queue {queue}", failure=failure, queue=self._queue.name)
