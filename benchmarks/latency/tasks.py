# SPDX-License-Identifier: Apache-2.0
"""The task, the very same function in each system: it notes when it starts."""

from __future__ import annotations

import os
import time
from functools import cache


def stamp(file: str, number: int, sent: int) -> None:
    """Add a line to a file: the task's number, when it was published, and when it started.

    Times are those of the monotonic clock, which all processes of a machine share, in nanoseconds.
    """
    now = time.monotonic_ns()
    os.write(_opened(file), b"%d %d %d\n" % (number, sent, now))


@cache
def _opened(file: str) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
