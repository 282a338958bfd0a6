# SPDX-License-Identifier: Apache-2.0
"""Changes of state, many rows at a time. Each is conditional: who comes too late changes nothing.

``claim`` gives a run its token; ``finish`` and ``release`` need it. A statement that is repeated
because the connection broke in its commit finds its work done, and does no harm.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import BooleanField, Case, F, Value, When
from django.db.models.functions import Now

from carrot_twisted import processes
from carrot_twisted.models import MessageLog, Worker, due_in
from carrot_twisted.outcomes import Kind, Result, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A row that this worker may run now."""

    uuid: UUID
    token: int
    task: str
    task_args: str
    content: str
    queue: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """Who claims, and how it judges others."""

    worker: str
    lease: float
    """Seconds without heartbeat after which another worker counts as dead."""
    max_crashes: int
    judges: bool
    """Whether leases may be judged: not before this worker has kept its own for a full lease.
    After an outage of the database everybody's lease looks dead."""


def new_token() -> int:
    """Fences one batch of runs."""
    return random.getrandbits(62)


def claim(
    ids: Sequence[UUID], token: int, claimant: Claimant, using: str
) -> dict[UUID, Claimed | Verdict]:
    """Take those rows that may run; say of each other why not.

    Call it inside a transaction. Two statements, whatever the number of rows; one more for rows
    that somebody else is running.

    Args:
        ids: primary keys, all different.
        token: of this batch; a repeated call with the same token finds what it had claimed.
        claimant: who claims. A row in progress under its own name counts as lost: the caller asks
            only for what it is not running.
        using: database alias.
    """
    logs = MessageLog.objects.using(using)
    logs.filter(pk__in=ids, status=MessageLog.PUBLISHED).update(
        status=MessageLog.IN_PROGRESS,
        worker=claimant.worker,
        token=token,
        attempts=F("attempts") + 1,
        start_time=Now(),
    )
    result: dict[UUID, Claimed | Verdict] = dict.fromkeys(ids, Verdict.MISSING)
    taken: list[tuple[UUID, str, int | None]] = []
    for row in _claim_rows(logs, ids):
        pk, status, row_token, worker = row[:4]
        if status != MessageLog.IN_PROGRESS:
            result[pk] = Verdict.FINAL
        elif row_token == token:
            result[pk] = _claimed(row)
        else:
            result[pk] = Verdict.ELSEWHERE
            taken.append((pk, worker, row_token))
    if taken:
        dead = dead_workers({worker for _, worker, _ in taken}, claimant, using)
        for pk, worker, row_token in taken:
            if worker == claimant.worker or worker in dead:
                result[pk] = _take_over(pk, row_token, token, claimant, using)
    return result


def _claim_rows(logs: Any, ids: Sequence[UUID]) -> Any:
    return logs.filter(pk__in=ids).values_list(
        "uuid", "status", "token", "worker", "task", "task_args", "content", "queue", "attempts"
    )


def _claimed(row: tuple[Any, ...]) -> Claimed:
    pk, _status, token, _worker, task, task_args, content, queue, attempts = row
    return Claimed(
        uuid=pk,
        token=token,
        task=task,
        task_args=task_args,
        content=content,
        queue=queue,
        attempt=attempts,
    )


def _take_over(
    pk: UUID, lost_token: int | None, token: int, claimant: Claimant, using: str
) -> Claimed | Verdict:
    """Claim a row whose worker is gone; too many of those, and the task is to blame."""
    logs = MessageLog.objects.using(using)
    lost = logs.filter(pk=pk, status=MessageLog.IN_PROGRESS, token=lost_token)
    if _fail_after(lost, claimant.max_crashes):
        return Verdict.LOST
    lost.update(
        worker=claimant.worker,
        token=token,
        attempts=F("attempts") + 1,
        crashes=F("crashes") + 1,
        start_time=Now(),
    )
    row = _claim_rows(logs, [pk]).get()
    return _claimed(row) if row[2] == token else Verdict.ELSEWHERE


def _fail_after(lost: Any, max_crashes: int) -> int:
    """FAILED for those of the lost rows that have cost too many workers."""
    return int(
        lost.filter(crashes__gte=max_crashes - 1).update(
            status=MessageLog.FAILED,
            crashes=F("crashes") + 1,
            failure_time=Now(),
            exception=f"worker lost {max_crashes} times",
        )
    )


