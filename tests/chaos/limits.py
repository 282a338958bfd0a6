# SPDX-License-Identifier: Apache-2.0
"""How many tasks of the chaos run may be under way at once, and start in a while: the promise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.chaos.schedule import Plan

#: Of hundred tasks so many have a limit of each kind, or both.
SLOTTED, RATED, BOTH = 5, 3, 2
#: Keys of slotted tasks.
SHOPS = ("north", "south")
#: So many runs of one key at once, by the group of the limit.
AT_ONCE: Mapping[str, int] = {"shop": 2, "lonely": 1}
#: The group of the rate, and the seconds of its period.
API, PERIOD = "api", 2.0
#: How much longer a slotted task takes than the mean.
LONG = 8


def starts(plan: Plan) -> int:
    """So many starts in each period: twice of those that come, for outages hold some up."""
    return math.ceil(2 * PERIOD * (RATED + BOTH) / 100 * plan.tasks / plan.seconds)
