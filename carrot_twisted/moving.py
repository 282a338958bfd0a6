# SPDX-License-Identifier: Apache-2.0
"""Brings schedules and logs over from the tables of django-carrot.

A second run brings the rest: schedules are known again by their name; unfinished logs that came
over are marked in the old table; finished ones are known by their message id.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from django.db import transaction
from django.db.models import Count, Max, Min

from carrot_twisted import old_rows
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.identities import new_token
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.old_tables import MOVED, OldMessageLog, OldScheduledTask

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime
    from uuid import UUID

    from django.db.models import QuerySet

Row = TypeVar("Row", OldMessageLog, OldScheduledTask)

#: Rows per transaction.
BATCH = 500
#: Days after which an unfinished log counts as forgotten: django-carrot lost messages and kept
#: their rows.
MAX_AGE = 2.0
#: Fields of a schedule that the old table knows.
_FIELDS = (
    "task",
    "interval_type",
    "interval_count",
    "exchange",
    "routing_key",
    "queue",
    "task_args",
    "content",
    "active",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From which database to which, and whether to write."""

    source: str
    """Database alias of django-carrot's tables."""
    target: str
    """Database alias of ours."""
    apply: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLine:
    """What becomes of one schedule."""

    name: str
    verdict: str
    """new, new (off), same, differs, refused."""
    text: str


def import_schedules(move: Move) -> Iterator[ScheduleLine]:
    """Bring over all schedules, active or not.

    One that is here already is left as it is: somebody may have changed it since.
    """
    old = OldScheduledTask.objects.using(move.source).order_by("pk")
    known = list(old.values_list("pk", "task_name"))
    first_of = {name: pk for pk, name in reversed(known) if name}
    for rows in _batches(old):
        with transaction.atomic(using=move.target):
            lines = [_import_schedule(row, _name(row, first_of), move) for row in rows]
        yield from lines


def _name(row: OldScheduledTask, first_of: dict[str, int]) -> str:
    """Its own name, or if it has none, or shares it with an older one, a made one."""
    if row.task_name and first_of[row.task_name] == row.pk:
        return row.task_name
    return old_rows.made_name(row, first_of.keys())


def _import_schedule(row: OldScheduledTask, name: str, move: Move) -> ScheduleLine:
    try:
        new = old_rows.new_schedule(row, name)
    except InvalidMessage as error:
        return ScheduleLine(name=name, verdict="refused", text=str(error))
    here = ScheduledTask.objects.using(move.target).filter(task_name=name).first()
    if here is not None:
        different = [f for f in _FIELDS if getattr(here, f) != getattr(new.schedule, f)]
        verdict = "differs" if different else "same"
        text = f"left as it is; not the old {', '.join(different)}" if different else ""
        return ScheduleLine(name=name, verdict=verdict, text=text)
    if move.apply:
        new.schedule.save(force_insert=True, using=move.target)
    notes = [f"switched off: {new.trouble}"] if new.trouble else []
    if row.task_name != name:
        notes.append(f"its old name: {row.task_name!r}")
    if new.note:
        notes.append(new.note)
    return ScheduleLine(
        name=name, verdict="new" if new.schedule.active else "new (off)", text="; ".join(notes)
    )


@dataclass(slots=True, kw_only=True)
class LogReport:
    """What becomes of the logs."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By status, and one of: new, here, refused, left."""
    times: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    """Of the first and last publishing, by status, of those that are looked at."""
    refused: list[str] = field(default_factory=list)
    """One line for each refused log."""


def import_logs(move: Move, statuses: Collection[str], not_before: datetime) -> LogReport:
    """Bring over the logs of these statuses.

    Call it when no service of django-carrot consumes any more: it does not lock what it takes.

    Args:
        move: from where to where.
        statuses: of the old rows.
        not_before: unfinished logs that were published earlier are left alone.
    """
    report = LogReport()
    everything = OldMessageLog.objects.using(move.source).order_by()
    for status, count in everything.values_list("status").annotate(Count("pk")):
        report.counts[status, "left"] = count
    for status in statuses:
        rows = everything.filter(status=status)
        if status in MessageLog.UNFINISHED:
            rows = rows.filter(publish_time__gte=not_before)
        same = everything.filter(status__in=[status, MOVED]).values("uuid")
        groups = same.annotate(first=Min("pk"), n=Count("pk")).filter(n__gt=1)
        twice = {group["uuid"]: group["first"] for group in groups}
        _import_status(rows, status, twice, move, report)
    return report


def _import_status(
    rows: QuerySet[OldMessageLog],
    status: str,
    twice: dict[str, int],
    move: Move,
    report: LogReport,
) -> None:
    """Bring over these rows; ``twice`` has the first row of each uuid that several have."""
    times = rows.aggregate(first=Min("publish_time"), last=Max("publish_time"))
    if times["first"] is not None:
        report.times[status] = (times["first"], times["last"])
    last = 0
    while True:
        # The target commits first: a row that is marked as moved is there.
        with transaction.atomic(using=move.source), transaction.atomic(using=move.target):
            some = rows.select_for_update() if move.apply else rows
            batch = list(some.filter(pk__gt=last).order_by("pk")[:BATCH])
            if not batch:
                return
            _import_batch(batch, twice, move, report)
        last = batch[-1].pk


def _import_batch(
    batch: list[OldMessageLog], twice: dict[str, int], move: Move, report: LogReport
) -> None:
    status = batch[0].status
    here = _here([row.uuid for row in batch], move.target)
    new: list[MessageLog] = []
    moved: list[int] = []
    for row in batch:
        try:
            if twice.get(row.uuid, row.pk) != row.pk:
                raise InvalidMessage(f"row {twice[row.uuid]} has the same uuid")
            if old_rows.message_id(row.uuid) in here:
                report.counts[status, "here"] += 1
            else:
                new.append(old_rows.new_log(row))
            moved.append(row.pk)
        except InvalidMessage as error:
            report.counts[status, "refused"] += 1
            report.refused.append(f"{status} id {row.pk} {row.task}: {error}")
    report.counts[status, "new"] += len(new)
    report.counts[status, "left"] -= len(batch)
    if not move.apply:
        return
    _insert(new, move.target)
    if status in MessageLog.UNFINISHED:
        OldMessageLog.objects.using(move.source).filter(pk__in=moved).update(status=MOVED)


def _here(texts: list[str], using: str) -> set[UUID]:
    """Those of the message ids that have a row of ours."""
    keys = []
    for text in texts:
        with contextlib.suppress(InvalidMessage):
            keys.append(old_rows.message_id(text))
    logs = MessageLog.objects.using(using).filter(pk__in=keys)
    return set(logs.values_list("pk", flat=True))


def _insert(rows: list[MessageLog], using: str) -> None:
    token = new_token()
    for row in rows:
        row.token = token
    # A service may make the same row in this moment, for a message that it adopts.
    MessageLog.objects.using(using).bulk_create(rows, ignore_conflicts=True)


def _batches(rows: QuerySet[Row]) -> Iterator[list[Row]]:
    """All rows, in batches, by their primary key: no cursor stays open."""
    last = 0
    while batch := list(rows.filter(pk__gt=last)[:BATCH]):
        yield batch
        last = batch[-1].pk
