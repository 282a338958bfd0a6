# SPDX-License-Identifier: Apache-2.0
"""A queue's messages where a project's consumer reads them: unclaimed into the threads.

As in ``test_dispatcher`` the writer is a fake and the reactor a Clock. The threads are real, for
they wait for the reactor and the writer; the test does what each waits for.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from carrot_twisted import execution
from carrot_twisted.consumer import Consumer
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.service import hooked_dispatcher as module
from carrot_twisted.service.operations import Claim
from carrot_twisted.service.quarantine import Quarantine
from carrot_twisted.service.serving import Outcome, Served
from tests.processes import wait_until
from tests.unit.test_dispatcher import Desk, claimed

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.service.job import Job


class Reads(Consumer):
    """Has its own way with messages."""

    def on_message(self, *message: Any) -> None:
        super().on_message(*message)


class Finds(Consumer):
    """Has its own way to the rows."""

    def get_message_log(self, properties: Any, body: bytes) -> Any:
        return super().get_message_log(properties, body)


class HookedDesk(Desk):
    """A dispatcher whose messages go to the threads unclaimed.

    What the hooks do is told by the test: ``serve`` stands for ``serving``, with which database
    and consumer have their own tests.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, concurrency: int = 2, kind: type[Consumer] = Finds
    ) -> None:
        super().__init__(concurrency, kind)
        self.serve: Callable[[Any], Served] = lambda _: Served(Outcome.HANDLED)
        monkeypatch.setattr(module, "Serving", lambda **given: self._Serving(self, given))

    class _Serving:
        def __init__(self, desk: HookedDesk, given: dict[str, Any]) -> None:
            self.desk = desk
            self.claim, self.claimed = given["claim"], given["claimed"]
            self.delivery = given["delivery"]

        def serve(self) -> Served:
            return self.desk.serve(self)

    def thread(self, job: Job) -> threading.Thread:
        """A worker thread takes this job, and waits where it has to."""
        thread = threading.Thread(target=self.dispatcher._executor.work, args=(job,), daemon=True)
        thread.start()
        return thread

    def end(self, thread: threading.Thread, **verdicts: Verdict) -> None:
        """Do for the thread what it waits for, until it ends."""
        for _ in range(500):
            self.answer(**verdicts)
            thread.join(0.01)
            if not thread.is_alive():
                self.turn()
                return
        pytest.fail("the thread waits for ever")

    def all(self, **verdicts: Verdict) -> None:
        """The threads do all that they were given, one after another."""
        for job in self.jobs():
            self.end(self.thread(job), **verdicts)


def task_of(key: UUID, kind: Kind = Kind.COMPLETED) -> Callable[[Any], Served]:
    """Hooks that find this row and run its task."""

    def serve(serving: Any) -> Served:
        if serving.claimed is None and serving.claim(key, False) is None:
            return Served(Outcome.ELSEWHERE)
        return Served(Outcome.RAN, Result(kind=kind, started=1.0, ended=2.0))

    return serve


