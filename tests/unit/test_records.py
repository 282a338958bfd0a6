# SPDX-License-Identifier: Apache-2.0
"""Changes of state: conditional, fenced by a token, repeatable; a final row never changes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db.models.functions import Now

from carrot_twisted import helper_tasks, outbox, processes, records
from carrot_twisted.identities import new_token
from carrot_twisted.models import Attempt, MessageLog, Worker
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimant, Claimed, Finished

pytestmark = pytest.mark.django_db

ME = Claimant(worker="me", lease=10.0, max_crashes=5, alone=False, judges=True)
OTHER = replace(ME, worker="other")
#: Nothing else runs in this process.
ALONE = replace(ME, alone=True)
#: A worker that has not kept its own lease for long enough to judge those of others.
NEW = replace(ME, worker="new", judges=False)
DONE = Result(kind=Kind.COMPLETED, output="42", log="a line", started=1000.0, ended=1002.5)
BROKEN = Result(
    kind=Kind.FAILED, exception="no", traceback="Trace", log="a line", started=1000.0, ended=1001.0
)
SPOILED = Result(kind=Kind.RELEASED, exception="locked", started=1000.0, ended=1001.0, delay=60.0)
FINAL = sorted(MessageLog.FINAL)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker is on another machine: only leases tell who lives."""
    monkeypatch.setattr(processes, "machine", lambda: "this boot")


def row(**fields: Any) -> UUID:
    pk: UUID = MessageLog.objects.create(task="app.work", queue="default", **fields).pk
    return pk


def running(worker: str = "other", token: int = 7, **fields: Any) -> UUID:
    return row(
        status="IN_PROGRESS", worker=worker, token=token, attempts=1, start_time=Now(), **fields
    )


def worker(name: str, silent: float = 0.0, **fields: Any) -> Worker:
    """A worker whose last heartbeat was ``silent`` seconds ago."""
    values: dict[str, Any] = {"host": "h", "pid": 1, "version": "1", "queues": "default", **fields}
    return Worker.objects.create(
        name=name, heartbeat_at=Now() - timedelta(seconds=silent), **values
    )


def state(pk: UUID) -> dict[str, Any]:
    """All fields of a row."""
    return dict(MessageLog.objects.filter(pk=pk).values().get())


def claim_one(pk: UUID, token: int = 1, claimant: Claimant = ME) -> Any:
    (verdict,) = records.claim([pk], token, claimant, "default").values()
    return verdict


def finish_one(pk: UUID, token: int, result: Result, offset: float = 0.0) -> int:
    return records.finish([Finished(uuid=pk, token=token, result=result)], offset, "default")


