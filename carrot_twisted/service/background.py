# SPDX-License-Identifier: Apache-2.0
"""A running reactor for programs that have none: in a daemon thread, started on first use."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

_starting = threading.Lock()


def running_reactor() -> Any:
    """Twisted's reactor; if it does not run, it is started in a thread of its own.

    The thread ends with the process. Signals stay with the program.

    Raises:
        RuntimeError: the reactor has run in this process before, and cannot run twice.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    with _starting:
        if not reactor.running:
            started: SimpleQueue[BaseException | None] = SimpleQueue()
            reactor.callWhenRunning(started.put, None)

            def run() -> None:
                try:
                    reactor.run(installSignalHandlers=False)
                except BaseException as error:
                    started.put(error)

            threading.Thread(target=run, name="carrot-reactor", daemon=True).start()
            error = started.get()
            if error is not None:
                raise RuntimeError(
                    f"Twisted's reactor does not start in this process: {error!r}. It cannot be "
                    "started twice; keep it running, or use another process."
                ) from error
    return reactor
