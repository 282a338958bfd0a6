# SPDX-License-Identifier: Apache-2.0
"""Consumers of callbacks: the parts of a running service that they need, started and stopped.

No tasks, no schedules: connections, and for each queue a subscription, a dispatcher with its
threads, and the consumer that callers of ``consume`` hold. A writer of rows only where they are
wanted.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from django.db import router
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from txaio.tx import make_logger

from carrot_twisted import conf, publisher, task_logging
from carrot_twisted.consumer import make_consumer
from carrot_twisted.exceptions import HaltConsumer
from carrot_twisted.models import MessageLog
from carrot_twisted.service.callback_dispatcher import CallbackDispatcher
from carrot_twisted.service.connection import BrokerConnection
from carrot_twisted.service.counted import Counted
from carrot_twisted.service.custody import Custody
from carrot_twisted.service.log_writer import LAST_WRITES
from carrot_twisted.service.parts import Parts, QueuePart
from carrot_twisted.service.protocol import FAREWELL
from carrot_twisted.service.row_writer import RowWriter
from carrot_twisted.service.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.callbacks import Callback, CallbackQueue
    from carrot_twisted.outbox import Post
    from carrot_twisted.service.journal import Handled
    from carrot_twisted.service.protocol import CarrotProtocol

_log = make_logger()

#: Exit status of a process whose callback has raised what ends its consumer; fedora-messaging's.
EXIT_CALLBACK = 13
#: Seconds between looks for messages that wait in vain behind long callbacks.
CUSTODY_INTERVAL = 15.0
#: Seconds between looks whether all queues are consumed.
READY_INTERVAL = 0.05
#: Seconds that are left to the last frames of callbacks that a stop has given up.
LAST_FRAMES = 0.1


class CallbackConsumer:
    """The consumer of one queue.

    Attributes:
        queue: the queue's name; "" if the broker names it.
        callback: what is called with each message.
        result: fires with this consumer when it was cancelled, by ``cancel`` or by the end of the
            reactor; fails with what the callback raised: ``HaltConsumer``, or any other exception
            that ended the consumer.
    """

    def __init__(
        self,
        queue: CallbackQueue,
        dispatcher: CallbackDispatcher,
        subscription: Subscription,
        on_ended: Callable[[], None],
        reactor: Any,
    ) -> None:
        self.queue: str = queue.name
        self.callback: Callback = queue.call
        self.result: Deferred[CallbackConsumer] = Deferred()
        self._dispatcher = dispatcher
        self._subscription = subscription
        self._on_ended = on_ended
        self._reactor = reactor
        self._error: BaseException | None = None
        self._ending = False
        self.ended = False
        """Nothing of it is under way any more."""
        self._cancelled: list[Deferred[None]] = []
        dispatcher.on_halted = self._end
        dispatcher.on_finished = dispatcher.on_suspect = self._look

    @property
    def running(self) -> bool:
        """Whether the broker delivers to it now."""
        return self._subscription.consuming

    @property
    def problem(self) -> str | None:
        """Why the broker does not deliver to it now, for people; None: it does."""
        return self._subscription.problem

    def cancel(self) -> Deferred[None]:
        """Consume nothing more; what has not begun goes back to the queue.

        Returns:
            A Deferred that fires when the callbacks that run have ended and are settled.
        """
        done: Deferred[None] = Deferred()
        if self.result.called:
            done.callback(None)
        else:
            self._cancelled.append(done)
            self._end(None)
            self._look()
        return done

    def _end(self, error: BaseException | None) -> None:
        if self._ending:
            return
        self._ending = True
        self._error = error
        # In this order: what goes back now is not delivered here again.
        self._subscription.stop()
        self._dispatcher.stop_claiming()

    def _look(self) -> None:
        if self._ending and not self.ended and not self._dispatcher.running:
            self.ended = True
            # In a turn of its own: what was settled last is sent by then.
            self._reactor.callLater(0, self._tell)

    def _tell(self) -> None:
        self._on_ended()
        if self._error is None:
            self.result.callback(self)
        else:
            self.result.errback(Failure(self._error))
        for done in self._cancelled:
            done.callback(None)


class Consumption:
    """All consumers of one call of ``consume``. Ends itself when they have.

    Args:
        queues: what to consume from, with one broker.
        reactor: Twisted's reactor.
        shutdown_timeout: seconds that running callbacks get to end; None: the setting.
    """

    def __init__(
        self, queues: Sequence[CallbackQueue], reactor: Any, shutdown_timeout: float | None = None
    ) -> None:
        settings = conf.current()
        self._reactor = reactor
        self._shutdown_timeout = shutdown_timeout or settings.shutdown_timeout
        self._host = queues[0].host
        self._ended: Deferred[None] | None = None
        self._stopped: Deferred[bool] | None = None
        self._connection = BrokerConnection(self._host, "consuming", self._connected, reactor)
        self._rows: RowWriter | None = None
        if any(queue.log != "none" for queue in queues):
            using, limit = router.db_for_write(MessageLog), settings.max_result_size
            self._rows = RowWriter(using, self.name, limit, reactor)
        gate = threading.Semaphore(queues[0].concurrency)
        self._dispatchers = [
            CallbackDispatcher(
                queue=queue, gate=gate, send=self._send, note=self._note, reactor=reactor
            )
            for queue in queues
        ]
        self._subscriptions = [
            Subscription(
                queue=queue,
                consumer=make_consumer(
                    queue.consumer_class,
                    host=queue.host,
                    queue=queue.name,
                    logger=logging.getLogger(task_logging.LOGGER),
                    name=f"{queue.name}-consumer",
                ),
                connection=self._connection,
                dispatcher=dispatcher,
                on_queue_lost=lambda _queue: None,
                reactor=reactor,
                steps=queue.steps,
            )
            for queue, dispatcher in zip(queues, self._dispatchers, strict=True)
        ]
        self._counted = Counted()
        self.parts = Parts(
            queues=[
                QueuePart(queue.name, subscription, dispatcher, queue.handler, dispatcher.decided)
                for queue, subscription, dispatcher in zip(
                    queues, self._subscriptions, self._dispatchers, strict=True
                )
            ],
            connections=[self._connection],
            counted=self._counted,
        )
        self.consumers = [
            CallbackConsumer(queue, dispatcher, subscription, self._consumer_ended, reactor)
            for queue, dispatcher, subscription in zip(
                queues, self._dispatchers, self._subscriptions, strict=True
            )
        ]
        self._custody = Custody(
            "The consumer looks after long callbacks",
            self._dispatchers,
            settings.ack_deadline,
            reactor,
        )

    #: What it runs, and what it does when it has no problems, for people.
    work = "callbacks"
    summary = "Consuming from all queues"

    @property
    def name(self) -> str:
        """Of this process, for people."""
        return f"{socket.gethostname()[:70]}-{os.getpid()}"

    @property
    def finished(self) -> int:
        """Messages that are done with."""
        return sum(dispatcher.finished for dispatcher in self._dispatchers)

    @property
    def running(self) -> int:
        """Messages whose callbacks run or are about to."""
        return sum(dispatcher.running for dispatcher in self._dispatchers)

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers from each of the queues."""
        return all(consumer.running for consumer in self.consumers)

    @property
    def problems(self) -> list[str]:
        """What keeps it from working just now, for people; empty if all is well."""
        found = [one.problem for one in (*self.consumers, self._rows) if one is not None]
        return [text for text in found if text is not None]

    @property
    def silence(self) -> float:
        """Seconds since the thread that writes rows has shown that it works; 0 if there is none."""
        return 0.0 if self._rows is None else self._rows.silence

    @property
    def longest_stop(self) -> float:
        """Seconds after which ``stop`` has ended in any case."""
        writes = 0.0 if self._rows is None else LAST_WRITES
        return self._shutdown_timeout + LAST_FRAMES + 2 * FAREWELL + writes

    async def start(self) -> None:
        """Start all parts. Waits neither for the broker nor for the database."""
        if self._rows is not None:
            self._rows.start()
        for dispatcher in self._dispatchers:
            dispatcher.start()
        for subscription in self._subscriptions:
            subscription.start()
        self._custody.start()

    async def ready(self) -> list[CallbackConsumer]:
        """The consumers, when all of them consume, or one has ended."""
        try:
            while not self.consuming and not any(one.ended for one in self.consumers):
                await deferLater(self._reactor, READY_INTERVAL)
        except CancelledError:
            # Whoever waited gets no consumer that could be cancelled.
            self.stop()
            raise
        return self.consumers

    def hurry(self) -> None:
        """End a stop now: the messages of callbacks that still run go back."""
        self._end_waiting()
        if self._rows is not None:
            self._rows.give_up()

    def _end_waiting(self) -> None:
        if self._ended is not None and not self._ended.called:
            self._ended.callback(None)

    def stop(self) -> Deferred[bool]:
        """Stop: begin nothing more, let running callbacks end until the deadline, settle, write.

        Returns:
            A Deferred that tells whether every callback came to its end, and the database has
            answered, so that all threads are free.
        """
        if self._stopped is None:
            # Set before the first step: that may end the consumers, who ask for the same.
            self._stopped = Deferred()
            Deferred.fromCoroutine(self._stop()).chainDeferred(self._stopped)
        answer: Deferred[bool] = Deferred()

        def tell(result: Any) -> Any:
            answer.callback(result)
            return result

        self._stopped.addBoth(tell)
        return answer

    async def _stop(self) -> bool:
        for consumer in self.consumers:
            consumer.cancel()
        if self.running:
            _log.info("Stopping; {n} callbacks are still running", n=self.running)
        clean = await self._drain()
        if not clean:
            released = sum(dispatcher.release_running() for dispatcher in self._dispatchers)
            _log.warn(
                "{n} callbacks did not end in time; their messages go back to the queue",
                n=released,
            )
            await deferLater(self._reactor, LAST_FRAMES)
        self._custody.stop()
        await self._connection.stop()
        for dispatcher in self._dispatchers:
            dispatcher.stop_threads()
        # Last: what settles until here may have a row.
        written = self._rows is None or await self._rows.end(LAST_WRITES)
        return written and clean

    async def _drain(self) -> bool:
        """Wait until no callback runs, at most until the deadline; whether that is so."""
        if self.running:
            self._ended = Deferred()
            timer = self._reactor.callLater(self._shutdown_timeout, self._end_waiting)
            await self._ended
            if timer.active():
                timer.cancel()
        return not self.running

    def _consumer_ended(self) -> None:
        if all(consumer.ended for consumer in self.consumers):
            self._end_waiting()
            self.stop()

    def _connected(self, protocol: CarrotProtocol) -> None:
        for subscription in self._subscriptions:
            subscription.connected(protocol)

    def _note(self, handled: Handled) -> None:
        self._counted.handled(handled)
        if self._rows is not None:
            self._rows.note(handled)

    def _send(self, post: Post, settled: Callable[[str | None], None]) -> None:
        publisher.current().submit_post(
            self._host, post, lambda error: self._reactor.callFromThread(settled, error)
        )


def status_of(error: BaseException) -> int:
    """Exit status of a process whose consumer has ended by this."""
    return error.exit_code if isinstance(error, HaltConsumer) else EXIT_CALLBACK
