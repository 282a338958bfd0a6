# SPDX-License-Identifier: Apache-2.0
"""Makes the rows, in the database itself: a million in some seconds.

A week of tasks: of twenty four wait, one was cancelled, two have failed, the rest are completed;
eight run. Forty tasks, four queues, eight workers. Celery's results get as many rows of the same
times. The charts get a week of buckets from four services with fifty tasks each.
"""

from __future__ import annotations

import json
from typing import Any

from django.db import connection

# ruff: noqa: S608 - all parts of the statements are constants of this file

#: Seconds over which the rows are spread.
WEEK = 7 * 86_400
#: Is in one row, in the middle.
NEEDLE = "needle-in-the-haystack"
QUEUES = ("default", "mail", "reports", "slow")
#: Services, and tasks, that the charts have buckets of.
SERVICES, TASKS = 4, 50


def fill(count: int) -> None:
    """Make so many rows of each kind; the tables are empty."""
    with connection.cursor() as cursor:
        for statement in (_logs(count, ended=False), _results(count)):
            cursor.execute(statement)
        for resolution, buckets in ((60, 60), (600, 144), (3600, 168), (86_400, 8)):
            for statement in _statistics(resolution, buckets):
                cursor.execute(statement)
    _analyze()


def fill_logs(count: int) -> None:
    """Make so many rows of tasks that have all ended."""
    with connection.cursor() as cursor:
        cursor.execute(_logs(count, ended=True))
    _analyze()


def _analyze() -> None:
    with connection.cursor() as cursor:
        # As autovacuum does in a while: a table that was just filled has no statistics yet.
        cursor.execute("VACUUM ANALYZE" if _is_postgresql() else "ANALYZE")


def _is_postgresql() -> bool:
    return connection.vendor == "postgresql"


def _series(count: int) -> str:
    """``n`` from 0 on."""
    if _is_postgresql():
        return f"SELECT n::bigint AS n FROM generate_series(0, {count - 1}) AS g (n)"
    return (
        "SELECT n FROM (WITH RECURSIVE g (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM g "
        f"WHERE n < {count - 1}) SELECT n FROM g)"
    )


def _ago(seconds: str) -> str:
    if _is_postgresql():
        return f"now() - make_interval(secs => ({seconds})::float8)"
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || ({seconds}) || ' seconds')"


def _hexadecimal(number: str, digits: int) -> str:
    if _is_postgresql():
        return f"lpad(to_hex(({number})::bigint), {digits}, '0')"
    return f"printf('%0{digits}x', {number})"


def _logs(count: int, *, ended: bool) -> str:
    age = f"(({count} - n) * {WEEK}.0 / {count})"
    now = "extract(epoch FROM now())" if _is_postgresql() else "unixepoch('now')"
    text = (
        f"{_hexadecimal(f'CAST(({now} - {age}) * 1000 AS bigint)', 12)} || '7' || "
        f"{_hexadecimal('n % 4096', 3)} || '8' || {_hexadecimal('n', 15)}"
    )
    key = f"({text})::uuid" if _is_postgresql() else text
    status = (
        f"CASE WHEN n >= {count - 8} THEN 'IN_PROGRESS' WHEN n % 20 < 4 THEN 'PUBLISHED' "
        "WHEN n % 20 = 4 THEN 'CANCELLED' WHEN n % 20 < 7 THEN 'FAILED' ELSE 'COMPLETED' END"
    )
    if ended:
        status = (
            "CASE WHEN n % 20 = 4 THEN 'CANCELLED' WHEN n % 20 < 7 THEN 'FAILED' "
            "ELSE 'COMPLETED' END"
        )
    failed, completed = f"{status} = 'FAILED'", f"{status} = 'COMPLETED'"
    started = f"{status} NOT IN ('PUBLISHED', 'CANCELLED')"
    queues = " ".join(f"WHEN {n} THEN '{name}'" for n, name in enumerate(QUEUES))
    note = f"CASE WHEN n = {count // 2} THEN '{NEEDLE}' ELSE 'a usual order of a usual shop' END"
    columns = {
        "uuid": key,
        "status": status,
        "task": "'shop.tasks.task_' || (n % 40)",
        "task_args": "'[' || n || ', \"monthly\"]'",
        "content": f"'{{\"customer\": ' || (n % 5000) || ', \"note\": \"' || {note} || '\"}}'",
        "exchange": "''",
        "queue": f"CASE n / 7 % 4 {queues} END",
        "routing_key": "'default'",
        "priority": "0",
        "publish_time": _ago(age),
        "start_time": f"CASE WHEN {started} THEN {_ago(f'{age} - 0.2')} END",
        "completion_time": f"CASE WHEN {completed} THEN {_ago(f'{age} - 0.3')} END",
        "failure_time": f"CASE WHEN {failed} THEN {_ago(f'{age} - 0.3')} END",
        "output": f"CASE WHEN {completed} THEN '{{\"sent\": true}}' END",
        "exception": f"CASE WHEN {failed} THEN 'ValueError: no customer ' || (n % 5000) END",
        "traceback": f"CASE WHEN {failed} THEN 'Traceback (most recent call last): ...' END",
        "log": "'[INFO] shop.tasks: begun' || n",
        "attempts": f"CASE WHEN {started} THEN 1 ELSE 0 END",
        "crashes": "0",
        "worker": f"CASE WHEN {started} THEN 'worker-' || (n % 8) ELSE '' END",
        "token": "n",
        "confirmed_at": _ago(age),
        "relay_at": _ago(age),
        "publish_error": "''",
    }
    return _insert("carrot_twisted_messagelog", columns, _series(count))


