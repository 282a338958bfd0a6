# SPDX-License-Identifier: Apache-2.0
"""Changes of state, many rows at a time. Each is conditional: who comes too late changes nothing.

``claim`` gives a run its token; ``finish`` and ``release`` need it. A statement that is repeated
because the connection broke in its commit finds its work done, and does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import BooleanField, Case, F, Q, Value, When
from django.db.models.functions import Now, Right

from carrot_twisted import (
    begun_message,
    failpoints,
    flow_settling,
    processes,
    statements,
    task_options,
)
from carrot_twisted.admission_decision import Candidate
from carrot_twisted.attempt import MAX_ATTEMPTS, MAX_EXCEPTION, MAX_LOG
from carrot_twisted.due import GRACE, due_in, in_state, is_due, since_due
from carrot_twisted.limit_state import wake
from carrot_twisted.models import Attempt, MessageLog, PausedQueue, Worker
from carrot_twisted.outcomes import WORKER_LOST, Kind, Result, Verdict
from carrot_twisted.running import CancelRequest
from carrot_twisted.statements import Look

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from django.db.models import QuerySet

_TABLE = MessageLog._meta.db_table


@dataclass(slots=True, kw_only=True)
class Claimed:
    """A row that this worker may run now."""

    uuid: UUID
    token: int
    task: str
    task_args: str
    content: str
    queue: str
    attempt: int
    retries: int = 0
    """How often it was tried again because it had failed."""
    django_task: str | None = None
    """What was said of it to django.tasks, see ``standard_tasks.Said``."""
    flow: UUID | None = None
    """The flow that it is a part of."""
    slot_key: str | None = None
    """The limit that it has a slot of, if it has one."""
    published: float
    """When, or when it was due, in seconds since the epoch, on the database's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """Who claims, and how it judges others."""

    worker: str
    lease: float
    """Seconds without heartbeat after which another worker counts as dead."""
    max_crashes: int
    alone: bool
    """Whether nothing else runs here, so that rows may be claimed that cost workers before."""
    judges: bool
    """Whether leases may be judged: not before this worker has kept its own for a full lease.
    After an outage of the database everybody's lease looks dead."""
    runs: Callable[[UUID, int | None], bool] = lambda _key, _token: False
    """Whether a row is being run in this process, under that token: its message may have come by
    another queue, too."""


#: From so many lost workers on, a row runs alone: its neighbours shall not be lost, and blamed,
#: with it.
SUSPECT_CRASHES = 2
ANY_NUMBER = 2**31 - 1


def claim(
    ids: Sequence[UUID], token: int, claimant: Claimant, using: str, barred: Sequence[str] = ()
) -> dict[UUID, Claimed | Verdict | Candidate]:
    """Take those rows that may run; say of each other why not.

    Call it inside a transaction. One statement, whatever the number of rows; two more if some of
    them were not waiting, or are under limits: of the latter it says so, and ``admission`` has to
    let them run.

    Args:
        ids: primary keys, all different.
        token: of this batch; a repeated call with the same token finds what it had claimed.
        claimant: who claims. A row in progress under its own name counts as lost, unless its
            ``runs`` knows better.
        using: database alias.
        barred: rows of these queues count as missing.
    """
    result: dict[UUID, Claimed | Verdict | Candidate] = {}
    result.update(take(ids, token, claimant, using, barred))
    if len(result) < len(ids):
        others = [pk for pk in ids if pk not in result]
        result.update(judge(others, token, claimant, using, barred))
    return result


def take(
    ids: Sequence[UUID],
    token: int,
    claimant: Claimant,
    using: str,
    barred: Sequence[str] = (),
) -> dict[UUID, Claimed]:
    """The first half of ``claim``, one statement: take those rows that may run.

    Arguments are those of ``claim``.
    """
    crashes = ANY_NUMBER if claimant.alone else SUSPECT_CRASHES
    rows = statements.claim_rows(_TABLE, ids, token, claimant.worker, crashes, using, barred)
    return {row[0]: _claimed(row, token) for row in rows}


