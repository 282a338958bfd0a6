# SPDX-License-Identifier: Apache-2.0
"""The records: one ``MessageLog`` per task, one ``Worker`` per service process.

The row is the job, the message its doorbell. A row that is committed as PUBLISHED without
``confirmed_at`` is in the outbox: some service's relay sends it again until the broker confirms.
Every time that is compared with another is the database's clock.
"""

from __future__ import annotations

import ast
import json
import os
import random
import time
import uuid
from datetime import timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.validators import MinValueValidator
from django.db import models, router, transaction
from django.db.models import Q
from django.db.models.functions import Now

from carrot_twisted import conf, signals, statements, triggers, wire
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.db.models.expressions import CombinedExpression

#: Longest dotted path of a task.
MAX_TASK = 200
#: Rows per INSERT statement of ``enqueue``.
INSERT_BATCH = 2000
#: A new row is its publisher's business for so many seconds, then any relay's.
GRACE = 3.0


def due_in(seconds: float) -> CombinedExpression:
    """A value for ``relay_at``: relays take the row ``seconds`` from now (database's clock)."""
    return Now() + timedelta(seconds=seconds - GRACE)


def message_id() -> uuid.UUID:
    """A new time-ordered UUID (version 7): rows of one time stand together in the index."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    return uuid.UUID(
        int=(milliseconds & 0xFFFFFFFFFFFF) << 80
        | 0x7 << 76
        | (noise >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | noise & 0x3FFFFFFFFFFFFFFF
    )


def new_token() -> int:
    """Tells one batch of messages, or of runs, from all others."""
    return random.getrandbits(62)


class MessageLogQuerySet(models.QuerySet["MessageLog"]):
    """The questions that are asked of the rows, and the way into the outbox."""

    def enqueue(self, rows: Sequence[MessageLog]) -> None:
        """Insert new rows in the caller's transaction; on its commit the broker is told.

        Args:
            rows: unsaved rows, PUBLISHED. All are inserted or none.
        """
        # As save() does: an alias chosen with using(), or else the routers' choice for writing.
        using: str = self._db or router.db_for_write(self.model)  # type: ignore[attr-defined]
        token = new_token()
        for row in rows:
            row.token = token
        if len(rows) == 1:
            rows[0].save(force_insert=True, using=using)
        else:
            with transaction.atomic(using=using):
                for start in range(0, len(rows), INSERT_BATCH):
                    statements.insert_rows(
                        self.model._meta.db_table, rows[start : start + INSERT_BATCH], using
                    )
        # robust: the commit has happened; nothing that fails now may tell the caller otherwise.
        transaction.on_commit(
            partial(signals.rows_committed.send_robust, sender=self.model, rows=rows, using=using),
            using=using,
            robust=True,
        )

    def unfinished(self) -> MessageLogQuerySet:
        """Rows that still have to come to an end."""
        return self.filter(status__in=MessageLog.UNFINISHED)

    def unsent(self) -> MessageLogQuerySet:
        """The outbox: committed rows that the broker has not confirmed."""
        return self.filter(status=MessageLog.PUBLISHED, confirmed_at__isnull=True)


class MessageLog(models.Model):
    """One published task: what to run, where it stands, what came of it.

    Lifecycle: PUBLISHED, IN_PROGRESS, then COMPLETED or FAILED; CANCELLED only from PUBLISHED.
    A release, a lost worker or a retry leads from IN_PROGRESS back to PUBLISHED. A final row
    never changes again. Field names are django-carrot's where it has them.
    """

    PUBLISHED = "PUBLISHED"
    IN_PROGRESS = "IN_PROGRESS"
    FAILED = "FAILED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    STATUS_CHOICES = (
        (PUBLISHED, "Published"),
        (IN_PROGRESS, "In progress"),
        (FAILED, "Failed"),
        (COMPLETED, "Completed"),
        (CANCELLED, "Cancelled"),
    )
    UNFINISHED = (PUBLISHED, IN_PROGRESS)
    FINAL = (COMPLETED, FAILED, CANCELLED)

    uuid = models.UUIDField(primary_key=True, default=message_id, editable=False)
    status = models.CharField(max_length=11, choices=STATUS_CHOICES, default=PUBLISHED)
    task = models.CharField(max_length=MAX_TASK, help_text="Dotted path of the function.")
    task_args = models.TextField(
        default=wire.NO_ARGS, verbose_name="Task positional arguments", help_text="A JSON list."
    )
    content = models.TextField(
        default=wire.NO_KWARGS, verbose_name="Task keyword arguments", help_text="A JSON object."
    )
    exchange = models.CharField(max_length=255, blank=True, default="")
    queue = models.CharField(max_length=255)
    routing_key = models.CharField(max_length=255, blank=True, default="")
    priority = models.PositiveSmallIntegerField(default=0)

    publish_time = models.DateTimeField(db_default=Now(), editable=False)
    start_time = models.DateTimeField(null=True, help_text="Start of the last attempt.")
    completion_time = models.DateTimeField(null=True)
    failure_time = models.DateTimeField(null=True)

    output = models.TextField(null=True, help_text="What the function returned.")
    exception = models.TextField(null=True)
    traceback = models.TextField(null=True)
    log = models.TextField(null=True, help_text="Log lines of the last attempt.")

    attempts = models.PositiveIntegerField(default=0, help_text="How often it was started.")
    crashes = models.PositiveIntegerField(
        default=0, help_text="How many workers were lost while they ran it."
    )
    worker = models.CharField(
        max_length=100, blank=True, default="", help_text="Name of the last worker that took it."
    )
    token = models.BigIntegerField(
        null=True,
        editable=False,
        help_text="Of the last message or run: only its holder may say what became of it.",
    )
    confirmed_at = models.DateTimeField(
        null=True, editable=False, help_text="When the broker took the message; empty: unsent."
    )
    relay_at = models.DateTimeField(
        db_default=Now(), editable=False, help_text="GRACE seconds after this, a relay sends it."
    )
    publish_error = models.TextField(
        blank=True, default="", help_text="Why the broker did not take the message, if so."
    )
    retry_of = models.UUIDField(null=True, editable=False, help_text="The row requeued as this.")

    objects = MessageLogQuerySet.as_manager()

    class Meta:
        # Partial indexes, one for each hot question. An update writes only to those whose
        # condition holds for the new row: two or three of them per change of state.
        indexes: ClassVar = [
            models.Index(
                "queue",
                "publish_time",
                name="carrot_waiting",
                condition=Q(status__in=("PUBLISHED", "IN_PROGRESS")),
            ),
            models.Index(
                "relay_at",
                name="carrot_unsent",
                condition=Q(status="PUBLISHED", confirmed_at__isnull=True),
            ),
            models.Index("worker", name="carrot_running", condition=Q(status="IN_PROGRESS")),
            models.Index("failure_time", name="carrot_failed", condition=Q(status="FAILED")),
            models.Index(
                "completion_time", name="carrot_completed", condition=Q(status="COMPLETED")
            ),
        ]

    def __str__(self) -> str:
        return self.task

    @classmethod
    def new(cls, **given: Any) -> MessageLog:
        """An unsaved row with these fields.

        The same as ``MessageLog(**given)`` in half the time: Django fills 25 fields much faster by
        position than by name, and every published task pays for one row.
        """
        values = list(_defaults())
        values[0] = message_id()
        for name, value in given.items():
            values[_positions()[name]] = value
        # mypy's plugin for Django takes the list for the first field.
        return cls(*values)  # type: ignore[misc]

    @property
    def positionals(self) -> tuple[Any, ...]:
        """The positional arguments."""
        try:
            return tuple(json.loads(self.task_args or wire.NO_ARGS))
        except ValueError:
            # A row brought over from django-carrot, which stored the text of a tuple.
            return tuple(ast.literal_eval(self.task_args))

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(json.loads(self.content or wire.NO_KWARGS))

    @property
    def virtual_host(self) -> str | None:
        """URL of the queue's broker without the password; None if the queue left the settings."""
        try:
            return str(conf.current().queue(self.queue).host)
        except CarrotConfigException:
            return None

    @property
    def queue_wait(self) -> timedelta | None:
        """Time from publishing to the start of the last attempt, if it has started."""
        if self.start_time is None:
            return None
        return max(self.start_time - self.publish_time, timedelta())

    @property
    def run_time(self) -> timedelta | None:
        """Run time of the last attempt, if it has ended."""
        end = self.completion_time or self.failure_time
        if self.start_time is None or end is None:
            return None
        return max(end - self.start_time, timedelta())

    def requeue(self) -> MessageLog:
        """Publish this task again, with the same arguments, as a new row, and delete this one.

        Both happen in one transaction. (django-carrot's behaviour, on any status.)

        Returns:
            The new row.
        """
        using = self._state.db or router.db_for_write(MessageLog)
        again = MessageLog(
            task=self.task,
            task_args=json.dumps(list(self.positionals)),
            content=self.content,
            exchange=self.exchange,
            queue=self.queue,
            routing_key=self.routing_key,
            priority=self.priority,
            retry_of=self.pk,
        )
        with transaction.atomic(using=using):
            MessageLog.objects.using(using).enqueue([again])
            self.delete(using=using)
        return again


