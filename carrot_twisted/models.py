# SPDX-License-Identifier: Apache-2.0
"""The records: one ``MessageLog`` per task, one ``Worker`` per service process.

The row is the job, the message its doorbell. A row that is committed as PUBLISHED without
``confirmed_at`` is in the outbox: some service's relay sends it again until the broker confirms.
Every time that is compared with another is the database's clock.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import random
import time
import uuid
from datetime import timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, router, transaction
from django.db.models import Case, DateTimeField, F, Q, When
from django.db.models.functions import Now
from django.utils import timezone

from carrot_twisted import conf, signals, statements, triggers, wire
from carrot_twisted.exceptions import CarrotConfigException, CarrotError, InvalidMessage
from carrot_twisted.task_paths import is_path, resolve_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence, Set
    from datetime import tzinfo

    from django.db.models.base import ModelBase
    from django.db.models.expressions import CombinedExpression

_logger = logging.getLogger("carrot_twisted.publisher")
_warned_queues: set[str] = set()

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
            models.Index("publish_time", name="carrot_cancelled", condition=Q(status="CANCELLED")),
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

    @classmethod
    def checked(
        cls,
        task: str,
        queue: str,
        routing_key: str | None,
        exchange: str,
        priority: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> MessageLog:
        """An unsaved row that can be published: the one way in, for messages and schedules.

        Args:
            task: dotted path of the function; not imported here.
            queue: name of a queue in the settings.
            routing_key: defaults to the queue's name.
            exchange: "" for RabbitMQ's default exchange.
            priority: 0 to 255.
            args: positional arguments, JSON values.
            kwargs: keyword arguments, JSON values.

        Raises:
            InvalidMessage: arguments that JSON would change, a priority out of range, names or
                arguments too long.
            CarrotConfigException: no such queue in the settings.
        """
        settings = conf.current()
        target = settings.queue(queue)
        exchange = exchange or ""
        routing_key = routing_key or target.name
        _check_priority(priority, target)
        args_json = wire.exact_json([*args], "positional arguments") if args else wire.NO_ARGS
        kwargs_json = wire.exact_json(kwargs, "keyword arguments") if kwargs else wire.NO_KWARGS
        for what, text, limit in (
            ("task path", task, MAX_TASK),
            ("exchange", exchange, conf.MAX_NAME_BYTES),
            ("routing key", routing_key, conf.MAX_NAME_BYTES),
        ):
            if len(text.encode()) > limit:
                raise InvalidMessage(f"The {what} is longer than {limit} bytes: {text[:50]}…")
        size = len(args_json.encode()) + len(kwargs_json.encode())
        if size > settings.max_message_size:
            raise InvalidMessage(
                f"The arguments take {size} bytes as JSON; at most "
                f"{settings.max_message_size} (CARROT['max_message_size']) can be sent. Store the "
                "data and pass its key."
            )
        return cls.new(
            task=task,
            task_args=args_json,
            content=kwargs_json,
            exchange=exchange,
            queue=target.name,
            routing_key=routing_key,
            priority=priority,
        )

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
                value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
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

        Both happen in one transaction. As in django-carrot it works on any status. If a worker
        runs the task just now, the new one runs beside it, and the result of that run is dropped
        with this row.

        Returns:
            The new row.

        Raises:
            CarrotConfigException: the queue is not in the settings any more. Nothing has changed.
            InvalidMessage: the arguments of this row cannot be read. Nothing has changed.
            MessageLog.DoesNotExist: this row was requeued or deleted meanwhile.
        """
        conf.current().queue(self.queue)
        wire.stored_object(self.content)
        using = self._state.db or router.db_for_write(MessageLog)
        again = MessageLog(
            task=self.task,
            task_args=self._args_json(),
            content=self.content or wire.NO_KWARGS,
            exchange=self.exchange,
            queue=self.queue,
            routing_key=self.routing_key,
            priority=self.priority,
            retry_of=self.pk,
        )
        with transaction.atomic(using=using):
            deleted, _ = self.delete(using=using)
            if not deleted:
                raise MessageLog.DoesNotExist(
                    f"The row {again.retry_of} is gone: it was requeued or deleted meanwhile."
                )
            MessageLog.objects.using(using).enqueue([again])
        return again

    def _args_json(self) -> str:
        """The stored text, letter for letter; that of django-carrot's rows as JSON."""
        try:
            wire.stored_list(self.task_args)
        except InvalidMessage:
            return json.dumps(list(self.positionals))
        return self.task_args or wire.NO_ARGS


