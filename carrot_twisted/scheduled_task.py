# SPDX-License-Identifier: Apache-2.0
"""The record of a task that is published again and again, or once at a time."""

from __future__ import annotations

from datetime import MAXYEAR, MINYEAR, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, router, transaction
from django.db.models import Case, DateTimeField, F, Q, When
from django.db.models.functions import Now
from django.utils import timezone

from carrot_twisted import conf, schedule_run, triggers, wire
from carrot_twisted.exceptions import CarrotError, InvalidMessage
from carrot_twisted.message_log import MAX_TASK, MessageLog
from carrot_twisted.task_paths import is_path, resolve_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Set
    from datetime import tzinfo

    from django.db.models.base import ModelBase


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
        db_default="",
        help_text="Minute, hour, day of month, month, day of week; instead of the interval.",
    )
    timezone = models.CharField(
        max_length=100,
        blank=True,
        default="",
        db_default="",
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
        db_default=triggers.RUN_ONCE,
        help_text="What becomes of slots that come while no service runs.",
    )
    overlap = models.CharField(
        max_length=5,
        choices=OVERLAP_CHOICES,
        default=ALLOW,
        db_default=ALLOW,
        help_text="Whether a slot is published while the task of the last one is unfinished.",
    )
    exchange = models.CharField(max_length=255, blank=True, default="")
    routing_key = models.CharField(max_length=255, blank=True, default="")
    queue = models.CharField(max_length=255, default=conf.DEFAULT_QUEUE)
    priority = models.PositiveSmallIntegerField(
        default=0, db_default=0, validators=[MaxValueValidator(wire.MAX_PRIORITY)]
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
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="Why it cannot be published, if so.",
    )
    declaration = models.TextField(
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="What @periodic_task said; empty: the schedule does not live in the code.",
    )

    objects = ScheduledTaskQuerySet.as_manager()

    class Meta:
        # Fields that django-carrot has not have a default in the database as well ("db_default"):
        # a service of the release before them still inserts rows during a rolling upgrade.
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
        if self.pk is None:
            self._forget_original()
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
        for field in ("run_at", "start_time", "end_time"):
            value = getattr(self, field)
            if value is not None and timezone.is_naive(value):
                errors[field] = "Give a time with a time zone."
            elif value is not None and not MINYEAR < value.year < MAXYEAR:
                # It could not be told in every time zone.
                errors[field] = f"Give a time in the years {MINYEAR + 1} to {MAXYEAR - 1}."
        if self.timezone:
            check("timezone", lambda: triggers.time_zone(self.timezone))
        if self.cron and "timezone" not in errors:
            check("cron", lambda: triggers.cron_slot(self.cron, self.zone, timezone.now()))
        check("queue", lambda: conf.current().queue(self.queue))
        check("task_args", lambda: self.positional_arguments)
        check("content", lambda: self.keyword_arguments)
        if self.interval_type in triggers.SECONDS:
            check("interval_count", lambda: self.interval)
        wrong = errors.keys() & {
            "timezone",
            "run_at",
            "start_time",
            "end_time",
            "interval_count",
        }
        if not wrong and self.interval_type in triggers.SECONDS:
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

    def _forget_original(self) -> None:
        """A row that was read and has lost its key is saved as a copy: its slots are its own."""
        self._state.adding = True
        loaded = getattr(self, "_loaded", {})
        if not loaded:
            return
        fresh = type(self)()
        self.declaration = ""
        for name in self.OWNED:
            if self.__dict__.get(name) == loaded.get(name):
                setattr(self, name, getattr(fresh, name))

    def _note_loaded(self, names: Set[str] | None = None) -> None:
        # Not by getattr: that would fetch a deferred field.
        watched = _WATCHED if names is None else _WATCHED & names
        now = {name: self.__dict__[name] for name in watched if name in self.__dict__}
        self._loaded = {**getattr(self, "_loaded", {}), **now}

    @property
    def interval(self) -> timedelta:
        """Time between two slots.

        Raises:
            InvalidMessage: no such interval type, or longer than calendars can add.
        """
        seconds = self.interval_count * self.multiplier
        if seconds > triggers.MAX_INTERVAL:
            raise InvalidMessage(
                f"An interval is a hundred years at most, not {self.interval_count} "
                f"{self.interval_type}."
            )
        return timedelta(seconds=seconds)

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
            The MessageLog, PUBLISHED. Of a unique task that is there already: that one's.

        Raises:
            InvalidMessage, CarrotConfigException: the arguments or the queue are wrong.
            ImportError, AttributeError: there is no such function.
        """
        resolve_task(self.task)
        row = self.new_row(priority)
        using = self._state.db or router.db_for_write(MessageLog)
        with transaction.atomic(using=using):
            (log,) = MessageLog.objects.using(using).enqueue([row])
            schedule_run.note([(self.pk, log.pk, None)], using)
            type(self)._base_manager.using(using).filter(pk=self.pk).update(last_log=log.pk)
        self.last_log = log.pk
        self._note_loaded({"last_log"})
        return log


#: Fields that ``save()`` writes only if they were assigned to. The scheduler switches off what is
#: over, so ``active`` is one of them.
_UNASKED = ScheduledTask.OWNED | {"active"}
_WATCHED = ScheduledTask.TRIGGER | _UNASKED
