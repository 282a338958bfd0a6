# SPDX-License-Identifier: Apache-2.0
"""One row of django-carrot's turned into one of ours. Nothing is read or written here.

What cannot be turned into a row that does the same is refused, with the reason. A schedule that
would do something else than its row says is switched off, with the reason: somebody has to look.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models.functions import Now

from carrot_twisted import conf, objects, outcomes, triggers, wire
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.message_log import MAX_TASK
from carrot_twisted.models import MessageLog, ScheduledTask

if TYPE_CHECKING:
    from collections.abc import Collection

    from carrot_twisted.old_tables import OldMessageLog, OldScheduledTask


def new_log(old: OldMessageLog, arguments: tuple[str, str] | None = None) -> MessageLog:
    """An unsaved MessageLog for an old row, with the old row's message id as primary key.

    An unfinished one is PUBLISHED and taken for confirmed: the old message rings for it. One that
    was in progress has no message any more; it goes to the outbox.

    Args:
        old: the row.
        arguments: positional and keyword arguments as JSON, if the message is at hand; the row
            keeps the text of a tuple, which cannot always be read back.

    Raises:
        InvalidMessage: no row of ours can stand for it; the text says why.
    """
    key = message_id(old.uuid)
    unfinished = old.status in MessageLog.UNFINISHED
    if unfinished:
        for reason in (_strange_task(old.task), _unknown_queue(old.queue)):
            if reason:
                raise InvalidMessage(reason)
    if old.priority > wire.MAX_PRIORITY:
        raise InvalidMessage(f"priority {old.priority} cannot be sent: it never was published")
    task_args, content = arguments or _log_arguments(old)
    given: dict[str, Any] = {
        "uuid": key,
        "status": MessageLog.PUBLISHED if unfinished else old.status,
        "task": old.task,
        "task_args": task_args,
        "content": content,
        "exchange": old.exchange or "",
        "queue": old.queue or conf.DEFAULT_QUEUE,
        "routing_key": old.routing_key or "",
        "priority": old.priority,
    }
    if old.publish_time is not None:
        given["publish_time"] = old.publish_time
    if old.status == MessageLog.PUBLISHED:
        given["confirmed_at"] = Now()
    if not unfinished:
        given |= {"completion_time": old.completion_time, "failure_time": old.failure_time}
        for name in ("output", "exception", "traceback", "log"):
            if text := getattr(old, name):
                given[name] = outcomes.stored(text, len(text))
    return MessageLog(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """A schedule to import, and what a person should know of it."""

    schedule: ScheduledTask
    trouble: str
    """Why it is switched off; "" if it could run."""
    note: str


def new_schedule(old: OldScheduledTask, name: str) -> NewSchedule:
    """An unsaved ScheduledTask for an old row.

    Args:
        old: the row.
        name: for ``task_name``; the old row may have none, or share it with others.

    Raises:
        InvalidMessage: its arguments cannot be passed; the text says why.
    """
    task_args, note = _schedule_arguments(old.task_args)
    content, content_note = _keyword_arguments(old.content)
    reasons = [_strange_task(old.task) or _missing_task(old.task), _unknown_queue(old.queue)]
    interval_type, interval_count = old.interval_type, old.interval_count
    if interval_type not in triggers.SECONDS:
        # A day: should somebody switch it on unseen, it does little harm.
        interval_type = "days"
        reasons.append(
            f"interval type {old.interval_type!r} is unknown (django-carrot ran it every "
            f"{interval_count} seconds); it is days here"
        )
    if interval_count < 1:
        interval_count = 1
        reasons.append("the interval was 0; it is 1 here")
    trouble = "; ".join(filter(None, reasons))
    schedule = ScheduledTask(
        task_name=name,
        task=old.task,
        interval_type=interval_type,
        interval_count=interval_count,
        exchange=old.exchange or "",
        routing_key=old.routing_key or "",
        queue=old.queue or conf.DEFAULT_QUEUE,
        task_args=task_args,
        content=content,
        active=old.active and not trouble,
    )
    return NewSchedule(
        schedule=schedule,
        trouble=trouble,
        note="; ".join(filter(None, (note, content_note))),
    )


def made_name(old: OldScheduledTask, taken: Collection[str]) -> str:
    """A ``task_name`` from task and id, the same in every run, and none of those ``taken``."""
    suffix = f"-{old.pk}"
    while (name := f"{old.task[: MAX_TASK - len(suffix)]}{suffix}") in taken:
        suffix += f"-{old.pk}"
    return name


def message_arguments(body: bytes) -> tuple[str, str]:
    """Positional and keyword arguments of a message's body, as JSON.

    Raises:
        PoisonMessage: the body is not of django-carrot's form.
        InvalidMessage: it holds what JSON has no word for, such as NaN.
    """
    args, kwargs = wire.arguments(body)
    return (
        wire.exact_json(list(args), "positional arguments"),
        wire.exact_json(dict(kwargs), "keyword arguments"),
    )


def message_id(text: str) -> UUID:
    """The primary key of our row for an old row's ``uuid``.

    Raises:
        InvalidMessage: no message of ours can have this id.
    """
    try:
        return UUID(text)
    except ValueError:
        raise InvalidMessage(f"uuid {text[:50]!r} is no UUID") from None


def _strange_task(task: str) -> str:
    """django-carrot's monitor accepted any importable function, from anybody."""
    module = task.rpartition(".")[0]
    if module in conf.current().registered_modules:
        return ""
    return f"{module or task!r} is not in CARROT['task_modules']"