def _check_priority(priority: int, queue: conf.QueueSettings) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidMessage(f"A priority is a whole number, not {priority!r}.")
    if not 0 <= priority <= wire.MAX_PRIORITY:
        raise InvalidMessage(f"A priority is from 0 to {wire.MAX_PRIORITY}, not {priority}.")
    unheeded = priority and "x-max-priority" not in queue.queue_arguments
    if unheeded and queue.name not in _warned_queues:
        _warned_queues.add(queue.name)
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


class ScheduledTaskQuerySet(models.QuerySet["ScheduledTask"]):
    """Updates that the scheduler heeds."""

    def update(self, **values: Any) -> int:
        """As Django's; schedules whose trigger this changes are planned anew."""
        edited = values.keys() - ScheduledTask.OWNED
        if edited and "next_run_time" not in values:
            if edited & ScheduledTask.TRIGGER:
                values.update(next_run_time=None, problem="")
            elif values.get("active"):
                values["next_run_time"] = Case(
                    When(active=True, then=_mended()), default=None, output_field=DateTimeField()
                )
            else:
                values["next_run_time"] = _mended()
        return super().update(**values)

    update.alters_data = True  # type: ignore[attr-defined]

    def try_again(self) -> int:
        """Let those that could not be published be tried at once; returns how many."""
        return super(ScheduledTaskQuerySet, self.exclude(problem="")).update(
            next_run_time=_mended()
        )

    try_again.alters_data = True  # type: ignore[attr-defined]


def _mended() -> Case:
    """``next_run_time`` after an edit that is not of the trigger: a schedule that could not be
    published is tried at once."""
    return Case(
        When(problem="", then=F("next_run_time")),
        When(misfire=triggers.SKIP, then=None),
        # The sum makes SQLite write the time as Django does.
        default=Now() + timedelta(0),
        output_field=DateTimeField(),
    )


