# SPDX-License-Identifier: Apache-2.0
"""Keeps one queue consumed: declares it, opens a channel, consumes, and does so again after a loss.

The wanted state (``consume`` or not, which prefetch) and the present one are compared by
``_adjust``, which brings the one to the other; whoever changes the wanted state calls it.

Three have to want it: the service (not while the database is away), operators (who may pause a
queue), and the project's consumer, by ``start_consuming``. The consumer's hooks are called here, at
django-carrot's moments. A hook that raises is logged; a step that it was to do, such as
``start_consuming``, is done without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pika.exceptions import AMQPError, ChannelClosedByClient
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.python.threadable import isInIOThread
from txaio.tx import as_future, make_logger

from carrot_twisted import declaring, kinds, topology
from carrot_twisted.outage import Outage
from carrot_twisted.service.delivery import Delivery, SafeChannel, Settler
from carrot_twisted.service.prefetch import worth_changing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.consumer import Consumer
    from carrot_twisted.declaring import Refusal
    from carrot_twisted.service.connection import BrokerConnection
    from carrot_twisted.service.protocol import CarrotChannel, CarrotProtocol
    from carrot_twisted.service.working import Working
    from carrot_twisted.topology import Step

_log = make_logger()

#: Seconds before a closed channel or a cancelled consumer is tried again; doubled up to the last.
FIRST_DELAY = 0.5
LAST_DELAY = 15.0


class Subscription:
    """The consumer of one queue.

    Args:
        queue: its settings.
        consumer: its consumer object, whose hooks are called.
        connection: to the queue's broker; shared with other queues.
        dispatcher: takes the deliveries.
        on_queue_lost: called when the queue is there that was not: new, or deleted meanwhile.
        reactor: Twisted's reactor.
        steps: what to declare; by default what a queue of tasks needs.
    """

    def __init__(
        self,
        queue: QueueSettings,
        consumer: Consumer,
        connection: BrokerConnection,
        dispatcher: Working,
        on_queue_lost: Callable[[QueueSettings], None],
        reactor: Any,
        steps: Sequence[Step] | None = None,
    ) -> None:
        tasks = (*topology.dead_letter_steps(queue), *topology.work_queue(queue))
        self._steps = tasks if steps is None else steps
        self._on_queue_lost = on_queue_lost
        #: The queue was deleted, or is new: its rows need new messages.
        self._lost = False
        self._queue = queue
        #: "" until the broker has named it, if it is to do that.
        self._name = queue.name
        self._consumer = consumer
        self._connection = connection
        self._dispatcher = dispatcher
        self._reactor = reactor
        #: The service wants it.
        self._wanted = True
        self._started = False
        #: Operators do not.
        self._resting = False
        #: The project's consumer wants it.
        self._asked = False
        #: The project's consumer has asked for the connection.
        self._joined = False
        #: A connection that came before that; another queue of its broker may use it.
        self._offered: CarrotProtocol | None = None
        self._stopping = False
        self._channel: CarrotChannel | None = None
        self._settler: Settler | None = None
        self._safe: SafeChannel | None = None
        self._tag: str | None = None
        self._prefetch = 0
        self._headroom = 0
        self._lock = DeferredLock()
        self._told: set[str] = set()
        self._outage = Outage(reactor.seconds)
        self._retry: Deferred[Any] | None = None
        dispatcher.on_settled = self._follow_pace
        consumer.link = self

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers to us now."""
        return self._tag is not None

    @property
    def ready(self) -> bool:
        """Whether the broker delivers to us now, or would if operators wanted it."""
        return self.consuming or (self._resting and self._channel is not None)

    @property
    def problem(self) -> str | None:
        """Why the broker does not deliver as is wanted, in a text for people; None: it does."""
        reason = self._reason()
        return reason and f"queue {self._label} is not consumed: {reason}"

    @property
    def _label(self) -> str:
        return self._name or "that the broker names"

    def _reason(self) -> str | None:
        if self.ready:
            return None
        if self._stopping:
            return "the service stops"
        if not self._started:
            return "the service is starting"
        if not self._joined:
            return self._not_joined()
        if not self._connection.is_open:
            return self._connection.problem
        if not self._wanted:
            return "the database is away"
        if self._channel is not None and not self._asked:
            return self._not_asked()
        return self._outage.reason or "the broker has not answered yet"

    def _not_joined(self) -> str:
        return f"run or reconnect of {type(self._consumer).__name__} has not called connect"

    def _not_asked(self) -> str:
        return f"start_consuming of {type(self._consumer).__name__} has not called its base's"

    def start(self) -> None:
        """Start the consumer."""
        self._started = True
        self._step(self._consumer.run, self.connect).addCallback(self._check_joined)

    def connected(self, protocol: CarrotProtocol) -> None:
        """There is a new connection: consume on it."""
        if not self._joined:
            self._offered = protocol
            return
        consumer, connection = self._consumer, protocol.connection
        consumer.connection = connection

        def closed(reason: Any) -> Any:
            consumer.connection = None
            self._joined = False
            self._tell(consumer.on_connection_closed, connection, *_code_and_text(reason))
            if not self._stopping:
                self._step(consumer.reconnect, self.connect).addCallback(self._check_joined)
            return reason

        if protocol.closed is not None:
            protocol.closed.addBoth(closed)
        self._tell(consumer.on_connection_open, connection)
        Deferred.fromCoroutine(self._run(protocol)).addErrback(self._broken)

    def want(self, consume: bool, resting: bool = False) -> Deferred[None]:
        """Consume, or cancel the consumer; what was delivered can be settled all the same.

        Args:
            consume: the service can do with messages.
            resting: operators want none all the same.
        """
        self._wanted = consume
        self._resting = resting
        return self._adjust_soon()

    def stop(self) -> Deferred[None]:
        """Cancel for good."""
        self._stopping = True
        if self._retry is not None:
            self._retry.cancel()
        self._step(self._consumer.stop, lambda: None)
        return self.want(False)

    def leave(self) -> None:
        """All tasks have ended."""
        self._step(self._consumer.close_connection, lambda: None)

    # What the consumer asks for, from any thread

    def connect(self) -> None:
        """Use the connection to the queue's broker; make it, if there is none."""
        self._in_reactor(self._join)

    def consume(self, wanted: bool) -> None:
        """Let the broker deliver, or not."""
        self._in_reactor(self._ask, wanted)

    def close_connection(self) -> None:
        """Close the connection. Unless the service stops, it connects again."""
        self._in_reactor(self._connection.drop)

    def _in_reactor(self, function: Callable[..., Any], *arguments: Any) -> None:
        if isInIOThread():
            function(*arguments)
        else:
            self._reactor.callFromThread(function, *arguments)

    def _join(self) -> None:
        if self._joined:
            return
        self._joined = True
        offered, self._offered = self._offered, None
        if offered is not None and offered.is_open:
            self.connected(offered)
        self._connection.start()

    def _ask(self, wanted: bool) -> None:
        self._asked = wanted
        self._adjust_soon()

    def _tell(self, hook: Callable[..., Any], *arguments: Any) -> None:
        """Call a hook that follows an event; it may be a coroutine function."""
        as_future(hook, *arguments).addErrback(self._hook_failed, hook)

    def _step(self, hook: Callable[[], Any], otherwise: Callable[[], Any]) -> Deferred[Any]:
        """Call a hook that does a step; if it fails, do the step without it."""

        def failed(failure: Any) -> None:
            self._hook_failed(failure, hook)
            otherwise()

        done: Deferred[Any] = as_future(hook).addErrback(failed)
        return done

    def _hook_failed(self, failure: Any, hook: Callable[..., Any]) -> None:
        name = getattr(hook, "__qualname__", repr(hook))
        _log.failure("{hook} failed, the service goes on without it", failure=failure, hook=name)

    def _check_joined(self, _: object) -> None:
        if not (self._joined or self._stopping):
            _log.warn(
                "Queue {queue} is not consumed: {reason}",
                queue=self._label,
                reason=self._not_joined(),
            )

    def _check_asked(self, _: object) -> None:
        if not self._asked:
            _log.warn(
                "Queue {queue} is not consumed: {reason}",
                queue=self._label,
                reason=self._not_asked(),
            )

    # The life of a channel

    async def _run(self, protocol: CarrotProtocol) -> None:
        delay = FIRST_DELAY
        while protocol.is_open and not self._stopping:
            started = self._reactor.seconds()
            try:
                reason = await self._hold(await protocol.channel(), protocol)
            except AMQPError as error:
                reason = error
            self._channel = self._settler = self._tag = None
            self._asked = False
            self._dispatcher.forget_closed()
            if self._lost and isinstance(reason, ChannelClosedByClient):
                reason = "the broker cancelled the consumer: was the queue deleted?"
            if _is_delivery_timeout(reason):
                # It would come again and again until the running tasks end.
                self._dispatcher.take_custody(0)
                reason = f"{reason}. {self._dispatcher.timeout_hint} What runs goes on."
            if self._stopping:
                return
            told = self._outage.failed(str(reason))
            if not protocol.is_open:
                # Told for all queues of the connection at once.
                return
            if told is not None:
                _log.warn("Queue {queue} is not consumed: {reason}", queue=self._label, reason=told)
            if self._reactor.seconds() - started > LAST_DELAY:
                delay = FIRST_DELAY
            self._retry = deferLater(self._reactor, delay)
            try:
                await self._retry
            except CancelledError:
                return
            finally:
                self._retry = None
            delay = min(LAST_DELAY, delay * 2)

    async def _hold(self, channel: CarrotChannel, protocol: CarrotProtocol) -> object:
        """Declare, and consume on this channel until it closes; returns why it did."""
        consumer = self._consumer
        settler = Settler(channel.raw)
        safe = consumer.channel = self._safe = SafeChannel(channel.raw, settler, self._reactor)
        channel.raw.add_on_cancel_callback(self._on_broker_cancel)
        self._tell(consumer.on_channel_open, safe)
        try:
            await self._declare(protocol)
            self._channel, self._settler = channel, settler
            self._tag = None
            self._prefetch = 0
            started = self._step(consumer.start_consuming, lambda: self.consume(True))
            started.addCallback(self._check_asked)
            reason = await channel.on_closed
        except AMQPError as error:
            reason = error
            if channel.is_open:
                channel.close()
        consumer.channel = None
        self._tell(consumer.on_channel_closed, safe, *_code_and_text(reason))
        return reason

    async def _declare(self, protocol: CarrotProtocol) -> None:
        done: Deferred[list[Refusal]] = Deferred()
        look = topology.look_for_queue(self._queue.name)
        # One that the broker names is made anew each time.
        steps = [look, *self._steps] if self._queue.name else self._steps
        declaring.declare(protocol.connection, steps, done.callback, self._declared)
        for refusal in await done:
            if refusal.step is look:
                # Deleted while we were away, or new: either way no message of a row is there. Any
                # other refusal comes again with the declaration itself.
                self._lost = self._lost or refusal.absent
                continue
            if refusal.exists_differently:
                text = f"{refusal.step.name} exists with other arguments and is used as it is: "
                self._declared(refusal.step, None)
            elif refusal.forbidden:
                # A user with few permissions may still consume what others have declared.
                text = f"{refusal.step.name} may not be declared by this user, and has to exist: "
            else:
                remedy = ". It has to be declared first" if refusal.absent else ""
                raise AMQPError(
                    f"{refusal.step.name} could not be declared: {refusal.text}{remedy}"
                )
            text += refusal.text
            if refusal.step.is_quorum_queue and protocol.drops_after_returns:
                text += (
                    f". {protocol.product} takes a message off it that came back 20 times, unless "
                    "a policy sets delivery-limit; its task is sent again. See docs/clusters.md"
                )
            if text not in self._told:
                self._told.add(text)
                _log.warn("{text}", text=text)

    def _declared(self, step: Step, frame: Any) -> None:
        """What was to be declared is there; no frame says so if it exists with other arguments."""
        if not self._queue.name and step.method == "queue_declare" and frame is not None:
            self._name = frame.method.queue
        hook = {
            "exchange_declare": self._consumer.on_exchange_declare,
            "queue_declare": self._consumer.on_queue_declare,
            "queue_bind": self._consumer.on_bind,
        }[step.method]
        other = step.arguments.get("queue", self._queue.name) != self._queue.name
        if not other and not step.arguments.get("passive"):
            self._tell(hook, frame)

    def _adjust_soon(self) -> Deferred[None]:
        adjusted: Deferred[None] = self._lock.run(lambda: Deferred.fromCoroutine(self._adjust()))
        return adjusted.addErrback(self._broken)

    async def _adjust(self) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        pace = self._dispatcher.pace
        if not self._prefetch or worth_changing(self._prefetch, pace):
            wanted_prefetch = pace.prefetch
        else:
            wanted_prefetch = self._prefetch
        headroom = pace.headroom
        wanted = self._wanted and self._asked and not self._resting
        # With another prefetch, a new consumer follows at once: the queue counts as consumed.
        changing = (wanted_prefetch, headroom) != (self._prefetch, self._headroom)
        if self._tag is not None and (not wanted or changing):
            tag = self._tag
            if not wanted:
                self._tag = None
            frame = await channel.cancel(tag)
            self._dispatcher.return_surplus(wanted_prefetch if wanted else 0)
            if not wanted:
                self._tell(self._consumer.on_cancel, frame)
        if wanted and (self._tag is None or changing):
            count = min(kinds.MAX_PREFETCH, wanted_prefetch + headroom)
            await channel.basic_qos(prefetch_count=count)
            frame = await channel.consume(self._name, self._on_message)
            self._tag = frame.method.consumer_tag
            if self._lost:
                self._lost = False
                self._on_queue_lost(self._queue)
            after = self._outage.over()
            if not self._prefetch and after is not None:
                _log.info(
                    "Consuming queue {queue} with {n} threads{after}",
                    queue=self._label,
                    n=pace.concurrency,
                    after=after,
                )
            self._prefetch, self._headroom = wanted_prefetch, headroom

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
                method.redelivered,
                self._safe,
            )
        )

    def _on_broker_cancel(self, frame: Any) -> None:
        """The queue was deleted, or its node went away. The channel stays open."""
        self._tag = None
        self._lost = True
        self._tell(self._consumer.on_consumer_cancelled, frame)
        channel = self._channel
        if channel is not None and channel.is_open:
            # A new channel comes with new declarations; messages of the old one return to the
            # broker, or are gone with their queue, and the relay rings again for their rows.
            channel.close()

    def _follow_pace(self) -> None:
        pace = self._dispatcher.pace
        if self._tag is not None and (
            worth_changing(self._prefetch, pace) or pace.headroom != self._headroom
        ):
            self._adjust_soon()

    def _broken(self, failure: Any) -> None:
        # An AMQP error here closes the channel, and with that _run goes on.
        if failure.check(AMQPError) is None:
            _log.failure("Queue {queue}", failure=failure, queue=self._label)


def _is_delivery_timeout(reason: Any) -> bool:
    code, text = _code_and_text(reason)
    return code == 406 and "delivery acknowledgement" in text


def _code_and_text(reason: Any) -> tuple[int, str]:
    """Reply code and text of a close; 0 if the broker gave none."""
    error = getattr(reason, "value", reason)
    text = getattr(error, "reply_text", None)
    return int(getattr(error, "reply_code", 0) or 0), str(error if text is None else text)