class TestClaim:
    def test_takes_a_published_row_and_says_what_to_run(self) -> None:
        pk = row(task_args="[1]", content='{"a": 2}')
        taken = claim_one(pk, token=9)
        assert isinstance(taken, Claimed)
        published = state(pk)["publish_time"].timestamp()
        assert taken.published == pytest.approx(published, abs=0.002)
        assert taken == Claimed(
            uuid=pk,
            token=9,
            task="app.work",
            task_args="[1]",
            content='{"a": 2}',
            queue="default",
            attempt=1,
            published=taken.published,
        )
        got = state(pk)
        assert (got["status"], got["worker"], got["token"]) == ("IN_PROGRESS", "me", 9)
        assert (got["attempts"], got["crashes"]) == (1, 0)
        assert got["start_time"] is not None

    def test_answers_for_each_of_a_batch(self) -> None:
        worker("other")
        rows = {row(): Claimed, row(): Claimed}
        verdicts = {
            uuid4(): Verdict.MISSING,
            row(status="COMPLETED"): Verdict.FINAL,
            row(status="CANCELLED"): Verdict.FINAL,
            running(): Verdict.ELSEWHERE,
        }
        answers = records.claim([*rows, *verdicts], 1, ME, "default")
        assert answers.keys() == {*rows, *verdicts}
        assert all(isinstance(answers[pk], Claimed) for pk in rows)
        assert {pk: answers[pk] for pk in verdicts} == verdicts

    def test_rows_of_barred_queues_are_as_if_they_were_not_there(self) -> None:
        rows = [row(), running("gone"), row(status="COMPLETED"), row(crashes=4)]
        before = [state(pk) for pk in rows]
        mine: UUID = MessageLog.objects.create(task="app.work", queue="mine").pk
        answers = records.claim([mine, *rows], 1, ME, "default", ["default", "other"])
        assert isinstance(answers.pop(mine), Claimed)
        assert answers == dict.fromkeys(rows, Verdict.MISSING)
        assert [state(pk) for pk in rows] == before

    def test_leaves_all_other_rows_alone(self) -> None:
        other = row()
        before = state(other)
        claim_one(row())
        assert state(other) == before

    @pytest.mark.defect(9)
    def test_a_second_claimant_gets_nothing(self) -> None:
        worker("me")
        pk = row()
        claim_one(pk, token=1)
        taken = state(pk)
        assert claim_one(pk, token=2, claimant=NEW) is Verdict.ELSEWHERE
        assert state(pk) == taken

    def test_repeated_with_the_same_token_finds_its_work_done(self) -> None:
        """The answer to the first COMMIT was lost: it may have happened or not."""
        pk = row()
        first = claim_one(pk, token=3)
        taken = state(pk)
        again = claim_one(pk, token=3)
        assert isinstance(first, Claimed)
        assert isinstance(again, Claimed)
        # Read in another way, it is more exact.
        assert again.published == pytest.approx(first.published, abs=0.001)
        assert replace(again, published=first.published) == first
        assert state(pk) == taken

    @pytest.mark.parametrize("status", FINAL)
    def test_a_final_row_never_changes(self, status: str) -> None:
        pk = row(status=status, worker="gone", token=5)
        before = state(pk)
        assert claim_one(pk) is Verdict.FINAL
        assert claim_one(pk, token=5) is Verdict.FINAL
        assert state(pk) == before


class TestTakeover:
    def test_a_row_whose_worker_is_unknown_is_taken_over_and_counts_as_a_crash(self) -> None:
        pk = running("forgotten")
        claimed = claim_one(pk, token=2)
        assert isinstance(claimed, Claimed)
        assert (claimed.token, claimed.attempt) == (2, 2)
        got = state(pk)
        assert (got["worker"], got["token"], got["crashes"]) == ("me", 2, 1)

    def test_a_worker_whose_lease_has_ended_is_dead(self) -> None:
        worker("me")
        worker("other", silent=11)
        assert isinstance(claim_one(running()), Claimed)

    def test_a_worker_with_a_fresh_lease_keeps_its_row(self) -> None:
        worker("other", silent=9)
        pk = running()
        before = state(pk)
        assert claim_one(pk) is Verdict.ELSEWHERE
        assert state(pk) == before

    def test_who_may_not_judge_leaves_a_stale_lease_alone(self) -> None:
        """After an outage of the database everybody's lease looks dead."""
        worker("other", silent=1000)
        assert claim_one(running(), claimant=NEW) is Verdict.ELSEWHERE

    @pytest.mark.parametrize("silent", [6, 1000])
    def test_who_is_late_itself_leaves_a_stale_lease_alone(self, silent: int) -> None:
        """A frozen database answers what waited for it before anybody can renew a lease."""
        worker("me", silent=silent)
        worker("other", silent=12)
        pk = running()
        assert claim_one(pk) is Verdict.ELSEWHERE
        assert records.reap(ME, "default") == 0
        assert state(pk)["token"] == 7

    def test_its_own_row_of_another_run_counts_as_lost(self) -> None:
        """The caller asks only for what it is not running."""
        worker("me")
        pk = running("me", token=7)
        claimed = claim_one(pk, token=8)
        assert isinstance(claimed, Claimed)
        assert claimed.token == 8

    def test_its_own_row_that_it_runs_is_not_taken_from_itself(self) -> None:
        """Its message came by two queues of one service; the task would run twice at once."""
        worker("me")
        pk = running("me", token=7)
        knows = replace(ME, runs=lambda key, token: (key, token) == (pk, 7))
        assert claim_one(pk, token=8, claimant=knows) is Verdict.ELSEWHERE
        assert (state(pk)["token"], state(pk)["crashes"]) == (7, 0)

    def test_a_row_without_a_token_is_taken_over_as_well(self) -> None:
        """Another program may have set IN_PROGRESS by hand."""
        assert isinstance(claim_one(running("gone", token=None)), Claimed)  # type: ignore[arg-type]

    def test_the_loser_of_a_takeover_can_no_longer_finish(self) -> None:
        pk = running("gone", token=7)
        claim_one(pk, token=8)
        assert finish_one(pk, 7, DONE) == 0
        assert finish_one(pk, 8, DONE) == 1

    def test_the_last_crash_allowed_makes_it_failed(self) -> None:
        pk = running("gone", crashes=4)
        assert claim_one(pk) is Verdict.LOST
        got = state(pk)
        assert (got["status"], got["crashes"]) == ("FAILED", 5)
        assert got["exception"] == "worker lost 5 times"
        assert got["failure_time"] is not None

    def test_one_crash_less_lets_it_run_again(self) -> None:
        pk = running("gone", crashes=3)
        assert claim_one(pk) is Verdict.SUSPECT
        assert isinstance(claim_one(pk, claimant=ALONE), Claimed)
        assert state(pk)["crashes"] == 4

    def test_max_crashes_one_fails_at_the_first(self) -> None:
        strict = replace(ME, max_crashes=1)
        assert claim_one(running("gone"), claimant=strict) is Verdict.LOST


