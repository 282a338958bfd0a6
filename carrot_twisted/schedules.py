# SPDX-License-Identifier: Apache-2.0
"""Publishes the schedules that are due: each slot once, however many services look.

There is no leader. Moving a schedule to its next slot is a conditional update in the transaction
that inserts the task's row: who comes second changes nothing and publishes nothing. With
PostgreSQL, the rows are locked first, and rows that another service has locked are left to it.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, connections
from django.db.models import DateTimeField, ExpressionWrapper, Value
from django.db.models.functions import Now

from carrot_twisted import failpoints, outcomes, schedule_run, statements
from carrot_twisted.aside import Errand
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.task_paths import is_path, resolve_task

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping
    from datetime import datetime
    from uuid import UUID

    from django.db.models.expressions import Combinable, Expression

    from carrot_twisted.scheduled_task import ScheduledTaskQuerySet

_logger = logging.getLogger("carrot_twisted.scheduler")

#: When a schedule is tried again that cannot be published, unless somebody edits it before.
PENALTY = timedelta(hours=1)
#: When a schedule is tried again whose task is still being imported. Less than ``triggers.GRACE``.
SOON = timedelta(seconds=3)
#: Seconds that one look waits for imports, at most.
PATIENCE = 1.0
#: Seconds after which an import counts as one that will not end.
HANGING = 60.0
#: Schedules that one transaction takes at most.
BATCH = 2000
#: How far a look sees: the time to the next look.
AHEAD = timedelta(seconds=1)
#: Characters kept of a problem.
MAX_PROBLEM = 2000
#: How the problem of a schedule begins that has no slot yet, whatever its next_run_time says.
UNPLANNED = "It cannot be planned: "

#: Imports that are under way, by module.
_imports: dict[str, Errand] = {}


class _StillImporting(CarrotError):
    """The module of the task is still being imported."""


def clock() -> Combinable:
    """The time of slots: the database's, which all services share."""
    return Now()


def is_any_due(using: str) -> bool:
    """Whether a schedule is due soon: so it is with few looks, and this one costs little."""
    return statements.has_due(ScheduledTask._meta.db_table, AHEAD.total_seconds(), using)


def look(
    using: str,
    filters: Mapping[str, Any] | None = None,
    late: Callable[[float], None] = lambda _seconds: None,
) -> float | None:
    """Publish what is due. Call it inside a transaction.

    With nothing to do this is one small query, which one index answers.

    Args:
        using: database alias.
        filters: look after these schedules only.
        late: called for each task that is published, with how long its slot has passed.

    Returns:
        Seconds until the next look: 0 if there is more to do at once, None if no slot comes before
        ``AHEAD`` has passed.
    """
    fields = ("rank", "next_run_time", "now")
    schedules = _active(using, filters).annotate(now=_now())
    new = schedules.filter(next_run_time=None).annotate(rank=Value(0))
    soon = schedules.filter(next_run_time__lte=clock() + AHEAD).annotate(rank=Value(1))
    # Not by OR: SQLite would walk through the whole index.
    both = new.values_list(*fields).union(soon.values_list(*fields), all=True)
    soonest = both.order_by("rank", "next_run_time").first()
    if soonest is None:
        return None
    _, slot, now = soonest
    if slot is not None and slot > now:
        return float((slot - now).total_seconds())
    if publish_due(using, filters, late):
        return 0.0
    # Somebody else has these rows in their hands. The others keep their moment.
    later = soon.filter(next_run_time__gt=clock()).order_by("next_run_time")
    times = later.values_list("next_run_time", "now").first()
    return None if times is None else float((times[0] - times[1]).total_seconds())


