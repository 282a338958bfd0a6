# SPDX-License-Identifier: Apache-2.0
"""Tells whoever started the service how it fares, by the protocol of systemd: sd_notify(3).

systemd (``Type=notify``) and ``manage.py carrot_daemon start`` wait for ``READY=1``.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

#: Seconds between looks whether all queues are consumed, until they are.
READY_INTERVAL = 0.1
#: Seconds between looks whether they still are.
STATE_INTERVAL = 1.0


class Notifier:
    """The way to the socket that ``NOTIFY_SOCKET`` names; without that, nothing is told.

    Takes the variables away: a program that a task starts does not speak for the service.
    """

    def __init__(self) -> None:
        self.watchdog = _seconds(
            os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        )
        """Within so many seconds ``WATCHDOG=1`` is to be told, again and again; None: never."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # A name in the kernel, not in a file system.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._ready = False
        self._status = ""

    @property
    def is_heard(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def tell(self, **state: str) -> bool:
        """Send these variables, such as ``READY="1"``, a line each. Never waits, never fails.

        Returns:
            Whether they were taken: who listens may be gone, or have too much to read yet.
        """
        if not self._address:
            return False
        text = "\n".join(f"{name}={' '.join(value.split())}" for name, value in state.items())
        # Whoever listened may have gone: the service works on.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(self._address)
            sender.send(text.encode("utf-8", "backslashreplace"))
            return True
        return False

    def tell_news(self, *, ready: bool, status: str) -> float:
        """Tell when it is ready, once, and from then on what keeps it from working.

        Args:
            ready: whether all queues are consumed.
            status: the state for people; told when it has changed.

        Returns:
            Seconds until the next look.
        """
        news = {}
        if ready and not self._ready:
            news["READY"] = "1"
        if status != self._status:
            news["STATUS"] = status
        # What is not taken is told again with the next look.
        if news and self.tell(**news):
            self._ready = self._ready or "READY" in news
            self._status = status
        return STATE_INTERVAL if self._ready else READY_INTERVAL


def _seconds(microseconds: str, pid: str) -> float | None:
    """What sd_watchdog_enabled(3) says: None also where another process is meant."""
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6 if pid in ("", str(os.getpid())) else None
