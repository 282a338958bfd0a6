# SPDX-License-Identifier: Apache-2.0
"""The tables of django-carrot 1.5.0.

They are read; only the status of a log that has come over changes, to MOVED, in the transaction
that makes its new row. So it comes over once, whatever becomes of the new row, and neither
django-carrot's service nor its "Requeue all" runs it again.

That app is not installed any more, so these models live in a registry of their own, which no
migration and no ``check`` looks at. The app label is django-carrot's: a project's database router
that knew where "carrot" lives still answers.
"""

from __future__ import annotations

from typing import ClassVar

from django.apps.registry import Apps
from django.db import connections, models

from carrot_twisted.exceptions import CarrotError

_APPS = Apps()


#: Status of a log that has come over; django-carrot knows no such status and leaves it alone.
MOVED = "MOVED"


class OldTablesMissing(CarrotError):
    """The database has no tables of django-carrot, or they lack columns."""


class OldMessageLog(models.Model):
    """A row of django-carrot's MessageLog."""

    status = models.CharField(max_length=11)
    exchange = models.CharField(max_length=200, null=True)
    queue = models.CharField(max_length=200, null=True)
    routing_key = models.CharField(max_length=200, null=True)
    uuid = models.CharField(max_length=200)
    priority = models.PositiveIntegerField()
    task = models.CharField(max_length=200)
    task_args = models.TextField(null=True)
    content = models.TextField(null=True)
    exception = models.TextField(null=True)
    traceback = models.TextField(null=True)
    output = models.TextField(null=True)
    publish_time = models.DateTimeField(null=True)
    failure_time = models.DateTimeField(null=True)
    completion_time = models.DateTimeField(null=True)
    log = models.TextField(null=True)

    objects: ClassVar[models.Manager[OldMessageLog]] = models.Manager()

    class Meta:
        apps = _APPS
        app_label = "carrot"
        db_table = "carrot_messagelog"

    def __str__(self) -> str:
        return self.task


class OldScheduledTask(models.Model):
    """A row of django-carrot's ScheduledTask."""

    interval_type = models.CharField(max_length=200)
    interval_count = models.PositiveIntegerField()
    exchange = models.CharField(max_length=200, null=True)
    routing_key = models.CharField(max_length=200, null=True)
    queue = models.CharField(max_length=200, null=True)
    task = models.CharField(max_length=200)
    task_args = models.TextField(null=True)
    content = models.TextField(null=True)
    active = models.BooleanField()
    task_name = models.CharField(max_length=200, null=True)

    objects: ClassVar[models.Manager[OldScheduledTask]] = models.Manager()

    class Meta:
        apps = _APPS
        app_label = "carrot"
        db_table = "carrot_scheduledtask"

    def __str__(self) -> str:
        return self.task


def require(using: str) -> None:
    """Make sure that the tables can be read.

    Args:
        using: database alias.

    Raises:
        OldTablesMissing: they cannot; the text says what to do.
    """
    connection = connections[using]
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        for model in (OldMessageLog, OldScheduledTask):
            table = model._meta.db_table
            if table not in tables:
                raise OldTablesMissing(
                    f"Database {using!r} has no table {table}: it is not a database of "
                    "django-carrot. Name the right one with --from."
                )
            there = {c.name for c in connection.introspection.get_table_description(cursor, table)}
            wanted = {field.attname for field in model._meta.concrete_fields}
            if missing := sorted(wanted - there):
                raise OldTablesMissing(
                    f"Table {table} has no column {', '.join(missing)}: it is of a release before "
                    "django-carrot 1.5.0. Bring it up to date with that release's migrations. "
                    "(Only task_name? ALTER TABLE carrot_scheduledtask ADD COLUMN task_name "
                    "varchar(200) is all they do.)"
                )
