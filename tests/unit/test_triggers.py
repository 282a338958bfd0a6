# SPDX-License-Identifier: Apache-2.0
"""When a schedule is due: grids without drift, crontabs on the days when clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import triggers
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.triggers import Due, Timing, cron_slot, next_slot

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def every(**fields: Any) -> Timing:
    return Timing(**{"interval": MINUTE, **fields})


@given(
    st.timedeltas(timedelta(days=-4000), timedelta(days=4000)),
    st.timedeltas(timedelta(seconds=1), timedelta(days=400)),
)
def test_the_next_slot_is_the_first_after_now_on_the_same_grid(
    late: timedelta, interval: timedelta
) -> None:
    now = NOON + late
    slot = next_slot(NOON, now, interval)
    assert now < slot <= now + interval
    assert (slot - NOON) % interval == timedelta(0)


# Intervals


def test_a_new_interval_first_runs_one_interval_later_on_a_whole_second() -> None:
    for fraction in (0, 1, 500_000, 999_999):
        now = NOON.replace(microsecond=fraction)
        first = every().first(now)
        assert first is not None
        assert first.microsecond == 0
        assert MINUTE <= first - now <= MINUTE + timedelta(seconds=1)


def test_a_changed_interval_counts_from_the_last_run() -> None:
    """Else a schedule that is edited more often than it runs would never run."""
    assert every(last=after(-50)).first(NOON) == after(10)
    assert every(last=after(-500)).first(NOON) == after(40)


def test_a_start_is_the_first_slot_and_gives_the_grid() -> None:
    assert every(start=after(1000)).first(NOON) == after(1000)
    assert every(start=after(-1000)).first(NOON) == after(20)
    assert every(start=after(-60)).first(NOON) == after(60)
    assert every(start=after(7), last=after(-50)).first(NOON) == after(7)


def test_after_the_end_there_is_no_slot() -> None:
    assert every(end=after(59)).first(NOON) is None
    assert every(end=after(0)).due(NOON, NOON) == Due(run=NOON, following=None)
    # The end was moved after the slot had been planned.
    assert every(end=after(-1)).due(NOON, NOON) == Due(run=None, following=None)


def test_missed_slots_are_made_up_for_by_one_run_and_the_grid_stays() -> None:
    assert every().due(NOON, after(1000)) == Due(run=NOON, following=after(1020))


def test_missed_slots_are_dropped_if_that_is_wanted() -> None:
    assert every(skip=True).due(NOON, after(1000)) == Due(run=None, following=after(1020))
    assert every(skip=True).due(NOON, after(4.9)) == Due(run=NOON, following=after(60))
    assert every(skip=True).due(NOON, after(5.1)) == Due(run=None, following=after(60))


def test_of_missed_slots_the_one_that_is_still_fresh_is_run() -> None:
    due = every(skip=True).due(NOON, after(603))
    assert due == Due(run=after(600), following=after(660))


def test_a_slot_that_is_tried_again_does_not_move_the_grid() -> None:
    timing = every(last=NOON, interval=timedelta(hours=2))
    late = NOON + timedelta(hours=3, minutes=7)
    assert timing.retry(NOON + timedelta(hours=2), late) == late
    due = timing.due(late, late)
    assert due == Due(run=NOON + timedelta(hours=2), following=NOON + timedelta(hours=4))


def test_what_is_not_to_be_made_up_for_is_tried_again_at_a_slot() -> None:
    assert every(skip=True).retry(NOON, after(90)) == after(120)


# One-offs


def test_a_one_off_runs_once() -> None:
    timing = Timing(run_at=after(10))
    assert timing.first(NOON) == after(10)
    assert timing.due(after(10), after(10)) == Due(run=after(10), following=None)
    assert Timing(run_at=after(10), last=after(10)).first(after(11)) is None


def test_a_one_off_whose_time_has_passed_runs_late_or_not_at_all() -> None:
    assert Timing(run_at=NOON).first(after(1000)) == NOON
    assert Timing(run_at=NOON).due(NOON, after(1000)).run == NOON
    assert Timing(run_at=NOON, skip=True).due(NOON, after(1000)) == Due(run=None, following=None)
    assert Timing(run_at=NOON, skip=True).due(NOON, after(1)).run == NOON


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"start": NOON, "end": NOON}, "end_time is not after start_time"),
        ({"run_at": NOON, "start": after(1)}, "run_at lies outside"),
        ({"run_at": NOON, "end": after(-1)}, "run_at lies outside"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidMessage, match=text):
        Timing(**fields)


# Crontabs


def slots(cron: str, start: str, count: int) -> list[str]:
    """The next slots, in UTC; ``start`` too."""
    moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
    found = []
    for _ in range(count):
        moment = cron_slot(cron, BERLIN, moment)
        found.append(f"{moment:%d %H:%M}")
    return found


# Spring 2024 in Berlin: on March 31 at 01:00 UTC the clock goes from 02:00 to 03:00.
# Autumn 2024: on October 27 at 01:00 UTC it goes from 03:00 back to 02:00.


@pytest.mark.parametrize(
    ("cron", "start", "wanted"),
    [
        # 02:30 does not exist: it runs when the clock shows 03:00, once.
        ("30 2 * * *", "2024-03-30 00:00", ["30 01:30", "31 01:00", "01 00:30"]),
        ("0,30 2 * * *", "2024-03-30 12:00", ["31 01:00", "01 00:00", "01 00:30"]),
        # Hourly and quarter-hourly jobs run at each hour that there is.
        ("0 * * * *", "2024-03-30 23:00", ["31 00:00", "31 01:00", "31 02:00"]),
        ("*/15 * * * *", "2024-03-31 00:30", ["31 00:45", "31 01:00", "31 01:15"]),
        # Three in the morning exists, an hour sooner.
        ("0 3 * * *", "2024-03-30 00:00", ["30 02:00", "31 01:00", "01 01:00"]),
    ],
)
def test_in_spring(cron: str, start: str, wanted: list[str]) -> None:
    assert slots(cron, start, 3) == wanted


@pytest.mark.parametrize(
    ("cron", "start", "wanted"),
    [
        # 02:30 comes twice: it runs the first time.
        ("30 2 * * *", "2024-10-26 00:00", ["26 00:30", "27 00:30", "28 01:30"]),
        # Also if the question is asked between the two.
        ("30 2 * * *", "2024-10-27 01:10", ["28 01:30", "29 01:30", "30 01:30"]),
        ("0 * * * *", "2024-10-26 23:00", ["27 00:00", "27 01:00", "27 02:00"]),
        ("*/15 * * * *", "2024-10-27 00:30", ["27 00:45", "27 01:00", "27 01:15"]),
        ("0 3 * * *", "2024-10-26 00:00", ["26 01:00", "27 02:00", "28 02:00"]),
    ],
)
def test_in_autumn(cron: str, start: str, wanted: list[str]) -> None:
    assert slots(cron, start, 3) == wanted


@given(
    st.sampled_from(["30 2 * * *", "*/15 * * * *", "0 * * * *", "7 3,4 * * SUN", "*/20 2 * * *"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
    st.datetimes(datetime(2024, 1, 1), datetime(2025, 1, 1)),
)
def test_each_slot_is_later_than_the_last_and_none_is_left_out(
    cron: str, zone: str, start: datetime
) -> None:
    """Whatever the moment of the question: a slot in between would have been found first."""
    moment = start.replace(tzinfo=UTC)
    first = cron_slot(cron, ZoneInfo(zone), moment)
    assert first > moment
    halfway = moment + (first - moment) / 2
    assert cron_slot(cron, ZoneInfo(zone), halfway) == first


def test_a_crontab_heeds_start_and_end() -> None:
    daily: dict[str, Any] = {"cron": "0 12 * * *", "zone": UTC}
    start = NOON + timedelta(days=3)
    assert Timing(**daily, start=start).first(NOON) == start
    assert Timing(**daily, start=start + MINUTE).first(NOON) == start + timedelta(days=1)
    assert Timing(**daily, end=after(86_399)).first(NOON) is None
    assert Timing(**daily).due(NOON, after(200_000)) == Due(
        run=NOON, following=NOON + timedelta(days=3)
    )


def test_seconds_may_stand_before_the_minute() -> None:
    assert cron_slot("*/20 * * * * *", UTC, NOON) == after(20)


@pytest.mark.parametrize(
    ("cron", "text"),
    [
        ("", "is no crontab"),
        ("daily", "is no crontab"),
        ("60 * * * *", "Bad minute"),
        ("* * * * * * *", "Wrong number of fields"),
        ("* * * * 5L/2", "is no crontab"),
        ("0 0 30 2 *", "is no crontab"),
        ("0 0 29 2 MON#5 *", "is no crontab"),
        ("é * * * *", "is no crontab"),
    ],
)
def test_what_is_no_crontab_is_told_with_an_example(cron: str, text: str) -> None:
    with pytest.raises(InvalidMessage, match=text) as caught:
        cron_slot(cron, UTC, NOON)
    assert "MON-FRI" in str(caught.value)


def test_a_crontab_that_is_never_due_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="never due"):
        cron_slot("0 0 */29 2 SUN#3", UTC, NOON)


@pytest.mark.parametrize(
    "name", ["Mars/Phobos", "Europe", "../../etc/passwd", "\x00", "/", "Berlin"]
)
def test_an_unknown_time_zone_is_told(name: str) -> None:
    with pytest.raises(InvalidMessage, match="There is no time zone"):
        triggers.time_zone(name)


def test_without_a_name_it_is_the_time_zone_of_the_settings(settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"
    assert str(triggers.time_zone("")) == "Asia/Tokyo"
    assert str(triggers.time_zone("Europe/Berlin")) == "Europe/Berlin"


# Fields of a ScheduledTask


def test_the_fields_of_intervals_and_crontabs() -> None:
    assert triggers.interval_fields({"hours": 3}) == {
        "interval_type": "hours",
        "interval_count": 3,
        "cron": "",
        "timezone": "",
    }
    fields = triggers.cron_fields("0 3 * * *", "Europe/Berlin")
    assert (fields["cron"], fields["timezone"]) == ("0 3 * * *", "Europe/Berlin")


@pytest.mark.parametrize(
    "interval",
    [
        {},
        {"weeks": 1},
        {"seconds": 0},
        {"seconds": True},
        {"days": 1.5},
        {"days": "1"},
        {"days": 36_526},
        {"seconds": 2**31},
        {"seconds": 1, "days": 1},
    ],
    ids=repr,
)
@pytest.mark.defect(20)
def test_what_is_no_interval_is_refused(interval: dict[str, Any]) -> None:
    """django-carrot ran {'weeks': 1} every second, and {'seconds': 0} without a pause."""
    with pytest.raises(InvalidMessage, match="An interval"):
        triggers.interval_fields(interval)


@pytest.mark.parametrize(
    "fields", [(None,), (5,), ("* * * * *", None), ("*," * 200 + "* * * * *",)]
)
def test_a_crontab_is_a_text(fields: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidMessage, match="A crontab is a text of at most 255 characters"):
        triggers.cron_fields(*fields)
