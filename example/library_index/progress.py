# SPDX-License-Identifier: Apache-2.0
"""A progress bar in a terminal; anywhere else a line every few seconds."""

from __future__ import annotations

import time
from typing import TextIO

WIDTH = 40
SECONDS_BETWEEN_LINES = 5


class Progress:
    """Shows how many of ``total`` are done."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total = total
        self.stream = stream
        self.next_line = 0.0
        self.full, self.empty = "█░" if "utf" in (stream.encoding or "").lower() else "#."

    def show(self, done: int) -> None:
        """Tell it, as a bar or, if it is time for one or all are done, as a line."""
        if self.stream.isatty():
            filled = WIDTH * done // self.total
            bar = self.full * filled + self.empty * (WIDTH - filled)
            # The cursor goes back to the line's start: what others print replaces the bar.
            self.stream.write(f"{bar} {done:,} of {self.total:,}\r")
        elif time.monotonic() >= self.next_line or done == self.total:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.stream.write(f"{done:,} of {self.total:,} tasks are done\n")
        self.stream.flush()

    def note(self, text: str) -> None:
        """Say something on lines of its own; the bar goes on below."""
        self.stream.write(f"\n{text}\n")

    def close(self) -> None:
        """Leave the bar's line."""
        if self.stream.isatty():
            self.stream.write("\n")