@cache
def _defaults() -> tuple[Any, ...]:
    """Default of each field of a MessageLog, in Django's order."""
    return tuple(field.get_default() for field in MessageLog._meta.concrete_fields)


@cache
def _positions() -> dict[str, int]:
    """Position of each field of a MessageLog in that order; the primary key is the first."""
    return {field.attname: n for n, field in enumerate(MessageLog._meta.concrete_fields)}


class ScheduledTask(models.Model):
    """A task that is published at intervals. Names of fields are django-carrot's.

    Edits take effect at once: the service reads the due rows every second. The grid of slots
    starts one interval after the service first sees the row, and stays when the service restarts.
    """

    INTERVAL_CHOICES = tuple((name, name.capitalize()) for name in triggers.SECONDS)

    task_name = models.CharField(max_length=MAX_TASK, unique=True)
    task = models.CharField(max_length=MAX_TASK, help_text="Dotted path of the function.")
    interval_type = models.CharField(max_length=7, choices=INTERVAL_CHOICES, default="seconds")
    interval_count = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1)])
    exchange = models.CharField(max_length=255, blank=True, default="")
    routing_key = models.CharField(max_length=255, blank=True, default="")
    queue = models.CharField(max_length=255, default=conf.DEFAULT_QUEUE)
    task_args = models.TextField(blank=True, default=wire.NO_ARGS, help_text="A JSON list.")
    content = models.TextField(blank=True, default=wire.NO_KWARGS, help_text="A JSON object.")
    active = models.BooleanField(default=True)
    next_run_time = models.DateTimeField(null=True, blank=True)
    last_run_time = models.DateTimeField(null=True, editable=False)

    class Meta:
        indexes: ClassVar = [
            models.Index("next_run_time", name="carrot_due", condition=Q(active=True)),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(interval_count__gte=1), name="carrot_interval_count_at_least_1"
            ),
        ]

    def __str__(self) -> str:
        return self.task_name

    @property
    def interval(self) -> timedelta:
        """Time between two slots."""
        return timedelta(seconds=self.interval_count * self.multiplier)

    @property
    def multiplier(self) -> int:
        """Seconds of one unit of the interval.

        Raises:
            InvalidMessage: no such interval type; other programs may have written the row.
        """
        try:
            return triggers.SECONDS[self.interval_type]
        except KeyError:
            known = ", ".join(triggers.SECONDS)
            raise InvalidMessage(
                f"interval_type is {self.interval_type!r}; it must be one of {known}."
            ) from None

    @property
    def interval_display(self) -> str:
        """For people: "Every 5 seconds", "Every 1 hour"."""
        unit = self.interval_type
        return f"Every {self.interval_count} {unit if self.interval_count > 1 else unit[:-1]}"

    @property
    def positional_arguments(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return tuple(wire.stored_list(self.task_args))

    @property
    def keyword_arguments(self) -> dict[str, Any]:
        """The keyword arguments."""
        return wire.stored_object(self.content)


class Worker(models.Model):
    """One service process. Its rows in progress count as running while its lease is fresh.

    The name is new for each process and never used again: a restarted service is another worker.
    """

    name = models.CharField(max_length=100, primary_key=True)
    host = models.CharField(max_length=200)
    pid = models.PositiveIntegerField()
    machine = models.CharField(
        max_length=200,
        blank=True,
        help_text="Boot and process namespace: workers that share it can see each other's pids.",
    )
    process_start = models.CharField(
        max_length=40, blank=True, help_text="Tells this process from a later one with its pid."
    )
    version = models.CharField(max_length=40)
    queues = models.TextField(help_text="Names of its queues, one a line.")
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.name
