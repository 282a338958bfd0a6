# SPDX-License-Identifier: Apache-2.0
"""The statements whose cost is counted, in SQL: many rows each.

PostgreSQL joins the table with arrays of values (``unnest``), one statement for a batch; every
other database gets one prepared statement, executed for each row in the same transaction. Through
the ORM the same work takes three to ten times as long.

Table and column names are constants of this package; every value is a parameter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections, transaction
from django.utils import timezone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Columns of a new row that differ from row to row, with PostgreSQL's type for them.
_INSERTED = {
    "uuid": "uuid",
    "task": "text",
    "task_args": "text",
    "content": "text",
    "exchange": "text",
    "queue": "text",
    "routing_key": "text",
    "priority": "smallint",
    "retry_of": "uuid",
    "token": "bigint",
    "publish_time": "timestamptz",
    "relay_at": "timestamptz",
}
_TIMES = ("publish_time", "relay_at")
#: Columns more of a new row that has a time, a unique key or a retention of its own.
_SPECIAL = {
    "run_after": "timestamptz",
    "expires_at": "timestamptz",
    "unique_key": "text",
    "unique_until": "text",
    "retention": "bigint",
    "django_task": "text",
    "flow": "uuid",
    "flow_step": "smallint",
    "flow_position": "integer",
    "slot_key": "text",
    "rate_key": "text",
}
#: The column more of new rows whose publishing is traced.
_TRACED = {"trace": "text"}
#: Which rows hold their unique key: word for word the condition of the constraint, by which SQLite
#: finds it.
_HOLDS_KEY = (
    "(status IN ('PUBLISHED', 'IN_PROGRESS') AND unique_key IS NOT NULL "
    "AND (unique_until = 'end' OR attempts = 0))"
)
#: Columns of a new row that are the same in each.
_NEW: dict[str, Any] = {
    "status": "PUBLISHED",
    "attempts": 0,
    "crashes": 0,
    "worker": "",
    "publish_error": "",
}
_FINISHED = {
    "status": "text",
    # Times as numbers, which cost less.
    "start_time": "float8",
    "completion_time": "float8",
    "failure_time": "float8",
    "output": "text",
    "returned": "text",
    "exception": "text",
    "traceback": "text",
    "exception_class": "text",
    "log": "text",
}
_KEY = {"uuid": "uuid", "token": "bigint"}

FinishValues = tuple[
    str,
    float,
    float | None,
    float | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
]


def _is_postgresql(connection: Any) -> bool:
    return bool(connection.vendor == "postgresql")


def _adapted(connection: Any, value: Any) -> Any:
    """A parameter as a driver without the type takes it."""
    if isinstance(value, UUID):
        return value if connection.features.has_native_uuid_field else value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value


def _is(column: str, state: str, *also: str) -> str:
    """That a row is in this state, for statements that know their rows' keys.

    Written so, the planner of PostgreSQL finds the rows by their keys. By the plain condition it
    might walk through a partial index instead, all of a backlog with each batch: what it knows of
    the table is from an hour, perhaps, when no task waited.
    """
    condition = " AND ".join([f"{column} = '{state}'", *also])
    return f"CASE WHEN {condition} THEN TRUE ELSE FALSE END"


#: Joins the table with an array of keys. That is said twice, so that rows are found by their keys:
#: for the join alone a table of some ten thousand rows might be read as a whole.
_SAME = "m.uuid = v.uuid AND m.token = v.token AND m.uuid = ANY(%s::uuid[])"


def _execute_each(connection: Any, sql: str, rows: Sequence[Sequence[Any]]) -> int:
    with connection.cursor() as cursor:
        cursor.executemany(sql, [[_adapted(connection, v) for v in row] for row in rows])
        return int(cursor.rowcount)


def _arrays(types: dict[str, str]) -> str:
    return f"unnest({', '.join(f'%s::{t}[]' for t in types.values())}) AS v ({', '.join(types)})"


def _columns(rows: Sequence[Sequence[Any]]) -> list[str]:
    return [_array(column) for column in zip(*rows, strict=True)]


def _array(values: Iterable[Any]) -> str:
    """What PostgreSQL reads as an array of any type.

    Drivers make it of a list, too: with half a dozen calls for each value, a fifth of all that a
    task costs the service.
    """
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    if isinstance(value, UUID):
        return value.hex
    # Numbers, truth values, and times as ISO 8601 has them.
    return str(value) if isinstance(value, int | float) else f'"{value}"'


def insert_rows(table: str, rows: Sequence[Any], using: str) -> None:
    """Insert new MessageLogs, and set their ``publish_time``. Call it inside a transaction."""
    connection = connections[using]
    now = _now(connection)
    for row in rows:
        row.publish_time = row.relay_at = now
    # All of them are published in one span, or none is.
    columns = _INSERTED if rows[0].trace is None else _INSERTED | _TRACED
    values = [[getattr(row, name) for name in columns] for row in rows]
    names = ", ".join([*columns, *_NEW])
    if _is_postgresql(connection):
        constants = ", ".join("%s" for _ in _NEW)
        sql = f"INSERT INTO {table} ({names}) SELECT v.*, {constants} FROM {_arrays(columns)}"
        with connection.cursor() as cursor:
            cursor.execute(sql, [*_NEW.values(), *_columns(values)])
    else:
        marks = ", ".join("%s" for _ in range(len(columns) + len(_NEW)))
        sql = f"INSERT INTO {table} ({names}) VALUES ({marks})"
        _execute_each(connection, sql, [[*row, *_NEW.values()] for row in values])
    for row in rows:
        row._state.adding = False
        row._state.db = using


def insert_row(table: str, row: Any, using: str) -> None:
    """Insert one new MessageLog, and set its ``publish_time``. One statement.

    ``save()`` looks at each of its forty columns, which takes twice the caller's time.
    """
    connection = connections[using]
    names = [name for name in _INSERTED if name not in _TIMES]
    names += [name for name in (*_SPECIAL, *_TRACED) if getattr(row, name) is not None]
    values = [_adapted(connection, getattr(row, name)) for name in names]
    if _is_postgresql(connection):
        now, times = "statement_timestamp()", []
        back = " RETURNING publish_time"
    else:
        row.publish_time = _now(connection)
        now, times = "%s", [_adapted(connection, row.publish_time)] * len(_TIMES)
        back = ""
    marks = ", ".join([*("%s" for _ in (*names, *_NEW)), *(now for _ in _TIMES)])
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join([*names, *_NEW, *_TIMES])}) VALUES ({marks}){back}",
            [*values, *_NEW.values(), *times],
        )
        if back:
            (row.publish_time,) = cursor.fetchone()
    row.relay_at = row.publish_time
    row._state.adding = False
    row._state.db = using


def insert_special(table: str, rows: Sequence[Any], using: str) -> list[Any]:
    """Insert new MessageLogs that have more columns than most. Call it inside a transaction.

    Args:
        table: of the MessageLogs.
        rows: unsaved; their times are set.
        using: database alias.

    Returns:
        Those that were not inserted, because another row holds their unique key.
    """
    connection = connections[using]
    columns = _INSERTED | _SPECIAL | _TRACED
    values = [[getattr(row, name) for name in columns] for row in rows]
    names = ", ".join([*columns, *_NEW])
    on_conflict = f"ON CONFLICT (unique_key) WHERE {_HOLDS_KEY} DO NOTHING"
    with connection.cursor() as cursor:
        if _is_postgresql(connection):
            constants = ", ".join("%s" for _ in _NEW)
            sql = (
                f"INSERT INTO {table} ({names}) SELECT v.*, {constants} FROM {_arrays(columns)} "
                f"{on_conflict} RETURNING uuid"
            )
            cursor.execute(sql, [*_NEW.values(), *_columns(values)])
            done = {row[0] for row in cursor.fetchall()}
        else:
            marks = ", ".join("%s" for _ in (*columns, *_NEW))
            sql = f"INSERT INTO {table} ({names}) VALUES ({marks}) {on_conflict}"
            done = set()
            for row, given in zip(rows, values, strict=True):
                adapted = [_adapted(connection, value) for value in given]
                cursor.execute(sql, [*adapted, *_NEW.values()])
                if cursor.rowcount:
                    done.add(row.pk)
    refused = []
    for row in rows:
        if row.pk in done:
            row._state.adding = False
            row._state.db = using
        else:
            refused.append(row)
    return refused


def now(using: str) -> datetime:
    """The time on the database's clock."""
    return _now(connections[using])


