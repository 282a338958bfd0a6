# SPDX-License-Identifier: Apache-2.0
"""The statements by which rows that are under limits are looked for, and told to wait, in SQL.

As in ``statements``: one for a batch on PostgreSQL, and nothing of it on tasks without limits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections

from carrot_twisted.admission_decision import Candidate
from carrot_twisted.statements import (
    _adapted,
    _arrays,
    _columns,
    _execute_each,
    _is_postgresql,
    _now,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SAVED = {"name": "text", "state": "text", "look_at": "timestamptz"}

Kept = tuple[str, float | None]
"""The state of a limit, and when it is to be looked at, in seconds since the epoch."""


def lock(table: str, names: Iterable[str], using: str) -> tuple[dict[str, Kept], float]:
    """Lock limits until the transaction ends; those that are not there are made.

    In the order of their names, so that two who do this never wait for each other.

    Args:
        table: of the limits.
        names: their names.
        using: database alias.

    Returns:
        What is kept of each, and the time, asked when all were locked.
    """
    connection = connections[using]
    ordered = sorted(set(names))
    if _is_postgresql(connection):
        sql = (
            f"INSERT INTO {table} (name, used_at) SELECT n, clock_timestamp() "
            f"FROM unnest(%s::text[]) AS n ON CONFLICT (name) DO UPDATE SET "
            "used_at = excluded.used_at RETURNING name, state, "
            "extract(epoch FROM look_at)::float8, extract(epoch FROM clock_timestamp())::float8"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, [ordered])
            rows = cursor.fetchall()
        return {row[0]: (row[1], row[2]) for row in rows}, max((row[3] for row in rows), default=0)
    now = _now(connection)
    marks = ", ".join("(%s, '', %s)" for _ in ordered)
    sql = (
        f"INSERT INTO {table} (name, state, used_at) VALUES {marks} ON CONFLICT (name) DO UPDATE "
        "SET used_at = excluded.used_at RETURNING name, state, look_at"
    )
    with connection.cursor() as cursor:
        moment = _adapted(connection, now)
        cursor.execute(sql, [value for name in ordered for value in (name, moment)])
        rows = cursor.fetchall()
    operations: Any = connection.ops
    read = operations.convert_datetimefield_value
    kept = {}
    for name, state, look_at in rows:
        when = None if look_at is None else read(look_at, None, connection)
        kept[name] = (state, None if when is None else when.timestamp())
    return kept, now.timestamp()


def waiting(
    table: str, wants: Mapping[str, int], most_crashes: int, using: str
) -> dict[str, list[Candidate]]:
    """The first rows that wait for each of these limits: by priority, then the oldest.

    Not those that should have started before now.

    Args:
        table: of the MessageLogs.
        wants: how many of each, by the limit's name.
        most_crashes: rows under which so many workers were lost run apart.
        using: database alias.
    """
    if not wants:
        return {}
    connection = connections[using]
    is_postgresql = _is_postgresql(connection)
    now = "statement_timestamp()" if is_postgresql else "%s"
    since = (
        "extract(epoch FROM publish_time)::float8"
        if is_postgresql
        else "(julianday(publish_time) - 2440587.5) * 86400.0"
    )
    each = (
        f"SELECT uuid, task, queue, priority, {since}, slot_key, rate_key, waits_for, crashes "
        f"FROM {table} WHERE waits_for = {{}} AND status = 'PUBLISHED' "
        f"AND (expires_at IS NULL OR expires_at > {now} OR attempts > 0) "
        "ORDER BY priority DESC, publish_time, uuid LIMIT {}"
    )
    rows: list[tuple[Any, ...]] = []
    with connection.cursor() as cursor:
        if is_postgresql:
            cursor.execute(
                "SELECT w.* FROM unnest(%s::text[], %s::bigint[]) AS k (name, most) "
                f"CROSS JOIN LATERAL ({each.format('k.name', 'k.most')}) AS w",
                [list(wants), list(wants.values())],
            )
            rows = cursor.fetchall()
        else:
            moment = _adapted(connection, _now(connection))
            for name, most in wants.items():
                cursor.execute(each.format("%s", "%s"), [name, moment, most])
                rows += cursor.fetchall()
    found: dict[str, list[Candidate]] = {name: [] for name in wants}
    for key, task, queue, priority, when, slot, rate, waits_for, crashes in rows:
        found[waits_for].append(
            Candidate(
                uuid=key if isinstance(key, UUID) else UUID(key),
                task=task,
                queue=queue,
                priority=priority,
                since=when,
                slot=slot,
                rate=rate,
                waits_for=waits_for,
                apart=crashes >= most_crashes,
            )
        )
    return found


def park(table: str, names: Mapping[UUID, str], using: str) -> None:
    """Have rows wait for limits: out of the outbox, and without a message.

    Args:
        table: of the MessageLogs.
        names: the limit of each, by primary key.
        using: database alias.
    """
    connection = connections[using]
    rows = sorted(names.items())
    kept = "token = NULL, publish_error = ''"
    if _is_postgresql(connection):
        sql = (
            f"UPDATE {table} AS m SET waits_for = v.name, {kept}, "
            "confirmed_at = coalesce(m.confirmed_at, statement_timestamp()) "
            f"FROM {_arrays({'uuid': 'uuid', 'name': 'text'})} "
            "WHERE m.uuid = v.uuid AND m.status = 'PUBLISHED'"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, _columns(rows))
        return
    sql = (
        f"UPDATE {table} SET waits_for = %s, {kept}, confirmed_at = coalesce(confirmed_at, %s) "
        "WHERE uuid = %s AND status = 'PUBLISHED'"
    )
    now = _now(connection)
    _execute_each(connection, sql, [(name, now, key) for key, name in rows])


def save(table: str, limits: Sequence[tuple[str, str, float | None]], using: str) -> None:
    """Write what is to be remembered of limits that are locked.

    Args:
        table: of the limits.
        limits: name, state, and when it is to be looked at (seconds since the epoch) of each.
        using: database alias.
    """
    connection = connections[using]
    rows = [
        (name, state, None if when is None else datetime.fromtimestamp(when, UTC))
        for name, state, when in limits
    ]
    if _is_postgresql(connection):
        sql = (
            f"UPDATE {table} AS m SET state = v.state, look_at = v.look_at "
            f"FROM {_arrays(_SAVED)} WHERE m.name = v.name"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, _columns(rows))
        return
    sql = f"UPDATE {table} SET state = %s, look_at = %s WHERE name = %s"
    _execute_each(connection, sql, [(state, when, name) for name, state, when in rows])