class TestSuspects:
    """From the second lost worker on a row runs alone, so that its neighbours are not blamed."""

    def test_after_one_crash_a_row_still_runs_with_others(self) -> None:
        assert isinstance(claim_one(row(crashes=1)), Claimed)

    def test_after_two_it_is_left_until_nothing_else_runs(self) -> None:
        pk = row(crashes=2)
        before = state(pk)
        assert claim_one(pk) is Verdict.SUSPECT
        assert state(pk) == before
        assert isinstance(claim_one(pk, claimant=ALONE), Claimed)

    def test_the_second_loss_makes_it_a_suspect_that_anybody_may_claim_alone(self) -> None:
        pk = running("gone", token=7, crashes=1)
        assert claim_one(pk) is Verdict.SUSPECT
        got = state(pk)
        assert (got["status"], got["crashes"], got["token"]) == ("PUBLISHED", 2, None)
        assert finish_one(pk, 7, DONE) == 0
        assert isinstance(claim_one(pk, claimant=ALONE), Claimed)

    def test_a_suspect_does_not_hold_up_the_rest_of_its_batch(self) -> None:
        suspect, fine = row(crashes=2), row()
        answers = records.claim([suspect, fine], 1, ME, "default")
        assert answers[suspect] is Verdict.SUSPECT
        assert isinstance(answers[fine], Claimed)

    @pytest.mark.parametrize("crashes", [5, 6])
    def test_a_row_with_more_crashes_than_allowed_comes_to_an_end(self, crashes: int) -> None:
        """The setting was lowered meanwhile. Not a suspect for ever: that would be a busy loop."""
        pk = row(crashes=crashes)
        assert claim_one(pk, claimant=ALONE) is not Verdict.SUSPECT
        assert state(pk)["status"] in ("FAILED", "IN_PROGRESS")


class TestOnThisMachine:
    """Where processes can be seen, nobody has to wait for a lease."""

    def test_a_worker_whose_process_is_gone_is_dead_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "start_of", lambda pid: "")
        worker("other", machine="this boot", pid=5, process_start="100")
        assert isinstance(claim_one(running(), claimant=NEW), Claimed)

    def test_a_later_process_with_its_number_is_another_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "start_of", {5: "999"}.__getitem__)
        worker("other", machine="this boot", pid=5, process_start="100")
        assert isinstance(claim_one(running()), Claimed)

    def test_a_process_that_is_there_lives_however_stale_its_lease(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "start_of", {5: "100"}.__getitem__)
        worker("other", silent=1000, machine="this boot", pid=5, process_start="100")
        assert claim_one(running()) is Verdict.ELSEWHERE

    def test_where_machines_are_unknown_the_lease_alone_decides(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "machine", lambda: "")
        monkeypatch.setattr(processes, "start_of", lambda pid: "")
        worker("other", machine="", process_start="")
        assert claim_one(running()) is Verdict.ELSEWHERE