def publish_due(
    using: str,
    filters: Mapping[str, Any] | None = None,
    late: Callable[[float], None] = lambda _seconds: None,
) -> int:
    """Plan the active schedules that are new; without such, publish those that are due, once each.

    Call it inside a transaction. A schedule that cannot be published says why in its ``problem``
    and keeps no other from running.

    Returns:
        How many schedules were published, planned or put off; BATCH at most.
    """
    locks = connections[using].features.has_select_for_update_skip_locked
    active = _active(using, filters).annotate(now=_now())
    active = active.select_for_update(skip_locked=locks)
    schedules: list[Any] = list(active.filter(next_run_time=None)[:BATCH])
    if not schedules:
        due = active.filter(next_run_time__lte=clock())
        schedules = list(due.order_by("next_run_time")[:BATCH])
    if not schedules:
        return 0
    unfinished = _unfinished(schedules, using)
    tasks = _Tasks()
    steps = [_step(schedule, unfinished, tasks) for schedule in schedules]
    moved = statements.move_schedules(
        ScheduledTask._meta.db_table, [step.values() for step in steps], using
    )
    published = [(step, step.row) for step in steps if step.row is not None and step.pk in moved]
    for step, _ in published:
        late(step.late)
    if published:
        logs = MessageLog.objects.using(using).enqueue([row for _, row in published])
        runs = []
        for (step, row), log in zip(published, logs, strict=True):
            runs.append((step.pk, log.pk, step.last_run_time))
            if log.duplicate:
                # A unique task that is there already: it is what came of this slot.
                moved_on = ScheduledTask.objects.using(using).filter(last_log=row.pk)
                moved_on.update(last_log=log.pk)
        schedule_run.note(runs, using)
        failpoints.reached("in_schedule_transaction")
    return len(moved)


def try_again(using: str, filters: Mapping[str, Any] | None = None) -> None:
    """Let schedules that could not be published be tried at once: the code may have changed.

    Call it inside a transaction. Rows that somebody else has locked are left as they are: a service
    that starts must not wait for them.
    """
    broken = _active(using, filters).exclude(problem="")
    if connections[using].features.has_select_for_update_skip_locked:
        locked = broken.select_for_update(skip_locked=True).values_list("pk", flat=True)
        broken = ScheduledTask.objects.using(using).filter(pk__in=list(locked))
    broken.try_again()


def publish_all(using: str, filters: Mapping[str, Any] | None = None) -> None:
    """Publish every active schedule now. When they are due next does not change."""
    tasks = _Tasks()
    for schedule in _active(using, filters):
        try:
            tasks.check(schedule.task)
            schedule.publish()
        except (DatabaseError, InterfaceError):
            raise
        except (Exception, SystemExit) as error:
            _logger.error("Schedule %r cannot be published: %s", schedule.task_name, error)


def _active(using: str, filters: Mapping[str, Any] | None) -> ScheduledTaskQuerySet:
    return ScheduledTask.objects.using(using).filter(**(filters or {})).filter(active=True)


def _now() -> Expression:
    return ExpressionWrapper(clock(), output_field=DateTimeField())


