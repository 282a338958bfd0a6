# SPDX-License-Identifier: Apache-2.0
"""What a service may be busy with when it is to stop: tasks and hooks that do not end.

A task tells the ledger when it begins and when it ends, and does not wait once the gate is open.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrot_twisted.consumer import Consumer
from carrot_twisted.utilities import publish_message
from tests.project.tasks import ledger, noop

if TYPE_CHECKING:
    from collections.abc import Callable

FOR_EVER = 3600.0


def _open() -> bool:
    return Path(os.environ["CARROT_TEST_GATE"]).exists()


def _sleep() -> None:
    time.sleep(FOR_EVER)


def _spin() -> None:
    while not _open():
        sum(range(1000))


def _lock() -> None:
    """Inside a function of C's, without Python's lock."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _regular_expression() -> None:
    """Inside a function of C's that keeps Python's lock, for a second or some."""
    re.match("(a+)+$", "a" * 22 + "b")
    time.sleep(FOR_EVER)


def _reactor() -> None:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.threads import blockingCallFromThread

    blockingCallFromThread(reactor, lambda: Deferred())  # type: ignore[arg-type]


def _publish() -> None:
    while not _open():
        publish_message(noop)
        time.sleep(0.01)


def _short() -> None:
    time.sleep(0.2)


def _nothing() -> None:
    pass


HOLDS: dict[str, Callable[[], None]] = {
    "nothing": _nothing,
    "sleep": _sleep,
    "spin": _spin,
    "lock": _lock,
    "regular expression": _regular_expression,
    "reactor": _reactor,
    "publish": _publish,
    "short": _short,
}


def hold(key: str, how: str) -> None:
    """Begin, be held up, end."""
    ledger(f"begin {key}")
    if not _open():
        HOLDS[how]()
    ledger(f"end {key}")


async def hold_async(key: str) -> None:
    """The same, as a coroutine."""
    ledger(f"begin {key}")
    if not _open():
        await asyncio.sleep(FOR_EVER)
    ledger(f"end {key}")


class StuckInReactor(Consumer):
    """Its hook never returns, in the reactor's thread. That is a mistake."""

    def stop(self) -> None:
        if not _open():
            time.sleep(FOR_EVER)
        super().stop()


class NeverFires(Consumer):
    """Its hook returns a Deferred that nobody ever fires."""

    def stop(self) -> Any:
        from twisted.internet.defer import Deferred

        super().stop()
        return Deferred()


class StuckInThread(Consumer):
    """Its hook never returns, in a worker thread."""

    def on_message(self, *args: Any) -> None:
        if not _open():
            ledger(f"begin hook {os.getpid()}")
            time.sleep(FOR_EVER)
        super().on_message(*args)