def _now(connection: Any) -> datetime:
    if not _is_postgresql(connection):
        # SQLite's clock is this host's.
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now


def finish_rows(
    table: str,
    keys: Sequence[tuple[UUID, int]],
    values: Sequence[FinishValues],
    using: str,
) -> int:
    """Write the ends of runs, each fenced by its token; returns how many rows that changed.

    Args:
        table: of the MessageLogs.
        keys: primary key and token of each run.
        values: status; start, completion and failure time, in seconds since the epoch; output,
            what that tells of the value, exception, traceback, exception's class, log.
        using: database alias.
    """
    connection = connections[using]
    if not _is_postgresql(connection):
        assignments = ", ".join(f"{name} = %s" for name in _FINISHED)
        sql = (
            f"UPDATE {table} SET {assignments} "
            "WHERE uuid = %s AND token = %s AND status = 'IN_PROGRESS'"
        )
        rows = [
            [value[0], *map(_time, value[1:4]), *value[4:], *key]
            for key, value in zip(keys, values, strict=True)
        ]
        return _execute_each(connection, sql, rows)
    # What is the same in all of them is told once: most have ended well, and just now.
    columns = dict(zip(_FINISHED, zip(*values, strict=True), strict=True))
    same = {name: column[0] for name, column in columns.items() if _is_same(column)}
    differ = {name: columns[name] for name in columns if name not in same}
    assigned = {name: f"%s::{_FINISHED[name]}" for name in same}
    assigned |= {name: f"v.{name}" for name in differ}
    assignments = ", ".join(
        f"{name} = to_timestamp({value})" if name.endswith("_time") else f"{name} = {value}"
        for name, value in assigned.items()
    )
    types = _KEY | {name: _FINISHED[name] for name in differ}
    sql = (
        f"UPDATE {table} AS m SET {assignments} FROM {_arrays(types)} "
        f"WHERE {_SAME} AND {_is('m.status', 'IN_PROGRESS')}"
    )
    uuids, tokens = _columns(keys)
    arrays = [uuids, tokens, *map(_array, differ.values()), uuids]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*same.values(), *arrays])
        return int(cursor.rowcount)


