# SPDX-License-Identifier: Apache-2.0
"""Runs what was claimed of one queue: in its worker threads, or coroutines in the event loop.

What has not begun can be taken back; what goes on after its time limit is given up, and another
thread, or another coroutine, takes its place.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import execution, outcomes
from carrot_twisted.coroutine_call import CoroutineCall
from carrot_twisted.exceptions import TimeLimitExceeded
from carrot_twisted.interruption import TimedCall
from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.own_thread import OwnThread
from carrot_twisted.service.backlog import take_behind
from carrot_twisted.service.coroutines import Coroutines
from carrot_twisted.service.pool import WorkerPool
from carrot_twisted.service.prefetch import Pace
from carrot_twisted.service.task_kinds import TaskKinds
from carrot_twisted.service.thread_report import ThreadReport
from carrot_twisted.service.time_keeper import TimeKeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.consumer import Consumer
    from carrot_twisted.execution import Limits, Run
    from carrot_twisted.interruption import Call
    from carrot_twisted.service.event_loop import EventLoop
    from carrot_twisted.service.job import Job

_log = make_logger()

#: Seconds that a coroutine is taken to run before any was measured.
COROUTINE_SECONDS = 1.0


class Executor:
    """The threads and coroutines of one queue. In the reactor, but for what is noted otherwise.

    Args:
        queue: its settings.
        pace: of the queue; it is told of coroutines, once there are any.
        consumer: the queue's consumer object, with its hooks.
        limits: of a run.
        jobs: of the queue, by the keys of their rows.
        record: takes what has come of a job that is claimed; from any thread.
        give_back: takes a job that was not begun; from any thread.
        requeue: takes a job whose row is not claimed; in the reactor.
        events: runs coroutines.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        queue: QueueSettings,
        pace: Pace,
        consumer: Consumer,
        limits: Limits,
        jobs: Mapping[UUID, Job],
        record: Callable[[Job, Result], None],
        give_back: Callable[[Job], None],
        requeue: Callable[[Job], None],
        events: EventLoop,
        reactor: Any,
    ) -> None:
        self._name = queue.name
        self._pace = pace
        self._consumer = consumer
        self._keeper = TimeKeeper(reactor, self._give_up)
        self.limits = dataclasses.replace(limits, keeper=self._keeper)
        self._jobs = jobs
        self._record = record
        self._give_back = give_back
        self._requeue = requeue
        self._events = events
        self._reactor = reactor
        self._pool: WorkerPool[Job] = WorkerPool(queue.name, pace.concurrency, self.work, reactor)
        self._coroutines: Coroutines[Job] = Coroutines(
            queue.name, queue.async_concurrency, self._work_coroutine, events
        )
        self._coroutine_pace = Pace(
            concurrency=queue.async_concurrency, fixed=None, seconds=COROUTINE_SECONDS
        )
        self.kinds = TaskKinds(self._found_coroutine)
        self._closed = False
        self.on_coroutines: Callable[[], None] = lambda: None
        """Called when more may run than before, for the queue has coroutines."""
        self.on_stuck: Callable[[], None] = lambda: None

    @property
    def begun(self) -> int:
        """What the worker threads, and the event loop, have begun."""
        return self._pool.begun + self._coroutines.begun

    def threads(self) -> list[ThreadReport]:
        """What each worker thread, and each coroutine, does at this moment. From any thread."""
        reports = []
        threads = self._pool.slots
        for n, slot in enumerate([*threads, *self._coroutines.slots]):
            job = slot.job
            run = job.run if job is not None else None
            reports.append(
                ThreadReport.of(
                    slot,
                    job,
                    task=run.task if run is not None else None,
                    uuid=run.uuid if run is not None else None,
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

    def start(self) -> None:
        """Start the worker threads."""
        self._pool.start()

    def place(self, job: Job, run: Run) -> None:
        """Give a job to the worker threads, or to the event loop. From any thread."""
        is_coroutine = self.kinds.get(run.task)
        if is_coroutine is None:
            is_coroutine = self.kinds.of_loaded(run.task)
        job.is_coroutine = is_coroutine
        if is_coroutine:
            self._coroutines.put(job)
        else:
            self._pool.put(job)

    def put(self, job: Job) -> None:
        """Give a job to the next free worker thread, whatever it is. From any thread."""
        self._pool.put(job)

    def recall(self) -> list[Job]:
        """Take back what was not begun."""
        return [*self._pool.recall(), *self._coroutines.recall()]

    def take_behind(self, now: float) -> list[Job]:
        """Take back what waits for long behind long tasks."""
        behind = take_behind(self._pool, self._pace, now)
        return behind + take_behind(self._coroutines, self._coroutine_pace, now)

    def measure(self, jobs: Sequence[Job], seconds: float, size: int) -> None:
        """Runs have ended: tell the paces.

        Args:
            jobs: of the runs.
            seconds: that they took, all together.
            size: of their messages' bodies, all together.
        """
        beside = self._pace.beside
        if beside is not None:
            apart = [job for job in jobs if job.is_coroutine]
            if apart:
                mine = sum(job.seconds for job in apart)
                beside.measured(mine / len(apart), size / len(jobs))
                seconds -= mine
                jobs = [job for job in jobs if not job.is_coroutine]
        if jobs:
            self._pace.measured(seconds / len(jobs), size / len(jobs))

    def close(self) -> None:
        """Begin nothing more: what is still on its way is given back."""
        self._closed = True

    def stop(self) -> None:
        """Let the threads end that are free."""
        self._keeper.stop()
        self._pool.stop()

    def work(self, job: Job) -> None:
        """On a worker thread."""
        if self._closed:
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
                self._release(job, run)

    def _run(self, job: Job) -> None:
        """On a worker thread: run the task."""
        run = job.run
        assert run is not None
        if run.task not in self.kinds and self.kinds.of_imported(run.task):
            self.place(job, run)
            return
        result = execution.execute(run, self.limits, self._consumer.failure_hook())
        if result is not None:
            self._record(job, result)

    async def _work_coroutine(self, job: Job) -> None:
        """In the event loop: run the task."""
        if self._closed:
            self._give_back(job)
            return
        run = job.run
        assert run is not None
        try:
            thread = OwnThread(self._events.threads)
            hook = self._consumer.failure_hook()
            result = await execution.execute_coroutine(run, self.limits, thread, hook)
            if result is not None:
                self._record(job, result)
        except BaseException:
            if job.result is not None:
                # Released at the deadline of a shutdown, and cancelled at its end.
                return
            _log.failure("The event loop met an error outside of a task, which runs again later")
            self._release(job, run)

    def _release(self, job: Job, run: Run) -> None:
        delay = outcomes.release_delay(run.attempt)
        self._record(job, Result(kind=Kind.RELEASED, started=1.0, ended=1.0, delay=delay))

    def _found_coroutine(self) -> None:
        """From any thread."""
        if self._pace.beside is None:
            self._reactor.callFromThread(self._go_beside)

    def _go_beside(self) -> None:
        """The queue has coroutines: claim, and have delivered, as many as may run."""
        self._pace.beside = self._coroutine_pace
        self.on_coroutines()

    # what is stuck

    def loop_blocked(self, run: Run) -> None:
        """A coroutine holds up its event loop, one of this queue's or another's."""
        if self._coroutines.give_up(run):
            self.on_stuck()
        else:
            self._coroutines.look_again()

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
            queue=self._name,
            attempt=call.run.attempt,
        )
        self.on_stuck()

    def _end_stuck(self, job: Job | None, call: Call) -> None:
        """On another thread: bring the stuck task to its end."""
        if job is None or job.run is not call.run or job.result is not None:
            # Released at the deadline of a shutdown.
            return
        try:
            hook = self._consumer.failure_hook()
            result = execution.give_up(call, job.run, self.limits, hook)
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
