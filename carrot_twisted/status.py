# SPDX-License-Identifier: Apache-2.0
"""How a project's queues and workers fare just now, as the tables tell it.

The broker is not asked: each worker writes with its heartbeat what keeps it from working, and a
message that the broker did not take waits in the outbox. Rows are counted up to a bound, so that it
takes no longer where a million of them wait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from carrot_twisted import conf, records, statements
from carrot_twisted.due import is_due, since_due
from carrot_twisted.models import MessageLog, PausedQueue
from carrot_twisted.state_words import of_states

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime, timedelta

    from django.db.models import QuerySet
    from django.db.models.expressions import Combinable

    from carrot_twisted.message_log_set import Unsent

#: Seconds that a message may wait in the outbox before that is a problem. A restart of the broker
#: takes less.
UNSENT_PATIENCE = 30.0
#: Waiting rows of a queue, and unsent rows of all, are counted up to here.
MANY = 10_000
#: The same of all queues together, and the least for each of them.
MANY_OF_ALL, LEAST = 100_000, 1000
#: Queues of which there are rows; each takes two looks at the index.
MAX_QUEUES = 1000


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """One service process."""

    name: str
    host: str
    pid: int
    version: str
    queues: list[str]
    threads: int
    """How many tasks it can run at once, beside coroutines."""
    started_at: datetime
    heartbeat_age: float
    """Seconds since its last heartbeat."""
    alive: bool
    running: list[dict[str, Any]]
    """Of each busy thread, and of those coroutines that run for longest: thread, task, uuid,
    seconds, stuck, coroutine; as of the last heartbeat."""
    busy: int
    """How many threads are."""
    coroutines: int
    """How many it runs."""
    problems: list[str]
    """What keeps it from working, in its own words."""
    quiet: bool
    """It takes nothing more, as operators want; as of the last heartbeat."""
    command: str
    """What operators want of it; it may not have heard of that yet."""


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """One queue of the settings, or one that only rows know."""

    name: str
    configured: bool
    consumable: bool
    workers: int
    """Living workers that consume from it, or try to; not those that are quiet."""
    waiting: int
    waiting_is_exact: bool
    """Whether there are no more than were counted."""
    limited: int
    """Of the waiting ones, those that wait for a limit of concurrency or rate to let them start."""
    limited_is_exact: bool
    oldest: float | None
    """Seconds since the oldest waiting task was published, or due, if that came later. None of the
    limited ones."""
    running: int
    unsent: int
    """Of the waiting ones, those whose message the broker should have by now, and has not."""
    unsent_is_exact: bool
    unsent_age: float | None
    """Seconds since the oldest of these was due."""
    unsent_reason: str
    """Why the broker did not take the oldest of them, if that is known."""


@dataclass(frozen=True, kw_only=True)
class PausedStatus:
    """One queue that operators have paused, of tasks or of a handler's messages."""

    name: str
    since: datetime
    by: str
    reason: str
    text: str
    """All of it in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Everything, and what is wrong with it."""

    workers: list[WorkerStatus]
    queues: list[QueueStatus]
    paused: list[PausedStatus]
    """No problem: somebody wants that."""
    problems: list[str]
    """A sentence each; empty if all is well."""


def read(using: str) -> Status:
    """Ask the tables.

    Args:
        using: database alias.

    Raises:
        DatabaseError: the database does not answer, or lacks our tables.
    """
    settings = conf.current()
    workers = _workers(settings.lease, using)
    queues = _queues(settings, workers, using)
    is_served = any(one.alive for one in workers)
    problems = [
        *_problems_of_workers(workers, settings.lease),
        *_problems_of_queues(queues, is_served=is_served),
    ]
    return Status(workers=workers, queues=queues, paused=_paused(using), problems=problems)


def _paused(using: str) -> list[PausedStatus]:
    return [
        PausedStatus(name=one.name, since=one.since, by=one.by, reason=one.reason, text=f"{one}.")
        for one in PausedQueue.objects.using(using).order_by("name")
    ]


def _age_of(field: Combinable) -> ExpressionWrapper[Any]:
    return ExpressionWrapper(Now() - field, output_field=DurationField())


def _seconds(age: timedelta | None) -> float | None:
    # A row may be written between the statement's clock and its look at the table.
    return None if age is None else max(0.0, age.total_seconds())


def _workers(lease: float, using: str) -> list[WorkerStatus]:
    known = records.workers(lease, using).annotate(age=_age_of(F("heartbeat_at")))
    return [
        WorkerStatus(
            busy=sum(not busy.get("coroutine") for busy in one.state.get("running", [])),
            coroutines=one.state.get("coroutines", 0),
            name=one.name,
            host=one.host,
            pid=one.pid,
            version=one.version,
            queues=one.queues.split("\n"),
            threads=one.threads,
            started_at=one.started_at,
            heartbeat_age=_seconds(one.age) or 0.0,
            alive=records.is_alive(one),
            running=one.state.get("running", []),
            problems=one.state.get("problems", []),
            quiet=one.state.get("quiet", False),
            command=one.command,
        )
        for one in known.order_by("started_at", "name")
    ]


