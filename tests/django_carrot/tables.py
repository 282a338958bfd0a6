# SPDX-License-Identifier: Apache-2.0
"""The tables of django-carrot 1.5.0 as its migrations make them, and rows as its code writes them.

Written out in SQL: made from our own models they would only show that those agree with themselves.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.db import connections
from django.utils import timezone

if TYPE_CHECKING:
    from datetime import datetime

_TYPES = {
    "sqlite": {
        "id": "integer NOT NULL PRIMARY KEY AUTOINCREMENT",
        "time": "datetime",
        "bool": "bool",
    },
    "postgresql": {
        "id": "serial NOT NULL PRIMARY KEY",
        "time": "timestamp with time zone",
        "bool": "boolean",
    },
}
_TABLES = {
    "carrot_messagelog": """
        "id" {id}, "status" varchar(11) NOT NULL, "exchange" varchar(200) NULL,
        "queue" varchar(200) NULL, "routing_key" varchar(200) NULL, "uuid" varchar(200) NOT NULL,
        "priority" integer NOT NULL CHECK ("priority" >= 0), "task" varchar(200) NOT NULL,
        "task_args" text NULL, "content" text NULL, "exception" text NULL, "traceback" text NULL,
        "output" text NULL, "publish_time" {time} NULL, "failure_time" {time} NULL,
        "completion_time" {time} NULL, "log" text NULL""",
    "carrot_scheduledtask": """
        "id" {id}, "interval_type" varchar(200) NOT NULL,
        "interval_count" integer NOT NULL CHECK ("interval_count" >= 0),
        "exchange" varchar(200) NULL, "routing_key" varchar(200) NULL, "queue" varchar(200) NULL,
        "task" varchar(200) NOT NULL, "task_args" text NULL, "content" text NULL,
        "active" {bool} NOT NULL, "task_name" varchar(200) NULL""",
}


def create(using: str = "default") -> None:
    """Create both tables."""
    connection = connections[using]
    with connection.cursor() as cursor:
        for name, columns in _TABLES.items():
            cursor.execute(f"CREATE TABLE {name} ({columns.format(**_TYPES[connection.vendor])})")


def drop(using: str = "default") -> None:
    """Drop both tables."""
    with connections[using].cursor() as cursor:
        for name in _TABLES:
            cursor.execute(f"DROP TABLE IF EXISTS {name}")


def contents(using: str = "default") -> list[tuple[Any, ...]]:
    """All rows of both tables."""
    rows: list[tuple[Any, ...]] = []
    with connections[using].cursor() as cursor:
        for name in _TABLES:
            cursor.execute(f"SELECT * FROM {name} ORDER BY id")  # noqa: S608
            rows += cursor.fetchall()
    return rows


def add_log(task: str, *args: Any, using: str = "default", **columns: Any) -> str:
    """Add a row of MessageLog, PUBLISHED a moment ago unless ``columns`` says else; its uuid."""
    message_id = str(columns.pop("uuid", uuid4()))
    given = {
        "status": "PUBLISHED",
        "exchange": "",
        "queue": "default",
        "routing_key": "default",
        "uuid": message_id,
        "priority": 0,
        "task": task,
        "task_args": str(args),
        "content": "{}",
        "publish_time": timezone.now(),
    }
    _insert("carrot_messagelog", {**given, **columns}, using)
    return message_id


def add_schedule(task: str, using: str = "default", **columns: Any) -> None:
    """Add a row of ScheduledTask, as create_scheduled_task leaves it without queue and kwargs."""
    given = {
        "interval_type": "seconds",
        "interval_count": 1,
        "task": task,
        "content": json.dumps("{}"),
        "active": True,
        "task_name": task,
    }
    _insert("carrot_scheduledtask", {**given, **columns}, using)


def _insert(table: str, row: dict[str, Any], using: str) -> None:
    connection = connections[using]
    values = [
        connection.ops.adapt_datetimefield_value(value) if _is_time(name) else value
        for name, value in row.items()
    ]
    marks = ", ".join("%s" for _ in row)
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def _is_time(name: str) -> bool:
    return name.endswith("_time")


def days_ago(days: float) -> datetime:
    """A time of publishing."""
    return timezone.now() - timedelta(days=days)
