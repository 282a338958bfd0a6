# SPDX-License-Identifier: Apache-2.0
"""Group commit: one thread with one database connection writes every claim and every outcome.

While one batch is being committed, the next one collects; an idle writer writes at once. So the
cost of a commit is shared by as many tasks as are under way, without any waiting time.

The database may go away at any line. The batch is kept and tried again until it is written; what
it does is repeatable (see ``records``). Meanwhile nothing new is claimed: the service pauses.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, connections, reset_queries, transaction
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from txaio.tx import make_logger

from carrot_twisted import failpoints, outbox, outcomes, records
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.service.pool import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from carrot_twisted.outbox import Post

_log = make_logger()

#: Operations that one transaction takes at most.
MAX_BATCH = 2000
#: Seconds between attempts while the database is away.
RETRY_FIRST = 0.25
RETRY_LAST = 5.0


@dataclass(slots=True, kw_only=True)
class Claim:
    """Ask for rows. ``answer`` is called on the writer's thread, after the commit."""

    ids: list[UUID]
    token: int
    alone: bool
    answer: Callable[[dict[UUID, Claimed | Verdict]], None]


@dataclass(slots=True, kw_only=True)
class Finish:
    """Write the end of a run. ``written`` is called in the reactor, once for a whole batch."""

    finished: Finished
    job: Any
    written: Callable[[list[Any]], None]


@dataclass(slots=True, kw_only=True)
class Confirmed:
    """Note that the broker holds these messages."""

    posts: list[Post]


@dataclass(slots=True, kw_only=True)
class Call:
    """Run ``function`` on the writer's thread, in a transaction of its own."""

    function: Callable[[], Any]
    result: Deferred[Any]


Operation = Claim | Finish | Confirmed | Call


