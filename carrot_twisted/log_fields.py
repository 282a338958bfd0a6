# SPDX-License-Identifier: Apache-2.0
"""For a project's ``LOGGING``: which task a record was logged by, as fields of the record."""

from __future__ import annotations

import logging
import sys

#: The module that knows it. Only a process that runs tasks has loaded it; ``LOGGING`` is set up
#: before any app is.
_RUNNING = "carrot_twisted.running"


class TaskFields(logging.Filter):
    """Gives each record ``task``, ``id``, ``queue`` and ``attempt``; "" outside of tasks.

    It lets every record pass. Formatters use them, such as ``%(task)s``, or one that writes JSON.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging, in the thread, or the coroutine, that logs."""
        module = sys.modules.get(_RUNNING)
        run = None if module is None else module.current.get()
        record.task = "" if run is None else run.task
        record.id = "" if run is None else str(run.uuid)
        record.queue = "" if run is None else run.queue
        record.attempt = "" if run is None else run.attempt
        return True