def _results(count: int) -> str:
    age = f"(({count} - n) * {WEEK}.0 / {count})"
    note = f"CASE WHEN n = {count // 2} THEN '{NEEDLE}' ELSE 'a usual order of a usual shop' END"
    columns = {
        "task_id": f"{_hexadecimal('n', 32)}",
        "status": "CASE WHEN n % 20 < 3 THEN 'FAILURE' ELSE 'SUCCESS' END",
        "content_type": "'application/json'",
        "content_encoding": "'utf-8'",
        "result": "'{\"sent\": true}'",
        "date_created": _ago(age),
        "date_done": _ago(age),
        "date_started": _ago(age),
        "task_args": "'[' || n || ', \"monthly\"]'",
        "task_name": "'shop.tasks.task_' || (n % 40)",
        "task_kwargs": f"'{{\"customer\": ' || (n % 5000) || ', \"note\": \"' || {note} || '\"}}'",
        "worker": "'worker-' || (n % 8)",
    }
    return _insert("django_celery_results_taskresult", columns, _series(count))


def _statistics(resolution: int, buckets: int) -> list[str]:
    """Of each bucket of each task from each service; a histogram has some dozens of numbers."""
    histogram = json.dumps({str(bucket): 3 + bucket for bucket in range(-20, 10)})
    value = f"'{histogram}'" + ("::jsonb" if _is_postgresql() else "")
    now = "extract(epoch FROM now())::bigint" if _is_postgresql() else "unixepoch('now')"
    start = f"({now} / {resolution} * {resolution} - n % {buckets} * {resolution})"
    if _is_postgresql():
        at = f"to_timestamp({start})"
    else:
        at = f"strftime('%Y-%m-%d %H:%M:%S', {start}, 'unixepoch')"
    number = f"(n / {buckets})"
    common = {"resolution": str(resolution), "start": at}
    counted = {
        **common,
        "completed": "200",
        "failed": "3",
        "wait": value,
        "run": value,
    }
    queue_of = " ".join(f"WHEN {n} THEN '{name}'" for n, name in enumerate(QUEUES))
    worker = f"'worker-' || ({number} % {SERVICES})"
    by_task = {
        **counted,
        "queue": f"CASE {number} % 4 {queue_of} END",
        "task": f"'shop.tasks.task_' || ({number} / {SERVICES})",
        "worker": worker,
    }
    by_queue = {
        **counted,
        "queue": f"CASE {number} / {SERVICES} {queue_of} ELSE '' END",
        "task": "''",
        "worker": worker,
    }
    sample = {
        **common,
        "queue": f"CASE {number} % 4 {queue_of} END",
        "waiting": "n % 90",
        "running": "8",
        "oldest": "3.5",
        "unsent": "0",
    }
    return [
        _insert("carrot_twisted_taskstatistics", by_task, _series(buckets * SERVICES * TASKS)),
        _insert("carrot_twisted_taskstatistics", by_queue, _series(buckets * SERVICES * 5)),
        _insert("carrot_twisted_queuestatistics", sample, _series(buckets * len(QUEUES))),
    ]


def _insert(table: str, columns: dict[str, Any], series: str) -> str:
    expressions = ", ".join(columns.values())
    return f"INSERT INTO {table} ({', '.join(columns)}) SELECT {expressions} FROM ({series}) AS s"
