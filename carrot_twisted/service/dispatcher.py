# SPDX-License-Identifier: Apache-2.0
"""The life of a queue's messages: deliver, claim, run, record, settle.

Everything here happens in the reactor, but for the methods noted otherwise. A message::

    deliver   waits until the pace allows another claim; a message whose task is running here
              already is adopted: its delivery is settled together with the first
    claim     the LogWriter asks the database, for all that wait, in one statement
    run       what was claimed goes straight to the worker threads, or, if it is an ``async def``
              task, to the event loop
    record    the thread, or the loop, hands its result to the LogWriter
    settle    after the commit: acknowledge, on the channel that delivered

Where a project's consumer reads messages in its own way, ``hooked_dispatcher`` has another order.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import iscoroutinefunction
from txaio.tx import make_logger

from carrot_twisted import execution, failpoints, outcomes, task_paths, wire
from carrot_twisted.coroutine_call import CoroutineCall
from carrot_twisted.exceptions import TimeLimitExceeded
from carrot_twisted.execution import Limits, Run
from carrot_twisted.identities import new_token
from carrot_twisted.interruption import TimedCall
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.own_thread import OwnThread
from carrot_twisted.records import Claimed, Finished
from carrot_twisted.service.coroutines import Coroutines
from carrot_twisted.service.delivery import Delivery, take_overdue
from carrot_twisted.service.operations import Claim, Finish
from carrot_twisted.service.pool import WorkerPool
from carrot_twisted.service.prefetch import Pace
from carrot_twisted.service.time_keeper import TimeKeeper
from carrot_twisted.signing import Seal

if TYPE_CHECKING:
    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.consumer import Consumer
    from carrot_twisted.interruption import Call
    from carrot_twisted.running import CancelRequest
    from carrot_twisted.service.event_loop import EventLoop
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.tally import Tally

_log = make_logger()

#: Seconds after which a message whose row is missing is looked up again; then it is dead. The row
#: of another publisher may come late: django-carrot publishes before the commit.
MISSING_DELAYS = (0.1, 0.3, 1.0, 2.0, 3.0, 4.0)
#: Our own publishers send after the commit. Their message without a row is that of a deleted row.
OWN_MISSING_DELAYS = (0.1,)
#: So many messages may wait for their rows at once; further ones are taken for dead.
MAX_MISSING = 200
#: Seconds that a claimed row may wait for a thread. It was to be less than one: see ``prefetch``.
STUCK = 10.0
#: When the database has spoiled so many rounds of all threads, and nothing else has come of them,
#: one more round is tried each BRAKE seconds: its connections are used up, say.
SPOILED_ROUNDS = 2
BRAKE = 1.0
#: Seconds for which spoiled runs are gathered to be told in one line, growing as long as it lasts.
TELL_FIRST = 1.0
TELL_LAST = 60.0
#: Seconds for which messages of a task are taken without a thread for them, once one of them had
#: to wait for its limits: thousands of these must not keep others behind them from their threads.
CROWDED = 5.0
#: So many of them in that time, and more are delivered at once.
MANY = 100
#: Seconds that a coroutine is taken to run before any was measured.
COROUTINE_SECONDS = 1.0

DeadLetter = Callable[[Delivery, str], None]


@dataclass(frozen=True, kw_only=True)
class ThreadReport:
    """What one worker thread is doing, or one coroutine."""

    name: str
    task: str | None
    """Dotted path; None while it is idle, or a consumer's hooks read a message."""
    uuid: UUID | None
    """Of the task's row."""
    seconds: float
    """For how long it has been at that; 0 while it is idle."""
    stuck: bool
    """Its task has ended for everybody else: it went on after its time limit. Or it is a coroutine
    that holds up its event loop."""
    coroutine: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One message id under way in this process."""

    uuid: UUID
    deliveries: list[Delivery]
    tries: int = 0
    """How often the row was looked up in vain."""
    run: Run | None = None
    since: float = 0.0
    """Reactor time of the claim."""
    result: Result | None = None
    custody: bool = field(default=False)
    """Acknowledged while running: the database alone has custody."""
    is_coroutine: bool = False
    """It needs no thread. As far as that is known."""
    has_place: bool = True
    """There is a thread for it, if its limits let it start."""

    @property
    def seconds(self) -> float:
        """How long it has kept a worker thread, or run as a coroutine."""
        assert self.result is not None
        return self.result.ended - self.result.started


class Dispatcher:
    """Runs one queue's tasks.

    Args:
        queue: its settings.
        concurrency: number of threads.
        consumer: the queue's consumer object, with its hooks.
        writer: the way to the database.
        limits: of a run.
        dead_letter: takes over a delivery that no row stands for.
        events: runs coroutines.
        tally: counts what comes to its end.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        queue: QueueSettings,
        concurrency: int,
        consumer: Consumer,
        writer: LogWriter,
        limits: Limits,
        dead_letter: DeadLetter,
        events: EventLoop,
        tally: Tally,
        reactor: Any,
    ) -> None:
        self.name = queue.name
        self.pace = Pace(concurrency=concurrency, fixed=queue.prefetch)
        self._consumer = consumer
        self._writer = writer
        self._keeper = TimeKeeper(reactor, self._give_up)
        self._limits = dataclasses.replace(limits, keeper=self._keeper)
        self._dead_letter = dead_letter
        self._tally = tally
        self._reactor = reactor
        self._seal = Seal() if queue.verifies else None
        self._pool: WorkerPool[Job] = WorkerPool(queue.name, concurrency, self._work, reactor)
        self._events = events
        self._coroutines: Coroutines[Job] = Coroutines(
            queue.name, queue.async_concurrency, self._work_coroutine, events
        )
        self._coroutine_pace = Pace(
            concurrency=queue.async_concurrency, fixed=None, seconds=COROUTINE_SECONDS
        )
        #: Of tasks that have come here, by their path: whether they are coroutines.
        self._kinds: dict[str, bool] = {}
        self._waiting: deque[Delivery] = deque()
        self._jobs: dict[UUID, Job] = {}
        #: Tasks that had to wait for their limits, and until when that is remembered.
        self._crowded: dict[str, float] = {}
        self._crowd = 0
        #: Tokens of claims that are under way.
        self._asking: set[int] = set()
        #: How many of the jobs wait for their row: they must not keep others from running.
        self._missing = 0
        #: Jobs that wait until nothing else runs in this process.
        self._suspects: deque[Job] = deque()
        #: Claim nothing: a suspect runs, or is about to.
        self._held = False
        self._pump_due = False
        #: Runs that the database has spoiled since one came to its end.
        self._spoiled = 0
        self._brake_until = 0.0
        self._untold = 0
        self._tell_after = TELL_FIRST
        self._paused = False
        self._stopping = False
        self._stopped = False
        self.timeout_hint = (
            "The broker's consumer_timeout is shorter than CARROT['ack_deadline'] allows for: set "
            "that to half of it at most."
        )
        self.finished = 0
        """Tasks that came to an end here."""
        self.on_settled: Callable[[], None] = lambda: None
        self.on_suspect: Callable[[], None] = lambda: None
        self.on_finished: Callable[[], None] = lambda: None
        self.on_stuck: Callable[[], None] = lambda: None

    @property
    def started(self) -> int:
        """What the worker threads, and the event loop, have begun."""
        return self._pool.begun + self._coroutines.begun

    @property
    def running(self) -> int:
        """Messages that are claimed, or about to be."""
        return len(self._jobs) - self._missing - len(self._suspects)

    @property
    def begun(self) -> int:
        """Those of the running ones that somebody may wait for: not those that ask for a claim."""
        return sum(job.run is not None for job in self._jobs.values())

    @property
    def suspects(self) -> int:
        """Messages whose row has cost workers, waiting to run alone."""
        return len(self._suspects)

    def threads(self) -> list[ThreadReport]:
        """What each worker thread, and each coroutine, does at this moment. From any thread."""
        now = time.monotonic()
        reports = []
        threads = self._pool.slots
        for n, slot in enumerate([*threads, *self._coroutines.slots]):
            job = slot.job
            run = job.run if job is not None else None
            reports.append(
                ThreadReport(
                    name=slot.name,
                    task=run.task if run is not None else None,
                    uuid=run.uuid if run is not None else None,
                    seconds=max(0.0, now - slot.since) if job is not None else 0.0,
                    stuck=slot.stuck,
                    coroutine=n >= len(threads),
                )
            )
        return reports

    def long_runs(self, seconds: float) -> list[Run]:
        """What has run for so long, and goes on. From any thread."""
        if not self._jobs:
            # So it is with most of many queues, each time that all of them are looked at.
            return []
        now = time.monotonic()
        found = []
        for slot in [*self._pool.slots, *self._coroutines.slots]:
            job = slot.job
            if job is None or now - slot.since < seconds:
                continue
            if job.run is not None and job.result is None:
                found.append(job.run)
        return found

    def cancel(self, key: UUID, token: int, request: CancelRequest) -> bool:
        """Somebody wants a task to end that runs here under this token: tell it, interrupt it.

        May be called again and again: what the task has swallowed is raised anew.

        Returns:
            Whether that is new, and the task runs here.
        """
        job = self._jobs.get(key)
        run = None if job is None else job.run
        if job is None or run is None or run.token != token or job.result is not None:
            return False
        is_new = run.cancel is None
        run.cancel = request
        call = run.call
        if call is not None and not (request.cooperative or execution.is_cooperative(run)):
            call.cancel(request.text)
        return is_new

    def runs(self, key: UUID, token: int | None) -> bool:
        """Whether a row is claimed here under this token. On the writer's thread."""
        job = self._jobs.get(key)
        return token in self._asking or (
            job is not None and job.run is not None and job.run.token == token
        )

    def claimed(self) -> list[Run]:
        """What is claimed here and is not given back. From any thread."""
        return [
            job.run
            for job in list(self._jobs.values())
            if job.run is not None and (job.result is None or job.result.kind.is_final)
        ]

    def start(self) -> None:
        """Start the worker threads."""
        self._pool.start()

    # deliver

    def deliver(self, delivery: Delivery) -> None:
        """A message arrived."""
        if delivery.redelivered and self._adopt_running(delivery):
            return
        self._waiting.append(delivery)
        if not self._pump_due:
            self._pump_due = True
            # One read of the socket brings many messages: they are claimed together.
            self._reactor.callLater(0, self._pump)

    def pause(self) -> None:
        """Claim nothing for now and give back what waits. Running tasks go on."""
        self._paused = True
        self._return_waiting()
        while self._suspects:
            self._requeue(self._suspects.popleft())

    def recall(self) -> None:
        """Give back what is claimed and was not begun."""
        for job in [*self._pool.recall(), *self._coroutines.recall()]:
            self._give_back(job)

    def resume(self) -> None:
        """Claim again."""
        self._paused = False
        self.on_suspect()
        self._pump()

    def forget_closed(self) -> None:
        """Drop waiting deliveries of a channel that is closed: the broker has them again."""
        self._waiting = deque(d for d in self._waiting if d.settler.is_open)

    def return_surplus(self, keep: int) -> None:
        """Give back waiting messages beyond ``keep``, the newest first."""
        while len(self._waiting) > keep:
            self._waiting.pop().requeue()

    # claim

    def _pump(self) -> None:
        self._pump_due = False
        if self._stopping or self._paused:
            self._return_waiting()
            return
        if self._held or self._reactor.seconds() < self._brake_until:
            return
        self._forget_crowd()
        if self._waiting:
            failpoints.reached("after_delivery_before_claim")
        beside = self.pace.beside
        apart = 0
        if beside is not None:
            apart = sum(job.is_coroutine for job in self._jobs.values())
        room = self._room(self.pace, self.running - apart)
        beside_room = 0 if beside is None else self._room(beside, apart)
        batch: dict[UUID, Job] = {}
        passed: list[Delivery] = []
        while self._waiting and (room > 0 or beside_room > 0 or self._crowded):
            delivery = self._waiting.popleft()
            if not delivery.settler.is_open:
                continue
            is_coroutine = beside is not None and self._names_coroutine(delivery)
            has_place = (beside_room if is_coroutine else room) > 0
            if not (has_place or self._is_crowded(delivery)):
                passed.append(delivery)
            elif self._seal is not None and (problem := problem_of(delivery, self._seal)):
                self._bury(delivery, problem)
            elif self._admit(delivery, batch, is_coroutine):
                if not has_place:
                    batch[next(reversed(batch))].has_place = False
                elif is_coroutine:
                    beside_room -= 1
                else:
                    room -= 1
        self._waiting.extendleft(reversed(passed))
        if batch:
            self._claim(batch)

    def _room(self, pace: Pace, running: int) -> int:
        most = pace.concurrency if self._is_spoiled else pace.claimed
        return most - running

    def _names_coroutine(self, delivery: Delivery) -> bool:
        """What the message says. Which task runs is the row's to say, but that is not read yet."""
        return self._kinds.get(_task_of(delivery), False)

    def _is_crowded(self, delivery: Delivery) -> bool:
        """Whether a message is probably one of many that have to wait for their limits."""
        return bool(self._crowded) and _task_of(delivery) in self._crowded

    def _note_crowd(self, job: Job) -> None:
        self._crowded[_task_of(job.deliveries[0])] = self._reactor.seconds() + CROWDED
        self._crowd += 1
        self.pace.crowded = self._crowd >= MANY

    def _forget_crowd(self) -> None:
        if not self._crowded:
            return
        now = self._reactor.seconds()
        self._crowded = {task: until for task, until in self._crowded.items() if until > now}
        if not self._crowded:
            self._crowd = 0
            self.pace.crowded = False

    def _admit(self, delivery: Delivery, batch: dict[UUID, Job], is_coroutine: bool) -> bool:
        """Make a job of a message, for the batch to claim; False if it takes no thread."""
        key = message_id_of(delivery)
        if key is None:
            self._bury(delivery, "the message has no message_id of a MessageLog (a UUID)")
            return False
        if key in self._jobs:
            self._adopt(self._jobs[key], delivery)
            return False
        job = batch[key] = self._jobs[key] = Job(key, [delivery], is_coroutine=is_coroutine)
        job.since = self._reactor.seconds()
        return True

    def _adopt_running(self, delivery: Delivery) -> bool:
        """Take over a message whose channel was lost while its task runs: no thread is needed."""
        key = self._key(delivery)
        job = None if key is None else self._jobs.get(key)
        if job is None:
            return False
        self._adopt(job, delivery)
        return True

    def _key(self, delivery: Delivery) -> UUID | None:
        """Under which job a message would be found here."""
        return message_id_of(delivery)

    def _adopt(self, job: Job, delivery: Delivery) -> None:
        if job.custody:
            delivery.ack()
            delivery.settler.flush()
        else:
            job.deliveries.append(delivery)

    def places(self, ended: int) -> int | None:
        """How many tasks may run here now whose message is not here. On the writer's thread.

        Such a task has been here before, or elsewhere: its message came before those that wait.

        Args:
            ended: runs under limits that have ended just now, and count as running still.

        Returns:
            None: this queue's tasks are not to run here.
        """
        if self._stopping or self._paused or self._held or self._is_spoiled:
            return None
        return max(0, self.pace.least - self.running) + ended

    def hand_over(self, rows: Sequence[Claimed], token: int) -> None:
        """Run claimed rows whose messages are not here. On the writer's thread."""
        self._asking.add(token)
        self._reactor.callFromThread(self._run_unrung, rows, token)

    def _run_unrung(self, rows: Sequence[Claimed], token: int) -> None:
        for claimed in rows:
            earlier = self._jobs.get(claimed.uuid)
            if earlier is not None:
                # A second message of this row, which has just asked for it.
                for delivery in earlier.deliveries:
                    delivery.ack()
                self._flush([earlier])
            job = self._jobs[claimed.uuid] = Job(claimed.uuid, [], custody=True)
            job.since = self._reactor.seconds()
            job.run = run_of_row(claimed)
            if self._stopping or self._paused or self._held:
                self._give_back(job)
            else:
                self._place(job, job.run)
        self._asking.discard(token)

    def hold(self) -> None:
        """Claim nothing more, keep what waits; running tasks go on."""
        self._held = True

    def unhold(self) -> None:
        """Claim again."""
        self._held = False
        self._pump()

    def claim_suspect(self) -> None:
        """Claim one suspect; the caller knows that nothing else runs in this process."""
        job = self._suspects.popleft()
        self._claim({job.uuid: job}, alone=True)

    def _claim(self, batch: dict[UUID, Job], alone: bool = False) -> None:
        def answer(verdicts: dict[UUID, Claimed | Verdict]) -> None:
            self._claimed(batch, verdicts)
            self._asking.discard(token)

        token = new_token()
        self._asking.add(token)
        claim = Claim(ids=list(batch), token=token, alone=alone, answer=answer)
        claim.placeless = frozenset(key for key, job in batch.items() if not job.has_place)
        self._ask(claim)

    def _ask(self, claim: Claim) -> None:
        claim.barred = self._consumer.barred
        self._writer.submit(claim)

    def _claimed(self, batch: dict[UUID, Job], verdicts: dict[UUID, Claimed | Verdict]) -> None:
        """On the writer's thread: what may run goes on to where it runs without a detour."""
        others: list[tuple[Job, Verdict]] = []
        for key, verdict in verdicts.items():
            job = batch[key]
            if isinstance(verdict, Verdict):
                others.append((job, verdict))
            else:
                job.run = run_of(verdict, job.deliveries[0])
                if self._stopping:
                    # There may be no free thread any more to give it back.
                    self._give_back(job)
                else:
                    self._place(job, job.run)
        if others:
            self._reactor.callFromThread(self._not_claimed, others)

    def _not_claimed(self, others: Sequence[tuple[Job, Verdict]]) -> None:
        for job, verdict in others:
            if verdict is Verdict.SUSPECT and not self._stopping:
                self._suspects.append(job)
            elif verdict not in (Verdict.MISSING, Verdict.SUSPECT):
                if verdict is Verdict.LIMITED:
                    self._note_crowd(job)
                self._settle(job)
            elif self._stopping:
                self._requeue(job)
            else:
                self._wait_for_row(job)
        self._flush([job for job, _ in others])
        self._pump()
        self.on_settled()
        self.on_suspect()

    def _wait_for_row(self, job: Job) -> None:
        own = job.deliveries[0].properties.app_id == wire.APP_ID
        delays = OWN_MISSING_DELAYS if own else MISSING_DELAYS
        if job.tries < len(delays) and self._missing < MAX_MISSING:
            self._missing += 1
            self._reactor.callLater(delays[job.tries], self._claim_again, job)
            job.tries += 1
            self.pace.missing = max(self.pace.missing, self._missing)
        else:
            # Not while it is looked up: that is a moment, and it may wait once more.
            self.pace.missing = self._missing
            del self._jobs[job.uuid]
            for delivery in job.deliveries:
                self._bury(delivery, _missing(self._consumer.barred))

    def _bury(self, delivery: Delivery, reason: str) -> None:
        try:
            self._dead_letter(delivery, reason)
        except Exception:
            # It stays unacknowledged; its neighbours must not pay for it.
            _log.failure("A message that cannot run could not be put aside")

    def _claim_again(self, job: Job) -> None:
        self._missing -= 1
        if self._stopping or self._paused or self._held:
            self._requeue(job)
        else:
            self._retry(job)

    def _retry(self, job: Job) -> None:
        """Look for a job's row again."""
        self._claim({job.uuid: job})

    def _place(self, job: Job, run: Run) -> None:
        """To the worker threads, or to the event loop. From any thread."""
        is_coroutine = self._kinds.get(run.task)
        if is_coroutine is None:
            is_coroutine = self._learn(run.task, task_paths.loaded_task(run.task))
        job.is_coroutine = is_coroutine
        if is_coroutine:
            self._coroutines.put(job)
        else:
            self._pool.put(job)

    def _learn(self, path: str, task: object) -> bool:
        """Whether a task is a coroutine. If its module is not imported yet, a thread sees to it."""
        if task is None:
            return False
        call = getattr(task, "__call__", None)  # noqa: B004
        is_coroutine = iscoroutinefunction(task) or iscoroutinefunction(call)
        self._kinds[path] = is_coroutine
        if is_coroutine and self.pace.beside is None:
            self._reactor.callFromThread(self._go_beside)
        return is_coroutine

    def _go_beside(self) -> None:
        """The queue has coroutines: claim, and have delivered, as many as may run."""
        self.pace.beside = self._coroutine_pace
        self._pump()
        self.on_settled()

    # run

    def _work(self, job: Job) -> None:
        """On a worker thread."""
        if self._stopping:
            # It was on its way here while the stop began.
            self._give_back(job)
            return
        try:
            self._run(job)
        except BaseException:
            # Out of memory, perhaps. Neither the row nor its message may hang on this job for ever.
            _log.failure("A worker thread met an error outside of its task, which runs again later")
            run = job.run
            if run is None:
                self._reactor.callFromThread(self._requeue, job)
            else:
                delay = outcomes.release_delay(run.attempt)
                self._record(job, Result(kind=Kind.RELEASED, started=1.0, ended=1.0, delay=delay))

    def _run(self, job: Job) -> None:
        """On a worker thread: run the task."""
        run = job.run
        assert run is not None
        if run.task not in self._kinds and self._learn(run.task, _imported(run.task)):
            self._place(job, run)
            return
        result = execution.execute(run, self._limits, self._consumer.failure_hook())
        if result is not None:
            self._record(job, result)

    async def _work_coroutine(self, job: Job) -> None:
        """In the event loop: run the task."""
        if self._stopping:
            self._give_back(job)
            return
        run = job.run
        assert run is not None
        try:
            thread = OwnThread(self._events.threads)
            hook = self._consumer.failure_hook()
            result = await execution.execute_coroutine(run, self._limits, thread, hook)
            if result is not None:
                self._record(job, result)
        except BaseException:
            if job.result is not None:
                # Released at the deadline of a shutdown, and cancelled at its end.
                return
            _log.failure("The event loop met an error outside of a task, which runs again later")
            delay = outcomes.release_delay(run.attempt)
            self._record(job, Result(kind=Kind.RELEASED, started=1.0, ended=1.0, delay=delay))

    def _give_up(self, call: Call) -> None:
        """A task does not end at its limit: another one takes the place of its own."""
        job = self._jobs.get(call.run.uuid)
        end = partial(self._end_stuck, job, call)
        if isinstance(call, CoroutineCall):
            name = self._coroutines.give_up(call.run)
            self._events.threads.run(end)
        else:
            assert isinstance(call, TimedCall)
            name = self._pool.replace(call.ident, end)
        _log.error(
            "{what} {name} is stuck in task {task} ({uuid}), {seconds:g} s over its limit. The "
            "task is FAILED, and another {what} takes its place",
            what=call.what,
            name=name,
            task=call.run.task,
            uuid=call.run.uuid,
            seconds=time.monotonic() - call.began - (call.seconds or 0.0),
            queue=self.name,
            attempt=call.run.attempt,
        )
        self.on_stuck()

    def loop_blocked(self, run: Run) -> None:
        """A coroutine holds up its event loop, one of this queue's or another's."""
        if self._coroutines.give_up(run):
            self.on_stuck()
        else:
            self._coroutines.look_again()

    def _end_stuck(self, job: Job | None, call: Call) -> None:
        """On another thread: bring the stuck task to its end."""
        if job is None or job.run is not call.run or job.result is not None:
            # Released at the deadline of a shutdown.
            return
        try:
            hook = self._consumer.failure_hook()
            result = execution.give_up(call, job.run, self._limits, hook)
        except BaseException:
            # Nobody else ends this row: its own thread has no say any more.
            _log.failure("What the stuck task {uuid} was doing could not be told", uuid=job.uuid)
            result = Result(
                kind=Kind.FAILED,
                exception=call.text,
                exception_class=outcomes.exception_class(TimeLimitExceeded()),
                started=call.started,
                ended=time.time(),
            )
        self._record(job, result)

    def _give_back(self, job: Job) -> None:
        """Not begun: the row to the outbox if it is claimed, else the message to the broker."""
        if job.run is None:
            self._reactor.callFromThread(self._requeue, job)
        else:
            self._record(job, Result(kind=Kind.RELEASED))

    # record

    def _record(self, job: Job, result: Result) -> None:
        run = job.run
        assert run is not None
        job.result = result
        self._writer.submit(
            Finish(
                finished=Finished(uuid=job.uuid, token=run.token, result=result, flow=run.flow),
                job=job,
                written=self._written,
                freed=(run.slot_key, self.name) if run.slot_key is not None else None,
            )
        )

    # settle

    def _written(self, jobs: Sequence[Job]) -> None:
        seconds = 0.0
        size = 0
        self._tally.turn_minute()
        for job in jobs:
            assert job.result is not None
            seconds += job.seconds
            size += len(job.deliveries[0].body) if job.deliveries else 0
            self._tell(job, job.result)
            # Not one that was released at the deadline of a shutdown, and ended after all.
            if self._settle(job) and job.result.kind.is_final:
                self._count(job, job.result)
        ended = sum(job.result.kind is not Kind.RELEASED for job in jobs if job.result)
        self.finished += ended
        self.on_finished()
        if ended:
            self._spoiled = 0
        if ended < len(jobs):
            self._slow_down(jobs)
        self._flush(jobs)
        if not self._missing:
            self.pace.missing = 0
        if not self._stopping:
            self._measure(jobs, seconds, size)
            self._pump()
        self.on_settled()
        self.on_suspect()

    def _measure(self, jobs: Sequence[Job], seconds: float, size: int) -> None:
        beside = self.pace.beside
        if beside is not None:
            apart = [job for job in jobs if job.is_coroutine]
            if apart:
                mine = sum(job.seconds for job in apart)
                beside.measured(mine / len(apart), size / len(jobs))
                seconds -= mine
                jobs = [job for job in jobs if not job.is_coroutine]
        if jobs:
            self.pace.measured(seconds / len(jobs), size / len(jobs))

    def _tell(self, job: Job, result: Result) -> None:
        """Say in the service's log what did not go well; the row has the details."""
        if result.kind is Kind.CANCELLED and job.run is not None:
            _log.info(
                "Task {task} ({uuid}) has ended: {why}",
                task=outcomes.one_line(job.run.task, 200),
                uuid=job.uuid,
                why=_first_line(result.exception or ""),
            )
        elif result.exception is not None and result.kind is not Kind.RELEASED:
            text = "Task {task} ({uuid}) failed: {error}"
            if result.kind is Kind.RETRY:
                text = "Task {task} ({uuid}) is tried again in {delay:g} s: {error}"
            task = outcomes.one_line(job.run.task, 200) if job.run else "?"
            _log.warn(
                text,
                task=task,
                uuid=job.uuid,
                error=_first_line(result.exception),
                delay=result.delay,
                queue=self.name,
                attempt=job.run.attempt if job.run else None,
            )

    def _count(self, job: Job, result: Result) -> None:
        assert job.run is not None
        if result.kind is Kind.CANCELLED:
            # Neither a success nor a failure, and its time says nothing of the task.
            return
        self._tally.count(
            self.name,
            job.run.task,
            result.kind is Kind.COMPLETED,
            result.started + self._writer.clock_offset - job.run.published,
            result.ended - result.started,
        )

    def _slow_down(self, jobs: Sequence[Job]) -> None:
        """Some were released: if the database has spoiled them, tell it, and mind the next ones."""
        spoiled = [job for job in jobs if job.result is not None and _was_spoiled(job.result)]
        if not spoiled:
            return
        self._spoiled += len(spoiled)
        if self._is_spoiled:
            self._brake_until = self._reactor.seconds() + BRAKE
            self._reactor.callLater(BRAKE, self._pump)
        if not self._untold:
            self._reactor.callLater(self._tell_after, self._tell_spoiled, spoiled[-1])
        self._untold += len(spoiled)

    @property
    def _is_spoiled(self) -> bool:
        return self._spoiled >= SPOILED_ROUNDS * self.pace.concurrency

    def _tell_spoiled(self, job: Job) -> None:
        count, self._untold = self._untold, 0
        self._tell_after = min(TELL_LAST, self._tell_after * 2) if self._is_spoiled else TELL_FIRST
        assert job.result is not None
        _log.warn(
            "{n} tasks of queue {queue} run again later, the database was in their way. "
            "Task {task} ({uuid}): {error}",
            n=count,
            queue=self.name,
            task=job.run.task if job.run else "?",
            uuid=job.uuid,
            error=_first_line(job.result.exception or ""),
        )

    def _settle(self, job: Job) -> bool:
        """Acknowledge; False if that was done before."""
        if self._jobs.get(job.uuid) is not job:
            # Released at the deadline of a shutdown, and ended after all: settled already.
            return False
        del self._jobs[job.uuid]
        if not job.custody:
            for delivery in job.deliveries:
                delivery.ack()
        return True

    def _requeue(self, job: Job) -> None:
        del self._jobs[job.uuid]
        for delivery in job.deliveries:
            delivery.requeue()

    def _flush(self, jobs: Sequence[Job]) -> None:
        for settler in {delivery.settler for job in jobs for delivery in job.deliveries}:
            settler.flush()

    def take_custody(self, deadline: float) -> None:
        """Acknowledge tasks that have run for more than ``deadline`` seconds.

        The broker would close the channel on a delivery that stays unacknowledged too long. From
        here on the row, and this worker's lease, see to it that the task is not forgotten.
        """
        now = self._reactor.seconds()
        overdue = [
            job for job in self._jobs.values() if not job.custody and now - job.since >= deadline
        ]
        for job in overdue:
            if job.run is not None:
                for delivery in job.deliveries:
                    delivery.ack()
                job.custody = True
        self._flush(overdue)
        if overdue:
            failpoints.reached("custody_taken")

    def free_waiting(self, deadline: float) -> None:
        """Give back what waits in vain behind long tasks: others may have a thread for it.

        Claimed rows that no thread has begun for STUCK seconds, and messages that have waited for
        ``deadline`` seconds: for these, too, the broker would close the channel. Messages count
        from the first call that finds them.
        """
        self._forget_crowd()
        now = self._reactor.seconds()
        freed = self._free_behind(self._pool, self.pace, now)
        freed += self._free_behind(self._coroutines, self._coroutine_pace, now)
        overdue = take_overdue(self._waiting, now, deadline)
        for suspect in [job for job in self._suspects if now - job.since >= deadline]:
            self._suspects.remove(suspect)
            self._requeue(suspect)
        for delivery in overdue:
            delivery.requeue()
        if freed:
            self.on_settled()

    def _free_behind(
        self, workers: WorkerPool[Job] | Coroutines[Job], pace: Pace, now: float
    ) -> int:
        behind = workers.recall()
        oldest = max((now - job.since for job in behind), default=0.0)
        if oldest <= STUCK:
            for job in behind:
                workers.put(job)
            return 0
        # What was measured of earlier tasks does not hold for those that run now.
        pace.seconds = max(pace.seconds, oldest)
        for job in behind:
            self._give_back(job)
        return len(behind)

    # stop

    def stop_claiming(self) -> None:
        """Give back what has not begun: messages to the broker, claimed rows to the outbox."""
        self._stopping = True
        self._return_waiting()
        while self._suspects:
            self._requeue(self._suspects.popleft())
        self.recall()

    def stop_threads(self) -> None:
        """Let the threads end that are free. The writer ends next: nothing is claimed any more."""
        self._stopped = True
        self._keeper.stop()
        self._pool.stop()

    def release_running(self) -> int:
        """The deadline has come: put the rows of running tasks back into the outbox.

        Returns:
            How many tasks were still running.
        """
        # Claimed while the stop began, and there was no free thread to give it back.
        self.recall()
        running = [job for job in self._jobs.values() if job.run is not None and not job.result]
        for job in running:
            assert job.run is not None
            transcript = job.run.transcript
            log = "" if transcript is None else transcript.text(self._limits.log)
            progress = execution.progress_of(job.run)
            self._record(job, Result(kind=Kind.RELEASED, started=1.0, log=log, progress=progress))
        return len(running)

    def _return_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for delivery in waiting:
            delivery.requeue()


