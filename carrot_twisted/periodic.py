# SPDX-License-Identifier: Apache-2.0
"""Schedules that live in the code: ``@periodic_task`` on a function.

A declaration becomes a row of ``ScheduledTask`` when a service with a scheduler starts. The row
keeps what was declared, so that the next start can tell what the code changed from what a person
changed in the database.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import connections, transaction

from carrot_twisted import conf, outcomes, task_options, triggers
from carrot_twisted.aside import Errand
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.message_log import MAX_TASK
from carrot_twisted.models import MessageLog, ScheduledTask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_logger = logging.getLogger("carrot_twisted.scheduler")

#: Seconds that a ``when`` may take.
PATIENCE = 2.0
#: Milliseconds that a start waits for a row that somebody else has locked.
LOCK_TIMEOUT = 200
#: What PostgreSQL says when these have passed.
_LOCK_NOT_AVAILABLE = "55P03"

Function = TypeVar("Function", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One ``@periodic_task``."""

    function: Callable[..., Any]
    fields: dict[str, Any]
    """Of the ScheduledTask, but for its name."""
    when: Callable[[], bool] | None

    @property
    def text(self) -> str:
        """The fields as the row keeps them."""
        return json.dumps(self.fields, sort_keys=True, default=datetime.isoformat)


_declared: dict[str, Declaration] = {}


def periodic_task(
    *,
    seconds: int | None = None,
    minutes: int | None = None,
    hours: int | None = None,
    days: int | None = None,
    cron: str | None = None,
    timezone: str = "",
    task_name: str | None = None,
    queue: str | None = None,
    priority: int | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    misfire: str = triggers.RUN_ONCE,
    overlap: str = ScheduledTask.ALLOW,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    when: Callable[[], bool] | None = None,
) -> Callable[[Function], Function]:
    """Decorate a task that is to be published again and again. The function stays what it is.

    Its module must be one of ``CARROT["task_modules"]``: only those are imported by the service.
    A function may be decorated several times, under different names.

    Args:
        seconds, minutes, hours, days: the interval; one of these or ``cron``.
        cron: minute, hour, day of month, month, day of week, for example "30 2 * * MON-FRI".
        timezone: of the crontab, such as "Europe/Berlin"; by default that of the settings.
        task_name: unique name of the schedule; by default the function's dotted path.
        queue: name of a configured queue; by default that of a ``@task`` below, or "default".
        priority: 0 to 255; by default that of a ``@task`` below, or 0.
        args: positional arguments of the task, JSON values.
        kwargs: keyword arguments of the task, JSON values.
        misfire: "run_once": one run makes up for slots that were missed; "skip": they are dropped.
        overlap: "allow", or "skip": no run while the last one is unfinished.
        start_time: aware; no run before it.
        end_time: aware; no run after it.
        when: asked when a service starts; the schedule exists only if it says True.

    Raises:
        InvalidMessage: the declaration makes no sense; the text says what to write.
        CarrotConfigException: ``queue`` names no queue of the settings.
    """
    given = {"seconds": seconds, "minutes": minutes, "hours": hours, "days": days}
    intervals = {name: count for name, count in given.items() if count is not None}
    if len(intervals) + (cron is not None) != 1:
        raise InvalidMessage(
            "@periodic_task takes exactly one of seconds, minutes, hours, days and cron, for "
            "example @periodic_task(minutes=5)."
        )
    if timezone and cron is None:
        raise InvalidMessage("@periodic_task takes timezone only together with cron.")
    fields = (
        triggers.interval_fields(intervals)
        if cron is None
        else triggers.cron_fields(cron, timezone)
    )
    value: Any
    for name, value in (("start_time", start_time), ("end_time", end_time)):
        if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
            raise InvalidMessage(
                f"{name} is {value!r}; give a datetime with a time zone, for example "
                "datetime(2030, 1, 1, tzinfo=UTC)."
            )
    if queue is not None:
        conf.current().queue(queue)

    def declare(function: Function) -> Function:
        path = _path_of(function)
        name = task_name or path
        if len(name) > MAX_TASK:
            raise InvalidMessage(f"A task_name has at most {MAX_TASK} characters: {name[:50]}…")
        if not name.isprintable():
            raise InvalidMessage(f"A task_name is a text that can be printed, not {name!r}.")
        known = next(iter(conf.current().queues))
        # In any queue: the settings may have none called "default". The row's problem tells that.
        below = task_options.declared(path)
        said = task_options.NOTHING_SAID if below is None else below.options
        row = MessageLog.checked(
            path, queue or known, None, "", priority, [*args], {**(kwargs or {})}
        )
        declaration = Declaration(
            function=function,
            fields={
                "task": path,
                "queue": queue or said.queue or conf.DEFAULT_QUEUE,
                "priority": row.priority,
                "task_args": row.task_args,
                "content": row.content,
                "misfire": misfire,
                "overlap": overlap,
                "start_time": start_time,
                "end_time": end_time,
                **fields,
            },
            when=when,
        )
        # Says what else is wrong.
        _ = ScheduledTask(**declaration.fields).timing
        _register(name, declaration)
        return function

    return declare


