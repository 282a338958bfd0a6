# SPDX-License-Identifier: Apache-2.0
"""The tasks: the very same functions on all sides, so that only the systems differ."""

from __future__ import annotations

import logging
import os
import time
from importlib import import_module
from typing import Any

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


TASKS = {task.__name__: task for task in (no_op, wait, calculate, ten_lines, publish_another)}
