# SPDX-License-Identifier: Apache-2.0
"""A queue's messages between the channel, the database's writer and the worker threads.

The threads are never started: the test takes their jobs and does them itself. The writer is a
fake that keeps what it was asked, and answers when the test says so.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from dataclasses import replace
from importlib import import_module
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import pika
import pytest
from twisted.internet.task import Clock

from carrot_twisted import conf, execution
from carrot_twisted.consumer import Consumer
from carrot_twisted.execution import Limits
from carrot_twisted.interruption import TimedCall
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimed
from carrot_twisted.rollups import Totals
from carrot_twisted.running import CancelRequest
from carrot_twisted.service import (
    executor,
    missing_rows,
    prefetch,
    quarantine,
    spoiled_runs,
)
from carrot_twisted.service.crowd import CROWDED, MANY
from carrot_twisted.service.delivery import Delivery, SafeChannel, Settler
from carrot_twisted.service.dispatcher import Dispatcher
from carrot_twisted.service.event_loop import EventLoop
from carrot_twisted.service.hooked_dispatcher import HookedDispatcher
from carrot_twisted.service.job import Job
from carrot_twisted.service.operations import Claim, Finish
from carrot_twisted.service.pool import Slot
from carrot_twisted.service.quarantine import Quarantine
from carrot_twisted.service.tally import Tally
from carrot_twisted.task_logging import Transcript
from carrot_twisted.task_options import TaskOptions
from tests.unit.test_delivery import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

TASK = "tests.project.tasks.noop"
COROUTINE = "tests.project.coroutines.sleep"


class Reactor(Clock):
    """Twisted's Clock; what threads hand over runs with the next ``advance``."""

    def __init__(self) -> None:
        super().__init__()
        self.handed_over: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()

    def callFromThread(  # noqa: N802
        self, function: Callable[..., Any], *args: Any
    ) -> None:
        self.handed_over.put((function, args))

    def advance(self, amount: float) -> None:
        super().advance(amount)
        while not self.handed_over.empty():
            function, args = self.handed_over.get()
            function(*args)
            super().advance(0)


class Writer:
    """Stands in for the LogWriter."""

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self.clock_offset = 0.0
        self._lock = threading.Lock()

    def submit(self, operation: Any) -> None:
        with self._lock:
            self.operations.append(operation)

    def take(self, kind: type[Any]) -> list[Any]:
        """What was submitted of one kind, and is now on its way."""
        with self._lock:
            taken = [op for op in self.operations if isinstance(op, kind)]
            self.operations = [op for op in self.operations if not isinstance(op, kind)]
        return taken


class Desk:
    """A dispatcher among fakes."""

    def __init__(self, concurrency: int = 2, kind: type[Consumer] = Consumer) -> None:
        self.clock = Reactor()
        self.writer = Writer()
        self.dead: list[tuple[Delivery, str]] = []
        queue = conf.current().queue("default")
        consumer = kind(queue.host, queue.name, logging.getLogger("carrot"), "consumer")
        self.tally = Tally(
            writer=self.writer,  # type: ignore[arg-type]
            worker="me",
            queues=["default"],
            using="default",
            reactor=self.clock,
            now=self.clock.seconds,
        )
        self.dispatcher = (HookedDispatcher if consumer.reads_messages else Dispatcher)(
            queue=queue,
            concurrency=concurrency,
            consumer=consumer,
            writer=self.writer,  # type: ignore[arg-type]
            limits=Limits(result=1000, log=1000),
            dead_letter=lambda delivery, reason: self.dead.append((delivery, reason)),
            events=EventLoop(self.clock, execution.clean_connections),
            tally=self.tally,
            reactor=self.clock,
        )
        self.executor = self.dispatcher._executor
        self.open_channel()

    def open_channel(self) -> None:
        self.channel = Channel()
        self.settler = Settler(self.channel)
        self.safe = SafeChannel(cast("Any", self.channel), self.settler, self.clock)
        self.tag = 0

    def deliver(
        self,
        message_id: object = None,
        body: bytes = b"{}",
        app_id: str | None = "carrot-twisted",
        headers: dict[str, Any] | None = None,
    ) -> Any:
        """A message arrives; returns its id."""
        self.tag += 1
        self.channel.unacked.add(self.tag)
        self.settler.delivered(self.tag)
        key = uuid4() if message_id is None else message_id
        properties = pika.BasicProperties(
            message_id=str(key) if isinstance(key, UUID) else key,
            app_id=app_id,
            headers={"type": TASK} if headers is None else headers,
        )
        self.dispatcher.deliver(
            Delivery(self.settler, self.tag, properties, body, "", "default", channel=self.safe)
        )
        return key

    def turn(self, seconds: float = 0.0) -> None:
        """One turn of the reactor, or some seconds."""
        self.clock.advance(seconds)

    def claims(self) -> list[list[UUID]]:
        """Ids of the claims that wait for an answer; leaves them there."""
        return [op.ids for op in self.writer.operations if isinstance(op, Claim)]

    def answer(self, **verdicts: Verdict) -> None:
        """Answer all claims: ``every`` verdict for every id, or claimed."""
        for claim in self.writer.take(Claim):
            claim.answer(
                {pk: verdicts.get("every") or claimed(pk, claim.token) for pk in claim.ids}
            )
        self.turn()

    def jobs(self) -> list[Job]:
        """What a worker thread would get now."""
        return self.executor._pool.recall()

    def run(self) -> list[Result]:
        """Let the threads do all that they were given; returns what they hand to the writer."""
        for job in self.jobs():
            self.executor.work(job)
        return [op.finished.result for op in self.writer.operations if isinstance(op, Finish)]

    def write(self) -> list[Finish]:
        """The writer commits what was finished."""
        finishes: list[Finish] = self.writer.take(Finish)
        if finishes:
            finishes[0].written([op.job for op in finishes])
        self.turn()
        return finishes

    def start(self, count: int = 1) -> list[UUID]:
        """So many messages are claimed and in the threads' hands."""
        keys = [self.deliver() for _ in range(count)]
        self.turn()
        self.answer()
        return keys