class TestFinish:
    def test_completed_holds_output_log_and_times(self) -> None:
        pk = running("me", token=1)
        assert finish_one(pk, 1, DONE) == 1
        got = MessageLog.objects.get(pk=pk)
        assert (got.status, got.output, got.log) == ("COMPLETED", "42", "a line")
        assert (got.exception, got.traceback, got.failure_time) == (None, None, None)
        assert got.start_time is not None
        assert got.start_time.timestamp() == 1000.0
        assert got.completion_time is not None
        assert got.completion_time.timestamp() == 1002.5

    def test_failed_holds_exception_traceback_log_and_times(self) -> None:
        pk = running("me", token=1)
        assert finish_one(pk, 1, BROKEN) == 1
        got = MessageLog.objects.get(pk=pk)
        assert (got.status, got.exception, got.traceback) == ("FAILED", "no", "Trace")
        assert (got.output, got.completion_time) == (None, None)
        assert got.failure_time is not None
        assert got.failure_time.timestamp() == 1001.0

    @pytest.mark.parametrize(
        "text", ["", "NULL", '"', "\\", '\\"', "{a,b}", " , ", "a\n\tb'", "\u00e9\u20ac", "%s"]
    )
    def test_texts_are_kept_as_they_are(self, text: str) -> None:
        """PostgreSQL gets them in arrays, which have a syntax of their own."""
        pks = [running("me", token=1), running("me", token=1)]
        result = replace(DONE, output=text, log=None)
        runs = [Finished(uuid=pk, token=1, result=result) for pk in pks]
        assert records.finish(runs, 0.0, "default") == 2
        assert [(state(pk)["output"], state(pk)["log"]) for pk in pks] == [(text, None)] * 2

    def test_times_are_shifted_to_the_databases_clock(self) -> None:
        pk = running("me", token=1)
        finish_one(pk, 1, DONE, offset=-100.0)
        got = MessageLog.objects.get(pk=pk)
        assert got.start_time is not None
        assert got.start_time.timestamp() == 900.0
        assert got.completion_time is not None
        assert got.completion_time.timestamp() == 902.5

    @pytest.mark.parametrize("result", [DONE, BROKEN, SPOILED], ids=lambda r: r.kind.name)
    def test_another_token_changes_nothing(self, result: Result) -> None:
        pk = running(token=2)
        before = state(pk)
        assert finish_one(pk, 1, result) == 0
        assert state(pk) == before

    @pytest.mark.parametrize("result", [DONE, BROKEN, SPOILED], ids=lambda r: r.kind.name)
    @pytest.mark.parametrize("status", [*FINAL, "PUBLISHED"])
    def test_only_a_row_in_progress_is_finished(self, status: str, result: Result) -> None:
        pk = row(status=status, token=1)
        before = state(pk)
        assert finish_one(pk, 1, result) == 0
        got = state(pk)
        if status == "PUBLISHED":
            # See test_whose_message_it_may_have_swallowed_gets_another.
            got |= {key: before[key] for key in ("token", "relay_at")}
        assert got == before

    @pytest.mark.parametrize("result", [DONE, BROKEN, SPOILED], ids=lambda r: r.kind.name)
    def test_repeated_it_does_no_harm(self, result: Result) -> None:
        pk = running("me", token=1)
        finish_one(pk, 1, result)
        before = state(pk)
        assert finish_one(pk, 1, result) == 0
        assert state(pk) == before

    @pytest.mark.defect(8)
    def test_a_row_that_was_deleted_is_not_brought_back(self) -> None:
        assert finish_one(uuid4(), 1, DONE) == 0
        assert not MessageLog.objects.exists()

    def test_a_batch_of_every_kind_is_counted_and_each_gets_its_own_values(self) -> None:
        pks = [running("me", token=n) for n in range(5)]
        results = [DONE, BROKEN, SPOILED, Result(kind=Kind.COMPLETED, output="other"), DONE]
        runs = [
            Finished(uuid=pk, token=n if n < 4 else 99, result=result)
            for n, (pk, result) in enumerate(zip(pks, results, strict=True))
        ]
        assert records.finish(runs, 0.0, "default") == 4
        assert [(state(pk)["status"], state(pk)["output"]) for pk in pks] == [
            ("COMPLETED", "42"),
            ("FAILED", None),
            ("PUBLISHED", None),
            ("COMPLETED", "other"),
            ("IN_PROGRESS", None),
        ]


