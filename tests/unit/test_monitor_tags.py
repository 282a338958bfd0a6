# SPDX-License-Identifier: Apache-2.0
"""How the monitor's pages write times, spans and numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from carrot_twisted.templatetags import carrot_twisted as tags


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (3.21, "3.2 s"),
        (60, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (273_700, "3 d 4 h"),
    ],
)
def test_a_span_has_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert tags.duration(seconds) == text
    assert tags.duration(timedelta(seconds=seconds)) == text


def test_what_is_not_there_is_a_dash() -> None:
    assert tags.duration(None) == tags.age(None) == tags.moment(None) == tags.NOTHING


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "less than a minute"), (60, "1 min"), (7300, "2 h"), (90_000, "1 d")],
)
def test_an_age_changes_seldom(seconds: float, text: str) -> None:
    assert tags.age(seconds) == text


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0 %"), (0.00001, "0.1 %"), (0.006, "0.6 %"), (0.254, "25 %")]
)
def test_a_little_is_never_shown_as_nothing(part: float, text: str) -> None:
    assert tags.share(part) == text


def test_a_time_is_the_projects_and_names_its_zone_in_the_hour_that_comes_twice() -> None:
    with timezone.override(ZoneInfo("Europe/Berlin")):
        first = tags.moment(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
        second = tags.moment(datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
    assert ">2026-10-25 02:30:00 CEST</time>" in first
    assert ">2026-10-25 02:30:00 CET</time>" in second
    assert 'datetime="2026-10-25T00:30:00+00:00"' in first