def claimed(pk: UUID, token: int) -> Claimed:
    return Claimed(
        uuid=pk,
        token=token,
        task=TASK,
        task_args="[]",
        content="{}",
        queue="default",
        attempt=1,
        published=1000.0,
    )


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(execution, "clean_connections", lambda: None)
    return Desk()


class TestTheWay:
    def test_a_message_is_claimed_run_recorded_and_then_acknowledged(self, desk: Desk) -> None:
        key = desk.deliver()
        assert desk.claims() == []
        desk.turn()
        assert desk.claims() == [[key]]
        desk.answer()
        (result,) = desk.run()
        assert result.kind is Kind.COMPLETED
        assert desk.channel.frames == []
        assert desk.dispatcher.running == 1
        desk.write()
        assert desk.channel.frames == [("ack", 1, False)]
        assert (desk.dispatcher.running, desk.dispatcher.finished) == (0, 1)

    def test_messages_of_one_turn_are_claimed_together(self, desk: Desk) -> None:
        keys = [desk.deliver() for _ in range(5)]
        desk.turn()
        assert desk.claims() == [keys]

    def test_each_claim_has_a_token_of_its_own_that_the_end_carries(self, desk: Desk) -> None:
        for _ in range(2):
            desk.deliver()
            desk.turn()
        tokens = [op.token for op in desk.writer.operations]
        assert len(set(tokens)) == 2
        desk.answer()
        desk.run()
        assert [op.finished.token for op in desk.writer.take(Finish)] == tokens

    def test_a_batch_of_ends_takes_one_frame(self, desk: Desk) -> None:
        desk.start(3)
        desk.run()
        desk.write()
        assert desk.channel.frames == [("ack", 3, True)]

    def test_what_the_message_says_of_its_task_goes_to_the_run(self, desk: Desk) -> None:
        for headers in ({}, {"type": "os.getcwd"}, {"type": 5}):
            desk.deliver(headers=headers)
        desk.turn()
        desk.answer()
        runs = [job.run for job in desk.jobs()]
        assert [run.header for run in runs if run] == [None, "os.getcwd", None]

    def test_a_failed_task_is_acknowledged_as_well(self, desk: Desk) -> None:
        desk.deliver(body=b"not json")
        desk.turn()
        desk.answer()
        assert [result.kind for result in desk.run()] == [Kind.FAILED]
        desk.write()
        assert desk.channel.acked == {1}

    def test_a_released_task_is_acknowledged_for_its_row_is_in_the_outbox(self, desk: Desk) -> None:
        desk.start()
        (job,) = desk.jobs()
        desk.dispatcher._record(job, Result(kind=Kind.RELEASED, exception="away", started=1.0))
        desk.write()
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0

    def test_each_end_is_counted_once_with_its_times(self, desk: Desk) -> None:
        desk.writer.clock_offset = 5.0
        desk.start(5)
        completed, failed, retried, released, late = desk.jobs()
        desk.dispatcher._record(completed, Result(kind=Kind.COMPLETED, started=996.0, ended=997.0))
        desk.dispatcher._record(failed, Result(kind=Kind.FAILED, started=997.0, ended=999.0))
        desk.dispatcher._record(released, Result(kind=Kind.RELEASED, started=1.0, ended=1.0))
        retry = Result(kind=Kind.RETRY, exception="no", delay=5.0, started=996.0, ended=997.0)
        desk.dispatcher._record(retried, retry)
        # Released at the deadline of a stop, and ended after all: nothing of that is written.
        desk.dispatcher._record(late, Result(kind=Kind.RELEASED, started=1.0))
        desk.write()
        desk.dispatcher._record(late, Result(kind=Kind.COMPLETED, started=996.0, ended=997.0))
        desk.write()
        assert desk.tally._fresh == {
            ("default", TASK): Totals(
                completed=1,
                failed=1,
                wait={40: 1, 44: 1},
                run={40: 1, 44: 1},
                wait_seconds=3.0,
                run_seconds=3.0,
            )
        }

    def test_what_has_run_for_long_is_told_while_it_runs(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        pool = desk.executor._pool
        pool._slots = [Slot(str(n)) for n in range(4)]
        desk.start(3)
        jobs = desk.jobs()
        for slot, job, since in zip(pool._slots, jobs, (98.0, 98.0, 99.5), strict=False):
            slot.job, slot.since = job, since
        # Its end is told already, and its thread not yet free.
        jobs[1].result = Result(kind=Kind.FAILED)
        assert desk.dispatcher.long_runs(1.0) == [jobs[0].run]
        now[0] = 100.5
        assert desk.dispatcher.long_runs(1.0) == [jobs[0].run, jobs[2].run]

    def test_no_more_is_claimed_than_the_pace_allows(self) -> None:
        desk = Desk(concurrency=2)
        desk.dispatcher.pace.seconds = 10.0
        keys = [desk.deliver() for _ in range(5)]
        desk.turn()
        assert desk.claims() == [keys[:2]]
        desk.answer()
        job, other = desk.jobs()
        desk.dispatcher._record(job, Result(kind=Kind.COMPLETED, started=1.0, ended=11.0))
        desk.write()
        assert desk.claims() == [keys[2:3]]
        assert other.result is None

    def test_the_run_time_sets_the_pace_and_is_told(self, desk: Desk) -> None:
        told: list[int] = []
        desk.dispatcher.on_settled = lambda: told.append(desk.dispatcher.pace.prefetch)
        before = desk.dispatcher.pace.prefetch
        desk.start()
        (job,) = desk.jobs()
        desk.dispatcher._record(job, Result(kind=Kind.COMPLETED, started=100.0, ended=160.0))
        desk.write()
        assert told == [desk.dispatcher.pace.prefetch]
        assert told[0] < before


class TestCoroutines:
    """Which of the tasks are coroutines is found out with the first one."""

    @pytest.fixture(autouse=True)
    def no_loop(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(desk.executor._events, "call", lambda _function: None)
        import_module(COROUTINE.rpartition(".")[0])

    def arrive(self, desk: Desk, task: str, count: int) -> list[UUID]:
        return [desk.deliver(headers={"type": task}) for _ in range(count)]

    def test_they_take_no_thread_and_do_not_wait_for_one(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pace = desk.dispatcher.pace
        pace.seconds = 10.0
        before = pace.prefetch
        (first,) = self.arrive(desk, COROUTINE, 1)
        desk.turn()
        monkeypatch.setattr(sys.modules[__name__], "TASK", COROUTINE)
        desk.answer()
        assert desk.jobs() == []
        assert [job.uuid for job in desk.executor._coroutines.recall()] == [first]
        assert pace.prefetch >= before + 100

        monkeypatch.undo()
        threads = self.arrive(desk, TASK, 4)
        beside = self.arrive(desk, COROUTINE, 3)
        desk.turn()
        # Two threads; the others of their kind keep nobody behind them waiting.
        assert desk.claims() == [[*threads[:2], *beside]]
        assert [delivery.properties.message_id for delivery in desk.dispatcher._waiting] == [
            str(key) for key in threads[2:]
        ]

    def test_their_times_say_nothing_of_threads(self, desk: Desk) -> None:
        desk.executor._go_beside()
        job, other = Job(uuid4(), [], is_coroutine=True), Job(uuid4(), [])
        job.result = Result(kind=Kind.COMPLETED, started=0.0, ended=100.0)
        other.result = Result(kind=Kind.COMPLETED, started=0.0, ended=0.05)
        pace = desk.dispatcher.pace
        desk.executor.measure([job, other], 100.05, 10)
        assert pace.beside is not None
        assert pace.seconds == pytest.approx(0.05)
        assert pace.beside.seconds > 20

    def test_what_was_not_begun_is_given_back(self, desk: Desk) -> None:
        desk.start(2)
        (job, _) = desk.jobs()
        desk.executor._coroutines.put(job)
        desk.dispatcher.stop_claiming()
        (finish,) = desk.writer.take(Finish)
        assert (finish.job, finish.finished.result.kind) == (job, Kind.RELEASED)

    def test_one_whose_module_is_not_imported_is_found_out_in_a_thread(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules[__name__], "TASK", COROUTINE)
        monkeypatch.delitem(sys.modules, COROUTINE.rpartition(".")[0])
        desk.start()
        (job,) = desk.jobs()
        desk.executor.work(job)
        assert desk.executor._coroutines.recall() == [job]
        assert desk.writer.take(Finish) == []


class TestCancel:
    ANN = CancelRequest(by="ann")

    def running(self, desk: Desk) -> tuple[Job, list[str]]:
        """A task that runs, and what is raised in it."""
        desk.start()
        (job,) = desk.jobs()
        raised: list[str] = []
        assert job.run is not None
        job.run.call = cast("Any", SimpleNamespace(cancel=raised.append))
        return job, raised

    def test_a_running_task_is_told_and_interrupted_again_and_again(self, desk: Desk) -> None:
        job, raised = self.running(desk)
        assert job.run is not None
        cancel = desk.dispatcher.cancel
        assert cancel(job.uuid, job.run.token, self.ANN)
        assert not cancel(job.uuid, job.run.token, self.ANN), "that is not new"
        assert job.run.cancel == self.ANN
        assert raised == ["cancelled by ann"] * 2

    def test_another_run_is_not_meant(self, desk: Desk) -> None:
        job, raised = self.running(desk)
        assert job.run is not None
        assert not desk.dispatcher.cancel(job.uuid, job.run.token + 1, self.ANN)
        assert not desk.dispatcher.cancel(uuid4(), job.run.token, self.ANN)
        job.result = Result(kind=Kind.COMPLETED)
        assert not desk.dispatcher.cancel(job.uuid, job.run.token, self.ANN)
        assert (raised, job.run.cancel) == ([], None)

    @pytest.mark.parametrize("by_task", [True, False])
    def test_who_is_only_to_be_told_is_not_interrupted(self, desk: Desk, by_task: bool) -> None:
        job, raised = self.running(desk)
        assert job.run is not None
        job.run.options = TaskOptions(cooperative_cancel=by_task)
        request = CancelRequest(cooperative=not by_task)
        assert desk.dispatcher.cancel(job.uuid, job.run.token, request)
        assert (raised, job.run.cancel) == ([], request)

    def test_its_end_is_no_failure_and_is_not_counted(self, desk: Desk) -> None:
        job, _ = self.running(desk)
        desk.dispatcher._record(
            job, Result(kind=Kind.CANCELLED, exception="cancelled", started=1.0, ended=2.0)
        )
        desk.write()
        assert desk.channel.acked == {1}
        assert desk.tally._fresh == {}


class TestVerdicts:
    @pytest.mark.parametrize(
        "verdict", [Verdict.FINAL, Verdict.ELSEWHERE, Verdict.LOST, Verdict.EARLY]
    )
    def test_what_need_not_run_is_acknowledged_at_once(self, desk: Desk, verdict: Verdict) -> None:
        desk.deliver()
        desk.turn()
        desk.answer(every=verdict)
        assert desk.jobs() == []
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0
        assert desk.dead == []

    def test_of_a_batch_each_gets_its_own(self, desk: Desk) -> None:
        done, runs, gone = (desk.deliver() for _ in range(3))
        desk.turn()
        (claim,) = desk.writer.take(Claim)
        claim.answer({done: Verdict.FINAL, runs: claimed(runs, claim.token), gone: Verdict.MISSING})
        desk.turn()
        assert [job.uuid for job in desk.jobs()] == [runs]
        assert desk.channel.acked == {1}
        assert desk.channel.unacked == {2, 3}

    def test_room_that_a_verdict_frees_is_used(self) -> None:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        desk.deliver()
        second = desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.FINAL)
        assert desk.claims() == [[second]]


class TestAdoption:
    def test_a_second_delivery_of_a_running_task_waits_for_its_end(self, desk: Desk) -> None:
        (key,) = desk.start()
        desk.deliver(key)
        desk.turn()
        assert desk.claims() == []
        assert desk.channel.frames == []
        assert len(desk.run()) == 1
        desk.write()
        assert desk.channel.acked == {1, 2}
        assert desk.channel.requeued == set()

    def test_two_deliveries_in_one_turn_run_once(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.deliver(key)
        desk.turn()
        assert desk.claims() == [[key]]
        desk.answer()
        desk.run()
        desk.write()
        assert desk.channel.acked == {1, 2}

    def test_a_redelivery_after_a_lost_channel_settles_on_the_new_one(self, desk: Desk) -> None:
        (key,) = desk.start()
        old = desk.channel
        old.is_open = False
        desk.open_channel()
        desk.deliver(key)
        desk.turn()
        desk.run()
        desk.write()
        assert old.frames == []
        assert desk.channel.acked == {1}

    def test_a_delivery_while_the_claim_is_under_way_is_adopted_too(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.turn()
        desk.deliver(key)
        desk.turn()
        assert desk.claims() == [[key]]
        desk.answer(every=Verdict.FINAL)
        assert desk.channel.acked == {1, 2}

    def test_the_same_id_in_other_spelling_is_the_same_task(self, desk: Desk) -> None:
        (key,) = desk.start()
        desk.deliver(key.hex.upper())
        desk.turn()
        assert desk.claims() == []


class TestWhatRunsHere:
    """The database asks, when a message of a running row comes by another queue."""

    def test_a_claim_is_known_from_its_start_to_the_end_that_is_written(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.turn()
        (claim,) = desk.writer.operations
        assert desk.dispatcher.runs(key, claim.token)
        desk.answer()
        assert desk.dispatcher.runs(key, claim.token)
        assert not desk.dispatcher.runs(key, claim.token + 1)
        desk.run()
        assert desk.dispatcher.runs(key, claim.token)
        desk.write()
        assert not desk.dispatcher.runs(key, claim.token)

    def test_a_claim_that_is_denied_is_forgotten(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.turn()
        (claim,) = desk.writer.operations
        desk.answer(every=Verdict.FINAL)
        assert not desk.dispatcher.runs(key, claim.token)
        assert desk.dispatcher._asking == set()


class TestHandOver:
    """Rows under limits that run where a slot has become free: without a message."""

    def test_they_run_and_are_known_from_the_claim_to_the_end(self, desk: Desk) -> None:
        keys = [uuid4(), uuid4()]
        rows = [replace(claimed(pk, 7), slot_key="slot app a") for pk in keys]
        desk.dispatcher.hand_over(rows, 7)
        assert desk.dispatcher.runs(keys[0], 7), "before the reactor knows of it"
        desk.turn()
        assert desk.dispatcher._asking == set()
        assert all(desk.dispatcher.runs(key, 7) for key in keys)
        assert [one.kind for one in desk.run()] == [Kind.COMPLETED] * 2
        finishes = desk.write()
        assert [op.freed for op in finishes] == [("slot app a", "default")] * 2
        assert desk.dispatcher.running == 0
        assert desk.channel.frames == []

    def test_a_message_of_one_is_acknowledged_whenever_it_comes(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.turn()
        desk.dispatcher.hand_over([claimed(key, 7)], 7)
        desk.turn()
        assert desk.channel.unacked == set()
        desk.answer(every=Verdict.ELSEWHERE)
        desk.deliver(key)
        desk.turn()
        assert desk.channel.unacked == set()
        desk.run()
        desk.write()
        assert desk.dispatcher.finished == 1

    @pytest.mark.parametrize("how", ["stop_claiming", "pause", "hold"])
    def test_what_comes_too_late_goes_back(self, desk: Desk, how: str) -> None:
        assert desk.dispatcher.places(0) == 2
        desk.dispatcher.hand_over([claimed(uuid4(), 7)], 7)
        getattr(desk.dispatcher, how)()
        desk.turn()
        (result,) = desk.run()
        assert (result.kind, result.started) == (Kind.RELEASED, 0)
        assert desk.dispatcher.places(0) is None

    def test_those_that_have_to_wait_are_taken_without_a_thread_so_that_others_get_theirs(
        self, desk: Desk
    ) -> None:
        desk.dispatcher.pace.seconds = 60.0
        busy = desk.start(1)
        crowd = [desk.deliver(headers={"type": "app.limited"}) for _ in range(6)]
        other = desk.deliver()
        desk.turn()
        (first,) = desk.writer.take(Claim)
        assert (first.ids, first.placeless) == (crowd[:1], frozenset())
        first.answer({crowd[0]: Verdict.LIMITED})
        desk.turn()
        (second,) = desk.writer.take(Claim)
        assert second.ids == crowd[1:], "and one with the thread that is free"
        assert second.placeless == frozenset(crowd[2:])
        second.answer(dict.fromkeys(second.ids, Verdict.LIMITED))
        desk.turn()
        assert desk.claims() == [[other]]
        desk.answer()
        assert [job.uuid for job in desk.jobs()] == [*busy, other]
        assert desk.dispatcher.pace.headroom == 0, "these are few"
        # It is not remembered for long.
        more = [desk.deliver(headers={"type": "app.limited"}) for _ in range(2)]
        desk.turn(CROWDED)
        assert desk.claims() == []
        assert desk.dispatcher._crowd.tasks == {}
        assert len(more) == len(desk.dispatcher._waiting)

    def test_of_a_crowd_many_are_delivered_at_once_for_a_while(self, desk: Desk) -> None:
        desk.dispatcher.pace.seconds = 60.0
        for _ in range(MANY):
            desk.deliver(headers={"type": "app.limited"})
        desk.turn()
        while claims := desk.writer.take(Claim):
            claims[0].answer(dict.fromkeys(claims[0].ids, Verdict.LIMITED))
            desk.turn()
        assert desk.dispatcher.pace.headroom == prefetch.CROWD
        desk.turn(CROWDED)
        desk.dispatcher.free_waiting(600.0)
        assert desk.dispatcher.pace.headroom == 0

    def test_there_is_a_place_for_each_free_thread_and_each_that_becomes_free(
        self, desk: Desk
    ) -> None:
        assert desk.dispatcher.places(0) == 2
        desk.start(2)
        assert desk.dispatcher.places(0) == 0
        assert desk.dispatcher.places(1) == 1, "its end is written, and not known here yet"


class TestMissingRows:
    def test_a_row_that_comes_late_is_found(self, desk: Desk) -> None:
        """django-carrot publishes before the commit."""
        key = desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        assert desk.claims() == []
        desk.turn(0.1)
        assert desk.claims() == [[key]]
        desk.answer()
        desk.run()
        desk.write()
        assert desk.channel.acked == {1}
        assert desk.dead == []

    def test_there_is_room_for_others_as_long_as_it_is_looked_for(self, desk: Desk) -> None:
        pace = desk.dispatcher.pace
        told: list[int] = []
        desk.dispatcher.on_settled = lambda: told.append(pace.missing)
        for _ in range(3):
            desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        desk.turn(0.1)
        # While the database is asked, too.
        assert (told[-1], pace.missing) == (3, 3)
        while not desk.dead:
            desk.answer(every=Verdict.MISSING)
            desk.turn(5)
        assert (told[-1], pace.missing) == (0, 0)

    def test_nor_does_it_keep_room_when_its_row_has_come(self, desk: Desk) -> None:
        desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        desk.turn(0.1)
        desk.answer()
        desk.run()
        desk.write()
        assert desk.dispatcher.pace.missing == 0

    def test_it_is_looked_for_during_ten_seconds_then_it_is_a_dead_letter(self, desk: Desk) -> None:
        desk.deliver(app_id=None)
        desk.turn()
        looks = 0
        while not desk.dead:
            desk.answer(every=Verdict.MISSING)
            looks += 1
            desk.turn(5)
        assert looks == len(missing_rows.DELAYS) + 1
        assert sum(missing_rows.DELAYS) == pytest.approx(10, abs=1)
        assert [reason for _, reason in desk.dead] == ["no MessageLog has this message_id"]
        assert desk.dispatcher.running == 0
        assert desk.channel.frames == [], "acknowledged before the dead-letter queue has it"

    def test_our_own_message_without_a_row_is_that_of_a_deleted_one(self, desk: Desk) -> None:
        desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        desk.turn(0.1)
        desk.answer(every=Verdict.MISSING)
        assert len(desk.dead) == 1

    def test_every_adopted_delivery_becomes_a_dead_letter(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.deliver(key)
        desk.turn()
        for _ in range(2):
            desk.answer(every=Verdict.MISSING)
            desk.turn(0.1)
        assert [delivery.tag for delivery, _ in desk.dead] == [1, 2]

    def test_waiting_for_a_row_takes_no_room_from_others(self) -> None:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        other = desk.deliver()
        desk.turn()
        assert desk.claims() == [[other]]

    def test_room_is_right_again_after_the_wait(self) -> None:
        """Counting a waiting message twice, or not at all, would stall or flood the threads."""
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        desk.deliver()
        desk.turn()
        for _ in range(2):
            desk.answer(every=Verdict.MISSING)
            desk.turn(0.1)
        assert len(desk.dead) == 1
        keys = [desk.deliver() for _ in range(3)]
        desk.turn()
        assert desk.claims() == [keys[:1]]

    def test_a_flood_of_messages_without_rows_does_not_pile_up(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(missing_rows, "MOST", 2)
        for _ in range(5):
            desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        assert len(desk.dead) == 3

    @pytest.mark.parametrize("message_id", ["", "5", "not a uuid", "é" * 32])
    def test_an_id_that_no_row_can_have_is_a_dead_letter_at_once(
        self, desk: Desk, message_id: str
    ) -> None:
        desk.deliver(message_id)
        good = desk.deliver()
        desk.turn()
        assert desk.claims() == [[good]]
        ((delivery, reason),) = desk.dead
        assert delivery.tag == 1
        assert "message_id" in reason

    def test_a_message_without_any_property_is_a_dead_letter(self, desk: Desk) -> None:
        desk.channel.unacked.add(1)
        desk.settler.delivered(1)
        desk.dispatcher.deliver(
            Delivery(desk.settler, 1, pika.BasicProperties(), b"\xff", "", "default")
        )
        desk.turn()
        assert len(desk.dead) == 1


class TestSuspects:
    """Rows that have cost workers run alone, under the eyes of the quarantine."""

    @pytest.fixture(autouse=True)
    def _quarantine(self, desk: Desk) -> None:
        Quarantine([desk.dispatcher], desk.clock)

    def test_a_suspect_is_claimed_alone_at_once_where_nothing_runs(self, desk: Desk) -> None:
        key = desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        (claim,) = desk.writer.take(Claim)
        assert (claim.ids, claim.alone) == ([key], True)

    def test_it_waits_for_running_tasks_and_holds_up_new_ones(self, desk: Desk) -> None:
        desk.start()
        (job,) = desk.jobs()
        suspect = desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        new = desk.deliver()
        desk.turn()
        assert desk.claims() == []
        assert desk.channel.requeued == set()
        desk.executor.work(job)
        desk.write()
        assert desk.claims() == [[suspect]]
        desk.answer()
        desk.run()
        assert desk.claims() == []
        desk.write()
        assert desk.claims() == [[new]]
        assert desk.channel.acked == {1, 2}

    def test_others_do_not_wait_for_it_as_long_as_a_long_task_runs(self, desk: Desk) -> None:
        """That may take hours, in every service to which the suspect comes."""
        desk.dispatcher.pace.seconds = 100.0
        desk.start()
        (long,) = desk.jobs()
        suspect = desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        new = desk.deliver()
        desk.turn()
        assert desk.claims() == []
        desk.turn(quarantine.PATIENCE)
        assert desk.claims() == [[new]]
        desk.answer()
        desk.run()
        desk.write()
        newer = desk.deliver()
        desk.turn()
        assert desk.claims() == [[newer]]
        desk.answer(every=Verdict.FINAL)
        # Once more it is given the time.
        desk.turn(quarantine.REST)
        desk.deliver()
        desk.turn()
        assert desk.claims() == []
        desk.executor.work(long)
        desk.write()
        assert desk.claims() == [[suspect]]
        assert desk.channel.requeued == set()

    def test_in_a_rest_it_runs_as_soon_as_nothing_else_does(self, desk: Desk) -> None:
        desk.start()
        (long,) = desk.jobs()
        suspect = desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        desk.turn(quarantine.PATIENCE)
        desk.executor.work(long)
        desk.write()
        assert desk.claims() == [[suspect]]
        desk.answer()
        desk.run()
        desk.turn(2 * quarantine.REST)
        assert desk.claims() == []
        desk.write()
        assert desk.dispatcher.running == 0

    def test_a_suspect_that_runs_long_is_alone_all_the_time(self, desk: Desk) -> None:
        desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        desk.answer()
        desk.deliver()
        desk.turn(10 * quarantine.PATIENCE)
        assert desk.claims() == []

    def test_several_run_one_after_another(self, desk: Desk) -> None:
        keys = [desk.deliver() for _ in range(2)]
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        assert desk.claims() == [[keys[0]]]
        desk.answer()
        assert desk.claims() == []
        desk.run()
        desk.write()
        assert desk.claims() == [[keys[1]]]

    def test_one_that_another_service_has_taken_makes_room(self, desk: Desk) -> None:
        desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        desk.answer(every=Verdict.ELSEWHERE)
        assert desk.channel.acked == {1}
        new = desk.deliver()
        desk.turn()
        assert desk.claims() == [[new]]

    def test_a_suspect_that_waits_goes_back_when_the_database_is_away(self, desk: Desk) -> None:
        desk.start()
        (job,) = desk.jobs()
        desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        desk.dispatcher.pause()
        assert desk.channel.requeued == {2}
        desk.executor.work(job)
        desk.write()
        desk.dispatcher.resume()
        new = desk.deliver()
        desk.turn()
        assert desk.claims() == [[new]]

    def test_a_suspect_that_waits_goes_back_when_the_service_stops(self, desk: Desk) -> None:
        desk.start()
        desk.jobs()
        desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        desk.dispatcher.stop_claiming()
        assert desk.channel.requeued == {2}

    def test_a_row_that_comes_late_does_not_run_beside_it(self, desk: Desk) -> None:
        """It was looked for before the suspect came."""
        late = desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        suspect = desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        assert desk.claims() == [[suspect]]
        desk.answer()
        desk.turn(1)
        assert desk.claims() == []
        desk.run()
        desk.write()
        desk.turn(5)
        assert desk.claims() == [[late]] or desk.channel.requeued == {1}


class TestCustody:
    def test_a_task_past_its_deadline_is_acknowledged_while_it_runs(self, desk: Desk) -> None:
        desk.start()
        desk.turn(599)
        desk.dispatcher.take_custody(600)
        assert desk.channel.frames == []
        desk.turn(2)
        desk.dispatcher.take_custody(600)
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 1

    def test_it_is_acknowledged_only_once(self, desk: Desk) -> None:
        desk.start()
        desk.turn(601)
        desk.dispatcher.take_custody(600)
        desk.dispatcher.take_custody(600)
        desk.run()
        desk.write()
        assert desk.channel.frames == [("ack", 1, False)]
        assert desk.dispatcher.finished == 1

    def test_a_later_delivery_of_it_is_acknowledged_at_once(self, desk: Desk) -> None:
        (key,) = desk.start()
        desk.turn(601)
        desk.dispatcher.take_custody(600)
        desk.deliver(key)
        desk.turn()
        assert desk.channel.acked == {1, 2}
        assert desk.claims() == []

    def test_a_message_that_is_not_claimed_stays_the_brokers(self, desk: Desk) -> None:
        """The writer cannot reach the database: no row says that the task is taken."""
        desk.deliver()
        desk.turn(601)
        desk.dispatcher.take_custody(600)
        assert desk.channel.frames == []


class TestWaitingInVain:
    """Behind tasks that take much longer than those before them."""

    @pytest.fixture
    def desk(self) -> Desk:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 0.05
        return desk

    def test_claimed_rows_that_no_thread_begins_are_given_back(self, desk: Desk) -> None:
        long, *short = (desk.deliver() for _ in range(3))
        desk.turn()
        desk.answer()
        # The first one is being run.
        running = desk.executor._pool._inbox.get()
        desk.turn(9)
        desk.dispatcher.free_waiting(600)
        assert desk.writer.operations == []
        desk.turn(2)
        desk.dispatcher.free_waiting(600)
        released = desk.writer.take(Finish)
        assert [op.finished.uuid for op in released] == short
        assert {op.finished.result.kind for op in released} == {Kind.RELEASED}
        released[0].written([op.job for op in released])
        assert desk.channel.acked == {2, 3}
        assert desk.dispatcher.running == 1
        assert running is not None
        assert running.uuid == long
        # From now on nothing is claimed ahead.
        assert desk.dispatcher.pace.claimed == 1

    def test_messages_past_the_deadline_go_back_to_the_broker(self, desk: Desk) -> None:
        desk.dispatcher.pace.seconds = 100.0
        for _ in range(3):
            desk.deliver()
        desk.turn()
        desk.dispatcher.free_waiting(600)
        desk.turn(590)
        desk.deliver()
        desk.dispatcher.free_waiting(600)
        assert desk.channel.frames == []
        desk.turn(10)
        desk.dispatcher.free_waiting(600)
        assert desk.channel.requeued == {2, 3}
        desk.turn(590)
        desk.dispatcher.free_waiting(600)
        assert desk.channel.requeued == {2, 3, 4}

    def test_and_so_do_messages_that_have_to_run_alone(self) -> None:
        desk = Desk(concurrency=2)
        desk.deliver()
        desk.turn()
        desk.answer()
        desk.deliver()
        desk.turn()
        desk.answer(every=Verdict.SUSPECT)
        desk.turn(0)
        assert desk.dispatcher.suspects == 1
        desk.turn(601)
        desk.dispatcher.free_waiting(600)
        assert desk.dispatcher.suspects == 0
        assert desk.channel.requeued == {2}


class TestStuckTasks:
    """Given up at their time limit; another thread tells their end."""

    def stuck(self, desk: Desk) -> tuple[Job, TimedCall]:
        desk.start()
        (job,) = desk.jobs()
        assert job.run is not None
        return job, TimedCall(job.run, 2.5, Transcript(1000), desk.executor._keeper)

    def test_its_row_says_where_it_is_stuck(self, desk: Desk) -> None:
        job, call = self.stuck(desk)
        desk.executor._end_stuck(job, call)
        (finish,) = desk.write()
        assert finish.finished.result.kind is Kind.FAILED
        assert "time limit of 2.5 s exceeded; the thread is stuck in" in str(
            finish.finished.result.exception
        )
        assert desk.channel.acked == {1}

    @pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit])
    def test_it_ends_also_when_that_cannot_be_told(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        """Else the row stays IN_PROGRESS as long as this process lives."""

        def give_up(*_: object) -> Result:
            raise error("no memory left for a traceback")

        told: list[str] = []
        monkeypatch.setattr(execution, "give_up", give_up)
        monkeypatch.setattr(executor._log, "failure", lambda text, **_: told.append(text))
        job, call = self.stuck(desk)
        desk.executor._end_stuck(job, call)
        (finish,) = desk.write()
        result = finish.finished.result
        assert (result.kind, result.exception) == (Kind.FAILED, "time limit of 2.5 s exceeded")
        assert 0 < result.started <= result.ended
        assert len(told) == 1
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0


class TestPause:
    def test_what_waits_goes_back_and_what_runs_goes_on(self) -> None:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        desk.start()
        for _ in range(2):
            desk.deliver()
        desk.turn()
        desk.dispatcher.pause()
        assert desk.channel.requeued == {2, 3}
        assert len(desk.run()) == 1
        desk.write()
        assert desk.channel.acked == {1}

    def test_what_arrives_meanwhile_goes_back(self, desk: Desk) -> None:
        desk.dispatcher.pause()
        desk.deliver()
        desk.turn()
        assert desk.channel.requeued == {1}
        assert desk.claims() == []

    def test_a_message_that_waits_for_its_row_goes_back(self, desk: Desk) -> None:
        desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        desk.dispatcher.pause()
        desk.turn(1)
        assert desk.channel.requeued == {1}
        assert (desk.dispatcher.running, desk.dead) == (0, [])

    def test_afterwards_messages_are_claimed_again(self, desk: Desk) -> None:
        desk.dispatcher.pause()
        desk.dispatcher.resume()
        key = desk.deliver()
        desk.turn()
        assert desk.claims() == [[key]]


class TestSpoiledRuns:
    """The writer has its connection, and the tasks get none: too many, say."""

    @staticmethod
    def spoil(desk: Desk) -> int:
        """All that the threads have is spoiled; returns how many that were."""
        jobs = desk.jobs()
        for job in jobs:
            desk.dispatcher._record(
                job, Result(kind=Kind.RELEASED, exception="too many\nclients", started=1.0)
            )
        desk.write()
        return len(jobs)

    def flood(self) -> Desk:
        """Far more messages than threads, and a pace that would claim many of them at once."""
        desk = Desk(concurrency=2)
        desk.dispatcher.pace.seconds = 0.05
        desk.start(20)
        return desk

    def test_when_every_task_is_spoiled_they_are_tried_slowly(self) -> None:
        desk = self.flood()
        assert self.spoil(desk) > 4
        for _ in range(3):
            desk.turn(spoiled_runs.BRAKE - 0.01)
            assert desk.claims() == []
            desk.turn(0.01)
            assert [len(ids) for ids in desk.claims()] == [2]
            desk.answer()
            assert self.spoil(desk) == 2

    def test_one_that_comes_to_its_end_sets_the_pace_again(self) -> None:
        desk = self.flood()
        self.spoil(desk)
        desk.turn(spoiled_runs.BRAKE)
        desk.answer()
        desk.run()
        desk.write()
        assert sum(map(len, desk.claims())) > 2

    def test_a_few_are_no_reason_to_wait(self) -> None:
        desk = Desk(concurrency=2)
        desk.start(2)
        self.spoil(desk)
        key = desk.deliver()
        desk.turn()
        assert desk.claims() == [[key]]

    def test_they_are_told_in_few_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten minutes, with a round each second."""
        told: list[dict[str, Any]] = []
        monkeypatch.setattr(spoiled_runs._log, "warn", lambda *_, **facts: told.append(facts))
        desk = self.flood()
        count = self.spoil(desk)
        for _ in range(600):
            desk.start(2)
            count += self.spoil(desk)
            desk.turn(spoiled_runs.BRAKE)
        desk.turn(spoiled_runs.TELL_LAST)
        assert 5 <= len(told) <= 20
        assert sum(facts["n"] for facts in told) == count
        assert {facts["error"] for facts in told} == {"too many"}

    def test_what_is_given_back_unbegun_is_not_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[object] = []
        monkeypatch.setattr(spoiled_runs._log, "warn", lambda *_, **facts: told.append(facts))
        desk = Desk(concurrency=2)
        desk.start(2)
        desk.dispatcher.stop_claiming()
        desk.write()
        desk.turn(spoiled_runs.TELL_LAST)
        assert told == []


class TestHarm:
    def test_a_dead_letter_that_fails_takes_no_neighbour_with_it(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A message that is known as under way, and is not claimed, would wait for ever."""

        def fail(*_: object) -> None:
            raise ValueError("these headers cannot be written")

        monkeypatch.setattr(desk.dispatcher, "_dead_letter", fail)
        first = desk.deliver()
        desk.deliver("no uuid")
        last = desk.deliver()
        with contextlib.suppress(ValueError):
            desk.turn()
        with contextlib.suppress(ValueError):
            desk.dispatcher.resume()
        assert sorted(pk for claim in desk.claims() for pk in claim) == sorted([first, last])


class TestChannels:
    def test_waiting_messages_of_a_closed_channel_are_dropped(self) -> None:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        keys = [desk.deliver() for _ in range(2)]
        desk.turn()
        desk.channel.is_open = False
        desk.dispatcher.forget_closed()
        desk.open_channel()
        new = desk.deliver()
        desk.answer()
        desk.run()
        desk.write()
        assert desk.claims() == [[new]]
        assert new not in keys

    def test_a_message_of_a_closed_channel_is_not_claimed(self, desk: Desk) -> None:
        """Nobody said forget_closed yet; the broker delivers it anew."""
        desk.deliver()
        desk.channel.is_open = False
        desk.turn()
        assert desk.claims() == []

    def test_the_newest_surplus_goes_back_when_the_prefetch_shrinks(self) -> None:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        for _ in range(5):
            desk.deliver()
        desk.turn()  # one is claimed, four wait
        desk.dispatcher.return_surplus(1)
        assert desk.channel.requeued == {3, 4, 5}


class TestStop:
    def test_what_waits_goes_back_and_what_no_thread_began_is_released(self) -> None:
        desk = Desk(concurrency=1)
        desk.dispatcher.pace.seconds = 10.0
        desk.start()
        desk.deliver()
        desk.turn()
        desk.dispatcher.stop_claiming()
        assert desk.channel.requeued == {2}
        (finish,) = desk.write()
        assert finish.finished.result == Result(kind=Kind.RELEASED)
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0

    def test_a_running_task_may_end(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        desk.start()

        def task(*_: object) -> Result:
            desk.dispatcher.stop_claiming()
            assert desk.dispatcher.running == 1
            return Result(kind=Kind.COMPLETED, started=1.0, ended=2.0)

        monkeypatch.setattr(execution, "execute", task)
        desk.run()
        (finish,) = desk.write()
        assert finish.finished.result.kind is Kind.COMPLETED
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0

    def test_what_arrives_afterwards_goes_back(self, desk: Desk) -> None:
        desk.dispatcher.stop_claiming()
        desk.deliver()
        desk.turn()
        assert desk.channel.requeued == {1}

    def test_a_claim_that_is_answered_afterwards_is_released_and_not_run(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(execution, "execute", lambda *_: pytest.fail("was run"))
        key = desk.deliver()
        desk.turn()
        desk.dispatcher.stop_claiming()
        # No thread is needed for that: all may be busy to the end.
        desk.answer()
        (finish,) = desk.write()
        assert finish.finished.uuid == key
        assert finish.finished.result == Result(kind=Kind.RELEASED)
        assert desk.dispatcher.running == 0

    @pytest.mark.parametrize("verdict", [Verdict.FINAL, Verdict.MISSING])
    def test_a_claim_that_is_denied_afterwards_is_settled(
        self, desk: Desk, verdict: Verdict
    ) -> None:
        desk.deliver()
        desk.turn()
        desk.dispatcher.stop_claiming()
        desk.answer(every=verdict)
        settled = desk.channel.requeued if verdict is Verdict.MISSING else desk.channel.acked
        assert settled == {1}
        assert desk.dispatcher.running == 0

    def test_a_message_that_waits_for_its_row_goes_back(self, desk: Desk) -> None:
        desk.deliver(app_id=None)
        desk.turn()
        desk.answer(every=Verdict.MISSING)
        desk.dispatcher.stop_claiming()
        desk.turn(1)
        assert desk.channel.requeued == {1}
        assert desk.dispatcher.running == 0

    def test_at_the_deadline_running_tasks_are_released(self, desk: Desk) -> None:
        desk.start(2)
        desk.jobs()
        desk.dispatcher.stop_claiming()
        assert desk.dispatcher.release_running() == 2
        finishes = desk.write()
        assert [op.finished.result.kind for op in finishes] == [Kind.RELEASED] * 2
        assert all(op.finished.result.started for op in finishes), "it has begun: one attempt"
        assert desk.channel.acked == {1, 2}
        assert desk.dispatcher.running == 0

    def test_what_they_have_logged_until_then_is_kept(self, desk: Desk) -> None:
        desk.start(2)
        job, unbegun = desk.jobs()
        assert job.run is not None
        job.run.transcript = Transcript(100)
        job.run.transcript.add("so far")
        desk.dispatcher.stop_claiming()
        desk.dispatcher.release_running()
        logs = {op.job.uuid: op.finished.result.log for op in desk.write()}
        assert logs == {job.uuid: "so far", unbegun.uuid: ""}

    def test_at_the_deadline_a_claim_without_an_answer_is_left_alone(self, desk: Desk) -> None:
        """The database is away: there is no run whose row could be released."""
        desk.deliver()
        desk.turn()
        desk.dispatcher.stop_claiming()
        assert desk.dispatcher.release_running() == 0

    def test_a_task_that_ends_after_its_release_settles_nothing_twice(self, desk: Desk) -> None:
        desk.start()
        (job,) = desk.jobs()
        desk.dispatcher.stop_claiming()
        desk.dispatcher.release_running()
        desk.write()
        desk.dispatcher._record(job, Result(kind=Kind.COMPLETED, started=1.0, ended=2.0))
        desk.write()
        assert desk.channel.frames == [("ack", 1, False)]
        assert desk.dispatcher.running == 0
