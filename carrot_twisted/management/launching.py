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
import socket
import sys
import tempfile
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Outcome(Enum):
    """What became of a start."""

    READY = auto()
    REFUSED = auto()
    """It did not become a daemon, and told on standard error why."""
    ENDED = auto()
    """It became a daemon, which has ended."""
    LATE = auto()
    """It runs, and is not ready in time."""


def launch(daemon: Callable[[], None], timeout: float) -> Outcome:
    """Start a daemon.

    Args:
        daemon: called in a fork of this process; becomes a daemon by twistd's means. Its process
            ends when it returns.
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
            # The fork has left the daemon behind and said how that went.
            _, status = os.waitpid(child, 0)
            return Outcome.REFUSED if status else Outcome.ENDED
    return Outcome.LATE