class TestRelease:
    def test_puts_the_row_back_into_the_outbox_for_later(self) -> None:
        pk = running("me", token=1, confirmed_at=Now())
        assert finish_one(pk, 1, SPOILED) == 1
        got = state(pk)
        assert (got["status"], got["token"], got["confirmed_at"]) == ("PUBLISHED", None, None)
        assert (got["attempts"], got["crashes"], got["exception"]) == (1, 0, "locked")
        assert outbox.take_unsent(["default"], 10, "default") == []

    def test_without_delay_a_relay_takes_it_at_once(self) -> None:
        pk = running("me", token=1)
        finish_one(pk, 1, Result(kind=Kind.RELEASED, started=1.0))
        assert [r.pk for r in outbox.take_unsent(["default"], 10, "default")] == [pk]

    def test_what_had_not_begun_does_not_count_as_an_attempt(self) -> None:
        pk = row()
        claim_one(pk, token=1)
        finish_one(pk, 1, Result(kind=Kind.RELEASED))
        assert state(pk)["attempts"] == 0


REQUEST = {"by": "ann", "reason": "", "cooperative": False, "at": ""}


class TestCancelled:
    """Of whom that was asked, the end is the end: nobody runs it again."""

    @pytest.mark.parametrize(
        "result",
        [SPOILED, replace(SPOILED, kind=Kind.RETRY), Result(kind=Kind.RELEASED)],
        ids=["released", "retry", "not begun"],
    )
    def test_it_is_not_put_back_into_the_outbox(self, result: Result) -> None:
        pk = running("me", token=1, cancel_request=REQUEST)
        other = running("me", token=2)
        assert finish_one(pk, 1, result) == 1
        finish_one(other, 2, result)
        got = state(pk)
        assert (got["status"], got["token"]) == ("CANCELLED", None)
        assert got["completion_time"] is not None
        assert state(other)["status"] == "PUBLISHED"
        assert state(other)["completion_time"] is None
        assert claim_one(pk) is Verdict.FINAL

    def test_a_dead_workers_is_not_taken_over(self) -> None:
        pk = running("gone", cancel_request=REQUEST)
        assert claim_one(pk) is Verdict.FINAL
        got = state(pk)
        assert (got["status"], got["crashes"]) == ("CANCELLED", 0)
        assert got["exception"] == "cancelled; its worker was lost before it had ended"
        assert finish_one(pk, 7, DONE) == 0

    def test_nor_is_it_reaped_to_run_again(self) -> None:
        worker("me")
        pk, other = running("gone", cancel_request=REQUEST), running("gone")
        assert records.reap(ME, "default") == 2
        assert (state(pk)["status"], state(other)["status"]) == ("CANCELLED", "PUBLISHED")

    @pytest.mark.parametrize("result", [DONE, BROKEN])
    def test_another_end_stands(self, result: Result) -> None:
        pk = running("me", token=1, cancel_request=REQUEST)
        finish_one(pk, 1, result)
        assert state(pk)["status"] == result.kind.value
        assert state(pk)["cancel_request"] == REQUEST

    def test_its_end_is_told(self) -> None:
        pk = running("me", token=1, cancel_request=REQUEST)
        finish_one(pk, 1, replace(BROKEN, kind=Kind.CANCELLED))
        got = state(pk)
        assert (got["status"], got["exception"], got["log"]) == ("CANCELLED", "no", "a line")
        assert (got["completion_time"] is None, got["failure_time"]) == (False, None)


