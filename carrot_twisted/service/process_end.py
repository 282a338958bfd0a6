# SPDX-License-Identifier: Apache-2.0
"""How the process ends: with which exit status, in which time, whatever holds it up.

There is one of it in a process, as there is one exit status.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_log = make_logger()

EXIT_CRASH = 1
#: sysexits.h's EX_TEMPFAIL: a supervisor should start a fresh process.
EXIT_RECYCLE = 75
#: sysexits.h's EX_CONFIG: a supervisor should not try again.
EXIT_CONFIG = 78
#: Seconds that the interpreter gets to end, once the service has.
LAST_MOMENT = 3.0

_exit_status: int | None = None
#: Instead of the exit where a fresh process should take over and nobody else starts one.
successor: Callable[[], None] | None = None


def exit_with(status: int) -> None:
    """Let the process end with this status once twistd has tidied up.

    twistd knows no exit status, and the interpreter would wait for nothing that a stuck thread
    holds: the last thing that runs ends the process.
    """
    global _exit_status
    if _exit_status is None:
        atexit.register(exit_now)
        _exit_status = status


def stay_ended() -> None:
    """A stop was asked for: whoever waits for a fresh process waits no more."""
    global _exit_status
    if _exit_status == EXIT_RECYCLE:
        _exit_status = 0


def end_in_time() -> None:
    """Do not wait for threads that tasks left behind: the interpreter would, for ever."""
    later(LAST_MOMENT, exit_now)


def later(seconds: float, function: Callable[[], None]) -> None:
    """Call a function in a thread of its own, if the process is still there."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def on_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> None:
    """Have this done for each signal that asks for the end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # SIGHUP: its terminal was closed; under nohup that means nothing.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave_by_force() -> None:
    """The reactor has not ended although it had the time: code of the project's holds it up."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = "".join(traceback.format_stack(frame))
    # In a thread of its own: what is held up may be the log.
    teller = threading.Thread(
        target=lambda: _log.critical(
            "The stop is held up by code that does not return; leaving. What ran will run again. "
            "The reactor is at:\n{stack}",
            stack=stack,
        ),
        daemon=True,
    )
    teller.start()
    teller.join(1.0)
    _end(_exit_status or EXIT_CRASH)


def exit_now() -> None:
    """End the process with the status that was said, and its output written."""
    sys.stdout.flush()
    sys.stderr.flush()
    _end(_exit_status or 0)


def _end(status: int) -> None:
    if status == EXIT_RECYCLE and successor is not None:
        successor()
    os._exit(status)
