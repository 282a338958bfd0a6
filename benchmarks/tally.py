# SPDX-License-Identifier: Apache-2.0
"""Counts the messages that a consumer handles: the same few lines inside every one of them.

Standard library only: it also runs where nothing of ours is installed.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


class Tally:
    """Notes the number of each message; writes all of them to a file when as many came as should.

    What comes after that is added to the file, one by one: it should not have come.

    Args:
        file: does not exist until all have come.
        expected: how many messages were published.
    """

    def __init__(self, file: Path, expected: int) -> None:
        self._file = file
        self._expected = expected
        self._begin = 0.0
        self._numbers: list[int] = []
        self._lock = threading.Lock()

    @classmethod
    def of_environment(cls) -> Tally:
        """The one that the benchmark's variables describe."""
        return cls(Path(os.environ["BENCHMARK_TALLY"]), int(os.environ["BENCHMARK_MESSAGES"]))

    def handled(self, number: int) -> None:
        """A message is being handled. From any thread."""
        with self._lock:
            numbers = self._numbers
            if not numbers:
                self._begin = time.time()
            numbers.append(number)
            if len(numbers) >= self._expected:
                self._write(time.time())

    def _write(self, now: float) -> None:
        numbers = self._numbers
        if len(numbers) > self._expected:
            with self._file.open("a") as file:
                file.write(f"{numbers[-1]}\n")
            return
        lines = (f"{line}\n" for line in (self._begin, now, *numbers))
        unfinished = self._file.with_suffix(".unfinished")
        unfinished.write_text("".join(lines))
        unfinished.rename(self._file)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a consumer has written."""

    begin: float
    """When the first message was handled, in seconds since the epoch."""
    end: float
    """When the last one was."""
    missing: int
    """Messages that were not handled."""
    repeated: int
    """Calls beyond the first one for the same message."""
    unknown: int
    """Calls with what was not published."""


def read(file: Path, expected: int) -> Found:
    """Compare what was handled with what was published: the numbers from 0 to below expected."""
    begin, end, *numbers = file.read_text().split()
    counts = Counter(map(int, numbers))
    known = [counts.pop(number, 0) for number in range(expected)]
    return Found(
        begin=float(begin),
        end=float(end),
        missing=known.count(0),
        repeated=sum(count - 1 for count in known if count),
        unknown=counts.total(),
    )