class TestHooks:
    """Where a project's consumer reads the messages, in the thread."""

    @pytest.fixture
    def desk(self, monkeypatch: pytest.MonkeyPatch) -> HookedDesk:
        monkeypatch.setattr(execution, "clean_connections", lambda: None)
        return HookedDesk(monkeypatch)

    def test_a_message_is_read_claimed_run_recorded_and_then_acknowledged(
        self, desk: HookedDesk
    ) -> None:
        key = uuid4()
        desk.serve = task_of(key)
        desk.deliver("any id")
        desk.turn()
        assert desk.claims() == []
        (job,) = desk.jobs()
        desk.end(desk.thread(job))
        assert desk.channel.frames == []
        (finish,) = desk.write()
        assert finish.finished.uuid == key
        assert desk.channel.acked == {1}
        assert (desk.dispatcher.running, desk.dispatcher.finished) == (0, 1)

    @pytest.mark.parametrize(
        ("outcome", "settled"),
        [(Outcome.HANDLED, "acked"), (Outcome.GIVEN_BACK, "requeued")],
    )
    def test_without_a_task_the_message_is_settled_at_once(
        self, desk: HookedDesk, outcome: Outcome, settled: str
    ) -> None:
        desk.serve = lambda _: Served(outcome)
        desk.deliver()
        desk.turn()
        desk.all()
        assert getattr(desk.channel, settled) == {1}
        assert desk.dispatcher.running == 0
        assert desk.writer.operations == []

    def test_one_that_broke_its_hook_is_a_dead_letter_with_a_reason_that_can_be_sent(
        self, desk: HookedDesk
    ) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise ValueError("no words")

        for error in (KeyError("x" * 100_000), Mute(), ValueError("\udc80")):
            desk.serve = lambda _, error=error: Served(  # type: ignore[misc]
                Outcome.BROKEN, error=error
            )
            desk.deliver()
            desk.turn()
            desk.all()
        reasons = [reason for _, reason in desk.dead]
        assert reasons[0].startswith("KeyError: 'xxx")
        assert len(reasons[0]) < 1000
        assert reasons[1:] == ["Mute: Mute (its text raised ValueError)", r"ValueError: \udc80"]
        assert desk.dispatcher.running == 0

    def test_while_the_database_is_away_it_is_read_again_later(self, desk: HookedDesk) -> None:
        desk.serve = lambda _: Served(Outcome.AWAY)
        desk.deliver()
        desk.turn()
        desk.all()
        assert (desk.dispatcher.running, desk.channel.frames) == (0, [])
        desk.turn(module.AWAY_DELAY)
        assert len(desk.jobs()) == 1

    def test_and_goes_back_when_the_service_has_noticed(self, desk: HookedDesk) -> None:
        desk.serve = lambda _: Served(Outcome.AWAY)
        desk.deliver()
        desk.turn()
        desk.all()
        desk.dispatcher.pause()
        desk.turn(module.AWAY_DELAY)
        assert desk.channel.requeued == {1}

    def test_a_row_that_comes_late_is_found(self, desk: HookedDesk) -> None:
        desk.serve = lambda _: Served(Outcome.MISSING)
        desk.deliver(app_id=None)
        desk.turn()
        desk.all()
        desk.turn(0.1)
        desk.serve = task_of(uuid4())
        desk.all()
        desk.write()
        assert (desk.channel.acked, desk.dead) == ({1}, [])

    def test_a_row_that_is_deleted_before_the_claim_is_looked_for_again(
        self, desk: HookedDesk
    ) -> None:
        desk.serve = task_of(uuid4())
        desk.deliver(app_id=None)
        desk.turn()
        desk.all(every=Verdict.MISSING)
        desk.turn(0.1)
        desk.all()
        desk.write()
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0

    def test_two_messages_of_one_row_run_it_once(self, desk: HookedDesk) -> None:
        desk.serve = task_of(uuid4())
        for _ in range(2):
            desk.deliver()
        desk.turn()
        first, second = desk.jobs()
        one, two = desk.thread(first), desk.thread(second)
        desk.end(one)
        desk.end(two)
        assert len(desk.write()) == 1
        assert desk.channel.acked == {1, 2}
        assert desk.dispatcher.running == 0

    def test_room_that_a_second_message_of_a_row_frees_is_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = HookedDesk(monkeypatch)
        desk.dispatcher.pace.seconds = 10.0
        desk.serve = task_of(uuid4())
        for _ in range(3):
            desk.deliver()
        desk.turn()
        first, second = desk.jobs()
        desk.thread(first)
        desk.serve = task_of(desk_key(desk))
        desk.end(desk.thread(second))
        assert len(desk.jobs()) == 1

    def test_a_message_that_has_another_rows_id_does_not_take_that_rows_message_with_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A's hook finds the row that has B's id, and B's hook another one."""
        desk = HookedDesk(monkeypatch, kind=Reads)
        b, other = uuid4(), uuid4()
        desk.deliver(uuid4())
        desk.deliver(b)
        desk.turn()
        first, second = desk.jobs()
        desk.serve = task_of(b)
        desk.end(desk.thread(first))
        desk.serve = task_of(other)
        desk.end(desk.thread(second))
        assert {finish.finished.uuid for finish in desk.write()} == {b, other}
        assert desk.channel.acked == {1, 2}
        assert desk.dispatcher.running == 0

    def test_a_message_with_the_id_of_a_running_row_is_read_if_hooks_find_the_rows(
        self, desk: HookedDesk
    ) -> None:
        """Its row may be another one."""
        key = uuid4()
        desk.serve = task_of(key)
        desk.deliver()
        desk.turn()
        desk.all()
        desk.deliver(key)
        desk.turn()
        assert len(desk.jobs()) == 1

    def test_a_redelivery_is_adopted_where_the_id_names_the_row(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = HookedDesk(monkeypatch, kind=Reads)
        key = desk.deliver()
        desk.turn()
        (job,) = desk.jobs()
        old = desk.channel
        old.is_open = False
        desk.open_channel()
        desk.deliver(key)
        desk.turn()
        assert desk.jobs() == []
        desk.serve = task_of(key)
        desk.end(desk.thread(job))
        desk.write()
        assert (old.frames, desk.channel.acked) == ([], {1})

    def test_a_message_whose_channel_has_closed_is_not_read(self, desk: HookedDesk) -> None:
        """It comes anew."""
        desk.serve = lambda _: pytest.fail("was read")
        desk.deliver()
        desk.turn()
        desk.channel.is_open = False
        desk.all()
        assert desk.dispatcher.running == 0
        assert desk.writer.operations == []

    def test_a_task_past_its_deadline_is_acknowledged_while_it_runs(self, desk: HookedDesk) -> None:
        ends = threading.Event()
        key = uuid4()

        def long(serving: Any) -> Served:
            serving.claim(key, False)
            ends.wait(10)
            return Served(Outcome.RAN, Result(kind=Kind.COMPLETED, started=1.0, ended=2.0))

        desk.serve = long
        desk.deliver()
        desk.turn()
        (job,) = desk.jobs()
        thread = desk.thread(job)
        desk_key(desk)
        desk.answer()
        wait_until(lambda: job.run is not None, 5)
        desk.turn(599)
        desk.dispatcher.take_custody(600)
        assert desk.channel.frames == []
        desk.turn(2)
        desk.dispatcher.take_custody(600)
        assert desk.channel.acked == {1}
        ends.set()
        desk.end(thread)
        desk.write()
        assert desk.channel.frames == [("ack", 1, False)]
        assert desk.dispatcher.running == 0

    def test_a_hook_that_does_not_return_is_not_acknowledged(self, desk: HookedDesk) -> None:
        desk.deliver()
        desk.turn(601)
        desk.dispatcher.take_custody(600)
        assert desk.channel.frames == []

    def test_slow_hooks_count_for_the_pace(
        self, desk: HookedDesk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise a service would hold hundreds of messages that another one could read."""
        times = iter((0.0, 60.0, 0.0, 60.0))
        clock = SimpleNamespace(monotonic=lambda: next(times))
        monkeypatch.setattr("carrot_twisted.service.hooked_dispatcher.time", clock)
        before = desk.dispatcher.pace.seconds
        for serve in (task_of(uuid4()), lambda _: Served(Outcome.HANDLED)):
            desk.serve = serve
            desk.deliver()
            desk.turn()
            desk.all()
            desk.write()
            assert desk.dispatcher.pace.seconds > before + 10
            before = desk.dispatcher.pace.seconds


def desk_key(desk: HookedDesk) -> UUID:
    """The row that the first thread has found, once it has."""

    def claims() -> list[list[UUID]]:
        desk.turn()
        return desk.claims()

    wait_until(claims, 5)
    ((key,),) = desk.claims()
    return key


class TestHooksAndSuspects:
    @pytest.fixture
    def desk(self, monkeypatch: pytest.MonkeyPatch) -> HookedDesk:
        monkeypatch.setattr(execution, "clean_connections", lambda: None)
        desk = HookedDesk(monkeypatch)
        Quarantine([desk.dispatcher], desk.clock)
        return desk

    def test_a_suspect_is_claimed_alone_and_read_again(self, desk: HookedDesk) -> None:
        key = uuid4()
        desk.serve = task_of(key)
        desk.deliver()
        desk.turn()
        (job,) = desk.jobs()
        thread = desk.thread(job)
        desk_key(desk)
        for claim in desk.writer.take(Claim):
            claim.answer({key: Verdict.SUSPECT})
        thread.join(5)
        desk.turn()
        (claim,) = desk.writer.take(Claim)
        assert (claim.ids, claim.alone) == ([key], True)
        claim.answer({key: claimed(key, claim.token)})
        desk.all()
        (finish,) = desk.write()
        assert finish.finished.token == claim.token
        assert desk.channel.acked == {1}

    def test_an_end_without_a_task_need_not_wait_until_it_is_alone(self, desk: HookedDesk) -> None:
        """Nothing is going to run that could cost this process."""
        key = uuid4()

        def handled(serving: Any) -> Served:
            assert serving.claim(key, True) is not None
            return Served(Outcome.RAN, Result(kind=Kind.COMPLETED, started=1.0, ended=1.0))

        desk.serve = handled
        desk.deliver()
        desk.turn()
        (job,) = desk.jobs()
        thread = desk.thread(job)
        desk_key(desk)
        (claim,) = (op for op in desk.writer.operations if isinstance(op, Claim))
        assert claim.alone
        desk.end(thread)


class TestHooksAndStop:
    @pytest.fixture
    def desk(self, monkeypatch: pytest.MonkeyPatch) -> HookedDesk:
        monkeypatch.setattr(execution, "clean_connections", lambda: None)
        return HookedDesk(monkeypatch)

    def begin(self, desk: HookedDesk, ended: bool = False) -> tuple[threading.Thread, UUID]:
        """A hook is at work; it claims when the test lets it go."""
        self.go = threading.Event()
        self.inside = threading.Event()
        key = uuid4()

        def serve(serving: Any) -> Served:
            self.inside.set()
            self.go.wait(10)
            if serving.claim(key, ended) is None:
                return Served(Outcome.ELSEWHERE)
            return Served(Outcome.RAN, Result(kind=Kind.COMPLETED, started=1.0, ended=1.0))

        desk.serve = serve
        desk.deliver()
        desk.turn()
        (job,) = desk.jobs()
        thread = desk.thread(job)
        assert self.inside.wait(5)
        return thread, key

    def test_a_message_that_no_thread_has_begun_goes_back(self, desk: HookedDesk) -> None:
        desk.deliver()
        desk.turn()
        desk.dispatcher.stop_claiming()
        desk.turn()
        assert desk.channel.requeued == {1}
        assert desk.dispatcher.running == 0

    def test_a_hook_that_is_at_work_starts_no_task_any_more(self, desk: HookedDesk) -> None:
        thread, _ = self.begin(desk)
        desk.dispatcher.stop_claiming()
        assert desk.dispatcher.running == 1, "the stop waits for it"
        self.go.set()
        desk.end(thread)
        assert desk.channel.requeued == {1}
        assert desk.writer.operations == []
        assert desk.dispatcher.running == 0

    def test_a_claim_that_is_answered_afterwards_is_released(self, desk: HookedDesk) -> None:
        thread, key = self.begin(desk)
        self.go.set()
        desk_key(desk)
        desk.dispatcher.stop_claiming()
        desk.end(thread)
        (finish,) = desk.write()
        assert (finish.finished.uuid, finish.finished.result) == (key, Result(kind=Kind.RELEASED))
        assert desk.channel.acked == {1}
        assert desk.dispatcher.running == 0

    def test_what_a_hook_has_done_is_written_all_the_same(self, desk: HookedDesk) -> None:
        """It has handled the message by itself: done again it would have twice the effect."""
        thread, _ = self.begin(desk, ended=True)
        desk.dispatcher.stop_claiming()
        self.go.set()
        desk.end(thread)
        (finish,) = desk.write()
        assert finish.finished.result.kind is Kind.COMPLETED
        assert desk.channel.acked == {1}

    def test_a_hook_that_does_not_return_is_left_at_the_deadline(self, desk: HookedDesk) -> None:
        thread, _ = self.begin(desk, ended=True)
        desk.dispatcher.stop_claiming()
        assert desk.dispatcher.release_running() == 0
        desk.dispatcher.stop_threads()
        desk.channel.is_open = False
        self.go.set()
        desk.end(thread)
        assert desk.writer.operations == [], "the writer has ended, it would not answer"
        assert desk.channel.frames == []
