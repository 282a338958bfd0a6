# SPDX-License-Identifier: Apache-2.0
"""A queue's messages where a project's consumer reads them in its own way.

The worker thread gets the message unclaimed; ``serving`` calls the hooks there, and asks for the
claim in between. Which row a message belongs to is known only when the hooks have said so::

    deliver   as ever
    read      in a worker thread: the hooks find the row, and what to run
    claim     one row at a time; the thread waits for the answer
    run, record, settle   as ever
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from carrot_twisted import outcomes
from carrot_twisted.identities import new_token
from carrot_twisted.outcomes import Verdict
from carrot_twisted.service.dispatcher import Dispatcher
from carrot_twisted.service.executor import Executor
from carrot_twisted.service.job import Job
from carrot_twisted.service.operations import Claim
from carrot_twisted.service.serving import Outcome, Served, Serving
from carrot_twisted.service.task_message import message_id_of, run_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.execution import Run
    from carrot_twisted.records import Claimed
    from carrot_twisted.service.delivery import Delivery

#: Seconds until a message is served again whose hooks met a database that is away.
AWAY_DELAY = 1.0
#: Characters of an exception's text that go with a dead letter.
MAX_REASON = 500


@dataclass(slots=True, eq=False)
class HookedJob(Job):
    """A message that a project's hooks read. Until they have, ``uuid`` need not be its row's."""

    claiming: bool = False
    """``uuid`` is that of the row that they have found."""
    took: float = 0.0
    """Seconds that they and the task have kept a thread."""

    @property
    def seconds(self) -> float:
        """What waits behind a thread waits for its hooks, too."""
        # Not known where the thread is stuck.
        return self.took or super().seconds


class HookedExecutor(Executor):
    """Has hooks called in the threads, and the task between them.

    Args:
        serve: called in a thread with each job.
        arguments: the base's.
    """

    def __init__(self, *, serve: Callable[[Job], None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._serve = serve

    def place(self, job: Job, run: Run) -> None:
        """To the threads: a coroutine, too, runs between its hooks."""
        self.put(job)

    def _run(self, job: Job) -> None:
        self._serve(job)


class HookedDispatcher(Dispatcher):
    """Runs one queue's tasks through the hooks of its consumer. Arguments are the base's."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        #: Hooks may find another row than the one with the message's id.
        self._by_id = not self._consumer.overrides("get_message_log")

    def _make_executor(self, **arguments: Any) -> Executor:
        return HookedExecutor(serve=self._run, **arguments)

    @property
    def begun(self) -> int:
        """A hook may be at work without a claim."""
        return self.running

    def places(self, ended: int) -> int | None:
        """None: hooks read messages, so there has to be one."""
        return None

    def _note_crowd(self, job: Job) -> None:
        """Each of them needs a thread, for the hooks."""

    def _admit(self, delivery: Delivery, batch: dict[UUID, Job], is_coroutine: bool) -> bool:
        key = self._key(delivery)
        if key is not None and key in self._jobs:
            self._adopt(self._jobs[key], delivery)
            return False
        job = HookedJob(key or uuid4(), [delivery])
        job.since = self._reactor.seconds()
        self._jobs[job.uuid] = job
        self._executor.put(job)
        return True

    def _key(self, delivery: Delivery) -> UUID | None:
        return message_id_of(delivery) if self._by_id else None

    def _retry(self, job: Job) -> None:
        self._executor.put(job)

    def _wait_for_row(self, job: Job) -> None:
        assert isinstance(job, HookedJob)
        job.claiming = False
        super()._wait_for_row(job)

    def _run(self, job: Job) -> None:
        """On a worker thread."""
        assert isinstance(job, HookedJob)
        started = time.monotonic()
        served = self._serve(job)
        job.took = time.monotonic() - started
        if served.result is not None:
            self._record(job, served.result)
        else:
            self._reactor.callFromThread(self._served, job, served)

    def _serve(self, job: HookedJob) -> Served:
        """On a worker thread: let the project's hooks read the message."""
        delivery = next((d for d in job.deliveries if d.settler.is_open), None)
        if delivery is None:
            if job.run is None:
                # Its channel is closed: the broker delivers it anew.
                return Served(Outcome.GIVEN_BACK)
            delivery = job.deliveries[0]
        assert delivery.channel is not None
        return Serving(
            consumer=self._consumer,
            channel=delivery.channel,
            delivery=delivery,
            claim=partial(self._claim_here, job),
            claimed=job.run,
            limits=self._executor.limits,
        ).serve()

    def _claim_here(self, job: HookedJob, key: UUID, ended: bool) -> Run | None:
        """On a worker thread: claim the row that the hooks have found; None if it is not ours.

        Args:
            job: the message.
            key: of the row.
            ended: nothing is to run any more, only its end is to be written.
        """
        answer: SimpleQueue[Run | None] = SimpleQueue()
        self._reactor.callFromThread(self._claim_for, job, key, ended, answer)
        run = answer.get()
        if run is not None and self._stopping and not ended:
            self._give_back(job)
            return None
        return run

    def _claim_for(
        self, job: HookedJob, key: UUID, ended: bool, answer: SimpleQueue[Run | None]
    ) -> None:
        if self._stopped or (self._stopping and not ended):
            self._requeue(job)
            answer.put(None)
            return
        other = self._jobs.get(key, job)
        if other is not job and isinstance(other, HookedJob) and other.claiming:
            # Two messages of one row: the first one runs it.
            del self._jobs[job.uuid]
            for delivery in job.deliveries:
                self._adopt(other, delivery)
            answer.put(None)
            self._pump()
            self.on_suspect()
            return
        if other is not job:
            # It has this id, but its hooks may yet find that it belongs to another row.
            other.uuid = uuid4()
            self._jobs[other.uuid] = other
        del self._jobs[job.uuid]
        job.uuid = key
        job.claiming = True
        self._jobs[key] = job
        job.since = self._reactor.seconds()

        def answered(verdicts: dict[UUID, Claimed | Verdict]) -> None:
            verdict = verdicts[key]
            if isinstance(verdict, Verdict):
                self._reactor.callFromThread(self._not_claimed, [(job, verdict)])
                answer.put(None)
            else:
                job.run = run_of(verdict, job.deliveries[0])
                answer.put(job.run)
            self._asking.discard(token)

        token = new_token()
        self._asking.add(token)
        self._ask(Claim(ids=[key], token=token, alone=ended, answer=answered))

    def _served(self, job: HookedJob, served: Served) -> None:
        """The hooks are done with a message, and there is no result of a task."""
        if served.outcome is Outcome.ELSEWHERE:
            return
        if served.outcome is Outcome.MISSING and not self._stopping:
            self._wait_for_row(job)
        elif served.outcome is Outcome.BROKEN:
            del self._jobs[job.uuid]
            error = served.error
            assert error is not None
            reason = f"{type(error).__name__}: {outcomes.exception_text(error, MAX_REASON)}"
            for delivery in job.deliveries:
                self._bury(delivery, reason)
        elif served.outcome is Outcome.HANDLED:
            self._settle(job)
            self._flush([job])
            self.pace.measured(job.took, len(job.deliveries[0].body))
            self.on_settled()
        elif served.outcome is Outcome.GIVEN_BACK or self._stopping:
            self._requeue(job)
        else:
            self._missing.wait_for(AWAY_DELAY, job)
        self._pump()
        self.on_suspect()
