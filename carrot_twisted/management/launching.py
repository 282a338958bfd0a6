# SPDX-License-Identifier: Apache-2.0
"""Starts a daemon and waits until it says that it works, or ends, or takes too long.

The daemon speaks by ``NOTIFY_SOCKET``, as it would to systemd. Its end is seen by a pipe: the
daemon inherits one end, and the kernel closes that however the daemon dies. (Its parent is gone by
then, as daemons have it, so nobody can wait for its exit status.)
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


#: Seconds that the fork gets to say how it went, once the daemon is gone.
LAST_WORD = 1.0


class Outcome(Enum):
    """What became of a start."""

    READY = auto()
    REFUSED = auto()
    """It did not become a daemon, and told on standard error why."""
    ENDED = auto()
    """It became a daemon, which has ended."""
    LATE = auto()
    """It runs, and is not ready in time."""


def launch(daemon: Callable[[], None], let_go: Callable[[], None], timeout: float) -> Outcome:
    """Start a daemon.

    Args:
        daemon: called in a fork of this process; becomes a daemon by twistd's means. Its process
            ends when it returns.
        let_go: called in that fork once it has left the daemon behind: what shows that the daemon
            lives is the daemon's alone.
        timeout: seconds to wait.
    """
    folder = tempfile.mkdtemp(prefix="carrot-")
    address = os.path.join(folder, "notify")
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(address)
    alive, life = os.pipe()
    # What is unwritten would be written by both.
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        # `life` stays open as long as this process lives.
        notices.close()
        os.close(alive)
        os.environ["NOTIFY_SOCKET"] = address
        fork = os.getpid()

        def after_fork() -> None:
            # Not in the daemon: its tasks fork, too.
            if os.getpid() == fork:
                os.close(life)
                let_go()

        os.register_at_fork(after_in_parent=after_fork)
        daemon()
        sys.exit()
    os.close(life)
    try:
        return _wait(child, notices, alive, time.monotonic() + timeout)
    finally:
        os.close(alive)
        notices.close()
        shutil.rmtree(folder)


def _wait(child: int, notices: socket.socket, alive: int, end: float) -> Outcome:
    socket_number = notices.fileno()
    while (left := end - time.monotonic()) > 0:
        readable, _, _ = select.select([socket_number, alive], [], [], left)
        if socket_number in readable:
            if b"READY=1" in notices.recv(4096).split(b"\n"):
                return Outcome.READY
        elif readable:
            return Outcome.REFUSED if _status(child) else Outcome.ENDED
    return Outcome.LATE


def _status(child: int) -> int:
    """How the fork ends, now that its daemon is gone; 0 if it does not know that."""
    end = time.monotonic() + LAST_WORD
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    # twistd waits for a daemon's word by a pipe that it holds open itself: for ever, if the
    # daemon died without one.
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 0