def claim_limited(ids: Sequence[UUID], token: int, worker: str, using: str) -> dict[UUID, Claimed]:
    """Take those rows whose limits let them run. Call it inside the transaction that knows that."""
    rows = statements.claim_rows(_TABLE, ids, token, worker, ANY_NUMBER, using, limited=True)
    return {row[0]: _claimed(row, token) for row in rows}


def claimed_of(rows: QuerySet[MessageLog], token: int) -> dict[UUID, Claimed]:
    """What was claimed with this token."""
    found = rows.annotate(since=since_due()).values_list(*statements.CLAIMED, "since")
    return {row[0]: _claimed((*row[:-1], row[-1].timestamp()), token) for row in found}


def judge(
    ids: Sequence[UUID], token: int, claimant: Claimant, using: str, barred: Sequence[str] = ()
) -> dict[UUID, Claimed | Verdict | Candidate]:
    """The second half of ``claim``: say why rows were not taken.

    Those whose worker is gone are taken over.
    """
    result: dict[UUID, Claimed | Verdict | Candidate] = dict.fromkeys(ids, Verdict.MISSING)
    taken: list[tuple[UUID, str, int | None, UUID | None]] = []
    timed: list[UUID] = []
    candidates: dict[UUID, Candidate] = {}
    crashes = ANY_NUMBER if claimant.alone else SUSPECT_CRASHES
    rows = MessageLog.objects.using(using).filter(pk__in=ids).exclude(queue__in=barred)
    # What is reckoned comes last: the first releases of Django 5.2 mix up the order else.
    rows = rows.annotate(since=since_due(), timed=_has_time())
    known = ("status", "token", "worker", *statements.CLAIMED, *_UNDER_LIMITS)
    for status, row_token, worker, *row, since, has_time in rows.values_list(
        *known, "since", "timed"
    ):
        claimed, limited = row[: len(statements.CLAIMED)], row[len(statements.CLAIMED) :]
        pk = claimed[0]
        if status == MessageLog.PUBLISHED:
            result[pk] = Verdict.SUSPECT
            candidate = _candidate(claimed, limited, crashes)
            if candidate is not None:
                result[pk] = candidates[pk] = candidate
            if has_time:
                timed.append(pk)
        elif status != MessageLog.IN_PROGRESS:
            result[pk] = Verdict.FINAL
        elif row_token == token:
            # The first attempt at this batch was committed, but its answer was lost.
            result[pk] = _claimed((*claimed, since.timestamp()), token)
        else:
            result[pk] = Verdict.ELSEWHERE
            flow = claimed[statements.CLAIMED.index("flow")]
            taken.append((pk, worker, row_token, flow))
    for pk, verdict in (_judge_times(timed, claimant, using) if timed else {}).items():
        is_ready = verdict is Verdict.MISSING and pk in candidates
        result[pk] = candidates[pk] if is_ready else verdict
    if taken:
        dead = dead_workers({worker for _, worker, *_ in taken}, claimant, using)
        # In the order of their keys, as everywhere: two who do this never wait for each other.
        for pk, worker, row_token, flow in sorted(taken, key=lambda one: one[0]):
            mine = worker == claimant.worker
            if worker in dead or (mine and not claimant.runs(pk, row_token)):
                result[pk] = _take_over(pk, row_token, token, claimant, using)
                if flow is not None and result[pk] in (Verdict.FINAL, Verdict.LOST):
                    flow_settling.settle({flow}, using)
    return result


#: What is to be known of a row that is under limits.
_UNDER_LIMITS = ("priority", "publish_time", "rate_key", "waits_for", "crashes")


def _candidate(claimed: Sequence[Any], limited: Sequence[Any], crashes: int) -> Candidate | None:
    """A waiting row, if it is under limits, and may start as far as lost workers are concerned."""
    priority, published, rate, waits_for, lost = limited
    slot = claimed[statements.CLAIMED.index("slot_key")]
    if (slot is None and rate is None) or lost >= crashes:
        return None
    return Candidate(
        uuid=claimed[0],
        task=claimed[1],
        queue=claimed[4],
        priority=priority,
        since=published.timestamp(),
        slot=slot,
        rate=rate,
        waits_for=waits_for,
        delivered=True,
    )


