# SPDX-License-Identifier: Apache-2.0
"""The life of a queue's messages: deliver, claim, run, record, settle.

Everything here happens in the reactor, but for the methods noted otherwise. A message::

    deliver   waits until the pace allows another claim; a message whose task is running here
              already is adopted: its delivery is settled together with the first
    claim     the LogWriter asks the database, for all that wait, in one statement
    run       what was claimed goes straight to the worker threads, or, if it is an ``async def``
              task, to the event loop (``executor``)
    record    the thread, or the loop, hands its result to the LogWriter
    settle    after the commit: acknowledge, on the channel that delivered

Where a project's consumer reads messages in its own way, ``hooked_dispatcher`` has another order.
What goes another way has a module of its own: ``missing_rows``, ``spoiled_runs``, ``crowd``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import execution, failpoints
from carrot_twisted.identities import new_token
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimed, Finished
from carrot_twisted.service import missing_rows
from carrot_twisted.service.base_dispatcher import BaseDispatcher
from carrot_twisted.service.crowd import Crowd
from carrot_twisted.service.delivery import Delivery
from carrot_twisted.service.executor import Executor
from carrot_twisted.service.job import Job
from carrot_twisted.service.missing_rows import MissingRows
from carrot_twisted.service.operations import Claim, Finish
from carrot_twisted.service.run_ends import RunEnds
from carrot_twisted.service.spoiled_runs import SpoiledRuns
from carrot_twisted.service.task_message import (
    message_id_of,
    problem_of,
    run_of,
    run_of_row,
    task_of,
)
from carrot_twisted.signing import Seal

if TYPE_CHECKING:
    from uuid import UUID

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.consumer import Consumer
    from carrot_twisted.execution import Limits, Run
    from carrot_twisted.running import CancelRequest
    from carrot_twisted.service.event_loop import EventLoop
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.prefetch import Pace
    from carrot_twisted.service.tally import Tally
    from carrot_twisted.service.thread_report import ThreadReport

_log = make_logger()

DeadLetter = Callable[[Delivery, str], None]


class Dispatcher(BaseDispatcher[Job]):
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
        super().__init__(concurrency=concurrency, prefetch=queue.prefetch, reactor=reactor)
        self.name = queue.name
        self._consumer = consumer
        self._writer = writer
        self._dead_letter = dead_letter
        self._seal = Seal() if queue.verifies else None
        self._jobs: dict[UUID, Job] = {}
        #: Tokens of claims that are under way.
        self._asking: set[int] = set()
        self._crowd = Crowd(self.pace, reactor)
        self._missing = MissingRows(self.pace, self._claim_again, reactor)
        self._spoiled = SpoiledRuns(queue.name, self.pace, self._pump, reactor)
        self._ends = RunEnds(queue.name, tally, writer)
        self._executor = self._make_executor(
            queue=queue,
            pace=self.pace,
            consumer=consumer,
            limits=limits,
            jobs=self._jobs,
            record=self._record,
            give_back=self._give_back,
            requeue=self._requeue,
            events=events,
            reactor=reactor,
        )
        self._executor.on_coroutines = self._go_beside
        self._executor.on_stuck = self._stuck
        self._stopped = False
        self.timeout_hint = (
            "The broker's consumer_timeout is shorter than CARROT['ack_deadline'] allows for: set "
            "that to half of it at most."
        )

    def _make_executor(self, **arguments: Any) -> Executor:
        return Executor(**arguments)

    @property
    def started(self) -> int:
        """What the worker threads, and the event loop, have begun."""
        return self._executor.begun

    @property
    def running(self) -> int:
        """Messages that are claimed, or about to be."""
        return len(self._jobs) - self._missing.count - len(self._suspects)

    @property
    def begun(self) -> int:
        """Those of the running ones that somebody may wait for: not those that ask for a claim."""
        return sum(job.run is not None for job in self._jobs.values())

    def threads(self) -> list[ThreadReport]:
        """What each worker thread, and each coroutine, does at this moment. From any thread."""
        return self._executor.threads()

    def long_runs(self, seconds: float) -> list[Run]:
        """What has run for so long, and goes on. From any thread."""
        return self._executor.long_runs(seconds)

    def loop_blocked(self, run: Run) -> None:
        """A coroutine holds up its event loop, one of this queue's or another's."""
        self._executor.loop_blocked(run)

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

    def start(self) -> None:
        """Start the worker threads."""
        self._executor.start()

    # what waits

    def _give_back_waiting(self) -> None:
        self._waiting.give_back()
        while self._suspects:
            self._requeue(self._suspects.popleft())

    def recall(self) -> None:
        """Give back what is claimed and was not begun."""
        for job in self._executor.recall():
            self._give_back(job)

    def _give_back(self, job: Job) -> None:
        """Not begun: the row to the outbox if it is claimed, else the message to the broker."""
        if job.run is None:
            self._reactor.callFromThread(self._requeue, job)
        else:
            self._record(job, Result(kind=Kind.RELEASED))

    def resume(self) -> None:
        """Claim again."""
        self._paused = False
        self.on_suspect()
        self._pump()

    # claim

    def _pump(self) -> None:
        self._pump_due = False
        if self._stopping or self._paused:
            self._waiting.give_back()
            return
        if self._held or self._spoiled.brake:
            return
        crowd = self._crowd
        crowd.forget()
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
        while self._waiting and (room > 0 or beside_room > 0 or crowd.tasks):
            delivery = self._waiting.popleft()
            if not delivery.settler.is_open:
                continue
            is_coroutine = beside is not None and self._names_coroutine(delivery)
            has_place = (beside_room if is_coroutine else room) > 0
            if not (has_place or (crowd.tasks and task_of(delivery) in crowd.tasks)):
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
        most = pace.concurrency if self._spoiled.are_many else pace.claimed
        return most - running

    def _names_coroutine(self, delivery: Delivery) -> bool:
        """What the message says. Which task runs is the row's to say, but that is not read yet."""
        return self._executor.kinds.get(task_of(delivery), False)

    def _note_crowd(self, job: Job) -> None:
        self._crowd.note(task_of(job.deliveries[0]))

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
        if self._stopping or self._paused or self._held or self._spoiled.are_many:
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
                self._executor.place(job, job.run)
        self._asking.discard(token)

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
        place = self._executor.place
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
                    place(job, job.run)
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
        if not self._missing.wait(job):
            del self._jobs[job.uuid]
            for delivery in job.deliveries:
                self._bury(delivery, missing_rows.reason(self._consumer.barred))

    def _bury(self, delivery: Delivery, reason: str) -> None:
        try:
            self._dead_letter(delivery, reason)
        except Exception:
            # It stays unacknowledged; its neighbours must not pay for it.
            _log.failure("A message that cannot run could not be put aside")

    def _claim_again(self, job: Job) -> None:
        if self._stopping or self._paused or self._held:
            self._requeue(job)
        else:
            self._retry(job)

    def _retry(self, job: Job) -> None:
        """Look for a job's row again."""
        self._claim({job.uuid: job})

    def _stuck(self) -> None:
        self.on_stuck()

    def _go_beside(self) -> None:
        """Coroutines may run beside the threads."""
        self._pump()
        self.on_settled()

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
        ends = self._ends
        ends.turn_minute()
        for job in jobs:
            assert job.result is not None
            seconds += job.seconds
            size += len(job.deliveries[0].body) if job.deliveries else 0
            ends.tell(job, job.result)
            # Not one that was released at the deadline of a shutdown, and ended after all.
            if self._settle(job) and job.result.kind.is_final:
                ends.count(job, job.result)
        ended = sum(job.result.kind is not Kind.RELEASED for job in jobs if job.result)
        self.finished += ended
        self.on_finished()
        if ended:
            self._spoiled.over()
        if ended < len(jobs):
            self._spoiled.note(jobs)
        self._flush(jobs)
        self._missing.measure()
        if not self._stopping:
            self._executor.measure(jobs, seconds, size)
            self._pump()
        self.on_settled()
        self.on_suspect()

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
        self._crowd.forget()
        now = self._reactor.seconds()
        behind = self._executor.take_behind(now)
        for job in behind:
            self._give_back(job)
        overdue = self._waiting.take_overdue(now, deadline)
        for suspect in [job for job in self._suspects if now - job.since >= deadline]:
            self._suspects.remove(suspect)
            self._requeue(suspect)
        for delivery in overdue:
            delivery.requeue()
        if behind:
            self.on_settled()

    # stop

    def stop_claiming(self) -> None:
        """Give back what has not begun: messages to the broker, claimed rows to the outbox."""
        self._stopping = True
        self._executor.close()
        self._give_back_waiting()
        self.recall()

    def stop_threads(self) -> None:
        """Let the threads end that are free. The writer ends next: nothing is claimed any more."""
        self._stopped = True
        self._executor.stop()

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
            log = "" if transcript is None else transcript.text(self._executor.limits.log)
            progress = execution.progress_of(job.run)
            self._record(job, Result(kind=Kind.RELEASED, started=1.0, log=log, progress=progress))
        return len(running)