def _unfinished(schedules: list[ScheduledTask], using: str) -> Container[UUID]:
    """Those last runs that are under way, of schedules whose runs must not overlap."""
    last = [s.last_log for s in schedules if s.overlap == ScheduledTask.SKIP and s.last_log]
    if not last:
        return ()
    rows = MessageLog.objects.using(using).unfinished().filter(pk__in=last)
    return set(rows.values_list("pk", flat=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What becomes of one schedule."""

    pk: int
    slot: datetime | None
    next_run_time: datetime | None
    last_run_time: datetime | None
    last_log: UUID | None
    problem: str
    active: bool = True
    row: MessageLog | None = None
    late: float = 0.0
    """Seconds since the slot that the row is for."""

    def values(self) -> statements.MoveValues:
        return (
            self.pk,
            self.slot,
            self.next_run_time,
            self.last_run_time,
            self.last_log,
            self.problem,
            self.active,
        )


class _Tasks:
    """Tells whether tasks can be found, in one look: each module is imported once.

    An import is the project's code. It happens beside this thread, whose transaction it could
    spoil, and is not waited for longer than PATIENCE in all.
    """

    def __init__(self) -> None:
        self._end = time.monotonic() + PATIENCE
        self._failed: dict[str, Exception] = {}

    def check(self, path: str) -> None:
        """Raise what keeps the task from being found."""
        module = path.rpartition(".")[0]
        if is_path(path) and not _is_loaded(module):
            self._load(path, module)
        resolve_task(path)

    def _load(self, path: str, module: str) -> None:
        if module in self._failed:
            # Told with its traceback once.
            raise self._failed[module].with_traceback(None)
        # One that was waited for before is only looked at.
        patience = 0.0 if module in _imports else self._end - time.monotonic()
        if module not in _imports and patience > 0:
            _imports[module] = Errand(partial(resolve_task, path))
        errand = _imports.get(module)
        if errand is None or not errand.ended(patience):
            hangs = errand is not None and errand.age > HANGING
            raise (ImportError if hangs else _StillImporting)(
                f"The module {module} is still being imported. Add it to CARROT['task_modules'], "
                "and see to it that its import waits for nothing."
            )
        del _imports[module]
        try:
            errand.result()
        except AttributeError:
            # Perhaps the module is there, and has other functions.
            if not _is_loaded(module):
                raise
        except Exception as error:
            self._failed[module] = error
            raise


def _is_loaded(module: str) -> bool:
    found = sys.modules.get(module)
    # Set by Python while the module's code runs.
    return found is not None and not getattr(
        getattr(found, "__spec__", None), "_initializing", False
    )


def _step(schedule: Any, unfinished: Container[UUID], tasks: _Tasks) -> _Step:
    """What becomes of a schedule that is new or due. Never raises: others wait behind it."""
    stay = _Step(
        pk=schedule.pk,
        slot=schedule.next_run_time,
        next_run_time=schedule.next_run_time,
        last_run_time=schedule.last_run_time,
        last_log=schedule.last_log,
        problem=schedule.problem,
    )
    try:
        return _next_step(schedule, stay, unfinished, tasks)
    except Exception as error:
        return _put_off(schedule, stay, error)


def _next_step(schedule: Any, stay: _Step, unfinished: Container[UUID], tasks: _Tasks) -> _Step:
    timing, now = schedule.timing, schedule.now
    if stay.slot is None or not _is_planned(schedule):
        first = timing.first(now)
        return replace(stay, next_run_time=first, active=first is not None, problem="")
    due = timing.due(stay.slot, max(now, stay.slot))
    step = replace(stay, next_run_time=due.following, active=due.following is not None)
    if due.run is None:
        missed = schedule.run_at is not None
        problem = "Its time passed while no service ran, and misfire is skip." if missed else ""
        return replace(step, problem=problem)
    if schedule.overlap == ScheduledTask.SKIP and schedule.last_log in unfinished:
        _logger.debug(
            "Schedule %r leaves out %s: its last run is unfinished", schedule.task_name, due.run
        )
        return step
    tasks.check(schedule.task)
    row = schedule.new_row()
    late = (now - due.run).total_seconds()
    return replace(step, last_run_time=due.run, last_log=row.pk, problem="", row=row, late=late)


def _is_planned(schedule: Any) -> bool:
    """Whether its next_run_time is a slot, and not just the time to plan it again."""
    return schedule.next_run_time is not None and not schedule.problem.startswith(UNPLANNED)


def _put_off(schedule: Any, stay: _Step, error: Exception) -> _Step:
    expected = isinstance(error, CarrotError | ImportError | AttributeError)
    text = outcomes.exception_text(error, MAX_PROBLEM)
    problem = text if expected else f"{type(error).__name__}: {text}"
    pending = isinstance(error, _StillImporting)
    if not pending or problem != schedule.problem:
        _logger.error(
            "Schedule %r cannot be published: %s",
            schedule.task_name,
            problem,
            exc_info=error if not expected else None,
        )
    again: datetime | None = schedule.now + (SOON if pending else PENALTY)
    if not _is_planned(schedule):
        problem = UNPLANNED + problem
    elif stay.slot is not None:
        try:
            again = schedule.timing.retry(stay.slot, again)
        except Exception:
            # The timing itself is what is wrong, and that has been told.
            _logger.debug("Schedule %r has no timing", schedule.task_name)
    return replace(stay, next_run_time=again, active=again is not None, problem=problem)
