# SPDX-License-Identifier: Apache-2.0
"""The tasks: the very same functions on all sides, so that only the systems differ.

One of the sites runs with an old Python: nothing here is newer than 3.7.
"""

from __future__ import annotations

import logging
import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger(__name__)

SECONDS_TO_WAIT = 0.01
SECONDS_TO_CALCULATE = 0.001
LINES = 10


def no_op() -> None:
    """Does nothing, so that all the time is the system's."""


def wait() -> None:
    """Waits for 10 ms, as for an answer of another server."""
    time.sleep(SECONDS_TO_WAIT)


def calculate() -> None:
    """Keeps the processor busy for 1 ms, in Python code."""
    end = time.thread_time() + SECONDS_TO_CALCULATE
    while time.thread_time() < end:
        pass


def ten_lines() -> None:
    """Writes ten log lines, as a chatty task of a real project does."""
    for number in range(1, LINES + 1):
        _logger.info("Line %d of the task", number)


def publish_another() -> None:
    """Publishes a task that does nothing, by the system that runs this one."""
    # Each site has such a module. It is imported by then: the process runs its tasks.
    site: Any = import_module(os.environ["BENCHMARK_SITE"] + ".tasks")
    site.publish("no_op")


def stamp(file: str, number: int, sent: int) -> None:
    """Add a line to a file: the task's number, when it was published, and when it started.

    Times are those of the monotonic clock, which all processes of a machine share, in nanoseconds.
    """
    now = time.monotonic_ns()
    if file not in _opened:
        _opened[file] = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_opened[file], b"%d %d %d\n" % (number, sent, now))


_opened: dict[str, int] = {}
TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task for task in (no_op, wait, calculate, ten_lines, publish_another, stamp)
}
