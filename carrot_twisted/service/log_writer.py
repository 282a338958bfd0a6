# SPDX-License-Identifier: Apache-2.0
"""Group commit: one thread with one database connection writes every claim and every outcome.

While one batch is being committed, the next one collects; an idle writer writes at once. So the
cost of a commit is shared by as many tasks as are under way, without any waiting time.

The database may go away at any line. The batch is kept and tried again until it is written; what
it does is repeatable (see ``records``). Meanwhile nothing new is claimed: the service pauses.

Claims go first, each a transaction of its own that does not wait for the disk: their tasks start
sooner. A database that is killed in the next moment forgets them, and all that came after them:
their rows wait as if nobody had claimed them. So what runs here is claimed once more when the
connection was lost. What has ended is on the disk before its message is acknowledged.

Another transaction that holds a row is no outage. The batch is repeated; what it hits again is put
aside for a moment, so that one row which somebody has locked does not hold up all the others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, connections, reset_queries, transaction
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from txaio.tx import make_logger

from carrot_twisted import admission, failpoints, outbox, outcomes, records
from carrot_twisted.admission import Admitted, Request
from carrot_twisted.identities import new_token
from carrot_twisted.outage import Outage
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.service.pool import DaemonThreadPool
from carrot_twisted.task_limits import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.models import MessageLog
    from carrot_twisted.outbox import Post
    from carrot_twisted.running import CancelRequest

_log = make_logger()

#: Operations that one transaction takes at most.
MAX_BATCH = 2000
#: Seconds between attempts while the database is away.
RETRY_FIRST = 0.25
RETRY_LAST = 5.0
#: Seconds until operations are tried again that others' transactions keep from being written.
ASIDE = 1.0
#: How long PostgreSQL waits for others' locks here, where the project leaves that without limit:
#: one row that somebody has locked must cost neither the heartbeats nor all others.
LOCK_TIMEOUT = "1s"
#: Of PostgreSQL's parameters, for claims. Where the project waits for no disk at all, nor do these.
NOT_ON_DISK = {"synchronous_commit": "off"}
#: In one batch so many operations may meet a lock; each may take as long as lock_timeout says.
MAX_LOCKED = 2
#: Characters that are told of the database's words.
MAX_REASON = 500
#: Seconds after which a database that has neither answered nor refused is told to be silent.
SILENT = 5.0
#: Seconds that the last writes get: when a stop has passed its deadline, and at its end.
LAST_WRITES = 3.0


@dataclass(slots=True, kw_only=True)
class Claim:
    """Ask for rows.

    ``answer`` is called on the writer's thread, after the commit; of rows that are under limits in
    a further call, after a second commit.
    """

    ids: list[UUID]
    token: int
    alone: bool
    answer: Callable[[dict[UUID, Claimed | Verdict]], None]
    barred: Sequence[str] = ()
    placeless: frozenset[UUID] = frozenset()
    """Those for which there is no thread, probably under limits: these wait in the table."""


@dataclass(slots=True, kw_only=True)
class Finish:
    """Write the end of a run. ``written`` is called in the reactor, once for a whole batch."""

    finished: Finished
    job: Any
    written: Callable[[list[Any]], None]
    freed: tuple[str, str] | None = None
    """The limit that it had a slot of, and the queue whose thread it had."""


@dataclass(slots=True, kw_only=True)
class Admit:
    """Let tasks start that are under limits: see ``admission``."""

    request: Request
    claims: Sequence[tuple[Claim, Sequence[Candidate]]] = ()
    """Who has asked for which rows."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """How many threads have become free for others, by queue."""
    done: Callable[[float | None], None] = lambda _: None
    """Called on the writer's thread, after the commit, with seconds until the next look."""
    tried: bool = False
    """It may have been committed."""


@dataclass(slots=True, kw_only=True)
class Confirmed:
    """Note that the broker holds these messages."""

    posts: list[Post]


@dataclass(slots=True, kw_only=True)
class Entry:
    """Add a row that has come to its end."""

    row: Callable[[], MessageLog]
    """Makes it, on the writer's thread; the same row each time."""
    done: Callable[[str | None], None]
    """Called on the writer's thread: when it is committed, or with the reason why it never is. What
    is said first counts."""