def _has_time() -> Case:
    return Case(
        When(Q(run_after__isnull=False) | Q(expires_at__isnull=False), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )


def _judge_times(ids: Sequence[UUID], claimant: Claimant, using: str) -> dict[UUID, Verdict]:
    """Of waiting rows with times of their own: why they were not claimed."""
    rows = MessageLog.objects.using(using).filter(in_state(MessageLog.PUBLISHED), pk__in=ids)
    rows.cancel_expired(len(ids))
    # The message has come early. Its row goes back to the outbox, which sends another in time.
    rows.filter(run_after__gt=Now()).update(
        confirmed_at=None, token=None, relay_at=F("run_after") - timedelta(seconds=GRACE)
    )
    limit = ANY_NUMBER if claimant.alone else SUSPECT_CRASHES
    verdicts = dict.fromkeys(ids, Verdict.FINAL)
    early = Case(
        When(run_after__gt=Now(), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )
    # One that is late, and that somebody has locked just now, is cancelled by a reaper.
    left = rows.exclude(attempts=0, expires_at__lte=Now()).annotate(early=early)
    for pk, crashes, is_early in left.values_list("pk", "crashes", "early"):
        if is_early:
            verdicts[pk] = Verdict.EARLY
        elif crashes < limit:
            # Its time has come in this very moment: it is looked up again.
            verdicts[pk] = Verdict.MISSING
        else:
            verdicts[pk] = Verdict.SUSPECT
    return verdicts


def _claimed(row: Sequence[Any], token: int) -> Claimed:
    pk, task, task_args, content, queue, attempts, retries, django_task, *more = row
    flow, slot, published = more
    return Claimed(
        uuid=pk,
        token=token,
        task=task,
        task_args=task_args,
        content=content,
        queue=queue,
        attempt=attempts,
        retries=retries,
        django_task=django_task,
        flow=flow,
        slot_key=slot,
        published=published,
    )


def _take_over(
    pk: UUID, lost_token: int | None, token: int, claimant: Claimant, using: str
) -> Claimed | Verdict:
    """Claim a row whose worker is gone; too many of those, and the task is to blame."""
    logs = MessageLog.objects.using(using)
    lost = logs.filter(in_state(MessageLog.IN_PROGRESS), pk=pk, token=lost_token)
    if _cancel_asked(lost):
        return Verdict.FINAL
    if _fail_after(lost, claimant.max_crashes):
        return Verdict.LOST
    attempts = _lost_attempts(lost)
    suspects = lost.filter(crashes__gte=SUSPECT_CRASHES - 1)
    if suspects.update(status=MessageLog.PUBLISHED, token=None, crashes=F("crashes") + 1):
        _note(attempts, using)
        return Verdict.SUSPECT
    changed = lost.update(
        worker=claimant.worker,
        token=token,
        attempts=F("attempts") + 1,
        crashes=F("crashes") + 1,
        start_time=Now(),
        log=None,
        progress=None,
    )
    if changed:
        _note(attempts, using)
    failpoints.reached("in_take_over")
    if not changed:
        return Verdict.ELSEWHERE
    row = logs.annotate(since=since_due()).values_list(*statements.CLAIMED, "since").get(pk=pk)
    return _claimed((*row[:-1], row[-1].timestamp()), token)


def _cancel_asked(lost: Any) -> int:
    """CANCELLED for those of the lost rows of which that was asked; they do not run again."""
    return int(
        lost.filter(cancel_request__isnull=False).update(
            status=MessageLog.CANCELLED,
            token=None,
            completion_time=Now(),
            exception="cancelled; its worker was lost before it had ended",
        )
    )


def cancel_requests(worker: str, using: str) -> list[tuple[UUID, int, CancelRequest]]:
    """What a worker runs and somebody has asked to cancel.

    One look at an index that has no other rows.

    Args:
        worker: its name.
        using: database alias.

    Returns:
        Primary key and token of each, and what was asked.
    """
    rows = MessageLog.objects.using(using).filter(
        worker=worker, status=MessageLog.IN_PROGRESS, cancel_request__isnull=False
    )
    found = rows.values_list("pk", "token", "cancel_request")
    asked = ((pk, token, CancelRequest.of(value)) for pk, token, value in found)
    return [(pk, token, request) for pk, token, request in asked if token and request]


def _fail_after(lost: Any, max_crashes: int) -> int:
    """FAILED for those of the lost rows that have cost too many workers."""
    return int(
        lost.filter(crashes__gte=max_crashes - 1).update(
            status=MessageLog.FAILED,
            crashes=F("crashes") + 1,
            failure_time=Now(),
            exception=f"worker lost {max_crashes} times",
            exception_class=WORKER_LOST,
        )
    )


def dead_workers(names: set[str], claimant: Claimant, using: str) -> set[str]:
    """Those of the named workers, the claimant's own left out, that run nothing any more.

    Nobody who is late with an own heartbeat judges others by theirs: a database that was frozen
    answers the statements that waited for it before anybody can renew a lease.
    """
    known = workers(claimant.lease, using).filter(name__in={*names, claimant.worker})
    by_name = {one.name: one for one in known.annotate(prompt=_beat_within(claimant.lease / 2))}
    own = by_name.pop(claimant.worker, None)
    judges = claimant.judges and own is not None and own.prompt
    alive = {one.name for one in by_name.values() if is_alive(one, judged=judges)}
    return names - alive - {claimant.worker}


def workers(lease: float, using: str) -> QuerySet[Any]:
    """All workers that are known, each with ``fresh``: whether its lease is.

    Args:
        lease: seconds without heartbeat after which a worker counts as dead.
        using: database alias.
    """
    return Worker.objects.using(using).annotate(fresh=_beat_within(lease))


def is_alive(worker: Any, judged: bool = True) -> bool:
    """Whether a worker runs, by its process where that can be seen from here, else by its lease.

    Args:
        worker: one of ``workers``.
        judged: False: an old lease proves nothing; everybody's is old after an outage.
    """
    here = processes.machine()
    if here and worker.machine == here:
        return bool(processes.start_of(worker.pid) == worker.process_start)
    return bool(worker.fresh or not judged)


def _beat_within(seconds: float) -> Case:
    return Case(
        When(heartbeat_at__gte=Now() - timedelta(seconds=seconds), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )


def chores_of_others(worker: str) -> list[Look]:
    """For all that a worker looks after which is not its own.

    There is another worker than this one, or a task in the hands of one; a task that has not
    started in time; a flow.
    """
    return [
        Look(table=Worker._meta.db_table, condition="name <> %s", values=[worker]),
        Look(table=_TABLE, condition="status = 'IN_PROGRESS' AND worker <> %s", values=[worker]),
        statements.expired(_TABLE),
        flow_settling.UNDER_WAY,
    ]


def reap(claimant: Claimant, using: str) -> int:
    """Put the rows of dead workers back into the outbox, and forget those workers.

    Call it inside a transaction.

    Returns:
        How many rows were put back or failed.
    """
    logs = MessageLog.objects.using(using)
    in_progress = logs.filter(status=MessageLog.IN_PROGRESS)
    others = statements.owners(_TABLE, Worker._meta.db_table, using) - {claimant.worker}
    dead = dead_workers(others, claimant, using) if others else others
    if not dead:
        return 0
    # What others have locked they are taking over, or finishing after all.
    chosen = in_progress.filter(worker__in=dead).select_for_update(skip_locked=True)
    found = list(chosen.values_list("pk", "flow"))
    lost = in_progress.filter(pk__in=[pk for pk, _ in found])
    count = _cancel_asked(lost)
    count += _fail_after(lost, claimant.max_crashes)
    attempts = _lost_attempts(lost)
    count += lost.update(
        status=MessageLog.PUBLISHED,
        crashes=F("crashes") + 1,
        token=None,
        confirmed_at=None,
        relay_at=due_in(0),
    )
    _note(attempts, using)
    Worker.objects.using(using).filter(name__in=dead).delete()
    # They have given slots back, and perhaps let nobody start in their place.
    wake(using)
    begun_message.forget_old(using)
    flow_settling.settle({flow for _, flow in found if flow is not None}, using)
    failpoints.reached("in_reap")
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has ended, with what is to be written."""

    uuid: UUID
    token: int
    result: Result
    flow: UUID | None = None
    """The flow that its task is a part of."""


def is_alone(run: Finished) -> bool:
    """Whether one statement writes this end: it needs no transaction around it."""
    result = run.result
    return result.kind.is_final and result.progress is None and run.flow is None


def finish(
    runs: Sequence[Finished],
    clock_offset: float,
    using: str,
) -> int:
    """Write the ends of runs. Call it inside a transaction, and ``settle_flows`` at its end.

    If ``is_alone`` says so of all of them, no transaction is needed.

    Args:
        runs: at least one, of any kind.
        clock_offset: seconds that the database's clock is ahead of this host's.
        using: database alias.

    Returns:
        How many rows were changed. Fewer than ``runs``: others have taken those over, or they were
        deleted; nothing of them was touched, but those that wait to run again get a new message.
    """
    told = [run for run in runs if run.result.progress is not None]
    if told:
        keys = [(run.uuid, run.token) for run in told]
        statements.progress_rows(_TABLE, keys, [run.result.progress for run in told], using)
    final = [run for run in runs if run.result.kind.is_final]
    changed = 0
    if final:
        changed = statements.finish_rows(
            _TABLE,
            [(run.uuid, run.token) for run in final],
            [_values(run.result, clock_offset) for run in final],
            using,
        )
    if len(final) < len(runs):
        changed += _release([run for run in runs if not run.result.kind.is_final], using)
    if changed < len(runs):
        # One that was taken from a worker which lives, to run again: its new message may have come
        # to that very worker, which acknowledges it with the old run. It needs another one.
        MessageLog.objects.using(using).filter(
            is_due(),
            in_state(MessageLog.PUBLISHED),
            pk__in=[run.uuid for run in runs],
            token__isnull=False,
        ).update(confirmed_at=None, token=None, relay_at=due_in(0))
    return changed


def settle_flows(runs: Sequence[Finished], using: str) -> None:
    """Let the flows go on whose tasks have ended, in the transaction of ``finish``, as the last.

    Nothing is asked of the database if there are none.
    """
    flows = {run.flow for run in runs if run.flow is not None}
    if flows:
        flow_settling.settle(flows, using)


def _values(result: Result, offset: float) -> statements.FinishValues:
    ended = result.ended + offset
    completed = result.kind is not Kind.FAILED
    return (
        result.kind.value,
        result.started + offset,
        ended if completed else None,
        None if completed else ended,
        result.output,
        result.returned,
        result.exception,
        result.traceback,
        result.exception_class,
        result.log,
    )


def _release(runs: Sequence[Finished], using: str) -> int:
    """Back into the outbox: due after the result's delay. Returns how many were changed.

    One that somebody has asked to cancel meanwhile does not run again: it is CANCELLED.
    """
    logs = MessageLog.objects.using(using)
    released: dict[UUID, Result] = {}
    for run in runs:
        result = run.result
        more: dict[str, Any] = {}
        if result.kind is Kind.RETRY:
            later = Now() + timedelta(seconds=result.delay)
            more = {"retries": F("retries") + 1, "run_after": later}
        elif not result.started:
            more = {"attempts": _one_less()}
        mine = logs.filter(in_state(MessageLog.IN_PROGRESS), pk=run.uuid, token=run.token)
        changed = mine.update(
            status=Case(
                When(cancel_request__isnull=False, then=Value(MessageLog.CANCELLED)),
                default=Value(MessageLog.PUBLISHED),
            ),
            completion_time=Case(
                When(cancel_request__isnull=False, then=Now()), default=F("completion_time")
            ),
            token=None,
            confirmed_at=None,
            relay_at=due_in(result.delay),
            exception=result.exception,
            traceback=result.traceback,
            exception_class=result.exception_class,
            log=result.log,
            **more,
        )
        if changed:
            released[run.uuid] = result
    started = [pk for pk, result in released.items() if result.started]
    if started:
        rows = logs.filter(pk__in=started).values_list("pk", "attempts", "worker", "start_time")
        _note([_released_attempt(*row, released[row[0]]) for row in rows], using)
    return len(released)


def _one_less() -> Case:
    """One attempt that has not begun after all.

    It counts where the claim has set a unique key free: somebody else may have that by now.
    """
    return Case(
        When(unique_until=task_options.START, then=F("attempts")), default=F("attempts") - 1
    )


def _released_attempt(
    pk: UUID, number: int, worker: str, started: datetime | None, result: Result
) -> Attempt:
    outcome = Attempt.RELEASED if result.exception is None else Attempt.DATABASE
    return Attempt(
        message=pk,
        number=number,
        worker=worker,
        started=started,
        outcome=Attempt.RETRIED if result.kind is Kind.RETRY else outcome,
        exception=result.exception and result.exception[:MAX_EXCEPTION],
        exception_class=result.exception_class,
        traceback=result.traceback and result.traceback[-MAX_LOG:],
        log=(result.log or "")[-MAX_LOG:],
    )


def _lost_attempts(rows: QuerySet[MessageLog]) -> list[Attempt]:
    """What is to be noted if these rows are taken from their worker, which is gone."""
    found = rows.values_list("pk", "attempts", "worker", "start_time", Right("log", MAX_LOG))
    return [
        Attempt(
            message=pk,
            number=number,
            worker=worker,
            started=started,
            outcome=Attempt.LOST,
            log=log or "",
        )
        for pk, number, worker, started, log in found
    ]


def _note(attempts: Sequence[Attempt], using: str) -> None:
    """Keep what has come of attempts that were not the last ones."""
    kept = [one for one in attempts if one.number <= MAX_ATTEMPTS]
    if kept:
        Attempt.objects.using(using).bulk_create(kept)


def log(logs: Sequence[tuple[UUID, int, str, str | None]], using: str) -> set[UUID]:
    """Write what runs have told so far. Call it inside a transaction.

    Args:
        logs: primary key, token, log and progress of each.
        using: database alias.

    Returns:
        Those that are written. Not those that have ended, or that somebody has locked: the task
        itself, for example.
    """
    return statements.log_rows(_TABLE, logs, using)


def add(rows: Sequence[MessageLog], using: str) -> None:
    """Add rows that have come to their end: of messages that were handled.

    May be repeated: those that are there already are left as they are.
    """
    MessageLog.objects.using(using).bulk_create(rows, ignore_conflicts=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What operators want of a service."""

    command: str = ""
    """Of it as a whole, see ``Worker.command``."""
    paused: frozenset[str] = frozenset()
    """Names of all queues that nothing is to be consumed from."""


def heartbeat(worker: Worker, using: str) -> tuple[float, Wishes]:
    """Renew the lease of this process, tell its ``state``, and hear what operators want of it.

    The first heartbeat makes the process known, before it claims anything.

    Args:
        worker: this process.
        using: database alias.

    Returns:
        The database's time, in seconds since the epoch, and the wishes.
    """
    tables = Worker._meta.db_table, PausedQueue._meta.db_table
    renewed = statements.renew_lease(*tables, worker.name, worker.state, using)
    if renewed is None:
        # Or another service took this one for dead: its rows may be gone, its name is its own.
        worker.save(force_insert=True, using=using)
        renewed = statements.renew_lease(*tables, worker.name, worker.state, using)
        assert renewed is not None
    failpoints.reached("on_heartbeat")
    beat, command, paused = renewed
    # Should another service forget this one, its new row says the same.
    worker.command = command
    return beat, Wishes(command=command, paused=paused)
