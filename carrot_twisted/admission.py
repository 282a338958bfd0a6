# SPDX-License-Identifier: Apache-2.0
"""Lets tasks start that are under limits: as many as these allow, over all services.

A slot is a row that is IN_PROGRESS under the limit's name, nothing else: whatever ends a run gives
it back, once. Who lets tasks start has the limit's own row locked meanwhile, counts, decides
(``admission_decision``), and claims. A row that may not start now says for what it waits, and has
no message; who ends a run of the same limit lets the next one start (``admit`` again). What nobody
does, as after a kill -9, services do that look at limits whose time has come: each limit that rows
wait for has one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from django.db.models import Count
from django.db.models.functions import Now

from carrot_twisted import limit_statements, records, statements, task_options, task_paths
from carrot_twisted.admission_decision import (
    OVERDUE,
    READ,
    Candidate,
    Slots,
    State,
    Window,
    decide,
)
from carrot_twisted.due import due_in
from carrot_twisted.limit_state import LimitState
from carrot_twisted.models import MessageLog
from carrot_twisted.state_words import of_states
from carrot_twisted.statements import Look
from carrot_twisted.task_limits import Concurrency, Rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.limit_statements import Kept
    from carrot_twisted.records import Claimed

_ROWS = MessageLog._meta.db_table
_LIMITS = LimitState._meta.db_table
#: Limits that one look takes at most.
LOOK_BATCH = 200
#: First rows of each of whose other limits are found out before all are locked.
HINTS = 10


@dataclass(slots=True, kw_only=True)
class Request:
    """Rows whose messages are here, and limits of which others may start now."""

    token: int
    """Of the runs that come of it."""
    rows: Sequence[Candidate] = ()
    freed: Mapping[str, int] = field(default_factory=dict)
    """Names of limits under which runs have ended, and how many of each."""
    due: bool = False
    """Look at all limits whose time has come, too."""


@dataclass(slots=True, kw_only=True)
class Admitted:
    """What came of it."""

    runs: dict[UUID, Claimed]
    """By primary key; also such as were not asked for, and run here now."""
    waiting: set[UUID]
    """Of those that were asked for: they wait for their limits, in the table alone."""
    has_rung: bool = False
    """Rows are in the outbox that may start somewhere else."""
    next_look: float | None = None
    """Seconds until more may start of limits that were looked at; None: not soon."""


def admit(
    request: Request, worker: str, places: Mapping[str, int], using: str, *, again: bool = False
) -> Admitted:
    """Let rows start that may. Call it inside a transaction.

    Args:
        request: which.
        worker: name of who claims.
        places: how many may run here whose message is not here, by queue; rows of other queues
            that may start get a message.
        using: database alias.
        again: it was tried before with the same token, and may have been committed then.
    """
    runs = _won(request.token, worker, using) if again else {}
    rows = [one for one in request.rows if one.uuid not in runs]
    asked = {*request.freed} | {name for one in rows for name in one.names}
    due = _due(using) if request.due else set()
    names = asked | due
    if not names:
        return Admitted(runs=runs, waiting=set())
    if task_options.any_with_two_limits():
        # Both limits of a row are locked together; of one that waits, its own row knows the other.
        hints = {name: HINTS + request.freed.get(name, 0) for name in names}
        first = limit_statements.waiting(_ROWS, hints, records.SUSPECT_CRASHES, using)
        names |= {name for found in first.values() for one in found for name in one.names}
    kept, now = limit_statements.lock(_LIMITS, names, using)
    if not rows and all(look_at is None for _, look_at in kept.values()):
        # Most runs end so: nobody waits for what they had.
        return Admitted(runs=runs, waiting=set())
    _learn(rows)
    states = _states(kept, now, using)
    wants = _wants(kept, states)
    found = limit_statements.waiting(_ROWS, wants, records.SUSPECT_CRASHES, using)
    here = {one.uuid for one in rows}
    waiting = [one for each in found.values() for one in each if one.uuid not in here]
    if _learn(waiting):
        states = _states(kept, now, using)
    # The other limit of one that began to wait just now may not be locked: it has its turn next.
    candidates = [one for one in waiting if names.issuperset(one.names)]
    unready = {one.waits_for for one in waiting if not names.issuperset(one.names)}
    overdue = frozenset(name for name, (_, at) in kept.items() if at and at < now - OVERDUE)
    decision = decide([*rows, *candidates], states, places, overdue)
    ids = [one.uuid for one in decision.start]
    claimed = records.claim_limited(ids, request.token, worker, using) if ids else {}
    lost = {name for one in decision.start if one.uuid not in claimed for name in one.names}
    if decision.wait:
        limit_statements.park(_ROWS, decision.wait, using)
    if decision.ring:
        _ring([one.uuid for one in decision.ring], using)
    is_cut = {name for name, count in wants.items() if len(found[name]) >= count}
    remain = decision.left | is_cut | {name for name in unready if name is not None}
    without_message = {
        *decision.wait,
        *(one.uuid for one in decision.ring),
        *(one.uuid for one in rows if one.waits_for is not None),
    }
    progress = bool(claimed or decision.ring)
    next_look = _save(kept, states, now, remain, lost, using, progress=progress)
    return Admitted(
        runs=runs | claimed,
        waiting={one.uuid for one in rows if one.uuid in without_message} - claimed.keys(),
        has_rung=bool(decision.ring),
        next_look=next_look,
    )


def _won(token: int, worker: str, using: str) -> dict[UUID, Claimed]:
    """What an earlier attempt with this token has claimed, whose answer was lost."""
    rows = MessageLog.objects.using(using).filter(
        status=MessageLog.IN_PROGRESS, worker=worker, token=token
    )
    return records.claimed_of(rows, token)


#: Tasks that were imported for their limits, also in vain.
_imported: set[str] = set()


def _learn(rows: Iterable[Candidate]) -> bool:
    """Import tasks of which no decorator has said their limits yet; whether there were any.

    Those of ``task_modules`` have been imported. What cannot be imported has no limit: its run
    will tell why.
    """
    unknown = {
        one.task
        for one in rows
        if any(task_options.limit_named(name) is None for name in one.names)
    }
    for path in unknown - _imported:
        _imported.add(path)
        with suppress(Exception, SystemExit):
            task_paths.resolve_task(path)
    return bool(unknown)


def is_due(request: Request, using: str) -> bool:
    """Whether there is anything to do for it. Mostly not, where only the time is what asks."""
    if request.rows or request.freed:
        return True
    due = Look(table=LimitState._meta.db_table, condition="look_at <= {}")
    return statements.is_any([due], using)


def _due(using: str) -> set[str]:
    """Limits whose time has come, and that nobody else looks at just now."""
    due = LimitState.objects.using(using).filter(look_at__lte=Now()).order_by("look_at")
    chosen = due.select_for_update(skip_locked=True).values_list("pk", flat=True)
    return set(chosen[:LOOK_BATCH])


def _states(kept: Mapping[str, Kept], now: float, using: str) -> dict[str, State]:
    """The limits that somebody here knows the numbers of."""
    states: dict[str, State] = {}
    slots: dict[str, Concurrency] = {}
    for name, (text, _) in kept.items():
        limit = task_options.limit_named(name)
        if isinstance(limit, Concurrency):
            slots[name] = limit
        elif isinstance(limit, Rate):
            states[name] = Window.of(text, limit.limit, limit.seconds, now)
    running = _running(slots, using) if slots else {}
    for name, limit in slots.items():
        states[name] = Slots.of(kept[name][0], limit.limit, running.get(name, 0), now)
    return states


def _running(names: Iterable[str], using: str) -> dict[str, int]:
    rows = MessageLog.objects.using(using).filter(
        of_states((MessageLog.IN_PROGRESS,)), slot_key__in=list(names)
    )
    counted = rows.order_by().values("slot_key").annotate(count=Count("pk"))
    return {str(name): count for name, count in counted.values_list("slot_key", "count")}


def _wants(kept: Mapping[str, Kept], states: Mapping[str, State]) -> dict[str, int]:
    """How many waiting rows to read of each limit: no more than may start, and one to know of more.

    None of limits that nobody waits for.
    """
    wants = {}
    for name, (_, look_at) in kept.items():
        if look_at is not None:
            state = states.get(name)
            free = READ if state is None else max(0, min(READ, state.free))
            wants[name] = int(free) + 1
    return wants


def _ring(keys: Sequence[UUID], using: str) -> None:
    """Send messages for rows that may start, somewhere else."""
    rows = MessageLog.objects.using(using).filter(pk__in=keys, status=MessageLog.PUBLISHED)
    rows.update(waits_for=None, confirmed_at=None, token=None, relay_at=due_in(0))


def _save(
    kept: Mapping[str, Kept],
    states: Mapping[str, State],
    now: float,
    remain: set[str],
    lost: set[str],
    using: str,
    *,
    progress: bool,
) -> float | None:
    """Remember the starts, and when to look again; seconds until then, where it is soon."""
    changed = []
    soonest: float | None = None
    for name, (before, look_at) in kept.items():
        state = states.get(name)
        text = before if state is None else state.text
        at = look_at
        if name in lost:
            at = now
        elif name in remain:
            at = now if state is None else state.next
            if at <= now:
                # It stays due, so that it is seen for how long nobody has had a place.
                at = now if look_at is None or look_at > now or progress else look_at
        else:
            at = None
        if at is not None and (at > now or progress):
            soonest = at - now if soonest is None else min(soonest, at - now)
        if (text, at) != (before, look_at):
            changed.append((name, text, at))
    if changed:
        limit_statements.save(_LIMITS, changed, using)
    return soonest


def advance(seconds: float, using: str) -> None:
    """Let the starts of all rates, and what is looked at, be so much older: for tests."""
    for one in LimitState.objects.using(using).all():
        limit = task_options.limit_named(one.name)
        if isinstance(limit, Rate) and one.state:
            now = datetime.now(UTC).timestamp()
            window = Window.of(one.state, limit.limit, limit.seconds, now)
            window.starts = [[moment - seconds, count] for moment, count in window.starts]
            one.state = window.text
            one.save(update_fields=["state"], using=using)