def _is_same(column: Sequence[Any]) -> bool:
    return column.count(column[0]) == len(column)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def progress_rows(
    table: str, keys: Sequence[tuple[UUID, int]], values: Sequence[str | None], using: str
) -> None:
    """Write how far runs have come, each fenced by its token.

    Args:
        table: of the MessageLogs.
        keys: primary key and token of each run.
        values: of each, as JSON.
        using: database alias.
    """
    connection = connections[using]
    if not _is_postgresql(connection):
        sql = (
            f"UPDATE {table} SET progress = %s "
            "WHERE uuid = %s AND token = %s AND status = 'IN_PROGRESS'"
        )
        rows = [(value, *key) for key, value in zip(keys, values, strict=True)]
        _execute_each(connection, sql, rows)
        return
    sql = (
        f"UPDATE {table} AS m SET progress = v.progress::jsonb "
        f"FROM {_arrays({**_KEY, 'progress': 'text'})} "
        f"WHERE {_SAME} AND {_is('m.status', 'IN_PROGRESS')}"
    )
    with connection.cursor() as cursor:
        uuids, tokens = _columns(keys)
        cursor.execute(sql, [uuids, tokens, list(values), uuids])


def log_rows(
    table: str, logs: Sequence[tuple[UUID, int, str, str | None]], using: str
) -> set[UUID]:
    """Write the logs, and the progress, of runs that go on, each fenced by its token.

    One statement on PostgreSQL. It waits for nobody: a task may have locked its own row.

    Args:
        table: of the MessageLogs.
        logs: primary key, token, log and progress (as JSON) of each run.
        using: database alias.

    Returns:
        Whose that changed.
    """
    connection = connections[using]
    if _is_postgresql(connection):
        sql = (
            f"WITH free AS MATERIALIZED (SELECT m.uuid, v.log, v.progress FROM {table} AS m "
            f"JOIN {_arrays({**_KEY, 'log': 'text', 'progress': 'text'})} "
            f"ON {_SAME} WHERE {_is('m.status', 'IN_PROGRESS')} FOR UPDATE OF m SKIP LOCKED) "
            f"UPDATE {table} AS m SET log = free.log, progress = free.progress::jsonb "
            "FROM free WHERE m.uuid = free.uuid RETURNING m.uuid"
        )
        with connection.cursor() as cursor:
            uuids, *others = _columns(logs)
            cursor.execute(sql, [uuids, *others, uuids])
            return {row[0] for row in cursor.fetchall()}
    sql = (
        f"UPDATE {table} SET log = %s, progress = %s "
        "WHERE uuid = %s AND token = %s AND status = 'IN_PROGRESS'"
    )
    changed = set()
    with connection.cursor() as cursor:
        for uuid, token, text, progress in logs:
            cursor.execute(sql, [text, progress, _adapted(connection, uuid), token])
            if cursor.rowcount:
                changed.add(uuid)
    return changed