class TestProgress:
    def test_it_is_kept_at_the_end_and_forgotten_with_the_next_attempt(self) -> None:
        pk, other = running("me", token=1), running("me", token=2)
        told = {"done": 1, "total": 3, "text": "é"}
        results = [replace(SPOILED, progress=json.dumps(told), delay=0.0), DONE]
        ends = zip((pk, other), (1, 2), results, strict=True)
        records.finish([Finished(uuid=u, token=t, result=r) for u, t, r in ends], 0.0, "default")
        assert (state(pk)["progress"], state(other)["progress"]) == (told, None)
        claim_one(pk)
        assert state(pk)["progress"] is None

    def test_it_is_written_while_the_run_goes_on(self) -> None:
        pk, locked = running("me", token=1), running("me", token=2)
        told = [(pk, 1, "a line", '{"done": 1}'), (locked, 9, "a line", '{"done": 1}')]
        assert records.log(told, "default") == {pk}
        assert (state(pk)["progress"], state(pk)["log"]) == ({"done": 1}, "a line")
        assert state(locked)["progress"] is None


class TestReap:
    def test_rows_of_dead_workers_return_to_the_outbox(self) -> None:
        worker("me")
        worker("dead", silent=11)
        worker("living", silent=9)
        lost, unknown, kept = running("dead"), running("never known"), running("living")
        before = state(kept)
        assert records.reap(ME, "default") == 2
        for pk in (lost, unknown):
            got = state(pk)
            assert (got["status"], got["token"], got["confirmed_at"]) == ("PUBLISHED", None, None)
            assert (got["attempts"], got["crashes"]) == (1, 1)
        assert state(kept) == before
        assert {r.pk for r in outbox.take_unsent(["default"], 10, "default")} == {lost, unknown}

    def test_dead_workers_are_forgotten_also_without_rows(self) -> None:
        for name, silent in (("me", 0), ("dead", 11), ("living", 9)):
            worker(name, silent=silent)
        assert records.reap(ME, "default") == 0
        assert set(Worker.objects.values_list("name", flat=True)) == {"me", "living"}

    def test_never_touches_its_own_rows(self) -> None:
        """Also when its own lease has run out: it is this very process that asks."""
        worker("me", silent=100)
        pk = running("me")
        before = state(pk)
        assert records.reap(ME, "default") == 0
        assert state(pk) == before
        assert Worker.objects.filter(name="me").exists()

    def test_who_may_not_judge_reaps_only_the_rows_of_unknown_workers(self) -> None:
        worker("silent", silent=1000)
        pk = running("silent")
        unknown = running("never known")
        assert records.reap(NEW, "default") == 1
        assert state(pk)["status"] == "IN_PROGRESS"
        assert state(unknown)["status"] == "PUBLISHED"

    def test_too_many_crashes_make_it_failed(self) -> None:
        pk = running("dead", crashes=4)
        assert records.reap(ME, "default") == 1
        got = state(pk)
        assert (got["status"], got["crashes"]) == ("FAILED", 5)
        assert got["exception"] == "worker lost 5 times"

    def test_rows_that_are_not_in_progress_are_left_alone(self) -> None:
        pks = [row(status=status, worker="dead") for status in ("PUBLISHED", *FINAL)]
        before = [state(pk) for pk in pks]
        assert records.reap(ME, "default") == 0
        assert [state(pk) for pk in pks] == before

    def test_what_a_dead_worker_finishes_after_all_is_not_written(self) -> None:
        pk = running("dead", token=7)
        records.reap(ME, "default")
        assert finish_one(pk, 7, DONE) == 0
        assert state(pk)["status"] == "PUBLISHED"

    @pytest.mark.parametrize("result", [DONE, SPOILED])
    def test_whose_message_it_may_have_swallowed_gets_another(self, result: Result) -> None:
        """The worker was not dead, just slow: what is sent again may come to itself."""
        pk, released = running("slow", token=7), running("slow", token=8)
        worker("slow", silent=11)
        worker("me")
        assert records.reap(ME, "default") == 2
        (sent,) = outbox.take_unsent(["default"], 1, "default")
        other = ({pk, released} - {sent.pk}).pop()
        ((post,),) = outbox.posts([sent]).values()
        outbox.note_confirmed([post], "default")
        before = state(other)
        for key, token in ((pk, 7), (released, 8)):
            assert finish_one(key, token, result) == 0
        got = state(sent.pk)
        assert (got["status"], got["confirmed_at"], got["output"]) == ("PUBLISHED", None, None)
        assert state(other) == before
        again = outbox.take_unsent(["default"], 2, "default")
        assert {row.pk for row in again} == {pk, released}


