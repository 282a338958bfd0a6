# SPDX-License-Identifier: Apache-2.0
"""Levels of single parts of the service: those that Django's ``LOGGING`` gives their loggers.

The service's own lines go to twistd's log, not through Python's logging. What a project says of
``carrot_twisted.service``, or of a module, holds for them all the same, and comes before
``--loglevel``, which stands for the whole package.
"""

from __future__ import annotations

import logging
import sys

#: Beginning of the names of all modules.
TOP = "carrot_twisted."
#: txaio's names, and Python's numbers up to which they are meant.
LEVELS = (
    (logging.DEBUG, "debug"),
    (logging.INFO, "info"),
    (logging.WARNING, "warn"),
    (logging.ERROR, "error"),
)


def respect() -> None:
    """Give the loggers of all modules of the package that are loaded these levels."""
    for name, module in list(sys.modules.items()):
        if name.startswith(TOP):
            log = getattr(module, "_log", None)
            level = level_of(name)
            if log is not None and level is not None:
                log.set_log_level(level)


def level_of(name: str) -> str | None:
    """What Python's logging says of a module of ours, or the next one above it that it knows.

    Returns:
        txaio's name of the level; None: it says nothing.
    """
    while name.startswith(TOP):
        number = logging.getLogger(name).level
        if number != logging.NOTSET:
            return next((text for limit, text in LEVELS if number <= limit), "critical")
        name = name.rpartition(".")[0]
    return None