def _path_of(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not callable(function) or not module or not name or not name.isidentifier():
        raise InvalidMessage(
            f"@periodic_task cannot decorate {function!r}: a worker finds a task by its path, so "
            "define it as a function at the top of a module."
        )
    return f"{module}.{name}"


def _register(name: str, declaration: Declaration) -> None:
    other = _declared.get(name)
    # The same path with another function: the module was reloaded.
    if other is not None and (
        other.function is declaration.function or other.fields["task"] != declaration.fields["task"]
    ):
        raise InvalidMessage(
            f"Two schedules are named {name!r}, of {other.fields['task']} and of "
            f"{declaration.fields['task']}: give one of them another task_name."
        )
    _declared[name] = declaration


def _are_wanted() -> dict[str, bool | None]:
    """What each ``when`` says; None if it fails. They have PATIENCE seconds in all.

    Each is the project's code, so it runs beside this thread and its transaction.
    """
    errands = {name: Errand(one.when) for name, one in _declared.items() if one.when is not None}
    answers: dict[str, bool | None] = dict.fromkeys(_declared, True)
    end = time.monotonic() + PATIENCE
    for name, errand in errands.items():
        answers[name] = None
        try:
            if errand.ended(max(0.0, end - time.monotonic())):
                answers[name] = bool(errand.result())
            else:
                _logger.error(
                    "The 'when' of schedule %r takes longer than %s seconds; the schedule stays as "
                    "it is",
                    name,
                    PATIENCE,
                )
        except Exception:
            _logger.exception("The 'when' of schedule %r failed; the schedule stays as it is", name)
    return answers


def sync(using: str) -> bool:
    """Bring the rows in line with the code. Call it inside a transaction, when a service starts.

    A declaration that is new or has changed is written to its row, which is active then. One that
    has not changed leaves its row as it is: what people edited stays. A row whose declaration left
    the code is deleted. Several services may do this at once.

    Args:
        using: database alias.

    Returns:
        Whether that is done; False: somebody else has locked a row, call it again later.
    """
    answers = _are_wanted()
    schedules = ScheduledTask.objects.using(using)
    stored = dict(schedules.exclude(declaration="").values_list("task_name", "declaration"))
    # In order of names: so two services that start at once wait for each other, in no circle.
    changes: list[tuple[str, Callable[[], None]]] = [
        (name, partial(_store, name, _declared[name], name in stored, using))
        for name in sorted(answers)
        if answers[name] and stored.get(name) != _declared[name].text
    ]
    changes += [
        (name, partial(_delete, name, using))
        for name in sorted(stored)
        if answers.get(name, False) is False
    ]
    if changes and connections[using].vendor == "postgresql":
        # The service does nothing else meanwhile.
        with connections[using].cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}")
    done = True
    for name, change in changes:
        try:
            with transaction.atomic(using=using):
                change()
        except Exception as error:
            # Not only DatabaseError: a driver may refuse a value itself.
            if getattr(error.__cause__, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                _logger.warning("The row of schedule %r is locked; it is changed later", name)
                done = False
            elif outcomes.blames_database(error):
                raise
            else:
                _logger.exception("The database refuses schedule %r of the code", name)
    return done


def _store(name: str, declaration: Declaration, known: bool, using: str) -> None:
    schedules = ScheduledTask.objects.using(using)
    fields = {**declaration.fields, "active": True, "declaration": declaration.text}
    # Not get_or_create: with the name taken meanwhile, this transaction would be lost.
    schedules.bulk_create([ScheduledTask(task_name=name, **fields)], ignore_conflicts=True)
    # The row may be of another version of the code, or made by hand before.
    changed = schedules.filter(task_name=name).exclude(declaration=declaration.text)
    if changed.update(run_at=None, **fields):
        _logger.info("Schedule %r is changed to what the code says", name)
    elif not known:
        _logger.info("Schedule %r is new in the code", name)


def _delete(name: str, using: str) -> None:
    schedules = ScheduledTask.objects.using(using)
    schedules.filter(task_name=name).exclude(declaration="").delete()
    _logger.info("Schedule %r has left the code and is deleted", name)