#: What ``claim_rows`` returns of each row, and with it the time of its publishing.
CLAIMED = (
    *("uuid", "task", "task_args", "content", "queue", "attempts", "retries", "django_task"),
    "flow",
    "slot_key",
)
#: Since when it waits. A number, because reading it costs less than reading a time.
_SINCE_DUE = {
    True: "extract(epoch FROM coalesce(run_after, publish_time))::float8",
    False: "(julianday(coalesce(run_after, publish_time)) - 2440587.5) * 86400.0",
}


def claim_rows(
    table: str,
    ids: Sequence[UUID],
    token: int,
    worker: str,
    crashes: int,
    using: str,
    barred: Sequence[str] = (),
    *,
    limited: bool = False,
) -> list[tuple[Any, ...]]:
    """Take those of the rows that are PUBLISHED; returns the CLAIMED columns of each.

    Not those that wait for a later time, nor those that should have started before now for the
    first time. Those under limits only where the caller has seen to these.

    The log of an earlier attempt goes, for that of this one is told while it runs.
    The last value of each is when it was published, or due, in seconds since the epoch.

    PostgreSQL and SQLite return what an UPDATE changed, which saves a query.

    Args:
        table: of the MessageLogs.
        ids: primary keys.
        token: of this batch.
        worker: name of who claims.
        crashes: leave rows alone under which so many workers were lost.
        using: database alias.
        barred: leave the rows of these queues alone.
        limited: the limits of all of them let them start.
    """
    connection = connections[using]
    keys: list[Any]
    times: list[Any]
    if _is_postgresql(connection):
        now, times = "statement_timestamp()", []
        matching, keys = "uuid = ANY(%s::uuid[])", [_array(ids)]
    else:
        now, times = "%s", [_adapted(connection, _now(connection))]
        matching = f"uuid IN ({', '.join('%s' for _ in ids)})"
        keys = [_adapted(connection, value) for value in ids]
    sql = (
        f"UPDATE {table} SET status = 'IN_PROGRESS', worker = %s, token = %s, publish_error = '', "
        f"log = NULL, progress = NULL, attempts = attempts + 1, start_time = {now}"
        f"{', waits_for = NULL' if limited else ''} "
        f"WHERE {matching} "
        f"AND {_is('status', 'PUBLISHED')} AND crashes < %s "
        f"AND (run_after IS NULL OR run_after <= {now}) "
        f"AND (expires_at IS NULL OR expires_at > {now} OR attempts > 0) "
    )
    if not limited:
        sql += "AND slot_key IS NULL AND rate_key IS NULL "
    if barred:
        sql += f"AND queue NOT IN ({', '.join('%s' for _ in barred)}) "
    sql += f"RETURNING {', '.join(CLAIMED)}, {_SINCE_DUE[_is_postgresql(connection)]}"
    with connection.cursor() as cursor:
        cursor.execute(sql, [worker, token, *times, *keys, crashes, *times * 2, *barred])
        rows = cursor.fetchall()
    if connection.features.has_native_uuid_field:
        return list(rows)
    at = CLAIMED.index("flow")
    return [(UUID(row[0]), *row[1:at], row[at] and UUID(row[at]), *row[at + 1 :]) for row in rows]


