# SPDX-License-Identifier: Apache-2.0
"""How far long work is, for somebody who watches a terminal; nothing anywhere else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 30
#: Seconds until there is a bar: short work needs none.
PATIENCE = 1.0
#: Seconds between two looks of it.
INTERVAL = 0.1


class Progress:
    """A bar on one line, which goes when the work is done.

    Args:
        stream: standard error, as a command has it.
        what: is being done, for people.
        total: steps.
        clock: seconds that only go forward.
    """

    def __init__(
        self, stream: Any, what: str, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._what = what
        self._total = total
        self._clock = clock
        self._done = 0
        self._shown = ""
        self._next = clock() + PATIENCE if stream.isatty() else float("inf")

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._clock() >= self._next:
            self._next = self._clock() + INTERVAL
            filled = WIDTH * self._done // self._total
            bar = "#" * filled + "." * (WIDTH - filled)
            self._show(f"{self._what} [{bar}] {self._done} of {self._total}")

    def end(self) -> None:
        """The line is free for others."""
        if self._shown:
            self._show(" " * len(self._shown))
            self._write("\r")

    def _show(self, text: str) -> None:
        self._shown = text
        self._write(f"\r{text}")

    def _write(self, text: str) -> None:
        self._stream.write(text, lambda plain: plain, ending="")
        self._stream.flush()
