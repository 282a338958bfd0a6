# SPDX-License-Identifier: Apache-2.0
"""When a schedule is next due: pure arithmetic on times."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

#: Seconds of each interval type, with django-carrot's names.
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


def next_slot(slot: datetime, now: datetime, interval: timedelta) -> datetime:
    """The first slot after ``now`` on the grid that ``slot`` belongs to.

    So a schedule never drifts, and slots that nobody was there for are made up for by one run.

    Args:
        slot: the slot that is due.
        now: not before ``slot``.
        interval: more than zero.
    """
    return slot + ((now - slot) // interval + 1) * interval
