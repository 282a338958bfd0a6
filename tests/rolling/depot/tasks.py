# SPDX-License-Identifier: Apache-2.0
"""Tasks that leave a trace, with the version that ran them, in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from carrot_twisted.periodic import periodic_task

FOLDER = Path(os.environ["ROLLING_FOLDER"])


def trace(key: str) -> str:
    """One line, in one write."""
    line = f"{key} {os.environ['ROLLING_SIDE']}\n"
    descriptor = os.open(FOLDER / "traces", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)
    return key


def hold(key: str) -> str:
    """Wait until the file ``go`` is there."""
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    return trace(key)


def fail(key: str) -> None:
    """Leave the trace, and raise."""
    trace(key)
    raise ValueError(key)


@periodic_task(seconds=1, queue="rolling")
def tick() -> str:
    """Of the schedule that both versions publish."""
    return trace("tick")
