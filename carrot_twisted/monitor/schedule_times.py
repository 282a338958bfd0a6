# SPDX-License-Identifier: Apache-2.0
"""When a schedule runs, for people: in words, its next runs, and what happens to them when clocks
are changed. All times are those that the scheduler computes, by the same functions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cronsim import CronSim
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext, ngettext

from carrot_twisted.exceptions import CarrotError, InvalidMessage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, tzinfo

    from carrot_twisted.models import ScheduledTask
    from carrot_twisted.triggers import Timing

#: Runs that are shown.
RUNS = 5
#: Days in which changes of the clock are looked for.
YEAR = 366
_SECOND = timedelta(seconds=1)
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One time at which a schedule runs."""

    when: datetime
    text: str
    """In the schedule's time zone."""


@dataclass(frozen=True, kw_only=True)
class ClockChange:
    """A change to or from summer time that comes near a run."""

    text: str
    runs: list[Run]
    """Those around it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is going to happen."""

    words: str
    zone: str
    runs: list[Run]
    changes: list[ClockChange]
    problem: str = ""
    """Why nothing is, if so."""


def words(schedule: ScheduledTask) -> str:
    """Such as "Every 5 minutes" or "At 02:30 on Monday through Friday"."""
    if schedule.run_at is not None:
        return gettext("Once, at %(time)s") % {"time": local_text(schedule.run_at, _zone(schedule))}
    if schedule.cron:
        try:
            return str(CronSim(schedule.cron, timezone.now()).explain())
        except Exception:
            # Not only CronSimError: its parser meets some texts with an assertion.
            return schedule.cron
    count = schedule.interval_count
    texts = {
        "seconds": ngettext("Every second", "Every %(count)s seconds", count),
        "minutes": ngettext("Every minute", "Every %(count)s minutes", count),
        "hours": ngettext("Every hour", "Every %(count)s hours", count),
        "days": ngettext("Every day", "Every %(count)s days", count),
    }
    text = texts.get(schedule.interval_type)
    # Other programs may have written the row.
    return schedule.interval_display if text is None else text % {"count": count}


def zone_name(schedule: ScheduledTask) -> str:
    """Name of the time zone in which its times are told."""
    return schedule.timezone or timezone.get_default_timezone_name()


def local_text(when: datetime, zone: tzinfo) -> str:
    """A time in a time zone, with what the zone's clocks are called just then."""
    local = when.astimezone(zone)
    text = date_format(local, "D Y-m-d H:i:s" if local.second else "D Y-m-d H:i")
    # Not by the format's "T": it is silent in the hour that comes twice.
    return f"{text} {local.tzname() or ''}".rstrip()


def next_text(schedule: ScheduledTask) -> str:
    """The next run in the schedule's time zone; "" if there is none."""
    when = schedule.next_run_time
    return "" if when is None else local_text(when, _zone(schedule))


def first(schedule: ScheduledTask) -> datetime | None:
    """The first run of a schedule that is new, changed or switched on; None: it is over.

    Raises:
        InvalidMessage: it makes no sense.
    """
    try:
        return schedule.timing.first(timezone.now())
    except OverflowError:
        raise InvalidMessage(gettext("Its times are beyond all calendars.")) from None


def plan(schedule: ScheduledTask, start: datetime | None) -> Plan:
    """The runs from ``start`` on, as far as the schedule makes sense.

    Args:
        schedule: as it is in the database, or as somebody types it.
        start: its next slot; None: there is none.
    """
    runs: list[Run] = []
    changes: list[ClockChange] = []
    problem = ""
    try:
        timing = schedule.timing
        now = timezone.now()
        runs = _runs(timing, start, now)
        if timing.cron and start is not None:
            changes = [*_clock_changes(timing, max(start, now))]
    except (CarrotError, OverflowError) as error:
        problem = str(error)
    return Plan(
        words=words(schedule),
        zone=zone_name(schedule),
        runs=runs,
        changes=changes,
        problem=problem,
    )


def _zone(schedule: ScheduledTask) -> tzinfo:
    try:
        return schedule.zone
    except CarrotError:
        return timezone.get_default_timezone()


def _runs(timing: Timing, slot: datetime | None, now: datetime) -> list[Run]:
    """Up to RUNS slots from ``slot`` on; those between it and ``now`` are missed."""
    runs: list[Run] = []
    while slot is not None and len(runs) < RUNS:
        runs.append(Run(when=slot, text=local_text(slot, timing.zone)))
        slot = timing.after(max(slot, now), slot)
    return runs


def _clock_changes(timing: Timing, since: datetime) -> Iterator[ClockChange]:
    """Changes of the clock within a year that come near a run."""
    zone = timing.zone
    for moment in _transitions(zone, since):
        before = (moment - _SECOND).astimezone(zone)
        after = moment.astimezone(zone)
        shift = _offset(moment, zone) - _offset(moment - _SECOND, zone)
        # From the hour before, which comes twice if the clock goes back.
        start = moment - abs(shift) - _INSTANT
        slot = timing.after(start, start)
        if slot is None or slot > moment + abs(shift):
            continue
        runs = _runs(timing, slot, slot)
        if runs[-1].when < moment:
            # It runs so often that nobody would see anything here.
            continue
        # With the first one that is far enough from it.
        near = sum(run.when <= moment + abs(shift) for run in runs)
        text = gettext("On %(day)s the clock goes from %(before)s to %(after)s.") % {
            "day": date_format(after, "Y-m-d"),
            "before": date_format(before + _SECOND, "H:i"),
            "after": date_format(after, "H:i"),
        }
        yield ClockChange(text=text, runs=runs[: near + 1])


def _transitions(zone: tzinfo, since: datetime) -> Iterator[datetime]:
    """The first moments with another offset from UTC, within a year."""
    day = since.replace(hour=0, minute=0, second=0, microsecond=0)
    for _ in range(YEAR):
        following = day + timedelta(days=1)
        if _offset(day, zone) != _offset(following, zone):
            low, high = day, following
            while high - low > _SECOND:
                middle = low + (high - low) // 2
                middle = middle.replace(microsecond=0)
                if _offset(middle, zone) == _offset(low, zone):
                    low = middle
                else:
                    high = middle
            yield high
        day = following


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)