#: What the scheduler writes of a schedule, and what it had read of it.
_MOVED = {
    "id": "bigint",
    "slot": "timestamptz",
    "next_run_time": "timestamptz",
    "last_run_time": "timestamptz",
    "last_log": "uuid",
    "problem": "text",
    "active": "boolean",
}
#: As SQLite writes times: to the millisecond where it is asked for Now(), else as Django does.
_SAME_SLOT = "strftime('%%Y-%%m-%%d %%H:%%M:%%f', {})"

MoveValues = tuple[int, datetime | None, datetime | None, datetime | None, UUID | None, str, bool]


def move_schedules(table: str, moves: Sequence[MoveValues], using: str) -> set[int]:
    """Move schedules on, each only if its next slot is still the one that was read.

    One statement. Who comes second changes nothing.

    Args:
        table: of the ScheduledTasks.
        moves: primary key, the slot that was read, and the new next_run_time, last_run_time,
            last_log, problem and active of each.
        using: database alias.

    Returns:
        Primary keys of those that were moved.
    """
    connection = connections[using]
    columns = [name for name in _MOVED if name not in ("id", "slot")]
    assignments = ", ".join(f"{name} = v.{name}" for name in columns)
    values: list[Any]
    if _is_postgresql(connection):
        sql = (
            f"UPDATE {table} AS s SET {assignments} FROM {_arrays(_MOVED)} WHERE s.id = v.id "
            "AND s.next_run_time IS NOT DISTINCT FROM v.slot RETURNING s.id"
        )
        values = _columns(moves)
    else:
        parts = ", ".join(
            f"json_extract(value, '$[{n}]') AS {'pk' if name == 'id' else name}"
            for n, name in enumerate(_MOVED)
        )
        same = f"{_SAME_SLOT.format(f'{table}.next_run_time')} IS {_SAME_SLOT.format('v.slot')}"
        sql = (
            f"UPDATE {table} SET {assignments} FROM (SELECT {parts} FROM json_each(%s)) AS v "
            f"WHERE {table}.id = v.pk AND {same} RETURNING id"
        )
        values = [json.dumps([[_adapted(connection, value) for value in row] for row in moves])]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return {row[0] for row in cursor.fetchall()}


def confirm_rows(table: str, keys: Sequence[tuple[UUID, int]], using: str) -> None:
    """Note that the broker holds these messages, each known by its row and its token.

    A row that was claimed since then has another token, and needs no note. Nor does one that is
    locked: it is being claimed. So this waits for nobody, and no deadlock comes of the order in
    which claims and confirms of many rows reach them.
    """
    if not keys:
        return
    connection = connections[using]
    condition = _is("status", "PUBLISHED", "confirmed_at IS NULL")
    if _is_postgresql(connection):
        sql = (
            f"WITH free AS MATERIALIZED (SELECT m.uuid FROM {table} AS m JOIN {_arrays(_KEY)} "
            f"ON {_SAME} WHERE {condition} "
            "FOR UPDATE OF m SKIP LOCKED) "
            f"UPDATE {table} AS m SET confirmed_at = statement_timestamp(), publish_error = '' "
            "FROM free WHERE m.uuid = free.uuid"
        )
        with connection.cursor() as cursor:
            uuids, tokens = _columns(keys)
            cursor.execute(sql, [uuids, tokens, uuids])
    else:
        sql = (
            f"UPDATE {table} SET confirmed_at = %s, publish_error = '' "
            f"WHERE uuid = %s AND token = %s AND {condition}"
        )
        now = _now(connection)
        with transaction.atomic(using=using):
            _execute_each(connection, sql, [(now, *key) for key in keys])