def attempts(pk: UUID) -> list[dict[str, Any]]:
    """What is kept of a task's attempts, but for their times."""
    fields = ("number", "worker", "outcome", "exception", "log")
    return list(Attempt.objects.filter(message=pk).values(*fields))


class TestAttempts:
    """What is kept of those that did not end their tasks."""

    def test_a_task_that_ends_at_its_first_attempt_costs_no_statement(
        self, django_assert_num_queries: Any
    ) -> None:
        pks = [row(), row()]
        with django_assert_num_queries(1):
            records.claim(pks, 1, ME, "default")
        ends = [
            Finished(uuid=pk, token=1, result=result)
            for pk, result in zip(pks, (DONE, BROKEN), strict=True)
        ]
        with django_assert_num_queries(1):
            assert records.finish(ends, 0.0, "default") == 2
        assert not Attempt.objects.exists()

    def test_a_release_is_kept_with_its_reason_and_the_end_of_its_log(self) -> None:
        stopped, spoiled = running("me", log="old"), running("me")
        begun = state(stopped)["start_time"]
        ends = [
            Finished(uuid=pk, token=7, result=result)
            for pk, result in (
                (stopped, Result(kind=Kind.RELEASED, started=1.0, log=f"{'a' * 9_999}bc")),
                (spoiled, replace(SPOILED, exception="x" * 2000)),
            )
        ]
        assert records.finish(ends, 0.0, "default") == 2
        given_back = {"number": 1, "worker": "me", "outcome": "RELEASED", "exception": None}
        assert attempts(stopped) == [{**given_back, "log": f"{'a' * 9_998}bc"}]
        assert attempts(spoiled) == [
            {**given_back, "outcome": "DATABASE", "exception": "x" * 1000, "log": ""}
        ]
        one = Attempt.objects.get(message=stopped)
        assert one.started == begun <= one.ended

    def test_what_had_not_begun_was_none(self) -> None:
        pk = running("me")
        finish_one(pk, 7, Result(kind=Kind.RELEASED))
        assert attempts(pk) == []

    @pytest.mark.parametrize("result", [DONE, SPOILED, Result(kind=Kind.RELEASED, started=1.0)])
    def test_who_comes_too_late_keeps_nothing(self, result: Result) -> None:
        pk = running("other")
        assert finish_one(pk, 8, result) == 0
        assert attempts(pk) == []

    def test_a_release_that_is_repeated_is_kept_once(self) -> None:
        pk = running("me")
        assert [finish_one(pk, 7, SPOILED), finish_one(pk, 7, SPOILED)] == [1, 0]
        assert len(attempts(pk)) == 1

    @pytest.mark.parametrize("crashes", [0, 1])
    def test_a_take_over_keeps_the_one_of_the_lost_worker(self, crashes: int) -> None:
        """Also where the row is to run alone then."""
        pk = running("dead", log="its last words", crashes=crashes)
        begun = state(pk)["start_time"]
        verdict = claim_one(pk, token=2)
        assert isinstance(verdict, Claimed) == (crashes == 0)
        lost = {"number": 1, "outcome": "LOST", "exception": None}
        assert attempts(pk) == [{**lost, "worker": "dead", "log": "its last words"}]
        assert Attempt.objects.get().started == begun
        # The answer was lost, and the batch is repeated.
        claim_one(pk, token=2)
        assert len(attempts(pk)) == 1

    def test_a_reaper_keeps_them_but_for_those_that_end_the_task(self) -> None:
        going_on, ended = running("dead"), running("dead", crashes=4)
        assert records.reap(ME, "default") == 2
        assert (state(going_on)["status"], state(ended)["status"]) == ("PUBLISHED", "FAILED")
        assert [one["outcome"] for one in attempts(going_on)] == ["LOST"]
        assert attempts(ended) == []

    def test_nor_does_the_last_take_over(self) -> None:
        pk = running("dead", crashes=4)
        assert claim_one(pk) is Verdict.LOST
        assert attempts(pk) == []

    def test_each_attempt_is_kept_up_to_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "MAX_ATTEMPTS", 2)
        pk = row()
        for token in (1, 2, 3):
            assert isinstance(claim_one(pk, token=token), Claimed)
            finish_one(pk, token, SPOILED)
        assert [one["number"] for one in attempts(pk)] == [1, 2]

    def test_they_go_when_their_rows_are_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(helper_tasks, "CHUNK", 2)
        kept = row()
        for message in (kept, *(uuid4() for _ in range(5))):
            Attempt.objects.create(message=message, number=1, worker="w", outcome="LOST", log="")
        assert helper_tasks.delete_old_statistics() == {
            **{"buckets": 0, "attempts": 5, "runs": 0, "flows": 0, "limits": 0}
        }
        assert Attempt.objects.get().message == kept