def dead_workers(names: set[str], claimant: Claimant, using: str) -> set[str]:
    """Those of the named workers that run nothing any more."""
    fresh = Case(
        When(heartbeat_at__gte=Now() - timedelta(seconds=claimant.lease), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )
    alive: set[str] = set()
    here = processes.machine()
    known = Worker.objects.using(using).filter(name__in=names).annotate(fresh=fresh)
    for worker in known:
        if here and worker.machine == here:
            living = processes.start_of(worker.pid) == worker.process_start
        else:
            living = worker.fresh or not claimant.judges
        if living:
            alive.add(worker.name)
    return names - alive


def reap(claimant: Claimant, using: str) -> int:
    """Put the rows of dead workers back into the outbox, and forget those workers.

    Call it inside a transaction.

    Returns:
        How many rows were put back or failed.
    """
    logs = MessageLog.objects.using(using)
    in_progress = logs.filter(status=MessageLog.IN_PROGRESS)
    owners = set(in_progress.order_by().values_list("worker", flat=True).distinct())
    others = set(Worker.objects.using(using).values_list("name", flat=True))
    dead = dead_workers((owners | others) - {claimant.worker}, claimant, using)
    if not dead:
        return 0
    lost = in_progress.filter(worker__in=dead)
    count = _fail_after(lost, claimant.max_crashes)
    count += lost.update(
        status=MessageLog.PUBLISHED,
        crashes=F("crashes") + 1,
        token=None,
        confirmed_at=None,
        relay_at=due_in(0),
    )
    Worker.objects.using(using).filter(name__in=dead).delete()
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has ended, with what is to be written."""

    uuid: UUID
    token: int
    result: Result


_FINISH_COLUMNS = (
    "status",
    "start_time",
    "completion_time",
    "failure_time",
    "output",
    "exception",
    "traceback",
    "log",
)


def finish(runs: Sequence[Finished], clock_offset: float, using: str) -> int:
    """Write the ends of runs. Call it inside a transaction.

    Args:
        runs: at least one; COMPLETED, FAILED or RELEASED.
        clock_offset: seconds that the database's clock is ahead of this host's.
        using: database alias.

    Returns:
        How many rows were changed. Fewer than ``runs``: others have taken those over, or they were
        deleted; nothing of them was touched.
    """
    final = [run for run in runs if run.result.kind is not Kind.RELEASED]
    changed = 0
    if final:
        connection = connections[using]
        write = _finish_unnest if connection.vendor == "postgresql" else _finish_each
        changed = write(connection, final, clock_offset)
    for run in runs:
        if run.result.kind is Kind.RELEASED:
            changed += _release(run, using)
    return changed


def _values(result: Result, offset: float) -> tuple[Any, ...]:
    ended = _time(result.ended + offset)
    completed = result.kind is Kind.COMPLETED
    return (
        result.kind.value,
        _time(result.started + offset),
        ended if completed else None,
        None if completed else ended,
        result.output,
        result.exception,
        result.traceback,
        result.log,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _finish_unnest(connection: Any, runs: Sequence[Finished], offset: float) -> int:
    """One statement for the whole batch: PostgreSQL joins the table with arrays of the values."""
    columns: list[Sequence[Any]] = [[run.uuid for run in runs], [run.token for run in runs]]
    columns += [list(c) for c in zip(*(_values(r.result, offset) for r in runs), strict=True)]
    types = ("uuid", "bigint", "text", *("timestamptz",) * 3, *("text",) * 4)
    quote = connection.ops.quote_name
    # Names are constants of this module; values are parameters.
    sql = (
        f"UPDATE {quote(MessageLog._meta.db_table)} AS m SET "
        + ", ".join(f"{quote(name)} = v.{quote(name)}" for name in _FINISH_COLUMNS)
        + f" FROM unnest({', '.join(f'%s::{t}[]' for t in types)}) AS v (uuid, token, "
        + ", ".join(quote(name) for name in _FINISH_COLUMNS)
        + ") WHERE m.uuid = v.uuid AND m.token = v.token AND m.status = 'IN_PROGRESS'"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, columns)
        return int(cursor.rowcount)


def _finish_each(connection: Any, runs: Sequence[Finished], offset: float) -> int:
    """The same on every other database: one prepared statement, executed for each row."""
    quote = connection.ops.quote_name
    sql = (
        f"UPDATE {quote(MessageLog._meta.db_table)} SET "
        + ", ".join(f"{quote(name)} = %s" for name in _FINISH_COLUMNS)
        + " WHERE uuid = %s AND token = %s AND status = 'IN_PROGRESS'"
    )
    key = MessageLog._meta.pk
    adapt = connection.ops.adapt_datetimefield_value
    rows = [
        (
            *(adapt(v) if isinstance(v, datetime) else v for v in _values(run.result, offset)),
            key.get_db_prep_value(run.uuid, connection),
            run.token,
        )
        for run in runs
    ]
    with connection.cursor() as cursor:
        cursor.executemany(sql, rows)
        return int(cursor.rowcount)


def _release(run: Finished, using: str) -> int:
    """Back into the outbox: due after the result's delay."""
    result = run.result
    unstarted = {"attempts": F("attempts") - 1} if not result.started else {}
    return (
        MessageLog.objects.using(using)
        .filter(pk=run.uuid, token=run.token, status=MessageLog.IN_PROGRESS)
        .update(
            status=MessageLog.PUBLISHED,
            token=None,
            confirmed_at=None,
            relay_at=due_in(result.delay),
            exception=result.exception,
            traceback=result.traceback,
            log=result.log,
            **unstarted,
        )
    )


def register(worker: Worker, using: str) -> None:
    """Make this process known, before it claims anything."""
    worker.save(force_insert=True, using=using)


def heartbeat(worker: Worker, using: str) -> float:
    """Renew the lease of this process.

    Returns:
        The database's time, in seconds since the epoch.
    """
    rows = Worker.objects.using(using)
    if not rows.filter(name=worker.name).update(heartbeat_at=Now()):
        # Another service took this one for dead; its rows may be gone, its name is still its own.
        register(worker, using)
    beat: datetime = rows.values_list("heartbeat_at", flat=True).get(name=worker.name)
    return beat.timestamp()