def sum_histograms(
    table: str,
    by: Sequence[str],
    resolution: int,
    since: datetime,
    using: str,
    queue: str | None = None,
    tasks: Sequence[str] | None = None,
) -> list[tuple[Any, ...]]:
    """Sum the histograms ``wait`` and ``run`` of statistics where they are, in one statement.

    Their sums have some dozens of numbers each, however many services and tasks have counted.

    Args:
        table: of the TaskStatistics.
        by: columns to group by.
        resolution: of the buckets.
        since: start of the first bucket.
        using: database alias.
        queue: of this queue only.
        tasks: of these tasks only.

    Returns:
        Of each bucket of each histogram: "wait" or "run", the columns of ``by``, its number, and
        how many durations are in it.
    """
    connection: Any = connections[using]
    each = "jsonb_each_text" if _is_postgresql(connection) else "json_each"
    condition = "resolution = %s AND start >= %s"
    values: list[Any] = [resolution, _adapted(connection, since)]
    if queue is not None:
        condition += " AND queue = %s"
        values.append(queue)
    if tasks is not None:
        condition += f" AND task IN ({', '.join('%s' for _ in tasks)})"
        values += tasks
    columns = ", ".join(f"s.{name}" for name in by)
    sql = " UNION ALL ".join(
        f"SELECT '{name}', {columns}, CAST(h.key AS integer), SUM(CAST(h.value AS bigint)) "
        f"FROM {table} AS s CROSS JOIN {each}(s.{name}) AS h "
        f"WHERE {condition} GROUP BY {columns}, h.key"
        for name in ("wait", "run")
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, values * 2)
        rows = cursor.fetchall()
    if not _is_postgresql(connection) and "start" in by:
        at = 1 + by.index("start")
        read = connection.ops.convert_datetimefield_value
        rows = [(*row[:at], read(row[at], None, connection), *row[at + 1 :]) for row in rows]
    return [(*row[:-2], int(row[-2]), int(row[-1])) for row in rows]


# What a service asks again and again while it has nothing to do. Each is one look at an index that
# is empty then; to have the ORM make the statement would take several times as long.


@dataclass(frozen=True, kw_only=True)
class Look:
    """Asks whether there is a row of a kind."""

    table: str
    condition: str
    """In SQL. ``{}`` in it is a time, ``%s`` a value, and not both of them."""
    seconds: float = 0.0
    """From now to that time; may be less than 0."""
    values: Sequence[str] = ()


def unsent(table: str, grace: float) -> Look:
    """For rows in the outbox that a relay should take.

    Args:
        table: of the MessageLogs.
        grace: seconds for which a row is its publisher's business.
    """
    condition = "status = 'PUBLISHED' AND confirmed_at IS NULL AND relay_at <= {}"
    return Look(table=table, condition=condition, seconds=-grace)


def expired(table: str) -> Look:
    """For waiting rows that have not started in time."""
    condition = (
        "expires_at IS NOT NULL AND status = 'PUBLISHED' AND attempts = 0 AND expires_at <= {}"
    )
    return Look(table=table, condition=condition)


def has_expired(table: str, using: str) -> bool:
    """Whether a waiting row has not started in time."""
    return is_any([expired(table)], using)


def has_due(table: str, ahead: float, using: str) -> bool:
    """Whether an active schedule is due, or is to be planned.

    Args:
        table: of the ScheduledTasks.
        ahead: seconds from now that count as due.
        using: database alias.
    """
    # Not by OR: SQLite would walk through the whole index.
    conditions = ["active AND next_run_time IS NULL", "active AND next_run_time <= {}"]
    looks = [Look(table=table, condition=one, seconds=ahead) for one in conditions]
    return is_any(looks, using)


def is_any(looks: Sequence[Look], using: str) -> bool:
    """Whether there is a row of one of these kinds: one statement."""
    (answer,) = are_any([looks], using)
    return answer