class TestLog:
    """What a task has logged so far, while it runs."""

    def test_only_its_own_run_writes_it_and_only_while_it_goes_on(self) -> None:
        mine, other, ended = running("me"), running("me"), row(status="COMPLETED", token=7)
        logs = [
            (mine, 7, "a", None),
            (other, 8, "b", None),
            (ended, 7, "c", None),
            (uuid4(), 7, "d", None),
        ]
        before = state(mine)
        assert records.log(logs, "default") == {mine}
        assert state(mine) == {**before, "log": "a"}
        assert (state(other)["log"], state(ended)["log"]) == (None, None)

    def test_a_new_attempt_begins_with_an_empty_one(self) -> None:
        released, lost = row(log="of the last one"), running("dead", log="of the last one")
        for pk in (released, lost):
            assert isinstance(claim_one(pk), Claimed)
            assert state(pk)["log"] is None

    def test_the_end_writes_it_anew(self) -> None:
        pk = running("me")
        records.log([(pk, 7, "so far", None)], "default")
        finish_one(pk, 7, DONE)
        assert state(pk)["log"] == "a line"


class TestHeartbeat:
    def unsaved(self) -> Worker:
        return Worker(name="me", host="h", pid=1, version="1", queues="default")

    def test_the_first_one_makes_a_worker_known(self) -> None:
        records.heartbeat(self.unsaved(), "default")
        assert records.dead_workers({"me", "unknown"}, OTHER, "default") == {"unknown"}

    def test_renews_the_lease_and_tells_the_databases_time(self) -> None:
        worker("other")
        old = worker("me", silent=100)
        assert records.dead_workers({"me"}, OTHER, "default") == {"me"}
        now, _ = records.heartbeat(old, "default")
        assert records.dead_workers({"me"}, OTHER, "default") == set()
        assert abs(now - time.time()) < 60

    def test_a_worker_that_another_one_forgot_is_made_known_anew(self) -> None:
        me = self.unsaved()
        records.heartbeat(me, "default")
        Worker.objects.all().delete()
        records.heartbeat(me, "default")
        records.heartbeat(me, "default")
        assert records.dead_workers({"me"}, OTHER, "default") == set()


def test_tokens_differ_and_fit_the_column() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(0 <= token < 2**63 for token in tokens)
