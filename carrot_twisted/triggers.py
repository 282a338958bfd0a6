# SPDX-License-Identifier: Apache-2.0
"""When a schedule is due: decisions on times, without a database and without a clock.

A *slot* is a moment for which a schedule runs once. The slots of an interval stand on a grid, so
nothing drifts; those of a crontab follow Debian cron's rules when clocks are changed; a one-off has
one. Times that come in are aware; slots that come out are in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from cronsim import CronSim
from django.utils.timezone import get_default_timezone

from carrot_twisted.exceptions import InvalidMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds of each interval type, with django-carrot's names.
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
#: What becomes of slots that nobody was there for: one run makes up for all of them ...
RUN_ONCE = "run_once"
#: ... or they are dropped.
SKIP = "skip"
#: So late a slot may be published that is not to be made up for.
GRACE = timedelta(seconds=5)
#: Longest crontab, in characters.
MAX_CRON = 255
#: Longest interval, in seconds: a hundred years, which every calendar can add.
MAX_INTERVAL = 36_525 * SECONDS["days"]
#: Largest number that a database's column for it takes: 68 years of seconds.
MAX_COUNT = 2**31 - 1
_SECOND = timedelta(seconds=1)
_INSTANT = timedelta(microseconds=1)


def next_slot(slot: datetime, now: datetime, interval: timedelta) -> datetime:
    """The first slot after ``now`` on the grid that ``slot`` belongs to.

    Args:
        slot: any slot of the grid.
        now: before or after it.
        interval: more than zero.
    """
    return slot + ((now - slot) // interval + 1) * interval


def time_zone(name: str) -> tzinfo:
    """The time zone of this IANA name; that of ``settings.TIME_ZONE`` if the name is empty.

    Raises:
        InvalidMessage: there is none.
    """
    if not name:
        return get_default_timezone()
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        # A folder of the time zone database, such as "Europe", is an OSError.
        raise InvalidMessage(
            f"There is no time zone {name!r}: give a name such as 'Europe/Berlin' or 'UTC'. (If "
            "that is one, this machine has no time zone database: pip install tzdata.)"
        ) from None


@lru_cache(maxsize=1000)  # Thousands of schedules may share one crontab.
def cron_slot(cron: str, zone: tzinfo, moment: datetime) -> datetime:
    """The first slot of a crontab after ``moment``, in UTC.

    Args:
        cron: minute, hour, day of month, month, day of week; seconds may stand before them.
        zone: the time zone that these mean.
        moment: aware.

    Raises:
        InvalidMessage: this is no crontab, or no moment ever fits it.
    """
    try:
        found = CronSim(cron, moment.astimezone(zone))
    except Exception as error:
        # Not only CronSimError: its parser meets some texts with an assertion.
        raise InvalidMessage(
            f"{cron!r} is no crontab ({error}): write minute, hour, day of month, month and day of "
            "week, for example '30 2 * * MON-FRI'."
        ) from None
    for local in found:
        # Compared in UTC. Two times of one zone are compared by their wall clocks, and in the hour
        # that comes twice the later one may show less.
        slot = local.astimezone(UTC)
        if slot > moment:
            return slot
    raise InvalidMessage(f"The crontab {cron!r} is never due: no date fits it.")


def interval_fields(interval: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ScheduledTask that say an interval such as ``{"minutes": 5}``.

    Raises:
        InvalidMessage: it is no interval.
    """
    known = ", ".join(SECONDS)
    kind = next(iter(interval)) if len(interval) == 1 else ""
    if kind not in SECONDS:
        raise InvalidMessage(f"An interval is a dictionary with one of {known}, not {interval!r}.")
    count = interval[kind]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidMessage(f"An interval has a whole number, 1 or more, not {count!r}.")
    if count > MAX_COUNT or count * SECONDS[kind] > MAX_INTERVAL:
        raise InvalidMessage(
            f"An interval is {MAX_COUNT} {kind} and a hundred years at most, not {interval!r}."
        )
    return {"interval_type": kind, "interval_count": count, "cron": "", "timezone": ""}


