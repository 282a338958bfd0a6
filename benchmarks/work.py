# SPDX-License-Identifier: Apache-2.0
"""The tasks: the very same functions on both sides, so that only the systems differ."""

from __future__ import annotations

import logging

_logger = logging.getLogger(__name__)


def no_op() -> None:
    """Does nothing, so that all the time is the system's."""


def two_lines() -> None:
    """Writes two log lines, as a short task of a real project does."""
    _logger.info("The task has begun")
    _logger.info("The task has ended")


TASKS = {task.__name__: task for task in (no_op, two_lines)}
