# SPDX-License-Identifier: Apache-2.0
"""``--log-format=json``: each event of the service's log as one line of JSON, for log collectors.

What an event is about are fields of their own, by the same names everywhere (FIELDS). No other
values of an event are written, only its message: what must not be in there is not in the text
either, which has its tests.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from twisted.logger import FileLogObserver, formatEvent
from twisted.python.logfile import LogFile

if TYPE_CHECKING:
    from twisted.logger import LogEvent

#: Names of an event's values, and of the fields that they are written to.
FIELDS = {
    "task": "task",
    "uuid": "id",
    "queue": "queue",
    "attempt": "attempt",
    "handler": "handler",
    "callback": "callback",
}
#: The value of an event that is a line of another process, which may be of this form already.
LINE = "line"
#: Where ``observer`` writes to; None: to standard output.
path: str | None = None


def observer() -> FileLogObserver:
    """The log in this form. For ``twistd --logger``.

    A file is rotated as twistd's is: at a megabyte, and by SIGUSR1.
    """
    if path is None:
        return FileLogObserver(sys.stdout, line)
    file: Any = LogFile.fromFullPath(path)
    if not signal.getsignal(signal.SIGUSR1):

        def rotate(_signal: int, _frame: object) -> None:
            from twisted.internet import reactor as module

            reactor: Any = module
            reactor.callFromThread(file.rotate)

        signal.signal(signal.SIGUSR1, rotate)
    return FileLogObserver(file, line)


def line(event: LogEvent) -> str:
    """An event as one line.

    It has ``time`` (UTC), ``level``, ``logger``, ``pid``, ``message``; those of FIELDS that the
    event has; for a failure ``traceback``; for a line of a worker ``process``.
    """
    other = _of_other_process(event)
    if other is not None:
        return other
    level = getattr(event.get("log_level"), "name", "info")
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
        "level": "warning" if level == "warn" else level,
        "logger": event.get("log_namespace", ""),
        "pid": os.getpid(),
        "message": formatEvent(event),
    }
    for name, field in FIELDS.items():
        value = event.get(name)
        if value is not None:
            fields[field] = value if isinstance(value, int) else str(value)
    failure = event.get("log_failure")
    if failure is not None:
        fields["traceback"] = failure.getTraceback()
    # What is no text, a lone surrogate for example, is escaped.
    return f"{json.dumps(fields)}\n"


def _of_other_process(event: LogEvent) -> str | None:
    """A worker's line that has this form, with the worker's name; None: it is none."""
    text = event.get(LINE)
    if not isinstance(text, str):
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        # It was cut for its length, or is none of ours.
        return None
    if not (isinstance(fields, dict) and "message" in fields):
        return None
    return f"{json.dumps({**fields, 'process': event.get('name', '')})}\n"