def _missing_task(task: str) -> str:
    try:
        objects.resolve_task(task)
    except (ImportError, AttributeError) as error:
        return str(error)
    return ""


def _unknown_queue(queue: str | None) -> str:
    try:
        conf.current().queue(queue)
    except CarrotConfigException as error:
        return str(error)
    return ""


def _log_arguments(old: OldMessageLog) -> tuple[str, str]:
    try:
        value = wire.literal(old.task_args or "()")
        if not isinstance(value, tuple | list):
            raise TypeError("the row keeps the text of a tuple")
        task_args = _json(list(value))
    except (ValueError, TypeError):
        raise InvalidMessage(
            f"the positional arguments {_short(old.task_args)} cannot be read back; its message, "
            "if RabbitMQ still has it, runs with an AdoptingConsumer"
        ) from None
    return task_args, _keyword_arguments(old.content)[0]


def _schedule_arguments(text: str | None) -> tuple[str, str]:
    """Positional arguments of a schedule, as its documentation said they are read: literals."""
    text = (text or "").strip().rstrip(",")
    if not text:
        return wire.NO_ARGS, ""
    try:
        task_args = _json(list(wire.literal(f"({text},)")))
    except (ValueError, TypeError):
        # As django-carrot passed them.
        task_args = _json([part.strip() for part in text.split(",") if part])
        return task_args, f"its arguments are no literals, and stay texts: {_short(task_args)}"
    return task_args, f"its arguments are {_short(task_args)}; django-carrot passed them as texts"


def _keyword_arguments(text: str | None) -> tuple[str, str]:
    """Keyword arguments as JSON; create_scheduled_task wrote the JSON of a text for none."""
    try:
        value = json.loads(text or wire.NO_KWARGS)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(
            f"the keyword arguments {_short(text)} are not JSON ({error})"
        ) from None
    if isinstance(value, str):
        note = "" if value in ("", wire.NO_KWARGS) else f"the text {_short(text)} was never passed"
        return wire.NO_KWARGS, note
    if not isinstance(value, dict):
        raise InvalidMessage(f"the keyword arguments {_short(text)} are no JSON object")
    return _json(value), ""


def _json(value: Any) -> str:
    """As django-carrot sent it: tuples as lists, keys as texts.

    Raises:
        ValueError: JSON has no word for it.
    """
    return wire.exact_json(json.loads(json.dumps(value)), "arguments")


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= 100 else f"{text[:100]}…"