@dataclass(slots=True, kw_only=True)
class Lines:
    """Write what a run has told so far, while it goes on."""

    uuid: UUID
    token: int
    text: Callable[[], str]
    """Its log, as it is when the batch is written. Called on the writer's thread."""
    progress: str | None
    """How far it has come, as JSON."""
    done: Callable[[bool], None]
    """Called on the writer's thread: whether it is written. If not, the run has ended, or somebody
    has locked its row."""


@dataclass(slots=True, kw_only=True)
class CancelLook:
    """Ask which of a worker's tasks somebody wants to end."""

    worker: str
    answer: Callable[[Sequence[tuple[UUID, int, CancelRequest]]], None]
    """Called on the writer's thread, after the commit."""


@dataclass(slots=True, kw_only=True)
class Call:
    """Run ``function`` on the writer's thread. See ``LogWriter.call``."""

    function: Callable[[], Any]
    result: Deferred[Any]
    if_any: Callable[[], bool] | None = None
    is_atomic: bool = True


Operation = Claim | Finish | Admit | Confirmed | Entry | Lines | CancelLook | Call


class LogWriter:
    """The service's only way to the database, outside of the tasks themselves.

    Args:
        claimant: in whose name rows are claimed; asked with whether nothing else runs.
        using: database alias.
        reactor: Twisted's reactor.
        away: what the log says when the database stops answering, before the reason.
        on_away: called in the reactor then, with the reason.
        on_back: called in the reactor when it answers again.
        on_broken: called in the reactor with an error that is no database's. The batch is not
            written; ending the process lets others run its tasks. Entries are told as left out.
    """

    def __init__(
        self,
        claimant: Callable[[bool], Claimant],
        using: str,
        reactor: Any,
        away: str,
        on_away: Callable[[str], None],
        on_back: Callable[[], None],
        on_broken: Callable[[Failure], None],
    ) -> None:
        self._claimant = claimant
        self._using = using
        self._reactor = reactor
        self._away = away
        self._on_away = on_away
        self._on_back = on_back
        self._on_broken = on_broken
        self._inbox: SimpleQueue[Operation | None] = SimpleQueue()
        self._thread = DaemonThreadPool(minthreads=0, maxthreads=1, name="carrot-log-writer")
        self._given_up = threading.Event()
        self._stopped: Deferred[None] | None = None
        self.clock_offset = 0.0
        """Seconds that the database's clock is ahead of this host's."""
        self._outage = Outage(time.monotonic)
        #: Others' transactions are in the way of what is to be written.
        self._obstruction = Outage(time.monotonic)
        #: Operations that were put aside for that, by id().
        self._aside: dict[int, Operation] = {}
        #: When the database was asked what it has not answered yet.
        self._asked: float | None = None
        #: The driver's connection of the last transaction, and whether locks are waited for on it
        #: without limit.
        self._driver: Any = None
        self._waits_for_ever = False
        #: When the thread has last begun or ended something; None: it has nothing to do.
        self._sign: float | None = None
        self.batches = [0] * (MAX_BATCH.bit_length() + 1)
        """How many batches it has taken, by the bit length of their size."""
        self.operations = 0
        """How many operations these were. Written on its thread only, as are the batches."""
        #: A connection was lost: the database may have forgotten claims.
        self._in_doubt = False
        self.runs: Callable[[], Sequence[Claimed]] = lambda: ()
        """What is claimed here, and has not ended. Called on the writer's thread."""
        #: What is left to do of a batch that is written.
        self._to_admit: list[Admit] = []
        self.places: Callable[[Mapping[str, int]], Mapping[str, int]] = lambda _: {}
        """How many tasks may run here whose message is not here, by queue; it is told how many
        threads have become free. Called on the writer's thread."""
        self.hand_over: Callable[[Sequence[Claimed]], None] = lambda _: None
        """Has them run. Called on the writer's thread."""
        self.on_ring: Callable[[], None] = lambda: None
        """Called on the writer's thread when it has put rows into the outbox."""
        self.on_look: Callable[[float], None] = lambda _: None
        """Called on the writer's thread with seconds until somebody should look at limits."""

    @property
    def silence(self) -> float:
        """Seconds since the thread has last shown that it works; 0 while it has nothing to do.

        A database that is away is asked again and again: each time is a sign. From any thread.
        """
        sign = self._sign
        return 0.0 if sign is None else time.monotonic() - sign

    @property
    def away(self) -> bool:
        """Whether the database did not answer the last time. From any thread."""
        return self._outage.reason is not None

    @property
    def problem(self) -> str | None:
        """Why nothing can be written just now, for people; None if all is well. From any thread."""
        for trouble, what in (
            (self._outage, "is away"),
            (self._obstruction, "does not take everything"),
        ):
            reason = trouble.reason
            if reason is not None:
                return f"the database {what} since {trouble.seconds:.0f} s: {reason}"
        asked = self._asked
        if asked is not None and (silent := time.monotonic() - asked) > SILENT:
            return f"the database has not answered for {silent:.0f} s"
        return None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._stopped = deferToThreadPool(self._reactor, self._thread, self._loop)

    def submit(self, operation: Operation) -> None:
        """Write this with the next batch. From any thread."""
        self._inbox.put(operation)

    def call(
        self,
        function: Callable[[], Any],
        if_any: Callable[[], bool] | None = None,
        *,
        is_atomic: bool = True,
    ) -> Deferred[Any]:
        """Run ``function`` on the writer's thread, in a transaction. From the reactor.

        Args:
            function: for what is to be done.
            if_any: asked before, outside of a transaction, whether there is anything to do: most
                looks of a service at rest cost one exchange with the database instead of four.
            is_atomic: False: each of its statements is a transaction of its own.

        Returns:
            Fires with the function's result; None: there was nothing to do.
        """
        result: Deferred[Any] = Deferred()
        self.submit(Call(function=function, result=result, if_any=if_any, is_atomic=is_atomic))
        return result

    def stop(self) -> Deferred[None]:
        """End when all is written; fires then."""
        assert self._stopped is not None
        self._inbox.put(None)
        self._thread.adjustPoolsize(0, 0)
        return self._stopped

    async def end(self, seconds: float) -> bool:
        """Write what is left, and end; a database that is away is not waited for.

        Args:
            seconds: for one that does not answer.

        Returns:
            Whether the thread has ended. Else it does not hold up the end of the process.
        """
        if self.away:
            self.give_up()
        ended = self.stop()
        try:
            await ended.addTimeout(seconds, self._reactor)
        except Exception as error:
            _log.debug("Not waited for any longer: {error}", error=error)
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """Do not wait for a database that is away any longer. What is unwritten will run again."""
        self._given_up.set()

    def _loop(self) -> None:
        running = True
        while running:
            batch: list[Operation] = []
            self._sign = None
            operation = self._inbox.get()
            self._sign = time.monotonic()
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
            self.batches[len(batch).bit_length()] += 1
            self.operations += len(batch)
            try:
                self._process(batch)
            except BaseException as error:
                # Told first: closing may fail as well, and this loop ends then.
                self._reactor.callFromThread(self._on_broken, Failure())
                for entry in (one for one in batch if isinstance(one, Entry)):
                    entry.done(outcomes.exception_line(error, MAX_REASON))
                connections[self._using].close()
            reset_queries()
        for left in self._aside.values():
            if isinstance(left, Entry):
                left.done("others' transactions were in the way to the end")
        connections.close_all()
        self._sign = None

    def _process(self, batch: Sequence[Operation]) -> None:
        claims = [op for op in batch if isinstance(op, Claim)]
        if claims and not self._persist(claims):
            return
        own = (Claim, Call, Admit)
        rest = [op for op in batch if not isinstance(op, own)]
        if rest and not self._persist(rest):
            return
        admits = [*self._to_admit, *(op for op in batch if isinstance(op, Admit))]
        self._to_admit = []
        # One by one: each locks its limits in order, and nothing else waits for these.
        if not all(self._persist([admit]) for admit in admits):
            return
        for operation in batch:
            if isinstance(operation, Call):
                self._run_call(operation)

    def _persist(self, batch: Sequence[Operation]) -> bool:
        """Write the batch, however long the database is away; False if that was given up."""
        delay = 0.0
        while True:
            error = self._commit(batch, again=delay > 0)
            if error is None:
                self._set_back()
                return True
            if outcomes.is_refusal(error):
                return self._persist_without(error, batch)
            if delay:
                # A second failure: not just one connection that was cut.
                if outcomes.is_conflict(error):
                    self._persist_unlocked(batch)
                    return True
                self._set_away(error)
            if self._given_up.wait(delay) and delay:
                _log.error("The database is away: {n} records are not written", n=len(batch))
                return False
            delay = min(RETRY_LAST, delay * 2) or RETRY_FIRST

    def _commit(self, batch: Sequence[Operation], again: bool) -> Exception | None:
        """Write the batch and tell those who wait; returns what the database said against it."""
        told: list[Callable[[], None]] = []

        def work() -> None:
            first = batch[0]
            if isinstance(first, Claim):
                told.append(self._claim(batch))
            elif isinstance(first, Admit) and not (first.tried or self._is_due(first)):
                told.append(partial(self._tell_nothing_due, first))
            else:
                told.append(self._write(batch, again))

        error = self._attempt(work)
        # Not among what is tried again: who is told twice of a claim runs it twice.
        for tell in told:
            tell()
        return error

    def _attempt(self, work: Callable[[], None]) -> Exception | None:
        """Do it; returns what the database said against it, its connection closed then."""
        self._asked = self._sign = time.monotonic()
        try:
            if self._in_doubt:
                self._claim_again()
            work()
        except (DatabaseError, InterfaceError) as error:
            connections[self._using].close()
            self._in_doubt = True
            return error
        finally:
            self._asked = None
            self._sign = time.monotonic()
        return None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction that does not wait for others' locks without end."""
        with transaction.atomic(using=self._using):
            for name, value in self.bounds().items():
                with connections[self._using].cursor() as cursor:
                    cursor.execute(f"SET LOCAL {name} = '{value}'")
            yield

    def bounds(self) -> dict[str, str]:
        """Parameters that keep a transaction from waiting for others' locks without end.

        For one transaction only: a pooler gives the connection to others, too. On the writer's
        thread.
        """
        connection = connections[self._using]
        if connection.vendor != "postgresql":
            return {}
        if connection.connection is None or connection.connection is not self._driver:
            with connection.cursor() as cursor:
                cursor.execute("SHOW lock_timeout")
                self._waits_for_ever = cursor.fetchone() == ("0",)
            self._driver = connection.connection
        return {"lock_timeout": LOCK_TIMEOUT} if self._waits_for_ever else {}

    def _claim(self, claims: Sequence[Any]) -> Callable[[], None]:
        """Claim; of rows that cannot be claimed just so, in a second transaction.

        May be repeated: what the first time has claimed is found under its token.

        Returns:
            What tells those who wait for it.
        """
        parameters = {**NOT_ON_DISK, **self.bounds()}
        failpoints.reached("before_claim_commit")
        answers: list[dict[UUID, Claimed | Verdict | Candidate]] = []
        for op in claims:
            claimant = self._claimant(op.alone)
            answers.append(
                {**records.take(op.ids, op.token, claimant, self._using, op.barred, parameters)}
            )
        left = [
            (op, answer, [key for key in op.ids if key not in answer])
            for op, answer in zip(claims, answers, strict=True)
            if len(answer) < len(op.ids)
        ]
        if left:
            with self._transaction():
                for op, answer, keys in left:
                    claimant = self._claimant(op.alone)
                    more = records.judge(keys, op.token, claimant, self._using, op.barred)
                    answer.update(more)
        failpoints.reached("after_claim_commit")
        return lambda: self._tell_claimed(claims, answers)

    def _claim_again(self) -> None:
        runs = self.runs()
        if runs:
            with self._transaction():
                worker = self._claimant(False).worker
                forgotten = records.take_again(runs, worker, self._using)
            if forgotten:
                _log.warn("The database had forgotten that {n} tasks run here", n=forgotten)
        self._in_doubt = False

    def _write(self, batch: Sequence[Operation], again: bool) -> Callable[[], None]:
        """One transaction for everything but claims and calls.

        Args:
            batch: what to write.
            again: it was tried before, and may have been committed then.

        Returns:
            What tells those who wait for it.
        """
        finishes = [op for op in batch if isinstance(op, Finish)]
        confirmed = [post for op in batch if isinstance(op, Confirmed) for post in op.posts]
        entries = [op for op in batch if isinstance(op, Entry)]
        lines = [op for op in batch if isinstance(op, Lines)]
        looks = [op for op in batch if isinstance(op, CancelLook)]
        admits = [op for op in batch if isinstance(op, Admit)]
        logged: set[UUID] = set()
        is_alone = all(isinstance(op, Finish) and records.is_alone(op.finished) for op in batch)
        with nullcontext() if is_alone else self._transaction():
            if finishes:
                failpoints.reached("before_finish_commit")
                runs = [op.finished for op in finishes]
                bounds = self.bounds() if is_alone else {}
                changed = records.finish(runs, self.clock_offset, self._using, bounds)
                if changed < len(runs) and not again:
                    _log.warn(
                        "{n} of {all} ended tasks had been taken over or deleted meanwhile",
                        n=len(runs) - changed,
                        all=len(runs),
                    )
            if confirmed:
                outbox.note_confirmed(confirmed, self._using)
            if entries:
                records.add([op.row() for op in entries], self._using)
            if lines:
                logs = [(op.uuid, op.token, op.text(), op.progress) for op in lines]
                logged = records.log(logs, self._using)
            wishes = [records.cancel_requests(look.worker, self._using) for look in looks]
            admitted = [(op, self._admit(op)) for op in admits]
            if admits:
                failpoints.reached("before_admission_commit")
            # The last: who holds a flow waits for no other row.
            records.settle_flows([op.finished for op in finishes], self._using)
        if admits:
            failpoints.reached("after_admission_commit")
        if finishes:
            failpoints.reached("after_finish_before_ack")

        def tell() -> None:
            self._take_back(batch)
            for asked, outcome in admitted:
                self._tell_admitted(asked, outcome)
            self._admit_next([], finishes)
            if finishes:
                self._reactor.callFromThread(_tell_written, finishes)
            for entry in entries:
                entry.done(None)
            for one in lines:
                one.done(one.uuid in logged)
            for look, wish in zip(looks, wishes, strict=True):
                look.answer(wish)

        return tell

    def _take_back(self, written: Sequence[Operation]) -> None:
        """These are put aside no more."""
        if self._aside:
            for one in written:
                self._aside.pop(id(one), None)

    def _tell_claimed(
        self,
        claims: Sequence[Claim],
        answers: Sequence[Mapping[UUID, Claimed | Verdict | Candidate]],
    ) -> None:
        self._take_back(claims)
        limited = []
        for op, answer in zip(claims, answers, strict=True):
            mine = [one for one in answer.values() if isinstance(one, Candidate)]
            for candidate in mine:
                candidate.delivered = candidate.uuid not in op.placeless
            if mine:
                limited.append((op, mine))
            known = {k: v for k, v in answer.items() if not isinstance(v, Candidate)}
            if known:
                op.answer(known)
        self._admit_next(limited, [])

    def _admit_next(
        self, limited: Sequence[tuple[Claim, Sequence[Candidate]]], finishes: Sequence[Finish]
    ) -> None:
        admit = _admit_of(limited, finishes)
        if admit is not None:
            self._to_admit.append(admit)

    def _is_due(self, admit: Admit) -> bool:
        return admission.is_due(admit.request, self._using)

    def _tell_nothing_due(self, admit: Admit) -> None:
        self._take_back([admit])
        admit.done(None)

    def _admit(self, admit: Admit) -> Admitted:
        # Not just of this attempt: it may have been put aside.
        again, admit.tried = admit.tried, True
        worker = self._claimant(False).worker
        places = self.places(admit.ended)
        return admission.admit(admit.request, worker, places, self._using, again=again)

    def _tell_admitted(self, admit: Admit, admitted: Admitted) -> None:
        runs = dict(admitted.runs)
        for claim, rows in admit.claims:
            answer: dict[UUID, Claimed | Verdict] = {}
            for one in rows:
                waits = Verdict.LIMITED if one.uuid in admitted.waiting else Verdict.MISSING
                answer[one.uuid] = runs.pop(one.uuid, waits)
            claim.answer(answer)
        if runs:
            self.hand_over(list(runs.values()))
        admit.done(admitted.next_look)
        if admitted.has_rung:
            self.on_ring()
        if admitted.next_look is not None:
            self.on_look(admitted.next_look)

    def _persist_without(self, error: Exception, batch: Sequence[Operation]) -> bool:
        """Something in the batch is refused for its content: find it, write it without that."""
        if len(batch) > 1:
            return all(self._persist([operation]) for operation in batch)
        (operation,) = batch
        self._aside.pop(id(operation), None)
        if isinstance(operation, Finish) and operation.finished.result.log is not None:
            # Not its further lines: there PostgreSQL repeats what is in the row.
            words, _, _ = outcomes.exception_text(error, MAX_REASON).partition("\n")
            _log.error(
                "The database refuses the result of task {uuid}: {error}",
                uuid=operation.finished.uuid,
                error=outcomes.one_line(words, MAX_REASON),
            )
            return self._persist([_without_texts(operation, error)])
        if isinstance(operation, Entry):
            operation.done(outcomes.exception_line(error, MAX_REASON))
            return True
        if isinstance(operation, Lines):
            # Nor will it take the next ones, so they count as written until there are more; the
            # end of the task says why.
            operation.done(True)
            return True
        raise error

    def _persist_unlocked(self, batch: Sequence[Operation]) -> None:
        """Others hold rows that the batch needs: write what can be, put aside what cannot."""
        left: list[Operation] = []
        locked: list[Operation] = []
        for operation in batch:
            if isinstance(operation, Call):
                continue
            if len(locked) == MAX_LOCKED:
                left.append(operation)
                continue
            error = self._commit([operation], again=True)
            if error is not None:
                locked.append(operation)
                self._set_obstructed(error)
        # The locked ones last: another time, others have their turn before them.
        aside = [*left, *locked]
        self._aside |= {id(operation): operation for operation in aside}
        self._reactor.callFromThread(self._reactor.callLater, ASIDE, self._submit_all, aside)
        self._set_back()

    def _submit_all(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            self.submit(operation)

    def _run_call(self, call: Call) -> None:
        """A second attempt at once, on a new connection; a third is up to the caller."""
        result: Any = None

        def work() -> None:
            nonlocal result
            if call.if_any is None or call.if_any():
                with self._transaction() if call.is_atomic else nullcontext():
                    result = call.function()

        try:
            error = self._attempt(work)
            if error is not None and outcomes.blames_database(error):
                error = self._attempt(work)
        except BaseException:
            # Its transaction calls receivers of the project's, which may raise SystemExit.
            result = Failure()
        else:
            if error is None:
                self._set_back()
            else:
                result = Failure(error)
                if outcomes.is_conflict(error):
                    self._set_obstructed(error)
                elif outcomes.blames_database(error):
                    self._set_away(error)
        self._reactor.callFromThread(_fire, call.result, result)

    def _set_obstructed(self, error: Exception) -> None:
        told = self._obstruction.failed(outcomes.exception_line(error, MAX_REASON))
        if told is not None:
            _log.warn("The database does not take everything: {reason}", reason=told)

    def _set_away(self, error: Exception) -> None:
        begins = not self.away
        reason = outcomes.exception_line(error, MAX_REASON)
        told = self._outage.failed(reason)
        if told is not None:
            what = self._away if begins else "is still away"
            _log.error("The database {what}: {reason}", what=what, reason=told)
        if begins:
            self._reactor.callFromThread(self._on_away, reason)

    def _set_back(self) -> None:
        """The database has done something: it is there, whatever it may not have done."""
        if self.away:
            after = self._outage.over()
            if after is not None:
                _log.info("The database is back{after}", after=after)
            self._reactor.callFromThread(self._on_back)
        if not self._aside:
            after = self._obstruction.over()
            if after:
                _log.info("The database takes everything{after}", after=after)


def _admit_of(
    limited: Sequence[tuple[Claim, Sequence[Candidate]]], finishes: Sequence[Finish]
) -> Admit | None:
    """What is left to do of a batch: for rows under limits, and for those that wait for a slot."""
    freed = Counter(op.freed[0] for op in finishes if op.freed)
    if not limited and not freed:
        return None
    rows = [one for _, mine in limited for one in mine]
    return Admit(
        request=Request(token=new_token(), rows=rows, freed=freed),
        claims=limited,
        ended=Counter(op.freed[1] for op in finishes if op.freed),
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
            flow=operation.finished.flow,
        ),
        job=operation.job,
        written=operation.written,
        freed=operation.freed,
    )
