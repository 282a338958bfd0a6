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
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models, router, transaction
from django.db.models import F, Q
from django.db.models.base import ModelState
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from carrot_twisted import (
    conf,
    message_log_set,
    outcomes,
    task_options,
    waiting,
    wire,
)
from carrot_twisted.due import GRACE, due_in
from carrot_twisted.exceptions import (
    CarrotConfigException,
    DuplicateTask,
    HasFailed,
    InvalidMessage,
    NotFinished,
    WasCancelled,
)
from carrot_twisted.identities import message_id
from carrot_twisted.kinds import MAX_NAME_BYTES
from carrot_twisted.message_log_set import MessageLogQuerySet
from carrot_twisted.running import CancelRequest, Progress
from carrot_twisted.task_limits import words_of
from carrot_twisted.task_options import PublishOptions, first_said, seconds_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.task_options import Moment

_logger = logging.getLogger("carrot_twisted.publisher")
_warned_queues: set[str] = set()

#: Longest dotted path of a task.
MAX_TASK = 200
#: Longest unique key: a task's path, and a digest.
MAX_UNIQUE_KEY = 300
#: Longest name of a limit: its kind, its group, and a digest.
MAX_LIMIT_NAME = 320


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
    returned = models.TextField(
        null=True,
        editable=False,
        help_text="That value as JSON; or how the output tells it; empty: it does not.",
    )
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

    slot_key = models.CharField(
        max_length=MAX_LIMIT_NAME,
        null=True,
        editable=False,
        help_text="So many of these run at once as its limit says; empty: any number does.",
    )
    rate_key = models.CharField(
        max_length=MAX_LIMIT_NAME,
        null=True,
        editable=False,
        help_text="So many of these start in a while as its limit says; empty: any number does.",
    )
    waits_for = models.CharField(
        max_length=MAX_LIMIT_NAME,
        null=True,
        editable=False,
        help_text="The limit that has not let it start: its slot_key or rate_key; empty: none.",
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

    # No foreign key: a flow ends, and goes, before or after its rows.
    flow = models.UUIDField(null=True, editable=False, help_text="Primary key of its Flow.")
    flow_step = models.PositiveSmallIntegerField(
        null=True, editable=False, help_text="The flow's step that it is of, from 0 on."
    )
    flow_position = models.PositiveIntegerField(
        null=True, editable=False, help_text="Its place in that step, from 0 on."
    )

    trace = models.TextField(
        null=True,
        editable=False,
        help_text="OpenTelemetry's context of its publishing: traceparent, and tracestate if there "
        "is one; empty: it was not traced.",
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
            models.Index(
                "flow",
                "flow_step",
                "status",
                "flow_position",
                name="carrot_flow",
                condition=Q(flow__isnull=False),
            ),
            models.Index(
                "slot_key",
                name="carrot_slots",
                condition=Q(slot_key__isnull=False, status="IN_PROGRESS"),
            ),
            models.Index(
                F("waits_for"),
                F("priority").desc(),
                F("publish_time"),
                F("uuid"),
                name="carrot_limited",
                condition=Q(waits_for__isnull=False, status="PUBLISHED"),
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

        The same as ``MessageLog(**given)`` in a fifth of the time: Django sets forty fields one by
        one, and every published task pays for one row. Receivers of ``pre_init`` and ``post_init``
        are not called.

        Raises:
            KeyError: there is no such field.
        """
        row = cls.__new__(cls)
        values = row.__dict__
        values.update(_defaults())
        values["_state"] = ModelState()
        values["uuid"] = message_id()
        for name, value in given.items():
            if name not in values:
                raise KeyError(name)
            values[name] = value
        return row

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
        if declared is not None and declared.is_limited:
            row.slot_key, row.rate_key = declared.limit_names(args, kwargs, settings.redact)
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

    @property
    def moments(self) -> tuple[Moment | None, Moment | None]:
        """Before it is inserted: when it may start, and until when, as that was said."""
        return self._run_after, self._expires

    @moments.setter
    def moments(self, said: tuple[Moment | None, Moment | None]) -> None:
        self._run_after, self._expires = said

    def join(self, flow: UUID, step: int, position: int) -> None:
        """Before it is inserted: it is a part of a flow."""
        self.flow, self.flow_step, self.flow_position = flow, step, position
        self.is_special = True

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
    def limited_by(self) -> str | None:
        """What it waits for that its limits have, for people; None: for nothing of that kind."""
        if self.status != self.PUBLISHED or self.waits_for is None:
            return None
        return words_of(self.waits_for)

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
            flows = _rejoin([again], using)
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
            message_log_set.settle(flows, using)
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
            flow=self.flow,
            flow_step=self.flow_step,
            flow_position=self.flow_position,
            slot_key=self.slot_key,
            rate_key=self.rate_key,
        )
        more = (
            *(self.unique_key, self.retention, self.django_task),
            *(self.flow, self.slot_key, self.rate_key),
        )
        row.is_special = any(value is not None for value in more)
        return row

    def result(self) -> Any:
        """What the task has returned, as this row was read.

        Raises:
            HasFailed, WasCancelled, NotFinished: there is none.
            UnknownResult: it was nothing that JSON can tell exactly, or too large.
        """
        if self.status == self.FAILED:
            text = f"Task {self.task} ({self.pk}) has failed: {self.exception}"
            raise HasFailed(text, self.exception_class or "", self.traceback or "")
        if self.status == self.CANCELLED:
            request = self.cancel_asked
            why = self.exception or (request.text if request else "")
            raise WasCancelled(f"Task {self.task} ({self.pk}) was cancelled: {why}")
        if self.status != self.COMPLETED:
            raise NotFinished(f"Task {self.task} ({self.pk}) has not come to its end yet.")
        return outcomes.value_of(self.output, self.returned)

    def wait(self, timeout: float | None = None) -> MessageLog:
        """Wait until it has come to its end. This thread does nothing else meanwhile.

        The row is asked for again and again, after 10 ms first, then less and less often, up to
        once a second. Not for the inside of a task: its thread could be needed for what it waits
        for. A flow goes on without waiting.

        Args:
            timeout: seconds; None: for ever.

        Returns:
            This row, as it is then; so ``log.wait(10).result()`` is what the task has returned.

        Raises:
            NotFinished: it has not, in that time.
            CannotWait: in a transaction, or in the reactor's thread.
            MessageLog.DoesNotExist: it was deleted, or requeued as another one.
        """
        waiting.wait(f"Task {self.pk}", self._has_ended, timeout, self._using)
        return self

    async def await_result(self, timeout: float | None = None) -> Any:
        """``wait`` and ``result`` in a coroutine, whose event loop goes on meanwhile."""
        await waiting.wait_async(f"Task {self.pk}", self._has_ended, timeout, self._using)
        return self.result()

    def _has_ended(self) -> bool:
        rows = MessageLog.objects.using(self._using)
        if rows.values_list("status", flat=True).get(pk=self.pk) in self.UNFINISHED:
            return False
        self.refresh_from_db(using=self._using)
        return True

    @property
    def _using(self) -> str:
        """Where it is written, and so read without delay."""
        return self._state.db or router.db_for_write(MessageLog)

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
        cancel = rows.cancel_alone if self.flow is None else rows.cancel
        if not cancel(by, reason, cooperative=cooperative):
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


def _rejoin(rows: Sequence[MessageLog], using: str) -> set[uuid.UUID]:
    if all(row.flow is None for row in rows):
        return set()
    from carrot_twisted import flow_settling

    return flow_settling.rejoin(rows, using)


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
def _defaults() -> dict[str, Any]:
    """What Django sets in a new row that is given nothing."""
    return {name: value for name, value in vars(MessageLog()).items() if name != "_state"}
