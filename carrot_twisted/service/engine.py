# SPDX-License-Identifier: Apache-2.0
"""All parts of a running service, put together in one place, started and stopped in order."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.db import router
from twisted.internet.defer import Deferred, gatherResults
from txaio.tx import make_logger

from carrot_twisted import conf, failpoints, periodic, publisher, task_logging, tracing
from carrot_twisted.begun_message import Losses
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.execution import Limits, clean_connections
from carrot_twisted.handlers import HandlerQueue
from carrot_twisted.models import MessageLog
from carrot_twisted.scheduler import ScheduledTaskManager
from carrot_twisted.service.admitting import Admitting
from carrot_twisted.service.cancelling import Cancelling
from carrot_twisted.service.chosen_queues import chosen_queues, consumer_of
from carrot_twisted.service.connection import BrokerConnection, close_all
from carrot_twisted.service.custody import Custody
from carrot_twisted.service.dispatcher import Dispatcher
from carrot_twisted.service.event_loop import EventLoop
from carrot_twisted.service.hooked_dispatcher import HookedDispatcher
from carrot_twisted.service.journal import Journal
from carrot_twisted.service.lease import Lease
from carrot_twisted.service.live_logs import LiveLogs
from carrot_twisted.service.log_writer import LAST_WRITES, LogWriter
from carrot_twisted.service.loss_counter import LossCounter
from carrot_twisted.service.message_dispatcher import MessageDispatcher
from carrot_twisted.service.parts import Parts, QueuePart, TaskParts
from carrot_twisted.service.posting import ReactorPublisher
from carrot_twisted.service.protocol import FAREWELL
from carrot_twisted.service.quarantine import Quarantine
from carrot_twisted.service.recycling import Recycling
from carrot_twisted.service.regulation import Regulation
from carrot_twisted.service.relay import Relay
from carrot_twisted.service.subscription import Subscription
from carrot_twisted.service.tally import Tally
from carrot_twisted.service.waits import Waits
from carrot_twisted.service.worker_row import state_of, this_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from twisted.python.failure import Failure

    from carrot_twisted.conf import CarrotSettings, QueueSettings
    from carrot_twisted.service.engine_options import ServiceOptions
    from carrot_twisted.service.journal import Handled
    from carrot_twisted.service.protocol import CarrotProtocol
    from carrot_twisted.service.working import Working
    from carrot_twisted.virtual_host import VirtualHost

_log = make_logger()

#: Seconds that the broker gets to confirm what was published last.
CONFIRMS = 1.0


class Engine:
    """The service without the process around it: usable inside any running reactor.

    Args:
        settings: checked settings.
        options: of the command line.
        reactor: Twisted's reactor.
        on_fatal: called with a text when the service cannot work with this configuration.
        on_crash: called with an error that the service cannot live with.
        on_recycle: called with the reason when a fresh process should take over.
        on_stop: called when operators want this worker to stop.

    Raises:
        CarrotConfigException: a queue or consumer class that does not exist.
    """

    def __init__(
        self,
        settings: CarrotSettings,
        options: ServiceOptions,
        reactor: Any,
        on_fatal: Callable[[str], None],
        on_crash: Callable[[Failure], None],
        on_recycle: Callable[[str], None],
        on_stop: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._on_fatal = on_fatal
        self._using = router.db_for_write(MessageLog)
        self._shutdown_timeout = options.shutdown_timeout or settings.shutdown_timeout
        self._waits = Waits(reactor)
        queues = chosen_queues(settings, options)
        self.worker = this_worker(
            queues, sum(options.concurrency or queue.concurrency for queue in queues)
        )
        self._names = [queue.name for queue in queues]
        self._writer = LogWriter(
            lambda alone: self._lease.claimant(alone),
            self._using,
            reactor,
            away="is away, nothing new is started",
            on_away=self._database_away,
            on_back=lambda: self._regulation.database_back(),
            on_broken=on_crash,
        )
        self._lease = Lease(
            worker=self.worker,
            settings=settings,
            writer=self._writer,
            using=self._using,
            state=self._state,
            runs=self._runs,
            on_wishes=lambda wishes: self._regulation.obey(wishes),
            reactor=reactor,
        )
        hosts = list(dict.fromkeys(queue.host for queue in (*settings.queues.values(), *queues)))
        self._publisher = ReactorPublisher(hosts, self._writer, self._using, reactor)
        self._relay = Relay(
            queues=list(settings.queues.values()),
            writer=self._writer,
            publisher=self._publisher,
            claimant=self._lease.claimant,
            using=self._using,
            reactor=reactor,
        )
        for name in conf.OWN_TASK_MODULES:
            # For their periodic tasks. Those of the project have been imported by its check.
            import_module(name)
        self._scheduler = (
            ScheduledTaskManager(
                database=self._writer,
                using=self._using,
                reactor=reactor,
                before=[partial(periodic.sync, self._using)],
            )
            if options.scheduler
            else None
        )
        limits = Limits(
            result=settings.max_result_size,
            log=settings.max_log_size,
            seconds=settings.time_limit,
            worker=self.worker.name,
        )
        self._tally = Tally(
            writer=self._writer,
            worker=self.worker.name,
            queues=list(settings.queues),
            using=self._using,
            reactor=reactor,
            now=lambda: self._lease.now,
        )
        self._events = EventLoop(reactor, clean_connections)
        consumers = [consumer_of(queue, settings, options) for queue in queues]
        tasks = [
            (HookedDispatcher if consumer.reads_messages else Dispatcher)(
                queue=queue,
                concurrency=options.concurrency or queue.concurrency,
                consumer=consumer,
                writer=self._writer,
                limits=limits,
                dead_letter=partial(self._publisher.dead_letter, queue.host, queue.name),
                events=self._events,
                tally=self._tally,
                reactor=reactor,
            )
            for queue, consumer in zip(queues, consumers, strict=True)
            if not isinstance(queue, HandlerQueue)
        ]
        self._events.on_blocked += [dispatcher.loop_blocked for dispatcher in tasks]
        self._admitting = Admitting(
            dispatchers=tasks, writer=self._writer, ring=self._relay.look, reactor=reactor
        )
        cancelling = Cancelling(
            dispatchers=tasks, writer=self._writer, worker=self.worker.name, reactor=reactor
        )
        self._live_logs = LiveLogs(
            dispatchers=tasks,
            writer=self._writer,
            limit=settings.max_log_size,
            on_long=cancelling.look,
            reactor=reactor,
        )
        self._journal = Journal(self._writer, self.worker.name, settings.max_result_size, reactor)
        self._losses = Losses(
            worker=self.worker.name, limit=settings.max_crashes, using=self._using
        )
        counter = LossCounter(self._losses, self._writer, reactor)
        handling = [
            MessageDispatcher(
                queue=queue,
                concurrency=options.concurrency or queue.concurrency,
                send=partial(self._publisher.send, queue.host),
                note=self._note_handled,
                losses=counter,
                reactor=reactor,
            )
            for queue in queues
            if isinstance(queue, HandlerQueue)
        ]
        self._dispatchers: list[Working] = [*tasks, *handling]
        #: Of queues with one: its handler, and what was decided about messages.
        self._handlers = {
            queue.name: (queue.handler, dispatcher.decided)
            for queue, dispatcher in zip(queues[len(tasks) :], handling, strict=True)
            if isinstance(queue, HandlerQueue)
        }
        Quarantine(self._dispatchers, reactor)
        self._recycling = Recycling(
            dispatchers=self._dispatchers,
            max_tasks=options.max_tasks,
            max_memory=options.max_memory,
            reactor=reactor,
            on_due=on_recycle,
        )
        self._consuming = {
            host: BrokerConnection(
                host, "consuming", partial(self._connected, host, queues), reactor
            )
            for host in dict.fromkeys(queue.host for queue in queues)
        }
        self._subscriptions = [
            Subscription(
                queue=queue,
                consumer=consumer,
                connection=self._consuming[queue.host],
                dispatcher=dispatcher,
                on_queue_lost=self._queue_lost,
                reactor=reactor,
                steps=queue.steps if isinstance(queue, HandlerQueue) else None,
            )
            for queue, consumer, dispatcher in zip(
                queues, consumers, self._dispatchers, strict=True
            )
        ]
        self._regulation = Regulation(
            queues=list(zip(self._names, self._subscriptions, self._dispatchers, strict=True)),
            writer=self._writer,
            on_stop=on_stop,
            on_obeyed=self._lease.beat,
        )
        self._custody = Custody(
            "The worker looks after long tasks", self._dispatchers, settings.ack_deadline, reactor
        )

    #: What it runs, for people.
    work = "tasks"

    @property
    def name(self) -> str:
        """Of its worker."""
        return self.worker.name

    @property
    def finished(self) -> int:
        """Tasks that came to an end in this process."""
        return sum(dispatcher.finished for dispatcher in self._dispatchers)

    @property
    def running(self) -> int:
        """Tasks that are claimed and not yet recorded."""
        return sum(dispatcher.running for dispatcher in self._dispatchers)

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers from each of the queues that are not paused."""
        return all(subscription.ready for subscription in self._subscriptions)

    @property
    def summary(self) -> str:
        """What it does when it has no problems, for people."""
        return self._regulation.summary

    @property
    def problems(self) -> list[str]:
        """What keeps this service from working just now, for people; empty if all is well."""
        found = [
            self._writer.problem,
            self._publisher.problem,
            *(subscription.problem for subscription in self._subscriptions),
        ]
        return [text for text in found if text is not None]

    @property
    def parts(self) -> Parts:
        """What its metrics are made of."""
        return Parts(
            queues=[
                QueuePart(name, subscription, dispatcher, *self._handlers.get(name, ()))
                for name, subscription, dispatcher in zip(
                    self._names, self._subscriptions, self._dispatchers, strict=True
                )
            ],
            connections=[*self._consuming.values(), *self._publisher.connections],
            counted=self._tally,
            tasks=TaskParts(
                writer=self._writer,
                publisher=self._publisher,
                relay=self._relay,
                lateness=None if self._scheduler is None else self._scheduler.lateness,
                using=self._using,
            ),
        )

    @property
    def silence(self) -> float:
        """Seconds since the thread that writes to the database has shown that it works."""
        return self._writer.silence

    @property
    def longest_stop(self) -> float:
        """Seconds after which ``stop`` has ended in any case."""
        return self._shutdown_timeout + 2 * LAST_WRITES + CONFIRMS + FAREWELL

    async def start(self) -> None:
        """Start all parts. Waits for a database that is away; never for the broker."""
        task_logging.capture({*self._settings.task_modules})
        tracing.listen()
        self._writer.start()
        refusal = self._recycling.refusal()
        if refusal is not None:
            self._on_fatal(refusal)
            return
        try:
            if not await self._lease.register():
                return
        except CarrotConfigException as error:
            self._on_fatal(str(error))
            return
        publisher.install(self._publisher)
        self._publisher.start()
        for dispatcher in self._dispatchers:
            dispatcher.start()
        for subscription in self._subscriptions:
            subscription.start()
        self._relay.start()
        if self._scheduler is not None:
            self._scheduler.start()
        self._recycling.start()
        self._tally.start()
        self._live_logs.start()
        self._admitting.start()
        self._lease.start()
        self._custody.start()

    def hurry(self) -> None:
        """End a stop now: what still runs is released."""
        self._waits.hurry()
        self._writer.give_up()

    async def stop(self) -> bool:
        """Stop: start nothing more, let running tasks end until the deadline, write, settle.

        Returns:
            Whether every task came to its end, so that all threads are free.
        """
        self._regulation.stop()
        self._recycling.stop()
        self._lease.stop_registering()
        if self._scheduler is not None:
            self._scheduler.stop()
        relayed = self._relay.stop()
        self._admitting.stop()
        for subscription in self._subscriptions:
            # Not awaited: a broker that is away must not hold up the stop.
            subscription.stop()
        for dispatcher in self._dispatchers:
            dispatcher.stop_claiming()
        if self.running:
            _log.info("Stopping; {n} tasks are still running", n=self.running)
        clean = await self._drain(self._shutdown_timeout)
        if not clean:
            released = sum(d.release_running() for d in self._dispatchers)
            _log.warn("{n} tasks did not end in time; they will run again elsewhere", n=released)
            await self._drain(LAST_WRITES, hurried=True)
        failpoints.reached("during_stop")
        self._live_logs.stop()
        self._lease.stop()
        self._custody.stop()
        # From here on a database or broker that does not answer is waited for once, not each time.
        end = self._reactor.seconds() + LAST_WRITES
        if not self._writer.away:
            await self._waits.in_time(relayed, end)
        await self._waits.in_time(self._tally.stop(), end)
        await self._leave(end)
        for subscription in self._subscriptions:
            subscription.leave()
        await self._waits.until(lambda: not self._publisher.unconfirmed, CONFIRMS)
        await gatherResults(
            [
                Deferred.fromCoroutine(close_all(self._consuming.values())),
                Deferred.fromCoroutine(self._publisher.stop()),
            ]
        )
        other = publisher.install(None)
        if other is not self._publisher:
            # Another engine in this process has taken the place.
            publisher.install(other)
        for dispatcher in self._dispatchers:
            dispatcher.stop_threads()
        self._events.stop()
        written = await self._writer.end(self._waits.left(end))
        if not written:
            _log.error("The database did not answer; what is unwritten will run again")
        self._journal.stop()
        return written and clean

    async def _drain(self, timeout: float, hurried: bool = False) -> bool:
        """Wait until no task is under way, at most ``timeout`` seconds."""

        def ended() -> bool:
            if self._writer.away and not any(d.begun for d in self._dispatchers):
                # Only claims are under way, and nobody answers them.
                return True
            return not self.running or (self._waits.hurried and not hurried)

        await self._waits.until(ended, timeout)
        return not self.running

    async def _leave(self, end: float) -> None:
        """Forget this worker, if nothing is in progress under its name."""
        if self._writer.away or not self._lease.registered:
            return

        def leave() -> None:
            self._losses.leave()
            self._lease.give_back()

        if not await self._waits.in_time(self._writer.call(leave), end):
            _log.warn("The worker's row stays: the database did not answer. Others delete it")

    def _state(self) -> dict[str, Any]:
        return state_of(self._dispatchers, self.problems, self._regulation.quiet)

    def _runs(self, key: UUID, token: int | None) -> bool:
        return any(dispatcher.runs(key, token) for dispatcher in self._dispatchers)

    def _note_handled(self, handled: Handled) -> None:
        self._tally.handled(handled)
        self._journal.note(handled)

    def _database_away(self, _reason: str) -> None:
        self._lease.database_away()
        self._regulation.database_away()

    def _queue_lost(self, queue: QueueSettings) -> None:
        if not isinstance(queue, HandlerQueue):
            self._relay.queue_lost(queue)

    def _connected(
        self, host: VirtualHost, queues: Sequence[QueueSettings], protocol: CarrotProtocol
    ) -> None:
        for subscription, queue in zip(self._subscriptions, queues, strict=True):
            if queue.host == host:
                subscription.connected(protocol)
