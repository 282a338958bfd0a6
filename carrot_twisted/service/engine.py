# SPDX-License-Identifier: Apache-2.0
"""All parts of a running service, put together in one place, started and stopped in order."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.db import connections, router, transaction
from django.db.migrations.executor import MigrationExecutor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from txaio.tx import make_logger

from carrot_twisted import (
    __version__,
    conf,
    failpoints,
    handlers,
    outcomes,
    periodic,
    processes,
    publisher,
    records,
    task_logging,
    tracing,
)
from carrot_twisted.begun_message import Losses
from carrot_twisted.consumer import make_consumer
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.execution import Limits, clean_connections
from carrot_twisted.handlers import HandlerQueue
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.outage import Outage
from carrot_twisted.records import Claimant, Wishes
from carrot_twisted.scheduler import ScheduledTaskManager
from carrot_twisted.service.admitting import Admitting
from carrot_twisted.service.cancelling import Cancelling
from carrot_twisted.service.chore import Chore
from carrot_twisted.service.connection import BrokerConnection, close_all
from carrot_twisted.service.dispatcher import Dispatcher
from carrot_twisted.service.event_loop import EventLoop
from carrot_twisted.service.hooked_dispatcher import HookedDispatcher
from carrot_twisted.service.journal import Journal
from carrot_twisted.service.live_logs import LiveLogs
from carrot_twisted.service.log_writer import LAST_WRITES, LogWriter
from carrot_twisted.service.loss_counter import LossCounter
from carrot_twisted.service.message_dispatcher import MessageDispatcher
from carrot_twisted.service.parts import Parts, QueuePart, TaskParts
from carrot_twisted.service.posting import ReactorPublisher
from carrot_twisted.service.protocol import FAREWELL
from carrot_twisted.service.quarantine import Quarantine
from carrot_twisted.service.recycling import Recycling
from carrot_twisted.service.relay import Relay
from carrot_twisted.service.subscription import Subscription
from carrot_twisted.service.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from carrot_twisted.conf import CarrotSettings, QueueSettings
    from carrot_twisted.consumer import Consumer
    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.service.journal import Handled
    from carrot_twisted.service.protocol import CarrotProtocol
    from carrot_twisted.service.working import Working
    from carrot_twisted.virtual_host import VirtualHost

_log = make_logger()

#: Seconds between attempts to reach the database at the start.
START_RETRY = 1.0
#: Heartbeats per lease: two may be lost before anybody takes this worker for dead.
BEATS_PER_LEASE = 4
#: Seconds between looks for tasks whose message is to be acknowledged while they run, and for
#: messages that wait in vain.
CUSTODY_INTERVAL = 15.0
#: Seconds that the broker gets to confirm what was published last.
CONFIRMS = 1.0
#: Seconds that a further last write gets when the time for them is over.
MOMENT = 0.1
#: Coroutines that are told with a heartbeat, those that run for longest.
MAX_COROUTINES = 50
#: Characters that are told of an error's text.
MAX_REASON = 500


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What the command line says."""

    queues: tuple[str, ...] = ()
    """Consume from these only; empty: from all consumable ones."""
    concurrency: int | None = None
    """Instead of each queue's own."""
    shutdown_timeout: float | None = None
    """Instead of the setting."""
    scheduler: bool = True
    """Publish scheduled tasks, too."""
    consumer_class: str | None = None
    """Dotted path; instead of each queue's own."""
    consumer_name: str | None = None
    """Name of the consumer objects; by default ``<queue>-consumer``."""
    logger: logging.Logger | None = None
    """Of the consumer objects; by default the logger ``carrot``."""
    max_tasks: int | None = None
    """Ask for a fresh process after so many tasks."""
    max_memory: int | None = None
    """Ask for one when more MB than that are in use."""