def cron_fields(cron: Any, timezone: Any = "") -> dict[str, Any]:
    """The fields of a ScheduledTask that say a crontab.

    Raises:
        InvalidMessage: it is no crontab, or there is no such time zone.
    """
    if not isinstance(cron, str) or not isinstance(timezone, str) or len(cron) > MAX_CRON:
        raise InvalidMessage(
            f"A crontab is a text of at most {MAX_CRON} characters and its time zone a name, not "
            f"{cron!r} and {timezone!r}."
        )
    cron_slot(cron, time_zone(timezone), datetime.now(UTC))
    return {"interval_type": "seconds", "interval_count": 1, "cron": cron, "timezone": timezone}


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to be done about a slot that has come."""

    run: datetime | None
    """The slot to publish; None: it is dropped."""
    following: datetime | None
    """The next slot; None: there is none, the schedule is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All that says when a schedule runs: one of ``run_at``, ``cron`` and ``interval``, in this
    order.

    Raises:
        InvalidMessage: the end is not after the start, or a one-off lies outside of them.
    """

    run_at: datetime | None = None
    cron: str = ""
    zone: tzinfo = UTC
    interval: timedelta = _SECOND
    start: datetime | None = None
    end: datetime | None = None
    skip: bool = False
    """Whether missed slots are dropped."""
    last: datetime | None = None
    """The slot of the last run: the grid of an interval goes through it."""

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InvalidMessage("end_time is not after start_time.")
        if self.run_at is not None and not self._covers(self.run_at):
            raise InvalidMessage("run_at lies outside of start_time and end_time.")

    def first(self, now: datetime) -> datetime | None:
        """The first slot of a new or changed schedule; None: it is over.

        That of a new interval without ``start`` is one interval from now, on a whole second: slots
        of many schedules then come together, and are published together.
        """
        if self.run_at is not None:
            done = self.last is not None and self.last >= self.run_at
            return None if done else self.run_at
        return self.after(now, now.replace(microsecond=0) + _SECOND + self.interval)

    def due(self, slot: datetime, now: datetime) -> Due:
        """What to do about ``slot``, which is not after ``now``."""
        run: datetime | None = slot
        if self.skip and slot < now - GRACE:
            fresh = self.after(now - GRACE, slot)
            run = fresh if fresh is not None and fresh <= now else None
        if run is not None:
            run = self._on_grid(run, slot) if self._covers(run) else None
        return Due(run=run, following=self.after(now, slot))

    def retry(self, slot: datetime, moment: datetime) -> datetime | None:
        """When a slot that could not be published is tried again, not before ``moment``."""
        return self.after(moment, slot) if self.skip else moment

    def after(self, moment: datetime, slot: datetime) -> datetime | None:
        """The first slot after ``moment``; ``slot`` gives the grid if nothing else does."""
        if self.run_at is not None:
            return None
        if self.start is not None:
            moment = max(moment, self.start - _INSTANT)
        if self.cron:
            found = cron_slot(self.cron, self.zone, moment)
        else:
            first = self._grid(slot)
            found = first if moment < first else next_slot(first, moment, self.interval)
        return found if self.end is None or found <= self.end else None

    def _grid(self, slot: datetime) -> datetime:
        if self.start is not None:
            return self.start
        return slot if self.last is None else self.last + self.interval

    def _on_grid(self, run: datetime, slot: datetime) -> datetime:
        """The slot that a run counts for: one that is tried again comes off the grid."""
        if self.run_at is not None or self.cron:
            return run
        return run - (run - self._grid(slot)) % self.interval

    def _covers(self, slot: datetime) -> bool:
        return (self.start is None or slot >= self.start) and (self.end is None or slot <= self.end)