class ScheduledTask(models.Model):
    """A task that is published again and again, or once at a time. Names are django-carrot's.

    When it runs is said by ``run_at``, else by ``cron``, else by the interval. Edits, new rows and
    deletions take effect with the next look of a scheduler, which looks every second. The fields
    in OWNED are the scheduler's: ``save()`` leaves them alone unless they were assigned to, so that
    a process that read the row a while ago never turns the schedule back.
    """

    INTERVAL_CHOICES = tuple((name, name.capitalize()) for name in triggers.SECONDS)
    MISFIRE_CHOICES = (
        (triggers.RUN_ONCE, "One run makes up for missed slots"),
        (triggers.SKIP, "Missed slots are dropped"),
    )
    ALLOW, SKIP = "allow", "skip"
    OVERLAP_CHOICES = ((ALLOW, "Runs may overlap"), (SKIP, "Not while the last run is unfinished"))
    #: What says when a schedule runs: if one of these changes, it is planned anew.
    TRIGGER = frozenset(
        {"interval_type", "interval_count", "cron", "timezone", "run_at", "start_time", "end_time"}
    )
    #: What the scheduler writes.
    OWNED = frozenset({"next_run_time", "last_run_time", "last_log", "problem"})

    task_name = models.CharField(max_length=MAX_TASK, unique=True)
    task = models.CharField(max_length=MAX_TASK, help_text="Dotted path of the function.")
    interval_type = models.CharField(max_length=7, choices=INTERVAL_CHOICES, default="seconds")
    interval_count = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1)])
    cron = models.CharField(
        max_length=triggers.MAX_CRON,
        blank=True,
        default="",
        help_text="Minute, hour, day of month, month, day of week; instead of the interval.",
    )
    timezone = models.CharField(
        max_length=100,
        blank=True,
        default="",
        help_text="Time zone of the crontab, such as Europe/Berlin; empty: that of the settings.",
    )
    run_at = models.DateTimeField(
        null=True, blank=True, help_text="Run once, at this time; instead of interval and crontab."
    )
    start_time = models.DateTimeField(null=True, blank=True, help_text="No run before this time.")
    end_time = models.DateTimeField(null=True, blank=True, help_text="No run after this time.")
    misfire = models.CharField(
        max_length=8,
        choices=MISFIRE_CHOICES,
        default=triggers.RUN_ONCE,
        help_text="What becomes of slots that come while no service runs.",
    )
    overlap = models.CharField(
        max_length=5,
        choices=OVERLAP_CHOICES,
        default=ALLOW,
        help_text="Whether a slot is published while the task of the last one is unfinished.",
    )
    exchange = models.CharField(max_length=255, blank=True, default="")
    routing_key = models.CharField(max_length=255, blank=True, default="")
    queue = models.CharField(max_length=255, default=conf.DEFAULT_QUEUE)
    priority = models.PositiveSmallIntegerField(
        default=0, validators=[MaxValueValidator(wire.MAX_PRIORITY)]
    )
    task_args = models.TextField(blank=True, default=wire.NO_ARGS, help_text="A JSON list.")
    content = models.TextField(blank=True, default=wire.NO_KWARGS, help_text="A JSON object.")
    active = models.BooleanField(default=True)
    next_run_time = models.DateTimeField(
        null=True, blank=True, help_text="Empty: the scheduler plans it at its next look."
    )
    last_run_time = models.DateTimeField(
        null=True, editable=False, help_text="The slot that was published last."
    )
    last_log = models.UUIDField(
        null=True,
        editable=False,
        help_text="Key of the MessageLog that was published last; it may be deleted by now.",
    )
    problem = models.TextField(
        blank=True, default="", editable=False, help_text="Why it cannot be published, if so."
    )
    declaration = models.TextField(
        blank=True,
        default="",
        editable=False,
        help_text="What @periodic_task said; empty: the schedule does not live in the code.",
    )

    objects = ScheduledTaskQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index("next_run_time", name="carrot_due", condition=Q(active=True)),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(interval_count__gte=1), name="carrot_interval_count_at_least_1"
            ),
            models.CheckConstraint(
                condition=Q(priority__lte=wire.MAX_PRIORITY), name="carrot_priority_at_most_255"
            ),
        ]

    def __str__(self) -> str:
        return self.task_name

    def save(
        self,
        *,
        force_insert: bool | tuple[ModelBase, ...] = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Write the row; of the scheduler's fields only those that were assigned to.

        If the trigger has changed, the schedule is planned anew; else one that could not be
        published is tried at once.

        Raises:
            DatabaseError: the row was deleted meanwhile; it does not come back.
        """
        if self._state.adding or force_insert:
            super().save(
                force_insert=force_insert,
                force_update=force_update,
                using=using,
                update_fields=update_fields,
            )
            self._note_loaded()
            return
        loaded = getattr(self, "_loaded", {})
        changed = {
            name
            for name in _WATCHED & self.__dict__.keys()
            if name not in loaded or self.__dict__[name] != loaded[name]
        }
        if update_fields is None:
            fields = {
                field.attname for field in self._meta.concrete_fields if not field.primary_key
            } - self.get_deferred_fields()
            fields -= _UNASKED - changed
        else:
            fields = {*update_fields}
        replan = changed & fields & self.TRIGGER or ("active" in changed & fields and self.active)
        if replan and "next_run_time" not in changed & fields:
            self.next_run_time, self.problem = None, ""
            fields |= {"next_run_time", "problem"}
        alias = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=alias):
            super().save(force_update=force_update, using=alias, update_fields=fields)
            if fields - self.OWNED and "next_run_time" not in fields:
                ScheduledTask.objects.using(alias).filter(pk=self.pk).try_again()
        self._note_loaded(fields)

    save.alters_data = True  # type: ignore[attr-defined]

    def clean(self) -> None:
        """Django's hook for forms: tells what would keep the schedule from running.

        The task is not imported here: a web process may lack the worker's code. The scheduler
        tells in ``problem`` if it cannot find it.
        """
        errors: dict[str, str] = {}

        def check(field: str, question: Callable[[], object]) -> None:
            try:
                question()
            except CarrotError as error:
                errors.setdefault(field, str(error))

        if not is_path(self.task):
            errors["task"] = f"{self.task!r} is not of the form module.function."
        if self.run_at is not None and self.cron:
            errors["run_at"] = "Give run_at or cron, not both."
        if self.timezone:
            check("timezone", lambda: triggers.time_zone(self.timezone))
        if self.cron and "timezone" not in errors:
            check("cron", lambda: triggers.cron_slot(self.cron, self.zone, timezone.now()))
        check("queue", lambda: conf.current().queue(self.queue))
        check("task_args", lambda: self.positional_arguments)
        check("content", lambda: self.keyword_arguments)
        if "timezone" not in errors and self.interval_type in triggers.SECONDS:
            check("run_at" if self.run_at else "end_time", lambda: self.timing)
        if not errors:
            # Django has checked the priority already.
            check(NON_FIELD_ERRORS, lambda: self.new_row(priority=0))
        if errors:
            raise ValidationError(errors)

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> ScheduledTask:
        """Django's hook: notes what was read, so that ``save()`` can tell what was changed."""
        schedule: ScheduledTask = super().from_db(*args, **kwargs)
        schedule._note_loaded()
        return schedule

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[ScheduledTask] | None = None,
    ) -> None:
        """As Django's, which also calls it to fetch a deferred field."""
        names = None if fields is None else {*fields}
        super().refresh_from_db(using, names, from_queryset)
        self._note_loaded(names)

    def _note_loaded(self, names: Set[str] | None = None) -> None:
        # Not by getattr: that would fetch a deferred field.
        watched = _WATCHED if names is None else _WATCHED & names
        now = {name: self.__dict__[name] for name in watched if name in self.__dict__}
        self._loaded = {**getattr(self, "_loaded", {}), **now}

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
        """For people: "Every 5 seconds", "Every 1 hour"; also for crontabs and one-offs."""
        if self.run_at is not None:
            return f"Once at {self.run_at:%Y-%m-%d %H:%M:%S %Z}".rstrip()
        if self.cron:
            return f"Cron {self.cron}" + (f" ({self.timezone})" if self.timezone else "")
        unit = self.interval_type
        return f"Every {self.interval_count} {unit if self.interval_count > 1 else unit[:-1]}"

    @property
    def zone(self) -> tzinfo:
        """The time zone of the crontab.

        Raises:
            InvalidMessage: there is no time zone of that name.
        """
        return triggers.time_zone(self.timezone)

    @property
    def timing(self) -> triggers.Timing:
        """When it runs.

        Raises:
            InvalidMessage: the row contradicts itself, or names no known interval or time zone.
        """
        if self.misfire not in dict(self.MISFIRE_CHOICES):
            raise InvalidMessage(f"misfire is {self.misfire!r}; it must be run_once or skip.")
        if self.overlap not in dict(self.OVERLAP_CHOICES):
            raise InvalidMessage(f"overlap is {self.overlap!r}; it must be allow or skip.")
        return triggers.Timing(
            run_at=self.run_at,
            cron=self.cron,
            zone=self.zone,
            interval=self.interval,
            start=self.start_time,
            end=self.end_time,
            skip=self.misfire == triggers.SKIP,
            last=self.last_run_time,
        )

    @property
    def positional_arguments(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return tuple(wire.stored_list(self.task_args))

    @property
    def keyword_arguments(self) -> dict[str, Any]:
        """The keyword arguments."""
        return wire.stored_object(self.content)

    def new_row(self, priority: int | None = None) -> MessageLog:
        """An unsaved MessageLog of what this schedule publishes.

        Raises:
            InvalidMessage, CarrotConfigException: see ``MessageLog.checked``.
        """
        return MessageLog.checked(
            self.task,
            self.queue,
            self.routing_key,
            self.exchange,
            self.priority if priority is None else priority,
            self.positional_arguments,
            self.keyword_arguments,
        )

    def publish(self, priority: int | None = None) -> MessageLog:
        """Run now: publish the task once, also if the schedule is not active.

        When it is due next does not change.

        Args:
            priority: 0 to 255; None takes the schedule's own.

        Returns:
            The MessageLog, PUBLISHED.

        Raises:
            InvalidMessage, CarrotConfigException: the arguments or the queue are wrong.
            ImportError, AttributeError: there is no such function.
        """
        resolve_task(self.task)
        row = self.new_row(priority)
        using = self._state.db or router.db_for_write(MessageLog)
        with transaction.atomic(using=using):
            MessageLog.objects.using(using).enqueue([row])
            type(self)._base_manager.using(using).filter(pk=self.pk).update(last_log=row.pk)
        self.last_log = row.pk
        self._note_loaded({"last_log"})
        return row


#: Fields that ``save()`` writes only if they were assigned to. The scheduler switches off what is
#: over, so ``active`` is one of them.
_UNASKED = ScheduledTask.OWNED | {"active"}
_WATCHED = ScheduledTask.TRIGGER | _UNASKED


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