def chosen_queues(settings: CarrotSettings, options: ServiceOptions) -> list[QueueSettings]:
    """The queues that this service consumes from, those of message handlers last.

    Raises:
        CarrotConfigException: an unknown queue was asked for, or none is left.
    """
    handled = {queue.name: queue for queue in handlers.queues(settings)}
    if options.queues:
        names = sorted(dict.fromkeys(options.queues), key=handled.__contains__)
        return [handled.get(name) or settings.queue(name) for name in names]
    chosen = [*(q for q in settings.queues.values() if q.consumable), *handled.values()]
    if not chosen:
        raise CarrotConfigException(
            "No queue of CARROT['queues'] is consumable: set 'consumable': True for one, or name "
            "one with --queue."
        )
    return chosen


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
        self._on_stop = on_stop
        #: What operators want, as of the last heartbeat.
        self._wishes = Wishes()
        self._using = router.db_for_write(MessageLog)
        self._shutdown_timeout = options.shutdown_timeout or settings.shutdown_timeout
        #: The database's time when the reactor's clock was at zero: this host's may be set.
        self._database_zero = time.time() - reactor.seconds()
        self._lease_since: float | None = None
        self._last_beat = 0.0
        self._registering = Outage(reactor.seconds)
        self._renewing = Chore("The worker renews its lease", reactor.seconds)
        self._registered = False
        self._stopping = False
        self._start_wait: Deferred[Any] | None = None
        self._deadline: Deferred[Any] | None = None
        self._hurry = False
        queues = chosen_queues(settings, options)
        self.worker = _this_worker(
            queues, sum(options.concurrency or queue.concurrency for queue in queues)
        )
        self._names = [queue.name for queue in queues]
        self._writer = LogWriter(
            self._claimant,
            self._using,
            reactor,
            away="is away, nothing new is started",
            on_away=self._database_away,
            on_back=self._database_back,
            on_broken=on_crash,
        )
        hosts = list(dict.fromkeys(queue.host for queue in (*settings.queues.values(), *queues)))
        self._publisher = ReactorPublisher(hosts, self._writer, self._using, reactor)
        self._relay = Relay(
            queues=list(settings.queues.values()),
            writer=self._writer,
            publisher=self._publisher,
            claimant=self._claimant,
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
            now=lambda: reactor.seconds() + self._database_zero,
        )
        self._events = EventLoop(reactor, clean_connections)
        consumers = [self._make_consumer(queue, options) for queue in queues]
        tasks = [
            (HookedDispatcher if consumer.reads_messages else Dispatcher)(
                queue=queue,
                concurrency=options.concurrency or queue.concurrency,
                consumer=consumer,
                writer=self._writer,
                limits=limits,
                dead_letter=self._dead_letter_of(queue),
                events=self._events,
                tally=self._tally,
                reactor=reactor,
            )
            for queue, consumer in zip(queues, consumers, strict=True)
            if not isinstance(queue, HandlerQueue)
        ]
        self._writer.runs = lambda: [run for one in tasks for run in one.claimed()]
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
            host: BrokerConnection(host, "consuming", self._connector(host, queues), reactor)
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
        self._heartbeat = LoopingCall(self._beat)
        custody = Chore("The worker looks after long tasks", reactor.seconds)
        self._custody = LoopingCall(custody.attempt, self._take_custody)
        for loop in (self._heartbeat, self._custody):
            loop.clock = reactor

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
        if self._wishes.command == Worker.QUIET:
            return "Quiet: it takes nothing more"
        paused = [name for name in self._names if name in self._wishes.paused]
        return f"Consuming; paused: {', '.join(paused)}" if paused else "Consuming from all queues"

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
        if not await self._register():
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
        self._heartbeat.start(self._settings.lease / BEATS_PER_LEASE, now=False)
        self._custody.start(min(CUSTODY_INTERVAL, self._settings.ack_deadline / 4), now=False)

    def hurry(self) -> None:
        """End a stop now: what still runs is released."""
        self._hurry = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._writer.give_up()

    async def stop(self) -> bool:
        """Stop: start nothing more, let running tasks end until the deadline, write, settle.

        Returns:
            Whether every task came to its end, so that all threads are free.
        """
        self._stopping = True
        self._recycling.stop()
        if self._start_wait is not None:
            self._start_wait.cancel()
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
        self._stop_loops()
        # From here on a database or broker that does not answer is waited for once, not each time.
        end = self._reactor.seconds() + LAST_WRITES
        if not self._writer.away:
            await self._in_time(relayed, end)
        await self._in_time(self._tally.stop(), end)
        await self._leave(end)
        for subscription in self._subscriptions:
            subscription.leave()
        await self._until(lambda: not self._publisher.unconfirmed, CONFIRMS)
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
        written = await self._writer.end(max(end - self._reactor.seconds(), MOMENT))
        if not written:
            _log.error("The database did not answer; what is unwritten will run again")
        self._journal.stop()
        return written and clean

    async def _in_time(self, result: Deferred[Any], end: float) -> bool:
        """Wait for a result until that time, or a moment; False if it did not come, or failed."""
        timeout = max(end - self._reactor.seconds(), MOMENT)
        try:
            await result.addTimeout(timeout, self._reactor)
        except Exception as error:
            _log.debug("Not waited for any longer: {error}", error=error)
            return False
        return True

    async def _drain(self, timeout: float, hurried: bool = False) -> bool:
        """Wait until no task is under way, at most ``timeout`` seconds."""

        def ended() -> bool:
            if self._writer.away and not any(d.begun for d in self._dispatchers):
                # Only claims are under way, and nobody answers them.
                return True
            return not self.running or (self._hurry and not hurried)

        await self._until(ended, timeout)
        return not self.running

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something is true, or the time is over, or somebody hurries."""
        end = self._reactor.seconds() + seconds
        while not condition() and self._reactor.seconds() < end:
            self._deadline = deferLater(self._reactor, 0.02)
            try:
                await self._deadline
            except CancelledError:
                break
            finally:
                self._deadline = None

    async def _leave(self, end: float) -> None:
        """Forget this worker, if nothing is in progress under its name."""
        if self._writer.away or not self._registered:
            return
        name, using = self.worker.name, self._using
        left = MessageLog.objects.using(using).filter(worker=name, status=MessageLog.IN_PROGRESS)

        def leave() -> None:
            self._losses.leave()
            if not left.exists():
                Worker.objects.using(using).filter(name=name).delete()

        if not await self._in_time(self._writer.call(leave), end):
            _log.warn("The worker's row stays: the database did not answer. Others delete it")

    def _stop_loops(self) -> None:
        self._live_logs.stop()
        for loop in (self._heartbeat, self._custody):
            if loop.running:
                loop.stop()

    async def _register(self) -> bool:
        """Make this worker known; False if that is pointless or the service is stopping."""

        def register() -> None:
            executor = MigrationExecutor(connections[self._using])
            app = Worker._meta.app_label
            if executor.migration_plan(executor.loader.graph.leaf_nodes(app)):
                raise CarrotConfigException(
                    f"Database {self._using!r} lacks tables or columns of carrot_twisted. "
                    "Run: python manage.py migrate"
                )
            self._renew_lease()

        while not self._stopping:
            # From here on perhaps: a stop may come before the answer.
            self._registered = True
            try:
                await self._writer.call(register)
            except CarrotConfigException as error:
                self._registered = False
                self._on_fatal(str(error))
                return False
            except Exception as error:
                self._registered = False
                text = outcomes.exception_line(error, MAX_REASON)
                told = self._registering.failed(text)
                if told is not None:
                    _log.error("The database cannot be reached: {error}. Trying on", error=told)
            else:
                after = self._registering.over()
                if after:
                    _log.info("The database is reached{after}", after=after)
                return not self._stopping
            self._start_wait = deferLater(self._reactor, START_RETRY)
            try:
                await self._start_wait
            except CancelledError:
                pass
            finally:
                self._start_wait = None
        return False

    def _beat(self) -> Deferred[None]:
        def late(failure: Failure) -> None:
            self._lease_since = None
            if not self._writer.away:
                self._renewing.failed(failure)

        def renewed() -> Deferred[None]:
            # Asked here, in the reactor, whose objects know what is wrong.
            self.worker.state = self._state()
            return self._writer.call(self._renew_lease, is_atomic=False)

        return maybeDeferred(renewed).addCallbacks(lambda _: self._renewing.succeeded(), late)

    def _state(self) -> dict[str, Any]:
        """What ``manage.py carrot_status`` tells of this worker."""
        busy = [
            report
            for dispatcher in self._dispatchers
            for report in dispatcher.threads()
            if report.task is not None
        ]
        coroutines = [report for report in busy if report.coroutine]
        # Not thousands, with each heartbeat: those that somebody may look for.
        told = sorted(coroutines, key=lambda one: (one.stuck, one.seconds))[-MAX_COROUTINES:]
        threads = [report for report in busy if not report.coroutine]
        return {
            "running": [
                {
                    "thread": one.name,
                    "task": one.task,
                    "uuid": str(one.uuid or ""),
                    "seconds": round(one.seconds, 1),
                    "stuck": one.stuck,
                    "coroutine": one.coroutine,
                }
                for one in [*threads, *reversed(told)]
            ],
            "coroutines": len(coroutines),
            # As the database takes it: for a text that it refuses the lease would be lost.
            "problems": [outcomes.stored(text, MAX_REASON) for text in self.problems],
            "quiet": self._wishes.command == Worker.QUIET,
        }

    def _renew_lease(self) -> None:
        """On the writer's thread, so that what it does next knows of it."""
        bounds = self._writer.bounds()
        database_time, wishes = records.heartbeat(self.worker, self._using, bounds)
        self._writer.clock_offset = database_time - time.time()
        now = self._reactor.seconds()
        self._database_zero = database_time - now
        if self._lease_since is None or now - self._last_beat > self._settings.lease / 2:
            # So late, others may have lost their leases: the database was frozen, say.
            self._lease_since = now
        # In others' eyes only then: the transaction may be rolled back.
        transaction.on_commit(partial(self._renewed, now, wishes), using=self._using)

    def _renewed(self, when: float, wishes: Wishes) -> None:
        self._last_beat = when
        self._reactor.callFromThread(self._obey, wishes)

    def _obey(self, wishes: Wishes) -> None:
        """In the reactor: do what operators want."""
        before, self._wishes = self._wishes, wishes
        if self._stopping or wishes == before:
            return
        if wishes.command == Worker.STOP:
            _log.info("Operators want this worker to stop")
            self._on_stop()
            return
        if wishes.command != before.command:
            quiet = wishes.command == Worker.QUIET
            _log.info(
                "This worker takes nothing more, as operators want"
                if quiet
                else "This worker takes tasks and messages again, as operators want"
            )
        for name in self._names:
            if name in wishes.paused - before.paused:
                _log.info("Queue {queue} is paused, as operators want", queue=name)
            elif name in before.paused - wishes.paused:
                _log.info("Queue {queue} goes on, as operators want", queue=name)
        self._regulate()
        # They are waiting to see it.
        self._beat()

    def _regulate(self) -> None:
        """Have each queue consumed, or not, as the database and the operators let it."""
        away, quiet = self._writer.away, self._wishes.command == Worker.QUIET
        for name, subscription, dispatcher in zip(
            self._names, self._subscriptions, self._dispatchers, strict=True
        ):
            resting = quiet or name in self._wishes.paused
            if not (away or resting):
                dispatcher.resume()
            subscription.want(not away, resting)
            if away or resting:
                dispatcher.pause()
            if resting and not away:
                dispatcher.recall()

    def _claimant(self, alone: bool = False) -> Claimant:
        """On the writer's thread, inside the transaction that claims or judges."""
        if self._reactor.seconds() - self._last_beat > self._settings.lease / 2:
            # Frozen or cut off for so long, this worker may have been taken for dead and forgotten:
            # what it claims now would be taken from it while it runs.
            self._renew_lease()
        since = self._lease_since
        return Claimant(
            worker=self.worker.name,
            lease=self._settings.lease,
            max_crashes=self._settings.max_crashes,
            alone=alone,
            judges=since is not None and self._reactor.seconds() - since > self._settings.lease,
            runs=lambda key, token: any(d.runs(key, token) for d in self._dispatchers),
        )

    def _note_handled(self, handled: Handled) -> None:
        self._tally.handled(handled)
        self._journal.note(handled)

    def _take_custody(self) -> None:
        for dispatcher in self._dispatchers:
            dispatcher.take_custody(self._settings.ack_deadline)
            dispatcher.free_waiting(self._settings.ack_deadline)

    def _database_away(self, reason: str) -> None:
        self._lease_since = None
        self._regulate()

    def _database_back(self) -> None:
        if not self._stopping:
            self._regulate()

    def _queue_lost(self, queue: QueueSettings) -> None:
        if not isinstance(queue, HandlerQueue):
            self._relay.queue_lost(queue)

    def _make_consumer(self, queue: QueueSettings, options: ServiceOptions) -> Consumer:
        named = None if isinstance(queue, HandlerQueue) else options.consumer_class
        consumer = make_consumer(
            named or queue.consumer_class,
            host=queue.host,
            queue=queue.name,
            logger=options.logger or logging.getLogger(task_logging.LOGGER),
            name=options.consumer_name or f"{queue.name}-consumer",
            durable=queue.durable,
            queue_arguments=queue.queue_arguments,
            exchange_arguments=queue.exchange_arguments,
        )
        if not queue.verifies:
            consumer.barred = [one.name for one in self._settings.queues.values() if one.verifies]
        return consumer

    def _dead_letter_of(self, queue: QueueSettings) -> Callable[[Delivery, str], None]:
        def dead_letter(delivery: Delivery, reason: str) -> None:
            self._publisher.dead_letter(queue.host, queue.name, delivery, reason)

        return dead_letter

    def _connector(
        self, host: VirtualHost, queues: Sequence[QueueSettings]
    ) -> Callable[[CarrotProtocol], None]:
        def connected(protocol: CarrotProtocol) -> None:
            for subscription, queue in zip(self._subscriptions, queues, strict=True):
                if queue.host == host:
                    subscription.connected(protocol)

        return connected


def _this_worker(queues: Sequence[QueueSettings], threads: int) -> Worker:
    pid = os.getpid()
    host = socket.gethostname()
    return Worker(
        name=f"{host[:70]}-{pid}-{secrets.token_hex(3)}",
        host=host[:200],
        pid=pid,
        machine=processes.machine(),
        process_start=processes.start_of(pid),
        version=__version__,
        queues="\n".join(queue.name for queue in queues),
        threads=threads,
    )
