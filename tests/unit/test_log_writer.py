# SPDX-License-Identifier: Apache-2.0
"""Group commit: what is written together, and what happens when the database says no, or nothing.

The writer's loop runs in the test's own thread, until it has done all that was submitted.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    transaction,
)
from django.utils import timezone
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from carrot_twisted import (
    Concurrency,
    admission,
    outbox,
    records,
    statements,
    task_limits,
    task_options,
)
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.service import (
    availability,
    claim_transactions,
    persistence,
    record_transactions,
)
from carrot_twisted.service.log_writer import LogWriter
from carrot_twisted.service.operations import Claim, Confirmed, Entry, Finish, Lines
from tests.unit.test_outcomes import driver_error

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = OperationalError("connection refused")
AWAY.__cause__ = driver_error("OperationalError", "connection refused")
LOCKED = OperationalError("lock timeout")
LOCKED.__cause__ = driver_error("LockNotAvailable", sqlstate="55P03")
REFUSED = DataError("value too long")


class Reactor(Clock):
    """Keeps what threads hand over, until the test runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.handed_over: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def callFromThread(  # noqa: N802
        self, function: Callable[..., Any], *args: Any
    ) -> None:
        self.handed_over.append((function, args))

    def run(self) -> None:
        calls, self.handed_over = self.handed_over, []
        for function, args in calls:
            function(*args)


class Desk:
    """A writer, with what it told."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.told: list[str] = []
        self.answers: dict[UUID, Claimed | Verdict] = {}
        self.written: list[Any] = []
        #: Tokens of what runs in this process.
        self.runs: set[int | None] = set()
        self.writer = LogWriter(
            lambda alone: Claimant(
                worker="me",
                lease=10.0,
                max_crashes=5,
                alone=alone,
                judges=True,
                runs=lambda _key, token: token in self.runs,
            ),
            "default",
            self.reactor,
            away="is away, nothing new is started",
            on_away=lambda reason: self.told.append(f"away: {reason}"),
            on_back=lambda: self.told.append("back"),
            on_broken=lambda failure: self.told.append(f"broken: {failure.value}"),
        )

    def answer(self, verdicts: dict[UUID, Claimed | Verdict]) -> None:
        assert not connection.in_atomic_block, "answered before the commit"
        self.answers |= verdicts

    def claim(self, *ids: UUID, alone: bool = False) -> None:
        self.writer.submit(Claim(ids=list(ids), token=1, alone=alone, answer=self.answer))

    def finish(
        self, pk: UUID, job: Any = None, freed: tuple[str, str] | None = None, **result: Any
    ) -> None:
        values: dict[str, Any] = {"kind": Kind.COMPLETED, "started": 1.0, "ended": 2.0, **result}
        self.writer.submit(
            Finish(
                finished=Finished(uuid=pk, token=7, result=Result(**values)),
                job=job or pk,
                written=self.written.append,
                freed=freed,
            )
        )

    def enter(self, *rows: MessageLog) -> list[str | None]:
        """Have rows added; returns what is told of them."""
        told: list[str | None] = []
        for row in rows:
            self.writer.submit(Entry(row=partial(_same, row), done=told.append))
        return told

    def log(self, pk: UUID, text: str, token: int = 7) -> list[bool]:
        """Have a log written; returns what is told of that."""
        told: list[bool] = []
        self.writer.submit(
            Lines(uuid=pk, token=token, text=lambda: text, progress=None, done=told.append)
        )
        return told

    def listen(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Keep the lines of its log."""
        lines: list[str] = []
        for module in (availability, claim_transactions, persistence, record_transactions):
            for level in ("info", "warn", "error"):
                monkeypatch.setattr(
                    module._log, level, lambda text, **values: lines.append(text.format(**values))
                )
        return lines

    def work(self) -> None:
        """Let the writer do all that was submitted, then the reactor."""
        self.writer._inbox.put(None)
        self.writer._loop()
        self.reactor.run()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(persistence, "RETRY_FIRST", 1e-9)
    monkeypatch.setattr(persistence, "RETRY_LAST", 1e-9)
    return Desk()


def published(**fields: Any) -> UUID:
    pk: UUID = MessageLog.objects.create(task="app.work", queue="default", token=5, **fields).pk
    return pk


def running() -> UUID:
    pk = published(status="IN_PROGRESS", worker="me")
    MessageLog.objects.filter(pk=pk).update(token=7)
    return pk