def _imported(path: str) -> object:
    """A task, whose module is imported for it; None if there is none: its run will say why."""
    try:
        return task_paths.resolve_task(path)
    except Exception:
        return None


def _missing(barred: Sequence[str]) -> str:
    text = "no MessageLog has this message_id"
    if barred:
        text += f", or it is of a queue whose messages are signed: {', '.join(barred)}"
    return text


def _was_spoiled(result: Result) -> bool:
    return result.kind is Kind.RELEASED and result.exception is not None


def _first_line(text: str) -> str:
    return outcomes.one_line(text.partition("\n")[0], 200)


def message_id_of(delivery: Delivery) -> UUID | None:
    """The message's id, if it can be that of a row."""
    try:
        return UUID(delivery.properties.message_id)
    except (ValueError, TypeError, AttributeError):
        return None


def _task_of(delivery: Delivery) -> str:
    """What the message says; "" if nothing."""
    header = (delivery.properties.headers or {}).get(wire.TYPE_HEADER)
    return header if isinstance(header, str) else ""


def problem_of(delivery: Delivery, seal: Seal) -> str:
    """Why the signature of a message is none of ours; "" if it is."""
    properties = delivery.properties
    return seal.problem(properties.headers, properties.message_id, delivery.body)


def run_of_row(claimed: Claimed) -> Run:
    """The same of a claimed row without a message."""
    return Run.of(claimed, header=claimed.task, body=wire.body(claimed.task_args, claimed.content))


def run_of(claimed: Claimed, delivery: Delivery) -> Run:
    """What a worker thread gets of a claimed row, and of the message that rang for it."""
    headers = delivery.properties.headers or {}
    header = headers.get(wire.TYPE_HEADER)
    return Run.of(
        claimed,
        header=header if isinstance(header, str) else None,
        headers=headers,
        body=delivery.body,
    )
