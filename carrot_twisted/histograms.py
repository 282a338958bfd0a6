# SPDX-License-Identifier: Apache-2.0
"""Durations as sparse histograms: small, exact to a tenth, and the sum of two is one again.

A histogram is a dictionary from the number of a bucket to how many durations fell into it. Bucket
0 holds what took up to FIRST seconds, and each further one is a quarter of a factor of two wider
than the last: four for each doubling, so that a second is in bucket 40 and an hour in 88.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Histogram = dict[int, int]

#: Upper end of the first bucket, in seconds.
FIRST = 0.001
#: Buckets for each factor of two.
STEPS = 4
#: The last bucket: twelve days, and all that takes longer.
LAST = 120


@dataclass(slots=True)
class Durations:
    """A histogram with the sum of what it holds. One thread adds; any may read."""

    histogram: Histogram = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        add(self.histogram, seconds)
        self.seconds += seconds


def bucket(seconds: float) -> int:
    """The number of the bucket that a duration belongs to."""
    if seconds <= FIRST:
        return 0
    return min(LAST, math.ceil(math.log2(seconds / FIRST) * STEPS))


def end(number: int) -> float:
    """The longest duration, in seconds, of a bucket."""
    return FIRST * math.exp2(number / STEPS)


def add(histogram: Histogram, seconds: float) -> None:
    """Count one duration."""
    number = bucket(seconds) if seconds > FIRST else 0
    histogram[number] = histogram.get(number, 0) + 1


def merge(into: Histogram, other: Mapping[int, int]) -> None:
    """Count all of another one's durations, too."""
    for number, count in other.items():
        into[number] = into.get(number, 0) + count


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """The duration, in seconds, that this share of all did not exceed; None if there are none.

    The middle of the bucket in which it lies: at most 9 % off, within the range of the buckets.

    Args:
        histogram: of what was measured.
        share: 0.5 for the median.
    """
    rank = max(1, math.ceil(sum(histogram.values()) * share))
    seen = 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen >= rank:
            return FIRST * math.exp2((number - 0.5 if number else 0) / STEPS)
    return None
