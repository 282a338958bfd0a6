# SPDX-License-Identifier: Apache-2.0
"""The life of a message that others publish: deliver, handle, decide, settle. No row stands for it.

The broker has custody: a message is acknowledged when its handler has returned, or when the broker
has confirmed the copy in a retry queue or in the archive. Everything here happens in the reactor,
but for the methods noted otherwise. A message::

    deliver   waits until the pace allows another one; a message whose handler is running here
              already, on a channel that is lost, is adopted
    handle    in a worker thread
    decide    ``retry.decide``, a pure function
    settle    in one place: acknowledge, keep it for a while, or copy, and then acknowledge

A process that dies at any point leaves the message to the broker, which delivers it again. What
comes again is noted in the database while it is handled (``begun_message``): one under which
processes were lost runs alone, and goes to the archive after too many of them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import failpoints, handling, outcomes, retry, task_logging, tracing
from carrot_twisted.interruption import Abandoned, TimedCall
from carrot_twisted.retry import Action, Failure, Fault
from carrot_twisted.service import copying, handler_call, message_spans
from carrot_twisted.service.backlog import take_behind
from carrot_twisted.service.base_dispatcher import BaseDispatcher
from carrot_twisted.service.journal import Handled
from carrot_twisted.service.message_copies import MessageCopies
from carrot_twisted.service.message_job import Job
from carrot_twisted.service.pool import WorkerPool
from carrot_twisted.service.thread_report import ThreadReport
from carrot_twisted.service.time_keeper import TimeKeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.interruption import Call
    from carrot_twisted.retry import Decision
    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.service.loss_counter import LossCounter
    from carrot_twisted.service.message_copies import Send

    Note = Callable[[Handled], None]
    """Is told of a message that is settled."""

_log = make_logger()

#: Seconds until it is looked again whether work is held up still.
HELD_DELAY = 1.0
#: Characters of an exception in the log.
MAX_TOLD = 200
#: What does not bring a message to its end here.
COMES_AGAIN = (Action.WAIT, Action.REQUEUE)


class MessageDispatcher(BaseDispatcher[Job]):
    """Has one queue's messages handled.

    Args:
        queue: with its handler.
        concurrency: number of threads.
        send: the way to the broker, for copies.
        note: called, when a message is settled for good, with what became of it.
        losses: counts processes that die while a message is handled; None: nobody does.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        queue: HandlerQueue,
        concurrency: int,
        send: Send,
        note: Note,
        losses: LossCounter | None,
        reactor: Any,
    ) -> None:
        super().__init__(concurrency=concurrency, prefetch=queue.prefetch, reactor=reactor)
        self._queue = queue
        self._note = note
        self._losses = losses
        self._keeper = TimeKeeper(reactor, self._give_up)
        self._pool: WorkerPool[Job] = WorkerPool(queue.name, concurrency, self._work, reactor)
        #: Given to the threads, or being copied.
        self._jobs: dict[Job, None] = {}
        self._copies = MessageCopies(
            queue=queue,
            jobs=self._jobs,
            send=send,
            copied=self._copied,
            give_back=self._give_back,
            reactor=reactor,
        )
        #: Kept because of the database, with the timers that end it.
        self._resting: dict[Job, Any] = {}
        #: Those of the jobs, come again, that are noted in the next batch.
        self._unasked: list[Job] = []
        self._asks = False
        #: Those whose channel was lost, by the message's id: the broker delivers them again.
        self._orphans: dict[str, list[Job]] = {}
        #: What the threads have done and the reactor does not know yet.
        self._ended: list[Job] = []
        self._lock = threading.Lock()
        self._traced = False
        self.timeout_hint = (
            f"{queue.handler} has kept a message for longer than the broker's consumer_timeout: "
            "raise that, or publish a task for such work."
        )
        self.decided: Counter[Action] = Counter()
        """What was decided about messages, since the start."""

    @property
    def started(self) -> int:
        """What the worker threads have begun."""
        return self._pool.begun

    @property
    def running(self) -> int:
        """Messages whose handlers run or are about to, and those that are being copied."""
        return len(self._jobs)

    @property
    def begun(self) -> int:
        """The same: none of them waits for our database."""
        return self.running

    def threads(self) -> Sequence[ThreadReport]:
        """What each of the worker threads does at this moment. From any thread."""
        reports = []
        for slot in self._pool.slots:
            job = slot.job
            task = self._queue.handler if job is not None else None
            reports.append(ThreadReport.of(slot, job, task=task))
        return reports

    def runs(self, key: UUID, token: int | None) -> bool:
        """No row is claimed here."""
        return False

    def start(self) -> None:
        """Start the worker threads."""
        # Asked once: of a message that is not traced not even the headers are read.
        self._traced = tracing.is_on()
        self._pool.start()

    # deliver

    def _adopt_running(self, delivery: Delivery) -> bool:
        """Take over a message whose channel was lost while its handler ran.

        Only where messages have an id: of others nobody knows whether it is this one.
        """
        orphans = self._orphans.get(delivery.properties.message_id or "", [])
        for job in orphans:
            under_way = job in self._jobs or job in self._resting
            if (under_way or job.done) and copying.is_same(job.delivery, delivery):
                orphans.remove(job)
                job.delivery = delivery
                if job.done:
                    delivery.ack()
                    delivery.settler.flush()
                return True
        return False

    def _pump(self) -> None:
        self._pump_due = False
        if self._stopping or self._paused:
            self._waiting.give_back()
            return
        if not self._waiting or self._held:
            return
        now = self._reactor.seconds()
        claimed = self.pace.claimed
        while self._waiting and len(self._jobs) < claimed:
            delivery = self._waiting.popleft()
            if delivery.settler.is_open:
                self._begin(Job(delivery, now), now)

    def _begin(self, job: Job, now: float) -> None:
        job.since = now
        self._jobs[job] = None
        if self._losses is None or not job.delivery.redelivered:
            self._pool.put(job)
            return
        job.asking = True
        self._unasked.append(job)
        if not self._asks:
            self._asks = True
            self._reactor.callLater(0, self._ask)

    def _ask(self) -> None:
        """What comes again may have cost processes; note that it begins, batch by batch."""
        assert self._losses is not None
        asked, self._unasked = self._unasked, []
        self._asks = bool(asked)
        if not asked:
            return
        keys = [copying.fingerprint(job.delivery, self._queue.name) for job in asked]
        alone = all(job.alone for job in asked)
        answer = self._losses.begin(keys, alone=alone)
        answer.addCallback(self._answered, asked, keys, alone)
        answer.addErrback(self._unanswered, asked)
        # While the database has one batch the next collects.
        answer.addCallback(lambda _: self._ask())

    def _answered(
        self, lost: Mapping[str, int], asked: Sequence[Job], keys: Sequence[str], alone: bool
    ) -> None:
        assert self._losses is not None
        for job, key in zip(asked, keys, strict=True):
            noted = self._losses.may_begin(lost[key], alone=alone)
            if job not in self._jobs:
                # Given back meanwhile.
                if noted:
                    self._losses.end(key)
                continue
            job.asking = False
            if noted:
                job.fingerprint = key
                self._pool.put(job)
            elif self._losses.is_too_much(lost[key]):
                text = f"worker lost {lost[key]} times"
                job.failure = Failure(fault=Fault.PERMANENT, exception=text, traceback="")
                self._decide(job, 0.0)
            else:
                del self._jobs[job]
                self._suspects.append(job)
        self.on_suspect()
        self._pump()

    def _unanswered(self, failure: Any, asked: Sequence[Job]) -> None:
        """The database is away, or in the way."""
        _log.debug("Messages that come again cannot be noted: {e}", e=failure.value)
        for job in asked:
            self._rest(job, outcomes.release_delay(job.waits + 1))
        self._go_on()

    def _note_end(self, job: Job) -> None:
        """It is not being handled any more."""
        job.asking = False
        fingerprint, job.fingerprint = job.fingerprint, None
        if fingerprint is not None and self._losses is not None:
            self._losses.end(fingerprint)

    def claim_suspect(self) -> None:
        """Begin one suspect; the caller knows that nothing else runs in this process."""
        job = self._suspects.popleft()
        job.alone = True
        self._begin(job, self._reactor.seconds())

    def forget_closed(self) -> None:
        """Drop what waits of a channel that is closed: the broker has it again."""
        super().forget_closed()
        self._suspects = deque(job for job in self._suspects if job.delivery.settler.is_open)
        for job in [] if self._stopping else self._pool.recall():
            if job.delivery.settler.is_open:
                self._pool.put(job)
            else:
                self._give_back(job)
        self._orphans = {}
        for job in (*self._jobs, *self._resting):
            key = job.delivery.properties.message_id
            if key and not job.delivery.settler.is_open:
                self._orphans.setdefault(key, []).append(job)

    # handle

    def _work(self, job: Job) -> None:
        """On a worker thread."""
        if self._stopping or not job.delivery.settler.is_open:
            # It was on its way here while the stop began, or the channel was lost.
            self._reactor.callFromThread(self._give_back, job)
            return
        began = time.monotonic()
        try:
            job.failure = handling.handle(
                partial(handler_call.call, self._queue, job.delivery),
                self._timed(job),
                message_spans.begin(job, self._queue) if self._traced else None,
            )
            failpoints.reached("handled_before_settle")
            self._decide(job, time.monotonic() - began)
        except Abandoned:
            # Its end was told when the thread was given up.
            return
        except BaseException:
            # Out of memory, perhaps. The message must not hang on this job for ever.
            _log.failure("A worker thread met an error outside of its handler")
            self._reactor.callFromThread(self._rest, job, outcomes.release_delay(job.waits + 1))

    def _decide(self, job: Job, took: float) -> None:
        """On a worker thread, for the project's backoff function is asked."""
        job.took = took
        job.ended = time.time()
        # Nearly all: their headers need not be read.
        job.decision = retry.DONE if job.failure is None else self._decision(job)
        if job.span is not None:
            message_spans.end(job, self._failure(job))
        with self._lock:
            wake = not self._ended
            self._ended.append(job)
        if wake:
            self._reactor.callFromThread(self._settle_ended)

    def _decision(self, job: Job) -> Decision:
        return retry.decide(
            job.failure,
            retries=self._queue.policy.retries(job.delivery.properties.headers),
            waits=job.waits,
            policy=self._queue.policy,
        )

    def _timed(self, job: Job) -> TimedCall | None:
        seconds = self._queue.time_limit
        if seconds is None:
            return None
        return TimedCall(job, seconds, task_logging.Transcript(0), self._keeper)

    def _give_up(self, call: Call) -> None:
        """A handler does not end at its limit: another thread takes the place of its own."""
        assert isinstance(call, TimedCall)
        name = self._pool.replace(call.ident, partial(self._end_stuck, call))
        _log.error(
            "Thread {name} is stuck in handler {handler}, {seconds:g} s over its limit. The "
            "message has failed, and another thread takes its place",
            name=name,
            handler=self._queue.handler,
            seconds=time.monotonic() - call.began - (call.seconds or 0.0),
        )
        self.on_stuck()

    def _end_stuck(self, call: TimedCall) -> None:
        """On the new thread: bring the stuck call to its end."""
        job: Job = call.run
        try:
            job.failure = handling.give_up(call)
        except BaseException:
            # Nobody else ends this job: its own thread has no say any more.
            _log.failure("What a stuck handler was doing could not be told")
            job.failure = Failure(fault=Fault.HANDLER, exception=call.text, traceback="")
        self._decide(job, time.monotonic() - call.began)

    # decide, settle

    def _settle_ended(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        # Others were released at the deadline of a stop.
        ended = [job for job in ended if job in self._jobs]
        if not ended:
            return
        for job in ended:
            decision = job.decision
            assert decision is not None
            if job.fingerprint is not None:
                self._note_end(job)
            self.decided[decision.action] += 1
            self.finished += decision.action not in COMES_AGAIN
            if job.failure is not None:
                self._tell(job, job.failure, decision)
            try:
                self._settle(job, decision)
            except Exception:
                # Its neighbours must not pay for it.
                _log.failure("What was decided about a message could not be done")
                self._rest(job, outcomes.release_delay(job.waits + 1))
        for settler in {job.delivery.settler for job in ended}:
            settler.flush()
        count = len(ended)
        self.pace.measured(
            sum(job.took for job in ended) / count,
            sum(len(job.delivery.body) for job in ended) / count,
        )
        self._go_on()

    def _settle(self, job: Job, decision: Decision) -> None:
        """Do what was decided about a message. The caller flushes the settler."""
        match decision.action:
            case Action.ACK:
                self._end(job)
            case Action.WAIT:
                self._rest(job, decision.delay)
            case Action.RETRY | Action.ARCHIVE:
                self._copies.copy(job, decision)

    def _rest(self, job: Job, delay: float) -> None:
        """Keep a message, and have it handled again after a while."""
        if job not in self._jobs:
            # Released at the deadline of a stop.
            return
        del self._jobs[job]
        job.alone = False
        self._note_end(job)
        if self._stopping or self._paused:
            job.delivery.requeue()
            return
        job.waits += 1
        self._resting[job] = self._reactor.callLater(delay, self._rested, job)

    def _rested(self, job: Job) -> None:
        if self._held:
            self._resting[job] = self._reactor.callLater(HELD_DELAY, self._rested, job)
            return
        del self._resting[job]
        if job.delivery.settler.is_open:
            self._begin(job, self._reactor.seconds())

    def _copied(self, job: Job) -> None:
        self._end(job)
        job.delivery.settler.flush()
        self._go_on()

    def _end(self, job: Job) -> None:
        """Acknowledge. The caller flushes the settler."""
        del self._jobs[job]
        job.done = True
        job.delivery.ack()
        if job.decision is not None and job.decision.action is not Action.RETRY:
            self._note_settled(job, self._failure(job))

    def _failure(self, job: Job) -> Failure | None:
        """What went wrong with a message, for its row."""
        return job.failure

    def _note_settled(self, job: Job, failure: Failure | None) -> None:
        waited = self._reactor.seconds() - job.arrived
        self._note(
            Handled(
                queue=self._queue,
                delivery=job.delivery,
                failure=failure,
                arrived=time.time() - waited,
                started=job.ended - job.took,
                ended=job.ended,
            )
        )

    def _go_on(self) -> None:
        self._pump()
        self.on_settled()
        self.on_finished()
        self.on_suspect()

    def _tell(self, job: Job, failure: Failure, decision: Decision) -> None:
        what = {
            Action.WAIT: f"the database was in its way, it runs again in {decision.delay:g} s",
            Action.RETRY: f"it is tried again in {decision.delay:g} s",
            Action.ARCHIVE: f"it goes to {self._queue.layout.archive}, {decision.reason}",
        }[decision.action]
        _log.warn(
            "Handler {handler} failed on a message of queue {queue}: {error}; {what}",
            handler=self._queue.handler,
            queue=self._queue.name,
            error=failure.exception[:MAX_TOLD],
            what=what,
        )

    def take_custody(self, deadline: float) -> None:
        """The broker has custody until the end: no row says that the message is being handled."""

    def free_waiting(self, deadline: float) -> None:
        """Give back what waits in vain behind long work: others may have a thread for it."""
        now = self._reactor.seconds()
        behind = take_behind(self._pool, self.pace, now)
        for job in behind:
            self._give_back(job)
        overdue = self._waiting.take_overdue(now, deadline)
        for job in [job for job in self._resting if now - job.arrived >= deadline]:
            self._resting.pop(job).cancel()
            overdue.append(job.delivery)
        for job in [job for job in self._suspects if now - job.arrived >= deadline]:
            self._suspects.remove(job)
            overdue.append(job.delivery)
        for delivery in overdue:
            delivery.requeue()
        if behind:
            self.on_settled()

    # stop

    def stop_claiming(self) -> None:
        """Give back what has not begun."""
        self._stopping = True
        self._give_back_waiting()
        self._copies.stop()

    def release_running(self) -> int:
        """The deadline has come: give back what is handled still; it runs again elsewhere."""
        jobs = list(self._jobs)
        for job in jobs:
            self._give_back(job)
        return len(jobs)

    def stop_threads(self) -> None:
        """Let the threads end that are free."""
        self._keeper.stop()
        self._pool.stop()
        self._copies.end()

    def _give_back_waiting(self) -> None:
        """What waits, rests, is a suspect, or is about to begin."""
        self._waiting.give_back()
        resting, self._resting = self._resting, {}
        for job, timer in resting.items():
            timer.cancel()
            job.delivery.requeue()
        while self._suspects:
            self._suspects.popleft().delivery.requeue()
        self.recall()

    def recall(self) -> None:
        """Give back what no thread has begun."""
        for job in [*self._pool.recall(), *(job for job in self._jobs if job.asking)]:
            self._give_back(job)

    def _give_back(self, job: Job) -> None:
        if job in self._jobs:
            del self._jobs[job]
            self._note_end(job)
            job.delivery.requeue()
            self.on_suspect()