def status(pk: UUID) -> str:
    return MessageLog.objects.values_list("status", flat=True).get(pk=pk)


class Failing:
    """Stands before a function and raises what it is told to, call by call."""

    def __init__(self, function: Callable[..., Any], *errors: BaseException | None) -> None:
        self.function = function
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return self.function(*args, **kwargs)


def refusing(bad: UUID, error: Exception, text: str | None = "bad") -> Callable[..., int]:
    """``records.finish`` on a database that refuses the texts of one row."""
    finish = records.finish

    def checked(runs: list[Finished], *args: Any) -> int:
        if any(run.uuid == bad and run.result.output == text for run in runs):
            raise error
        return finish(runs, *args)

    return checked


def _same(row: MessageLog) -> MessageLog:
    return row


def entry(**fields: Any) -> MessageLog:
    given = {"status": "COMPLETED", "task_args": "{}", "publish_time": timezone.now(), **fields}
    return MessageLog.new(task="app.handle", queue="mail", **given)


class TestItsSignsOfLife:
    """``silence``, by a clock that the test sets."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        return now

    def test_with_nothing_to_do_it_is_never_silent(self, desk: Desk, now: list[float]) -> None:
        assert desk.writer.silence == 0
        desk.enter(entry())
        desk.work()
        now[0] += 1000
        assert desk.writer.silence == 0

    def test_it_is_silent_since_the_database_was_asked(
        self, desk: Desk, now: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        silences = []

        def hang(*_: Any) -> None:
            now[0] += 100
            silences.append(desk.writer.silence)
            if len(silences) < 3:
                raise AWAY

        monkeypatch.setattr(records, "add", hang)
        desk.enter(entry())
        desk.work()
        # Each attempt is a sign.
        assert silences == [100, 100, 100]

    def test_it_is_silent_for_good_when_its_thread_has_ended_by_an_error(
        self, desk: Desk, now: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = RuntimeError("broken")
        monkeypatch.setattr(records, "add", Failing(records.add, error))
        monkeypatch.setattr(connection, "close", Failing(connection.close, error))
        desk.enter(entry())
        with pytest.raises(RuntimeError, match="broken"):
            desk.work()
        now[0] += 1000
        assert desk.writer.silence == 1000


class TestARowOfAHandledMessage:
    """It depends on the database, and nothing on it."""

    def test_it_is_written_with_the_batch(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commits = Failing(transaction.atomic)
        ending = running()
        monkeypatch.setattr(transaction, "atomic", commits)
        rows = [entry() for _ in range(3)]
        told = desk.enter(*rows)
        desk.finish(ending)
        desk.work()
        assert told == [None] * 3
        assert set(MessageLog.objects.values_list("pk", "status")) == {
            (ending, "COMPLETED"),
            *((row.pk, "COMPLETED") for row in rows),
        }
        # And a savepoint.
        assert commits.calls <= 2

    @pytest.mark.parametrize("error", [ValueError("no text"), SystemExit("a router's")])
    def test_an_error_that_is_no_databases_costs_the_rows_of_its_batch_only(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        monkeypatch.setattr(records, "add", Failing(records.add, error))
        told = desk.enter(entry())
        desk.work()
        later = desk.enter(entry())
        desk.work()
        assert (told, later) == ([str(error)], [None])
        assert desk.told == [f"broken: {error}"]

    def test_it_waits_for_a_database_that_is_away(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also one whose commit was done, and not answered: it is there once."""
        add = Failing(records.add, AWAY, AWAY, AWAY)
        monkeypatch.setattr(records, "add", add)
        row = entry()
        told = desk.enter(row)
        desk.work()
        assert (told, add.calls) == ([None], 4)
        assert desk.told[0].startswith("away")
        assert MessageLog.objects.get().pk == row.pk

    def test_one_that_others_hold_up_to_the_end_is_told_as_left_out(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "add", Failing(records.add, *[LOCKED] * 3))
        told = desk.enter(entry())
        desk.work()
        assert told == ["others' transactions were in the way to the end"]
        assert not MessageLog.objects.exists()

    def test_one_that_is_refused_keeps_nothing_else_from_being_written(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad, good, ending = entry(worker="bad"), entry(), running()
        add = records.add

        def refusing_add(rows: list[MessageLog], using: str) -> None:
            if bad in rows:
                raise REFUSED
            add(rows, using)

        monkeypatch.setattr(records, "add", refusing_add)
        told = desk.enter(bad, good)
        desk.finish(ending)
        desk.work()
        assert sorted(map(str, told)) == ["None", "value too long"]
        assert status(good.pk) == status(ending) == "COMPLETED"
        assert not MessageLog.objects.filter(pk=bad.pk).exists()
        assert desk.told == []


class TestABatch:
    def test_ends_and_confirms_share_one_transaction_after_that_of_the_claims(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting, ending, unsent = published(), running(), published()
        commits = Failing(transaction.atomic)
        monkeypatch.setattr(transaction, "atomic", commits)
        ((post,),) = outbox.posts([MessageLog.objects.get(pk=unsent)]).values()
        desk.claim(waiting)
        desk.finish(ending)
        desk.writer.submit(Confirmed(posts=[post]))
        desk.work()
        assert isinstance(desk.answers[waiting], Claimed)
        assert (status(waiting), status(ending)) == ("IN_PROGRESS", "COMPLETED")
        assert desk.written == [[ending]]
        assert [log.pk for log in MessageLog.objects.unsent()] == []
        # The confirms of SQLite are executed one by one, in a savepoint.
        assert commits.calls == (1 if connection.vendor == "postgresql" else 3)

    def test_the_ends_of_a_batch_wait_for_the_disk_once(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By one statement, or, where it takes one for each row, by a transaction around them."""
        execute_each = statements._execute_each
        are_atomic: list[bool] = []

        def watched(*args: Any) -> int:
            are_atomic.append(connection.in_atomic_block)
            return execute_each(*args)

        monkeypatch.setattr(statements, "_execute_each", watched)
        for _ in range(3):
            desk.finish(running())
        desk.work()
        assert [len(jobs) for jobs in desk.written] == [3]
        assert are_atomic == ([] if connection.vendor == "postgresql" else [True])

    def test_claims_that_came_meanwhile_share_one_statement(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take = Failing(records.take)
        monkeypatch.setattr(records, "take", take)
        mail, other = [published(), published()], [published(), uuid4()]
        answers: list[dict[UUID, Claimed | Verdict]] = []
        for token, ids in ((11, mail), (12, other)):
            desk.writer.submit(Claim(ids=ids, token=token, alone=False, answer=answers.append))
        desk.claim(lonely := published(crashes=3), alone=True)
        desk.work()
        assert [list(answer) for answer in answers] == [mail, other]
        assert isinstance(answers[1][other[0]], Claimed)
        assert answers[1][other[1]] is Verdict.MISSING
        assert isinstance(desk.answers[lonely], Claimed)
        assert take.calls == 2

    def test_of_two_messages_of_a_row_one_runs_it(self, desk: Desk) -> None:
        """They lie in two queues, whose dispatchers know nothing of each other."""
        pk, beside = published(), published()
        desk.runs = {11}
        answers: list[dict[UUID, Claimed | Verdict]] = []
        for token in (11, 12):
            claim = Claim(ids=[pk, beside], token=token, alone=False, answer=answers.append)
            desk.writer.submit(claim)
        desk.work()
        first, second = answers
        assert all(isinstance(first[key], Claimed) for key in (pk, beside))
        assert all(second[key] is Verdict.ELSEWHERE for key in (pk, beside))

    def test_the_owner_is_told_once_of_all_its_jobs_and_in_the_reactor(self, desk: Desk) -> None:
        rows = [running() for _ in range(3)]
        for number, pk in enumerate(rows):
            desk.finish(pk, job=f"job {number}")
        desk.writer._inbox.put(None)
        desk.writer._loop()
        assert desk.written == []
        desk.reactor.run()
        assert desk.written == [["job 0", "job 1", "job 2"]]

    def test_a_task_that_was_taken_over_meanwhile_is_told_as_written(self, desk: Desk) -> None:
        """Its message is to be acknowledged: the row is another worker's now."""
        pk = running()
        MessageLog.objects.update(token=8)
        desk.finish(pk)
        desk.work()
        assert desk.written == [[pk]]
        assert status(pk) == "IN_PROGRESS"

    def test_a_claim_alone_gets_a_row_that_has_cost_workers(self, desk: Desk) -> None:
        pk = published(crashes=3)
        desk.claim(pk)
        desk.work()
        assert desk.answers == {pk: Verdict.SUSPECT}
        desk.claim(pk, alone=True)
        desk.work()
        assert isinstance(desk.answers[pk], Claimed)

    def test_times_are_those_of_the_databases_clock(self, desk: Desk) -> None:
        pk = running()
        desk.writer.clock_offset = 100.0
        desk.finish(pk, started=1.0, ended=3.0)
        desk.work()
        got = MessageLog.objects.get(pk=pk)
        assert got.completion_time is not None
        assert got.completion_time.timestamp() == 103.0


class TestOutage:
    def test_the_batch_is_tried_again_until_it_is_written(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "finish", Failing(records.finish, *[AWAY] * 4))
        ending, waiting = running(), published()
        desk.finish(ending)
        desk.claim(waiting)
        desk.work()
        assert status(ending) == "COMPLETED"
        assert isinstance(desk.answers[waiting], Claimed)
        assert desk.told == ["away: connection refused", "back"]
        assert not desk.writer.away

    def test_one_connection_that_was_cut_is_no_outage(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "take", Failing(records.take, AWAY))
        pk = published()
        desk.claim(pk)
        desk.work()
        assert isinstance(desk.answers[pk], Claimed)
        assert desk.told == []

    def test_giving_up_ends_the_wait(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "finish", Failing(records.finish, *[AWAY] * 1000))
        pk = running()
        desk.finish(pk)
        desk.writer.give_up()
        desk.work()
        assert status(pk) == "IN_PROGRESS"
        assert desk.written == []

    def test_a_call_that_meets_an_outage_fails_and_the_service_is_told(self, desk: Desk) -> None:
        failures: list[Any] = []

        def call() -> None:
            raise AWAY

        desk.writer.call(call).addErrback(lambda failure: failures.append(failure.value))
        desk.work()
        assert failures == [AWAY]
        assert desk.writer.away
        desk.writer.call(lambda: None)
        desk.work()
        assert desk.told == ["away: connection refused", "back"]

    def test_a_call_with_nothing_to_do_begins_no_transaction(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: list[str] = []
        begin = desk.writer.transactions.begin

        def transaction() -> Any:
            begun.append("begun")
            return begin()

        monkeypatch.setattr(desk.writer.transactions, "begin", transaction)
        results: list[Any] = []
        desk.writer.call(lambda: 42, lambda: False).addCallback(results.append)
        desk.work()
        assert (results, begun) == ([None], [])
        desk.writer.call(lambda: 42, lambda: True).addCallback(results.append)
        desk.work()
        assert (results, begun) == ([None, 42], ["begun"])
        desk.writer.call(lambda: 42, Failing(bool, AWAY, AWAY)).addErrback(lambda _: None)
        desk.work()
        assert desk.writer.away

    def test_a_call_is_tried_again_at_once_where_just_its_connection_was_cut(
        self, desk: Desk
    ) -> None:
        results: list[Any] = []
        desk.writer.call(Failing(lambda: 42, AWAY)).addCallback(results.append)
        desk.work()
        assert results == [42]
        assert desk.told == []

    def test_a_damaged_file_is_waited_for_as_well(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody may put a backup in its place; ending the process would help nobody."""
        malformed = DatabaseError("database disk image is malformed")
        monkeypatch.setattr(records, "finish", Failing(records.finish, *[malformed] * 4))
        pk = running()
        desk.finish(pk)
        desk.work()
        assert status(pk) == "COMPLETED"
        assert desk.told == ["away: database disk image is malformed", "back"]

    def test_what_is_wrong_can_be_asked_for(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert desk.writer.problem is None
        problems: list[str | None] = []

        def asking(*args: Any) -> int:
            problems.append(desk.writer.problem)
            return int(finish(*args))

        finish = Failing(records.finish, *[AWAY] * 3)
        monkeypatch.setattr(records, "finish", asking)
        desk.finish(running())
        desk.work()
        assert problems == [
            None,
            None,
            "the database is away since 0 s: connection refused",
            "the database is away since 0 s: connection refused",
        ]
        assert desk.writer.problem is None

    def test_a_database_that_says_nothing_is_a_problem_after_some_seconds(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problems: list[str | None] = []

        def late() -> None:
            problems.append(desk.writer.problem)
            monkeypatch.setattr(availability, "SILENT", -1.0)
            problems.append(desk.writer.problem)

        desk.writer.call(late)
        desk.work()
        assert problems == [None, "the database has not answered for 0 s"]
        assert desk.writer.problem is None

    def test_an_outage_that_lasts_is_told_ever_more_rarely(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten minutes, with an attempt each second."""
        clock = Clock()
        monkeypatch.setattr(time, "monotonic", clock.seconds)
        desk = Desk()
        lines = desk.listen(monkeypatch)

        def call() -> None:
            clock.advance(0.5)
            raise AWAY

        for _ in range(600):
            desk.writer.call(call).addErrback(lambda _: None)
        desk.writer.call(int)
        desk.work()
        assert desk.told == ["away: connection refused", "back"]
        begin, *reminders, end = lines
        assert begin == "The database is away, nothing new is started: connection refused"
        assert len(reminders) == 3
        assert reminders[0].startswith("The database is still away: connection refused (for 60 s")
        assert end == "The database is back, again after 599.0 s"

    def test_one_that_comes_and_goes_each_moment_is_not_told_each_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A full disk refuses what is written, and answers what is asked."""
        clock = Clock()
        monkeypatch.setattr(time, "monotonic", clock.seconds)
        desk = Desk()
        lines = desk.listen(monkeypatch)
        for _ in range(600):
            desk.writer.call(Failing(int, AWAY, AWAY)).addErrback(lambda _: None)
            desk.writer.call(lambda: clock.advance(1.0))
        desk.work()
        assert desk.told == ["away: connection refused", "back"] * 600
        assert len(lines) == 2 * 4


class TestLocks:
    """Another transaction in the way is no outage: nothing pauses for it."""

    def test_a_call_that_met_one_fails_alone(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures: list[Any] = []
        lines = desk.listen(monkeypatch)
        desk.writer.call(Failing(int, *[LOCKED] * 2)).addErrback(
            lambda failure: failures.append(failure.value)
        )
        desk.work()
        assert failures == [LOCKED]
        assert desk.told == []
        assert desk.writer.problem is not None
        desk.writer.call(int)
        desk.work()
        assert desk.writer.problem is None
        assert lines == [
            "The database does not take everything: lock timeout",
            "The database takes everything, again after 0.0 s",
        ]

    def test_a_batch_that_met_one_is_repeated(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "finish", Failing(records.finish, LOCKED))
        rows = [running(), running()]
        for pk in rows:
            desk.finish(pk)
        desk.work()
        assert desk.told == []
        assert desk.written == [rows]

    def test_a_row_that_somebody_has_locked_holds_up_itself_alone(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        locked, *others = rows = [running() for _ in range(4)]
        waiting = published()
        finish = records.finish
        monkeypatch.setattr(records, "finish", refusing(locked, LOCKED, None))
        for pk in rows:
            desk.finish(pk)
        desk.claim(waiting)
        desk.work()
        assert [status(pk) for pk in others] == ["COMPLETED"] * 3
        assert isinstance(desk.answers[waiting], Claimed)
        assert status(locked) == "IN_PROGRESS"
        assert desk.told == []
        desk.writer.call(int)
        desk.work()
        problem = desk.writer.problem or ""
        assert problem.startswith("the database does not take everything since")

        monkeypatch.setattr(records, "finish", finish)
        desk.reactor.advance(persistence.ASIDE)
        desk.work()
        assert status(locked) == "COMPLETED"
        assert sorted(pk for jobs in desk.written for pk in jobs) == sorted(rows)
        assert desk.writer.problem is None

    def test_where_all_is_locked_the_writer_does_not_wait_for_each(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lock_timeout of seconds, times a thousand tasks: the lease would be lost."""
        finish = Failing(records.finish, *[LOCKED] * 4, None)
        monkeypatch.setattr(records, "finish", finish)
        rows = [running() for _ in range(100)]
        for pk in rows:
            desk.finish(pk)
        desk.work()
        assert finish.calls == 2 + persistence.MAX_LOCKED
        desk.reactor.advance(persistence.ASIDE)
        desk.work()
        assert {status(pk) for pk in rows} == {"COMPLETED"}


class TestRefusal:
    def test_one_row_that_is_refused_takes_nobody_with_it(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good, bad, other, waiting = running(), running(), running(), published()
        monkeypatch.setattr(records, "finish", refusing(bad, REFUSED))
        for pk in (good, bad, other):
            desk.finish(pk, output="bad" if pk == bad else "fine")
        desk.claim(waiting)
        desk.work()
        assert [status(pk) for pk in (good, bad, other)] == ["COMPLETED"] * 3
        assert isinstance(desk.answers[waiting], Claimed)
        assert sorted(pk for jobs in desk.written for pk in jobs) == sorted([good, bad, other])
        assert desk.told == []

    @pytest.mark.parametrize("kind", [Kind.COMPLETED, Kind.FAILED])
    def test_the_refused_row_says_that_its_texts_are_missing(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: Kind
    ) -> None:
        pk = running()
        monkeypatch.setattr(records, "finish", refusing(pk, REFUSED))
        desk.finish(pk, kind=kind, output="bad")
        desk.work()
        got = MessageLog.objects.get(pk=pk)
        assert got.status == kind.value
        note = "The result could not be stored: DataError"
        assert (got.output, got.exception) == (
            (note, None) if kind is Kind.COMPLETED else (None, note)
        )

    def test_it_is_told_in_one_line_without_what_is_in_the_row(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pk = running()
        words = "violates \x1b[31mcheck\r\nDETAIL:  Failing row contains (what nobody is to see)."
        monkeypatch.setattr(records, "finish", refusing(pk, IntegrityError(words)))
        lines = desk.listen(monkeypatch)
        desk.finish(pk, output="bad")
        desk.work()
        (line,) = lines
        assert line == (f"The database refuses the result of task {pk}: violates \\x1b[31mcheck\\r")

    def test_an_outage_in_the_middle_of_it_loses_no_claim(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A claim that is never answered would hold its place, and its message, for ever."""
        bad, waiting = running(), published()
        monkeypatch.setattr(records, "finish", refusing(bad, REFUSED))
        monkeypatch.setattr(records, "take", Failing(records.take, AWAY))
        desk.finish(bad, output="bad")
        desk.claim(waiting)
        desk.work()
        assert isinstance(desk.answers[waiting], Claimed)

    def test_a_claim_whose_answer_was_lost_is_found_again_by_itself(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Written together with another one, then one by one, for somebody holds a row."""
        first, second = published(), published()
        take = records.take

        def lossy(*args: Any) -> Any:
            taken = take(*args)
            if len(args[0]) == 2:
                raise LOCKED
            return taken

        monkeypatch.setattr(records, "take", lossy)
        for token, pk in ((11, first), (12, second)):
            desk.writer.submit(Claim(ids=[pk], token=token, alone=False, answer=desk.answer))
        desk.work()
        assert all(isinstance(desk.answers[pk], Claimed) for pk in (first, second))
        assert MessageLog.objects.get(pk=second).attempts == 1

    def test_nor_an_end(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        bad, good = running(), running()
        finish = Failing(refusing(bad, REFUSED), None, None, AWAY)
        monkeypatch.setattr(records, "finish", finish)
        desk.finish(bad, output="bad")
        desk.finish(good, output="fine")
        desk.work()
        assert MessageLog.objects.get(pk=good).output == "fine"
        assert sorted(pk for jobs in desk.written for pk in jobs) == sorted([good, bad])


class TestBroken:
    """An error that is no database's is ours: the process ends, and others run its tasks."""

    @pytest.mark.parametrize("kind", [KeyError, SystemExit])
    def test_it_is_told_in_the_reactor(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
    ) -> None:
        monkeypatch.setattr(records, "finish", Failing(records.finish, kind("our mistake")))
        pk = running()
        desk.finish(pk)
        desk.writer._inbox.put(None)
        desk.writer._loop()
        assert desk.told == []
        desk.reactor.run()
        (told,) = desk.told
        assert "our mistake" in told
        assert status(pk) == "IN_PROGRESS"

    def test_what_comes_later_is_written_all_the_same(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Until the process has ended."""
        monkeypatch.setattr(records, "finish", Failing(records.finish, KeyError()))
        first, second = running(), running()
        desk.finish(first)
        desk.work()
        desk.finish(second)
        desk.work()
        assert status(second) == "COMPLETED"


class TestCalls:
    def test_a_call_fires_with_its_result_in_the_reactor(self, desk: Desk) -> None:
        results: list[Any] = []
        desk.writer.call(MessageLog.objects.count).addCallback(results.append)
        desk.writer._inbox.put(None)
        desk.writer._loop()
        assert results == []
        desk.reactor.run()
        assert results == [0]

    @pytest.mark.parametrize("error", [KeyError("no"), SystemExit(1)])
    def test_a_call_that_fails_is_rolled_back_and_others_go_on(
        self, desk: Desk, error: BaseException
    ) -> None:
        pk, waiting = running(), published()
        failures: list[Any] = []

        def call() -> None:
            published(pk=uuid4())
            raise error

        desk.writer.call(call).addErrback(lambda failure: failures.append(failure.type))
        desk.finish(pk)
        desk.claim(waiting)
        desk.work()
        assert failures == [type(error)]
        assert MessageLog.objects.count() == 2
        assert status(pk) == "COMPLETED"
        assert isinstance(desk.answers[waiting], Claimed)


class TestEnd:
    """The thread is a Deferred here, which fires when all is written."""

    def end(self, desk: Desk) -> list[bool]:
        told: list[bool] = []
        desk.writer._stopped = Deferred()
        Deferred.fromCoroutine(desk.writer.end(3.0)).addCallback(told.append)
        return told

    def test_it_waits_until_all_is_written(self, desk: Desk) -> None:
        told = self.end(desk)
        desk.reactor.advance(2.9)
        assert told == []
        assert desk.writer._stopped is not None
        desk.writer._stopped.callback(None)
        assert told == [True]
        assert not desk.writer._persistence.given_up.is_set()

    def test_but_not_for_a_database_that_does_not_answer(self, desk: Desk) -> None:
        told = self.end(desk)
        desk.reactor.advance(3.0)
        assert told == [False]
        assert desk.writer._persistence.given_up.is_set()

    def test_nor_at_all_for_one_that_is_away(self, desk: Desk) -> None:
        desk.writer._availability._outage.failed("connection refused")
        self.end(desk)
        assert desk.writer._persistence.given_up.is_set()


class TestLogsOfRunningTasks:
    def test_they_are_written_with_the_rest_of_the_batch(self, desk: Desk) -> None:
        one, other, ended = running(), running(), running()
        told = [desk.log(one, "a"), desk.log(other, "b"), desk.log(ended, "so far")]
        desk.finish(ended, log="all")
        desk.work()
        assert told == [[True], [True], [False]]
        logs = dict(MessageLog.objects.values_list("pk", "log"))
        assert logs == {one: "a", other: "b", ended: "all"}

    def test_what_the_database_refuses_is_not_tried_again_and_harms_nobody(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = records.log

        def checked(logs: list[tuple[UUID, int, str, str | None]], using: str) -> set[UUID]:
            if any(text == "bad" for _, _, text, _ in logs):
                raise REFUSED
            return log(logs, using)

        monkeypatch.setattr(records, "log", checked)
        bad, good, ended = running(), running(), running()
        told = [desk.log(bad, "bad"), desk.log(good, "good")]
        desk.finish(ended)
        desk.work()
        assert told == [[True], [True]]
        assert dict(MessageLog.objects.values_list("pk", "log")) == {
            bad: None,
            good: "good",
            ended: "",
        }
        assert desk.told == []

    def test_they_are_told_when_the_database_is_back(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "log", Failing(records.log, AWAY, AWAY))
        pk = running()
        told = desk.log(pk, "a")
        desk.work()
        assert told == [True]
        assert MessageLog.objects.get().log == "a"


SLOT = "slot tests.project.limited.alone"


def limited_row(**fields: Any) -> UUID:
    pk = published(slot_key=SLOT, **fields)
    MessageLog.objects.filter(pk=pk).update(task="tests.project.limited.alone")
    return pk


class TestLimits:
    """Rows under limits take a transaction of their own, after that of all others."""

    @pytest.fixture
    def handed_over(self, desk: Desk) -> list[UUID]:
        found: list[UUID] = []
        desk.writer.admissions.hand_over = lambda rows: found.extend(one.uuid for one in rows)
        desk.writer.admissions.places = lambda ended: {"default": 0} | dict(ended)
        return found

    def test_each_of_a_batch_is_answered_once(self, desk: Desk, handed_over: list[UUID]) -> None:
        first, second, plain = limited_row(), limited_row(), published()
        desk.claim(first, second, plain)
        desk.work()
        kinds = {key: isinstance(one, Claimed) for key, one in desk.answers.items()}
        assert kinds == {first: True, second: False, plain: True}
        assert desk.answers[second] is Verdict.LIMITED
        assert handed_over == []

    def test_who_ends_a_run_hands_its_slot_on(self, desk: Desk, handed_over: list[UUID]) -> None:
        first, second, third = (limited_row() for _ in range(3))
        desk.claim(first, second, third)
        desk.work()
        run = desk.answers[first]
        assert isinstance(run, Claimed)
        end = Finished(uuid=first, token=run.token, result=Result(kind=Kind.COMPLETED, ended=1.0))
        desk.writer.submit(
            Finish(finished=end, job=None, written=desk.written.append, freed=(SLOT, "default"))
        )
        desk.work()
        assert handed_over == [second]
        assert (status(second), status(third)) == ("IN_PROGRESS", "PUBLISHED")

    @pytest.mark.parametrize("error", [AWAY, LOCKED])
    def test_what_cannot_be_written_is_tried_again_and_others_do_not_wait(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        admit = Failing(admission.admit, error, error, error)
        monkeypatch.setattr(admission, "admit", admit)
        first, second, plain = limited_row(), limited_row(), published()
        desk.claim(first)
        desk.claim(second, plain)
        desk.work()
        if error is LOCKED:
            assert list(desk.answers) == [plain]
            desk.reactor.advance(persistence.ASIDE)
            desk.work()
        assert desk.answers.keys() == {first, second, plain}
        started = [key for key, one in desk.answers.items() if isinstance(one, Claimed)]
        assert sorted(started) == sorted([first, plain])

    def test_a_commit_whose_answer_was_lost_is_found(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, handed_over: list[UUID]
    ) -> None:
        admit = admission.admit
        calls = []

        def lost(request: Any, *given: Any, **more: Any) -> Any:
            done = admit(request, *given, **more)
            calls.append(more)
            if len(calls) == 1:
                transaction.on_commit(fail)
            return done

        def fail() -> None:
            raise AWAY

        monkeypatch.setattr(admission, "admit", lost)
        first, second = limited_row(), limited_row()
        desk.claim(first, second)
        desk.work()
        assert [one["again"] for one in calls] == [False, True]
        assert isinstance(desk.answers[first], Claimed)
        assert desk.answers[second] is Verdict.LIMITED


def test_tasks_that_are_short_and_end_cost_two_statements_a_batch(desk: Desk) -> None:
    """One claims, one writes the ends: neither statistics, attempts nor logs add any."""
    waiting = [published() for _ in range(20)]
    ended = [running() for _ in range(20)]
    desk.claim(*waiting)
    for pk in ended:
        desk.finish(pk)
    assert [sql.split()[:2] for sql in statements_of(desk)] == [
        ["UPDATE", "carrot_twisted_messagelog"],
        ["UPDATE", "carrot_twisted_messagelog"],
    ]
    assert {status(pk) for pk in waiting} == {"IN_PROGRESS"}
    assert {status(pk) for pk in ended} == {"COMPLETED"}


def test_the_logs_of_those_that_go_on_cost_one_more_each(desk: Desk) -> None:
    """On SQLite; PostgreSQL takes all of them in one."""
    desk.finish(running())
    for _ in range(2):
        desk.log(running(), "a")
    assert len(statements_of(desk)) == 3


def test_those_under_limits_cost_five_a_batch_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at, locked, counted and claimed when they start, and locked when they end."""
    monkeypatch.setattr(task_options, "_with_two", set())
    monkeypatch.setitem(task_options._limits, task_limits.group_of(SLOT), Concurrency(50))
    waiting = [limited_row() for _ in range(20)]
    desk.claim(*waiting)
    told = [sql.split()[0] for sql in statements_of(desk)]
    assert told == ["UPDATE", "SELECT", "INSERT", "SELECT", "UPDATE"]
    assert {status(pk) for pk in waiting} == {"IN_PROGRESS"}
    for pk in waiting:
        MessageLog.objects.filter(pk=pk).update(token=7)
        desk.finish(pk, freed=(SLOT, "default"))
    assert [sql.split()[0] for sql in statements_of(desk)] == ["UPDATE", "INSERT"]


def statements_of(desk: Desk) -> list[str]:
    """Let the writer work; all that it executes, but for transactions."""
    statements: list[str] = []

    def keep(execute: Callable[..., Any], sql: str, *given: Any) -> Any:
        if not sql.startswith("BEGIN"):
            statements.append(sql)
        return execute(sql, *given)

    with connection.execute_wrapper(keep):
        desk.work()
    return statements