def _queues(
    settings: conf.CarrotSettings, workers: Sequence[WorkerStatus], using: str
) -> list[QueueStatus]:
    depths = _depths(using)
    unsent, unsent_is_exact = _unsent(using)
    limited = _limited(using)
    limited_is_exact = limited.total() <= MANY
    consumed = Counter(
        name for one in workers if one.alive and not one.quiet for name in one.queues
    )
    names = [*settings.queues, *sorted(set(depths) - set(settings.queues))]

    def queue(name: str) -> QueueStatus:
        known = settings.queues.get(name)
        depth, left = depths.get(name), unsent.get(name)
        return QueueStatus(
            name=name,
            configured=known is not None,
            consumable=known is not None and known.consumable,
            workers=consumed[name],
            waiting=depth.waiting if depth else 0,
            waiting_is_exact=depth.is_exact if depth else True,
            limited=min(limited[name], MANY),
            limited_is_exact=limited_is_exact,
            oldest=depth.oldest if depth else None,
            running=depth.running if depth else 0,
            unsent=left.count if left else 0,
            unsent_is_exact=unsent_is_exact,
            unsent_age=left.seconds if left else None,
            unsent_reason=left.reason if left else "",
        )

    return [queue(name) for name in names]


@dataclass(frozen=True, kw_only=True)
class _Depth:
    """The unfinished rows of one queue."""

    waiting: int
    is_exact: bool
    oldest: float | None
    running: int


def _depths(using: str) -> dict[str, _Depth]:
    """Of queues that have unfinished rows. Their index is led by the queue: a look for each."""
    rows = MessageLog.objects.using(using)
    names = statements.queues_with(
        MessageLog._meta.db_table, MessageLog.UNFINISHED, MAX_QUEUES, using
    )
    many = min(MANY, max(LEAST, MANY_OF_ALL // max(len(names), 1)))
    # As few as workers have threads.
    running = Counter(
        rows.filter(of_states((MessageLog.IN_PROGRESS,))).values_list("queue", flat=True)
    )
    depths = {}
    for name in names:
        here = rows.filter(of_states(MessageLog.UNFINISHED), queue=name)
        cap = many + running[name]
        count = here.values("queue")[: cap + 1].count()
        depths[name] = _Depth(
            # What runs may have begun, or ended, between the two looks.
            waiting=min(max(count - running[name], 0), many),
            is_exact=count <= cap,
            oldest=_oldest(here.filter(status=MessageLog.PUBLISHED), cap),
            running=running[name],
        )
    return depths


def _oldest(waiting: QuerySet[MessageLog], cap: int) -> float | None:
    """Seconds for which one of the rows of a queue has waited longest; None: none does, as yet.

    Looked at are as many of those that were published first; all others may be due later, or wait
    for limits.
    """
    by_time = waiting.order_by("publish_time")
    first = by_time.values_list("run_after", "waits_for", _age_of(F("publish_time"))).first()
    if first is None or first[:2] == (None, None):
        return _seconds(first and first[2])
    due = waiting.filter(is_due(), waits_for=None, pk__in=by_time.values("pk")[:cap])
    return _seconds(due.order_by(since_due()).values_list(_age_of(since_due()), flat=True).first())


def _limited(using: str) -> Counter[str]:
    """How many rows wait for limits, by queue: of the first ones, where there are many."""
    rows = MessageLog.objects.using(using).filter(of_states((MessageLog.PUBLISHED,)))
    waiting = rows.filter(waits_for__isnull=False).values_list("queue", flat=True)
    return Counter(waiting[: MANY + 1])


def _unsent(using: str) -> tuple[dict[str, Unsent], bool]:
    """The outbox by queue, and whether that is all of it: of those first that are due first."""
    rows = MessageLog.objects.using(using).filter(of_states((MessageLog.PUBLISHED,)))
    due = rows.unsent().order_by("relay_at").values("pk")
    if not due[MANY : MANY + 1].exists():
        return rows.outbox_state(), True
    # Not by their times: those of one transaction have all the same.
    return rows.filter(pk__in=due[:MANY]).outbox_state(), False


def _problems_of_workers(workers: Sequence[WorkerStatus], lease: float) -> Iterator[str]:
    if not any(one.alive for one in workers):
        yield "No worker is running: start one with twistd carrot."
    for one in workers:
        who = f"Worker {one.name}"
        if not one.alive:
            yield f"{who} has died; a living one takes over its tasks."
            continue
        if one.heartbeat_age > lease:
            yield (
                f"{who} has had no heartbeat for {one.heartbeat_age:.0f} s: it is stopped, or "
                "does not reach the database."
            )
        yield from (f"{who}: {text}" for text in one.problems)
        stuck = [bool(busy.get("coroutine")) for busy in one.running if busy["stuck"]]
        if threads := stuck.count(False):
            yield f"{who}: stuck in tasks over their time limit: {threads} threads."
        if coroutines := stuck.count(True):
            yield (
                f"{who}: {coroutines} coroutines do not end at their time limit, or hold up their "
                "event loop."
            )


def _problems_of_queues(queues: Sequence[QueueStatus], *, is_served: bool) -> Iterator[str]:
    for one in queues:
        if not one.configured:
            yield (
                f"Queue {one.name} is not in CARROT['queues']: nobody runs its "
                f"{_number(one.waiting + one.running, one.waiting_is_exact)} tasks."
            )
        # That there is no worker at all has been said; then only what waits for one is news.
        elif not one.workers and ((one.consumable and is_served) or one.waiting):
            waiting = _number(one.waiting, one.waiting_is_exact)
            yield f"Queue {one.name} has no worker; {waiting} tasks wait."
        if one.unsent_age is not None and one.unsent_age > UNSENT_PATIENCE:
            reason = f": {one.unsent_reason}" if one.unsent_reason else ""
            yield (
                f"Queue {one.name}: {_number(one.unsent, one.unsent_is_exact)} "
                f"messages are not sent, the oldest for {one.unsent_age:.0f} s{reason}."
            )


def _number(count: int, is_exact: bool) -> str:
    return str(count) if is_exact else f"{count} or more"
