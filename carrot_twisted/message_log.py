# SPDX-License-Identifier: Apache-2.0
"""The record of one task, and the outbox.

The row is the job, the message its doorbell. A row that is committed as PUBLISHED without
``confirmed_at`` is in the outbox: some service's relay sends it again until the broker confirms.
Every time that is compared with another is the database's clock.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models, router, transaction
from django.db.models import Case, Count, F, Max, Min, Q, Value, When
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from carrot_twisted import (
    conf,
    failpoints,
    outcomes,
    signals,
    statements,
    task_options,
    tracing,
    wire,
)
from carrot_twisted.exceptions import CarrotConfigException, DuplicateTask, InvalidMessage
from carrot_twisted.kinds import MAX_NAME_BYTES
from carrot_twisted.running import CancelRequest, Progress
from carrot_twisted.task_options import PublishOptions, first_said, seconds_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from django.db.models.expressions import CombinedExpression

    from carrot_twisted.task_options import Moment

_logger = logging.getLogger("carrot_twisted.publisher")
_warned_queues: set[str] = set()

#: Longest dotted path of a task.
MAX_TASK = 200
#: Rows per INSERT statement of ``enqueue``.
INSERT_BATCH = 2000
#: Longest unique key: a task's path, and a digest.
MAX_UNIQUE_KEY = 300
#: What a row says that was cancelled because it had not started in time.
EXPIRED = "expired"
#: A new row is its publisher's business for so many seconds, then any relay's.
GRACE = 3.0
#: Seconds that relays, which look every second, may be late before that is told.
OVERDUE = 5.0


def due_in(seconds: float) -> CombinedExpression:
    """A value for ``relay_at``: relays take the row ``seconds`` from now (database's clock)."""
    return Now() + timedelta(seconds=seconds - GRACE)


def since_due() -> Coalesce:
    """From when on a row has waited: when it was published, or may run for the first or next time.

    ``run_after`` is never before ``publish_time``.
    """
    return Coalesce("run_after", "publish_time")


def is_due() -> Q:
    """Rows that do not wait for a later time."""
    return Q(run_after__isnull=True) | Q(run_after__lte=Now())


def in_state(state: str, *also: Q) -> Case:
    """That a row is in this state, for queries that know the rows' keys.

    See ``statements``: by the plain condition PostgreSQL might walk through all of a backlog.
    """
    return Case(
        When(Q(*also, status=state), then=Value(True)),
        default=Value(False),
        output_field=models.BooleanField(),
    )


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


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """Rows of one queue that should have been sent to the broker, and were not."""

    count: int
    seconds: float
    """For how long the oldest of them has been waiting."""
    reason: str
    """Why the broker has not taken one of them; "" if no reason is known."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The unfinished rows of one queue."""

    waiting: int
    oldest: float | None
    """Seconds since the oldest waiting one was published, or since it was due, if that came later.
    None: none waits, but for those that are due later."""
    running: int


class MessageLogQuerySet(models.QuerySet["MessageLog"]):
    """The questions that are asked of the rows, and the way into the outbox."""

    def enqueue(self, rows: Sequence[MessageLog]) -> list[MessageLog]:
        """Insert new rows in the caller's transaction; on its commit the broker is told.

        Args:
            rows: unsaved rows, PUBLISHED. All are inserted or none, but for those whose unique key
                another one holds.

        Returns:
            The rows; in the place of one that was not inserted the one that holds its key, which
            says of itself that it is a ``duplicate``.
        """
        # As save() does: an alias chosen with using(), or else the routers' choice for writing.
        using: str = self._db or router.db_for_write(self.model)  # type: ignore[attr-defined]
        token = new_token()
        for row in rows:
            row.token = token
        tracing.carry(rows)
        table = self.model._meta.db_table
        # In the order of their keys: two who publish the same never wait for each other.
        special = sorted(
            (row for row in rows if row.is_special), key=lambda row: row.unique_key or ""
        )
        holders: dict[uuid.UUID, MessageLog] = {}
        if len(rows) == 1 and not special:
            rows[0].save(force_insert=True, using=using)
        else:
            plain = [row for row in rows if not row.is_special] if special else rows
            with transaction.atomic(using=using):
                for start in range(0, len(plain), INSERT_BATCH):
                    statements.insert_rows(table, plain[start : start + INSERT_BATCH], using)
                for start in range(0, len(special), INSERT_BATCH):
                    holders |= self._insert_special(special[start : start + INSERT_BATCH], using)
        inserted = [row for row in rows if row.pk not in holders] if holders else rows
        signals.rows_enqueued.send(sender=self.model, rows=inserted, using=using)
        failpoints.reached("before_insert_commit")
        # The others wait in the outbox for their time, or are not there at all.
        due = [row for row in inserted if row.run_after is None]
        if due:
            told = partial(signals.rows_committed.send_robust, sender=self.model, using=using)
            # robust: the commit has happened; nothing that fails now may tell the caller otherwise.
            transaction.on_commit(partial(told, rows=due), using=using, robust=True)
        return [holders.get(row.pk, row) for row in rows]

    def _insert_special(
        self, rows: Sequence[MessageLog], using: str
    ) -> dict[uuid.UUID, MessageLog]:
        """Insert rows that have a time, a unique key or a retention of their own.

        Returns:
            Of each that was not inserted the row that holds its key.
        """
        now = statements.now(using)
        for row in rows:
            row.set_times(now)
        holders: dict[uuid.UUID, MessageLog] = {}
        left = list(rows)
        while left:
            refused = statements.insert_special(self.model._meta.db_table, left, using)
            taken = {row.unique_key for row in refused}
            if not taken:
                break
            found = MessageLogQuerySet(self.model, using=using).holders(taken)
            held = {row.unique_key: row for row in found}
            for row in refused:
                if row.unique_key in held:
                    holders[row.pk] = held[row.unique_key]
                    holders[row.pk].duplicate = True
            # The holder has come to its end meanwhile.
            left = [row for row in refused if row.unique_key not in held]
        return holders

    def holders(self, keys: Collection[str | None]) -> MessageLogQuerySet:
        """The rows that hold these unique keys."""
        return self.filter(MessageLog.HOLDS_KEY, unique_key__in=keys)

    def unfinished(self) -> MessageLogQuerySet:
        """Rows that still have to come to an end."""
        return self.filter(status__in=MessageLog.UNFINISHED)

    def depths(self) -> dict[str, Depth]:
        """How many rows wait and run, by queue; of queues that have any.

        One query on the index of unfinished rows. It reads these rows: up to a second for a
        million of them.
        """
        waiting = Q(status=MessageLog.PUBLISHED)
        rows = (
            self.unfinished()
            .order_by()
            .values("queue")
            .annotate(
                waiting=Count("pk", filter=waiting),
                running=Count("pk", filter=~waiting),
                # One that waits for a later time has not waited yet.
                since=Min(since_due(), filter=waiting & is_due()),
                now=Max(Now()),
            )
        )
        return {
            row["queue"]: Depth(
                waiting=row["waiting"],
                # A row may be written between the statement's clock and its look at the table.
                oldest=max(0.0, (row["now"] - row["since"]).total_seconds())
                if row["since"]
                else None,
                running=row["running"],
            )
            for row in rows
        }

    def unsent(self) -> MessageLogQuerySet:
        """The outbox: committed rows that the broker has not confirmed."""
        return self.filter(status=MessageLog.PUBLISHED, confirmed_at__isnull=True)

    def cancel(self, by: str = "", reason: str = "", *, cooperative: bool = False) -> int:
        """CANCELLED for those that wait; of those that run it is asked. See ``MessageLog.cancel``.

        For many rows there is ``housekeeping.cancel_tasks``.

        Returns:
            How many rows that were. Those that have come to their end are left alone.
        """
        request = CancelRequest(
            by=by, reason=reason, cooperative=cooperative, at=timezone.now().isoformat()
        )
        waits = Q(status=MessageLog.PUBLISHED)
        # One statement: what waits now may run in the next moment, and the other way round.
        return self.unfinished().update(
            status=Case(When(waits, then=Value(MessageLog.CANCELLED)), default=F("status")),
            token=Case(When(waits, then=None), default=F("token")),
            completion_time=Case(When(waits, then=Now()), default=F("completion_time")),
            cancel_request=request.column,
        )

    def cancel_expired(self, limit: int) -> int:
        """CANCELLED for those that have not started in time. Call it in a transaction.

        Args:
            limit: of how many at most.

        Returns:
            How many rows that were. One that has started in time is brought to its end, however
            often it is tried again.
        """
        late = self.filter(status=MessageLog.PUBLISHED, attempts=0, expires_at__lte=Now())
        chosen = late.order_by("expires_at").select_for_update(skip_locked=True)
        keys = list(chosen.values_list("pk", flat=True)[:limit])
        if not keys:
            return 0
        return late.filter(pk__in=keys).update(
            status=MessageLog.CANCELLED, token=None, completion_time=Now(), exception=EXPIRED
        )

    def overdue(self) -> MessageLogQuerySet:
        """Rows that should have been sent and were not.

        That is: rows that relays should have taken OVERDUE seconds ago, and rows that the broker
        has refused, whenever they are tried again. Not those that wait for a later time, as a retry
        does. ``publish_error`` says what is wrong with a row, where that is known.
        """
        late = Q(relay_at__lte=Now() - timedelta(seconds=GRACE + OVERDUE))
        return self.unsent().filter(late | ~Q(publish_error=""))

    def outbox_state(self) -> dict[str, Unsent]:
        """How many rows are overdue, and for how long, by queue; empty: all is well.

        One query on the index of unsent rows. It reads these rows: it costs next to nothing while
        all is well, and a tenth of a second or two for 100,000 of them.
        """
        # A row that ran before, or was due later, has not waited since it was published.
        since = Coalesce("run_after", "start_time", "publish_time")
        tried = When(~Q(publish_error=""), then=since)
        rows = (
            self.overdue()
            .order_by()
            .values("queue")
            .annotate(
                count=Count("pk"),
                since=Min(Case(tried, default="relay_at")),
                now=Max(Now()),
                reason=Max("publish_error"),
            )
        )
        return {
            row["queue"]: Unsent(
                count=row["count"],
                seconds=(row["now"] - row["since"]).total_seconds(),
                reason=row["reason"],
            )
            for row in rows
        }


class MessageLog(models.Model):
    """One published task: what to run, where it stands, what came of it.

    Lifecycle: PUBLISHED, IN_PROGRESS, then COMPLETED, FAILED or CANCELLED; this one from PUBLISHED,
    too. A release, a lost worker or a retry leads from IN_PROGRESS back to PUBLISHED, but where
    somebody has asked to cancel it to CANCELLED. A final row never changes again. Field names are
    django-carrot's where it has them.
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
    #: Rows whose unique key nobody else may have. statements says the same in SQL.
    HOLDS_KEY = Q(unique_key__isnull=False, status__in=UNFINISHED) & (
        Q(unique_until=task_options.END) | Q(attempts=0)
    )

    is_special = False
    """Of an unsaved row: ``enqueue`` has more to do for it than to insert it."""
    duplicate = False
    """What ``publish`` has returned was there before, with the unique key of what was published."""
    refuses_duplicates = False
    """Of an unsaved row: it is an error if its key is taken."""
    #: Of an unsaved row: as they were given, until the database's clock is asked.
    _run_after: Moment | None = None
    _expires: Moment | None = None

    carrier: Mapping[str, str] | None = None
    """Headers of its first message that say to which trace it belongs; not kept in the row."""

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
    completion_time = models.DateTimeField(
        null=True, help_text="When it returned, or was cancelled."
    )
    failure_time = models.DateTimeField(null=True)

    output = models.TextField(null=True, help_text="What the function returned.")
    exception = models.TextField(null=True)
    traceback = models.TextField(null=True)
    exception_class = models.CharField(
        max_length=outcomes.MAX_CLASS,
        null=True,
        editable=False,
        help_text="Dotted path of the exception's class.",
    )
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

    # Empty in most rows, where they take no space.
    run_after = models.DateTimeField(
        null=True, editable=False, help_text="It does not start before; empty: at once."
    )
    expires_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="Without a start until then it is cancelled; empty: it waits for ever.",
    )
    retries = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="How often it is tried again, because it had failed.",
    )
    unique_key = models.CharField(
        max_length=MAX_UNIQUE_KEY,
        null=True,
        editable=False,
        help_text="Only one row with this key waits or runs; empty: any number does.",
    )
    unique_until = models.CharField(
        max_length=5, null=True, editable=False, help_text="When the key is free: start or end."
    )
    retention = models.PositiveBigIntegerField(
        null=True,
        editable=False,
        help_text="Seconds that the row is kept after its end; empty: as the settings say.",
    )
    django_task = models.TextField(
        null=True,
        editable=False,
        help_text="What was said of it to django.tasks, see standard_tasks.Said.",
    )

    cancel_request = models.JSONField(
        null=True,
        editable=False,
        help_text="Who has asked to cancel it, and why; empty: nobody has.",
    )

    progress = models.JSONField(
        null=True,
        editable=False,
        help_text="How far its last attempt has come: done, total and text; empty: it did not say.",
    )

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
            models.Index(
                "worker",
                name="carrot_cancelling",
                condition=Q(status="IN_PROGRESS", cancel_request__isnull=False),
            ),
            models.Index("failure_time", name="carrot_failed", condition=Q(status="FAILED")),
            models.Index(
                "completion_time", name="carrot_completed", condition=Q(status="COMPLETED")
            ),
            models.Index("publish_time", name="carrot_cancelled", condition=Q(status="CANCELLED")),
            models.Index(
                "expires_at",
                name="carrot_expiring",
                condition=Q(expires_at__isnull=False, status="PUBLISHED", attempts=0),
            ),
            models.Index(
                "retention",
                Coalesce("completion_time", "failure_time", "publish_time"),
                name="carrot_retained",
                condition=Q(
                    retention__isnull=False, status__in=("COMPLETED", "FAILED", "CANCELLED")
                ),
            ),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["unique_key"],
                name="carrot_unique_key",
                condition=Q(unique_key__isnull=False, status__in=("PUBLISHED", "IN_PROGRESS"))
                & (Q(unique_until="end") | Q(attempts=0)),
            ),
        ]
        permissions = (
            ("act_messagelog", "Can act on tasks, queues and workers"),
            ("purge_messagelog", "Can throw away waiting tasks and archived messages"),
        )

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

    @classmethod
    def checked(
        cls,
        task: str,
        queue: str | None,
        routing_key: str | None,
        exchange: str,
        priority: int | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: PublishOptions | None = None,
    ) -> MessageLog:
        """An unsaved row that can be published: the one way in, for messages and schedules.

        Args:
            task: dotted path of the function; not imported here. What its decorator says holds, if
                it is imported.
            queue: name of a queue in the settings; None: as the options say.
            routing_key: defaults to the queue's name.
            exchange: "" for RabbitMQ's default exchange.
            priority: 0 to 255; None: as the options say.
            args: positional arguments, JSON values.
            kwargs: keyword arguments, JSON values.
            options: of this publishing.

        Raises:
            InvalidMessage: arguments that JSON would change, a priority out of range, names or
                arguments too long.
            CarrotConfigException: no such queue in the settings.
        """
        settings = conf.current()
        declared = task_options.declared(task)
        if declared is not None:
            given = task_options.AS_DECLARED if options is None else options
            options = first_said(given, declared.options, settings.task_defaults)
        if options is not None:
            queue = options.queue if queue is None else queue
            priority = options.priority if priority is None else priority
        if priority is None:
            priority = 0
        target = settings.queue(queue)
        exchange = exchange or ""
        routing_key = routing_key or target.name
        _check_priority(priority, target)
        args_json = wire.exact_json([*args], "positional arguments") if args else wire.NO_ARGS
        kwargs_json = wire.exact_json(kwargs, "keyword arguments") if kwargs else wire.NO_KWARGS
        for what, text, limit in (
            ("task path", task, MAX_TASK),
            ("exchange", exchange, MAX_NAME_BYTES),
            ("routing key", routing_key, MAX_NAME_BYTES),
        ):
            if _size(text, what) > limit:
                raise InvalidMessage(f"The {what} is longer than {limit} bytes: {text[:50]}…")
        size = len(args_json.encode()) + len(kwargs_json.encode())
        if size > settings.max_message_size:
            raise InvalidMessage(
                f"The arguments take {size} bytes as JSON; at most "
                f"{settings.max_message_size} (CARROT['max_message_size']) can be sent. Store the "
                "data and pass its key."
            )
        row = cls.new(
            task=task,
            task_args=args_json,
            content=kwargs_json,
            exchange=exchange,
            queue=target.name,
            routing_key=routing_key,
            priority=priority,
        )
        if options is not None:
            row._take(options)
        if declared is not None and declared.options.unique:
            row.unique_key = declared.unique_key(args, kwargs, settings.redact)
            row.unique_until = declared.options.unique_until or task_options.END
            row.is_special = True
        return row

    def _take(self, options: PublishOptions) -> None:
        self._run_after, self._expires = options.run_after, options.expires
        if options.retention is not None:
            # A row that is to go at once stays for a second.
            self.retention = math.ceil(seconds_of(options.retention))
        self.refuses_duplicates = options.on_duplicate == task_options.RAISE
        given = (options.run_after, options.expires, options.retention)
        self.is_special = any(value is not None for value in given)

    def set_times(self, now: datetime) -> None:
        """Before it is inserted: say when it may start, and until when, on the database's clock."""
        start = _moment(self._run_after, now)
        self.run_after = start if start is not None and start > now else None
        self.publish_time = now
        self.relay_at = now
        if self.run_after is not None:
            self.relay_at = self.run_after - timedelta(seconds=GRACE)
        self.expires_at = _moment(self._expires, self.run_after or now)

    @property
    def due_later(self) -> datetime | None:
        """When it may start, if it waits for that; None: it does not wait for a time."""
        if self.status != self.PUBLISHED or self.run_after is None:
            return None
        return self.run_after if self.run_after > timezone.now() else None

    @property
    def positionals(self) -> tuple[Any, ...]:
        """The positional arguments.

        Raises:
            InvalidMessage: the row holds no list; other programs may have written it.
        """
        text = self.task_args or wire.NO_ARGS
        try:
            try:
                value = json.loads(text)
            except ValueError:
                # A row brought over from django-carrot, which stored the text of a tuple.
                value = wire.literal(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, list | tuple):
            raise InvalidMessage(f"Positional arguments are a JSON list, not {text[:100]!r}.")
        return tuple(value)

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments.

        Raises:
            InvalidMessage: the row holds no JSON object; other programs may have written it.
        """
        return wire.stored_object(self.content)

    @property
    def virtual_host(self) -> str | None:
        """URL of the queue's broker without the password; None if the queue left the settings."""
        try:
            return str(conf.current().queue(self.queue).host)
        except CarrotConfigException:
            return None

    @property
    def queue_wait(self) -> timedelta | None:
        """Time until the last attempt has started, if one has, from when it was due."""
        if self.start_time is None:
            return None
        return max(self.start_time - (self.run_after or self.publish_time), timedelta())

    @property
    def run_time(self) -> timedelta | None:
        """Run time of the last attempt, if it has ended."""
        end = self.completion_time or self.failure_time
        if self.start_time is None or end is None or self.status == self.CANCELLED:
            return None
        return max(end - self.start_time, timedelta())

    @property
    def is_task(self) -> bool:
        """Whether this is a task; else a message with a handler or a callback (see ``journal``).

        Such a row has come to its end when it is written. What is there instead of positional
        arguments is an object, so nothing can make a task of it.
        """
        return not self.task_args.startswith("{")

    def requeue(self) -> MessageLog:
        """Publish this task again, with the same arguments, as a new row, and delete this one.

        Both happen in one transaction. As in django-carrot it works on any status. If a worker
        runs the task just now, the new one runs beside it, and the result of that run is dropped
        with this row. The new one runs at once, whenever this one was due, and does not expire.

        Returns:
            The new row.

        Raises:
            DuplicateTask: another row has its unique key. Nothing has changed.
            CarrotConfigException: the queue is not in the settings any more. Nothing has changed.
            InvalidMessage: the arguments of this row cannot be read, or it is no task. Nothing has
                changed.
            MessageLog.DoesNotExist: this row was requeued or deleted meanwhile.
        """
        again = self.again()
        using = self._state.db or router.db_for_write(MessageLog)
        with transaction.atomic(using=using):
            deleted, _ = self.delete(using=using)
            if not deleted:
                raise MessageLog.DoesNotExist(
                    f"The row {again.retry_of} is gone: it was requeued or deleted meanwhile."
                )
            (log,) = MessageLog.objects.using(using).enqueue([again])
            if log.duplicate:
                # Its deletion is undone.
                self.pk = again.retry_of
                raise DuplicateTask(again.unique_key or "", log.pk)
        return again

    def again(self) -> MessageLog:
        """An unsaved row with this task, and the same arguments, that names this one.

        Raises:
            CarrotConfigException: the queue is not in the settings any more.
            InvalidMessage: the arguments of this row cannot be read, or it is no task.
        """
        if not self.is_task:
            raise InvalidMessage(
                "This row is no task: it tells of a message that handler or callback "
                f"{self.task} got. Archived messages are handled again by: manage.py "
                "carrot_archive replay."
            )
        conf.current().queue(self.queue)
        wire.stored_object(self.content)
        row = MessageLog(
            task=self.task,
            task_args=self._args_json(),
            content=self.content or wire.NO_KWARGS,
            exchange=self.exchange,
            queue=self.queue,
            routing_key=self.routing_key,
            priority=self.priority,
            retry_of=self.pk,
            unique_key=self.unique_key,
            unique_until=self.unique_until,
            retention=self.retention,
            django_task=self.django_task,
        )
        more = (self.unique_key, self.retention, self.django_task)
        row.is_special = any(value is not None for value in more)
        return row

    def run_now(self) -> bool:
        """Let this task start at once that waits for a later time; a service sends its message.

        Returns:
            Whether it did wait for one. False: nothing has changed.
        """
        using = self._state.db or router.db_for_write(MessageLog)
        waiting = MessageLog.objects.using(using).filter(pk=self.pk, status=self.PUBLISHED)
        changed = waiting.filter(run_after__gt=Now()).update(
            run_after=Now(), confirmed_at=None, token=None, relay_at=due_in(0)
        )
        return bool(changed)

    def cancel(self, by: str = "", reason: str = "", *, cooperative: bool = False) -> bool:
        """Keep this task from running, or ask that it end; a task that waits never starts.

        Who runs it learns of that within a second or two: ``is_cancelled()`` is true in the task
        then, and ``TaskCancelled`` is raised in it, again each second while it goes on. It is
        CANCELLED when it has ended by that, and not tried again; COMPLETED or FAILED if it comes to
        another end. The wish stands in its row, and survives its worker.

        Args:
            by: who asks, for people.
            reason: why, for people.
            cooperative: nothing is raised in a task that runs, it is only told.

        Returns:
            Whether that was in time. False: it has come to its end; nothing has changed.
        """
        using = self._state.db or router.db_for_write(MessageLog)
        rows = MessageLog.objects.using(using).filter(pk=self.pk)
        if not rows.cancel(by, reason, cooperative=cooperative):
            return False
        for row in rows.values("status", "token", "completion_time", "cancel_request"):
            for name, value in row.items():
                setattr(self, name, value)
        return True

    @property
    def how_far(self) -> Progress | None:
        """How far its last attempt has come, as far as it was told and written."""
        return Progress.of(self.progress)

    @property
    def cancel_asked(self) -> CancelRequest | None:
        """What was asked of a task that somebody wants to end; None: nobody does."""
        return CancelRequest.of(self.cancel_request)

    def _args_json(self) -> str:
        """The stored text, letter for letter; that of django-carrot's rows as JSON."""
        try:
            wire.stored_list(self.task_args)
        except InvalidMessage:
            return json.dumps(list(self.positionals))
        return self.task_args or wire.NO_ARGS


def _moment(when: Moment | None, now: datetime) -> datetime | None:
    if when is None or isinstance(when, datetime):
        return when
    return now + timedelta(seconds=seconds_of(when))


def _size(name: str, what: str) -> int:
    """Bytes of a name. Broker and database take no NUL, and no half of a surrogate pair."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise InvalidMessage(f"The {what} holds characters that cannot be sent: {name[:50]!r}.")
    return len(encoded)


def _check_priority(priority: int, queue: conf.QueueSettings) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidMessage(f"A priority is a whole number, not {priority!r}.")
    if not 0 <= priority <= wire.MAX_PRIORITY:
        raise InvalidMessage(f"A priority is from 0 to {wire.MAX_PRIORITY}, not {priority}.")
    usual = wire.QUORUM_NORMAL if queue.is_quorum else 0
    unheeded = priority > usual and "x-max-priority" not in queue.queue_arguments
    if unheeded and queue.name not in _warned_queues:
        _warned_queues.add(queue.name)
        if queue.is_quorum:
            _logger.warning(
                "Queue %r is a quorum queue: RabbitMQ before 4.0 does not heed priorities there, "
                "up to 4.2 it knows two (5 and above go first), from 4.3 on 32.",
                queue.name,
            )
            return
        _logger.warning(
            "Queue %r has no x-max-priority: priorities have no effect. Add "
            "{'x-max-priority': 10} to its queue_arguments in CARROT['queues'].",
            queue.name,
        )


@cache
def _defaults() -> tuple[Any, ...]:
    """Default of each field of a MessageLog, in Django's order."""
    return tuple(field.get_default() for field in MessageLog._meta.concrete_fields)


@cache
def _positions() -> dict[str, int]:
    """Position of each field of a MessageLog in that order; the primary key is the first."""
    return {field.attname: n for n, field in enumerate(MessageLog._meta.concrete_fields)}