class LogWriter:
    """The service's only way to the database, outside of the tasks themselves.

    Args:
        claimant: in whose name rows are claimed; asked with whether nothing else runs.
        using: database alias.
        reactor: Twisted's reactor.
        on_away: called in the reactor when the database stops answering, with the reason.
        on_back: called in the reactor when it answers again.
        on_broken: called in the reactor with an error that is no database's. The batch is not
            written; ending the process lets others run its tasks.
    """

    def __init__(
        self,
        claimant: Callable[[bool], Claimant],
        using: str,
        reactor: Any,
        on_away: Callable[[str], None],
        on_back: Callable[[], None],
        on_broken: Callable[[Failure], None],
    ) -> None:
        self._claimant = claimant
        self._using = using
        self._reactor = reactor
        self._on_away = on_away
        self._on_back = on_back
        self._on_broken = on_broken
        self._inbox: SimpleQueue[Operation | None] = SimpleQueue()
        self._thread = DaemonThreadPool(minthreads=0, maxthreads=1, name="carrot-log-writer")
        self._given_up = threading.Event()
        self._stopped: Deferred[None] | None = None
        self.clock_offset = 0.0
        """Seconds that the database's clock is ahead of this host's."""
        self.away = False
        """Whether the database did not answer the last time. Read from any thread."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._stopped = deferToThreadPool(self._reactor, self._thread, self._loop)

    def submit(self, operation: Operation) -> None:
        """Write this with the next batch. From any thread."""
        self._inbox.put(operation)

    def call(self, function: Callable[[], Any]) -> Deferred[Any]:
        """Run ``function`` on the writer's thread; fires with its result. From the reactor."""
        result: Deferred[Any] = Deferred()
        self.submit(Call(function=function, result=result))
        return result

    def stop(self) -> Deferred[None]:
        """End when all is written; fires then."""
        assert self._stopped is not None
        self._inbox.put(None)
        self._thread.adjustPoolsize(0, 0)
        return self._stopped

    def give_up(self) -> None:
        """Do not wait for a database that is away any longer. What is unwritten will run again."""
        self._given_up.set()

    def _loop(self) -> None:
        running = True
        while running:
            batch: list[Operation] = []
            operation = self._inbox.get()
            while True:
                if operation is None:
                    running = False
                    break
                batch.append(operation)
                if len(batch) >= MAX_BATCH:
                    break
                try:
                    operation = self._inbox.get_nowait()
                except Empty:
                    break
            try:
                self._process(batch)
            except Exception:
                connections[self._using].close()
                self._reactor.callFromThread(self._on_broken, Failure())
            reset_queries()
        connections.close_all()

    def _process(self, batch: Sequence[Operation]) -> None:
        if any(not isinstance(op, Call) for op in batch) and not self._persist(batch):
            return
        for operation in batch:
            if isinstance(operation, Call):
                self._run_call(operation)

    def _persist(self, batch: Sequence[Operation]) -> bool:
        """Write the batch, however long the database is away; False if that was given up."""
        delay = 0.0
        while True:
            try:
                tell = self._write(batch)
            except (DatabaseError, InterfaceError) as error:
                connections[self._using].close()
                if not _is_outage(error):
                    return self._persist_without(error, batch)
                if delay:
                    # A second failure: not just one connection that was cut.
                    self._set_away(error)
                if self._given_up.wait(delay) and delay:
                    _log.error("The database is away: {n} records are not written", n=len(batch))
                    return False
                delay = min(RETRY_LAST, delay * 2) or RETRY_FIRST
            else:
                # Not among what is tried again: who is told twice of a claim runs it twice.
                tell()
                self._set_back()
                return True

    def _write(self, batch: Sequence[Operation]) -> Callable[[], None]:
        """One transaction for everything but the calls.

        Returns:
            What tells those who wait for it.
        """
        finishes = [op for op in batch if isinstance(op, Finish)]
        claims = [op for op in batch if isinstance(op, Claim)]
        confirmed = [post for op in batch if isinstance(op, Confirmed) for post in op.posts]
        answers = []
        with transaction.atomic(using=self._using):
            if finishes:
                runs = [op.finished for op in finishes]
                changed = records.finish(runs, self.clock_offset, self._using)
                if changed < len(runs):
                    _log.warn(
                        "{n} of {all} ended tasks had been taken over or deleted meanwhile",
                        n=len(runs) - changed,
                        all=len(runs),
                    )
                failpoints.reached("before_finish_commit")
            for op in claims:
                claimant = self._claimant(op.alone)
                answers.append(records.claim(op.ids, op.token, claimant, self._using))
            if claims:
                failpoints.reached("before_claim_commit")
            if confirmed:
                outbox.note_confirmed(confirmed, self._using)
        if claims:
            failpoints.reached("after_claim_commit")
        if finishes:
            failpoints.reached("after_finish_before_ack")

        def tell() -> None:
            for op, answer in zip(claims, answers, strict=True):
                op.answer(answer)
            if finishes:
                self._reactor.callFromThread(_tell_written, finishes)

        return tell

    def _persist_without(self, error: Exception, batch: Sequence[Operation]) -> bool:
        """Something in the batch is refused for its content: find it, write it without that."""
        if len(batch) > 1:
            return all(self._persist([operation]) for operation in batch)
        (operation,) = batch
        if isinstance(operation, Finish) and operation.finished.result.log is not None:
            _log.error("The database refuses the result of a task: {error}", error=error)
            return self._persist([_without_texts(operation, error)])
        raise error

    def _run_call(self, call: Call) -> None:
        result: Any
        try:
            with transaction.atomic(using=self._using):
                result = call.function()
            self._set_back()
        except Exception as error:
            result = Failure()
            if isinstance(error, DatabaseError | InterfaceError):
                connections[self._using].close()
                if outcomes.blames_database(error) and not outcomes.is_conflict(error):
                    self._set_away(error)
        self._reactor.callFromThread(_fire, call.result, result)

    def _set_away(self, error: Exception) -> None:
        if not self.away:
            self.away = True
            text = outcomes.exception_text(error, 500)
            _log.error("The database is away, nothing new is started: {text}", text=text)
            self._reactor.callFromThread(self._on_away, text)

    def _set_back(self) -> None:
        if self.away:
            self.away = False
            _log.info("The database is back")
            self._reactor.callFromThread(self._on_back)


def _is_outage(error: BaseException) -> bool:
    """Whether waiting may help: not for a value or a statement that the database refuses."""
    return outcomes.blames_database(error) or type(error).__name__ in (
        "OperationalError",
        "InterfaceError",
        "ProgrammingError",
    )


def _tell_written(finishes: Sequence[Finish]) -> None:
    by_owner: dict[Callable[[list[Any]], None], list[Any]] = {}
    for op in finishes:
        by_owner.setdefault(op.written, []).append(op.job)
    for written, jobs in by_owner.items():
        written(jobs)


def _fire(deferred: Deferred[Any], result: Any) -> None:
    if isinstance(result, Failure):
        deferred.errback(result)
    else:
        deferred.callback(result)


def _without_texts(operation: Finish, error: Exception) -> Finish:
    """The same end, with nothing in it that a database could refuse."""
    result = operation.finished.result
    note = f"The result could not be stored: {type(error).__name__}"
    return Finish(
        finished=Finished(
            uuid=operation.finished.uuid,
            token=operation.finished.token,
            result=Result(
                kind=result.kind,
                output=note if result.kind is Kind.COMPLETED else None,
                exception=note if result.kind is not Kind.COMPLETED else None,
                started=result.started,
                log=None,
                ended=result.ended,
                delay=result.delay,
            ),
        ),
        job=operation.job,
        written=operation.written,
    )
