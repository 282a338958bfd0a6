# SPDX-License-Identifier: Apache-2.0
"""What a worker of ``--workers N`` does as one of several, see ``workers``.

Its standard input is a pipe that ends with the process that watches over it: then it stops, too.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.logger import FileLogObserver, eventAsText

if TYPE_CHECKING:
    from collections.abc import Callable

#: In a worker's environment: which one it is, from 1.
NUMBER = "CARROT_WORKER_NUMBER"
#: Name of ``plain_log``, for ``twistd --logger``.
PLAIN_LOG = f"{__name__}.plain_log"
#: What it tells of the seconds that its stop takes at most.
STOP_SECONDS = "X_STOP_SECONDS"


def own_number() -> int | None:
    """Which worker this process is; None: it is none. Programs that it starts are not told."""
    return int(os.environ.pop(NUMBER, "0")) or None


def follow(on_lost: Callable[[], object], reactor: Any) -> None:
    """In a worker: have something done when the monitor is gone, however it ended.

    The signals of a terminal go to the monitor alone from now on; it passes them on.

    Args:
        on_lost: called in the reactor.
        reactor: Twisted's reactor.
    """
    with suppress(PermissionError):
        os.setsid()
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        reactor.callFromThread(on_lost)

    threading.Thread(target=wait, name="carrot-monitor", daemon=True).start()


def plain_log() -> FileLogObserver:
    """A log to standard output without times: whoever reads it there adds them.

    For ``twistd --logger`` of a worker.
    """

    def line(event: Any) -> str:
        return eventAsText(event, includeTimestamp=False) + "\n"

    return FileLogObserver(sys.stdout, line)