def are_any(kinds: Sequence[Sequence[Look]], using: str) -> list[bool]:
    """The same of several groups of kinds: still one statement."""
    connection = connections[using]
    values: list[Any] = []
    columns: list[str] = []
    for looks in kinds:
        parts: list[str] = []
        for look in looks:
            then = "%s"
            if _is_postgresql(connection):
                then = f"statement_timestamp() + interval '{look.seconds:f} seconds'"
            elif "{}" in look.condition:
                when = _now(connection) + timedelta(seconds=look.seconds)
                values.append(_adapted(connection, when))
            values += look.values
            condition = look.condition.format(then)
            parts.append(f"EXISTS (SELECT 1 FROM {look.table} WHERE {condition})")
        columns.append(" OR ".join(parts))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)}", values)
        return [bool(value) for value in cursor.fetchone()]


def renew_lease(
    table: str,
    paused: str,
    name: str,
    state: Any,
    using: str,
) -> tuple[float, str, frozenset[str]] | None:
    """Note a heartbeat of a worker, and its state.

    Args:
        table: of the Workers.
        paused: table of the PausedQueues.
        name: the worker's.
        state: of its process, for the column of that name.
        using: database alias.

    Returns:
        The database's time, in seconds since the epoch, what operators want of the worker, and
        which queues they have paused; None: it is not known.
    """
    connection = connections[using]
    if _is_postgresql(connection):
        now, times = "statement_timestamp()", []
        seconds, state_type = "extract(epoch FROM heartbeat_at)::float8", "::jsonb"
        names = "json_agg(name)::text"
    else:
        moment = _now(connection)
        now, times = "%s", [_adapted(connection, moment)]
        seconds, state_type = repr(moment.timestamp()), ""
        names = "json_group_array(name)"
    sql = (
        f"UPDATE {table} SET heartbeat_at = {now}, state = %s{state_type} "
        f"WHERE name = %s RETURNING {seconds}, command, (SELECT {names} FROM {paused})"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [*times, json.dumps(state), name])
        rows = cursor.fetchall()
    if not rows:
        return None
    beat, command, found = rows[0]
    return beat, command, frozenset(json.loads(found or "[]"))


def owners(table: str, workers: str, using: str) -> set[str]:
    """The names of all workers that are known, or under whose name a row is in progress.

    Args:
        table: of the MessageLogs.
        workers: that of the Workers.
        using: database alias.
    """
    sql = (
        f"SELECT worker FROM {table} WHERE status = 'IN_PROGRESS' UNION SELECT name FROM {workers}"
    )
    with connections[using].cursor() as cursor:
        cursor.execute(sql)
        return {row[0] for row in cursor.fetchall()}


def retentions(table: str, using: str) -> list[int]:
    """The retentions that rows at their end have of their own, in order.

    One look at an index for each, however many rows there are.
    """
    first = (
        f"SELECT MIN(retention) FROM {table} "
        "WHERE retention IS NOT NULL AND status IN ('COMPLETED', 'FAILED', 'CANCELLED')"
    )
    sql = (
        f"WITH RECURSIVE r (retention) AS ({first} UNION ALL "
        f"SELECT ({first} AND retention > r.retention) FROM r WHERE r.retention IS NOT NULL) "
        "SELECT retention FROM r WHERE retention IS NOT NULL"
    )
    with connections[using].cursor() as cursor:
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]


def queues_with(table: str, states: Sequence[str], limit: int | None, using: str) -> list[str]:
    """The queues that have rows of these states: those of an index that begins with the queue.

    One look at that index for each, however many rows there are.

    Args:
        table: of the MessageLogs.
        states: unfinished ones.
        limit: how many queues at most; None: all.
        using: database alias.
    """
    words = ", ".join(f"'{state}'" for state in states)
    first = f"SELECT MIN(queue) FROM {table} WHERE status IN ({words})"
    sql = (
        f"WITH RECURSIVE q (queue) AS ({first} UNION ALL "
        f"SELECT ({first} AND queue > q.queue) FROM q WHERE q.queue IS NOT NULL) "
        "SELECT queue FROM q WHERE queue IS NOT NULL"
    )
    if limit is not None:
        sql += f" LIMIT {limit:d}"
    with connections[using].cursor() as cursor:
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]
