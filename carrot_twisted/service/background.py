# SPDX-License-Identifier: Apache-2.0
"""A running reactor for programs that have none: in a daemon thread, started on first use."""

from __future__ import annotations

import threading
from typing import Any

_starting = threading.Lock()


def running_reactor() -> Any:
    """Twisted's reactor; if it does not run, it is started in a thread of its own.

    The thread ends with the process. Signals stay with the program.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    with _starting:
        if not reactor.running:
            started = threading.Event()
            reactor.callWhenRunning(started.set)
            threading.Thread(
                target=reactor.run,
                kwargs={"installSignalHandlers": False},
                name="carrot-reactor",
                daemon=True,
            ).start()
            started.wait()
    return reactor
