# SPDX-License-Identifier: Apache-2.0
"""Keeps the time limits of one queue's tasks: interrupts, and gives up threads that are stuck.

While no task with a limit runs there is no timer. Their begin costs no turn of the reactor while
the next look comes early enough for them.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.interruption import Call

_log = make_logger()

#: Seconds between looks at a task that was interrupted, to raise again what it has swallowed.
REPEAT = 1.0
#: Seconds that an interrupted task gets to end. Its thread is stuck then: in C code, for example,
#: which waits without knowing of Python's exceptions.
STUCK_AFTER = 5.0
#: The longest timer; the reactor's select takes no number that is too large.
LONGEST = 3600.0


class TimeKeeper:
    """Watches the calls that have a limit. In the reactor, but for ``begin`` and ``end``.

    Args:
        reactor: Twisted's reactor.
        on_stuck: called with a call whose thread was given up; its end is the caller's to tell.
        now: the clock of ``Call.due``.
    """

    def __init__(
        self,
        reactor: Any,
        on_stuck: Callable[[Call], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reactor = reactor
        self._on_stuck = on_stuck
        self._now = now
        self._calls: set[Call] = set()
        #: When the next look comes.
        self._next = math.inf
        self._timer: Any = None
        self._stopped = False

    def begin(self, call: Call) -> None:
        """A call begins. In its thread."""
        # In this order: a look that has not seen the call has said so before, by ``_next``.
        self._calls.add(call)
        if call.due < self._next:
            self._reactor.callFromThread(self._look)

    def end(self, call: Call) -> None:
        """It has ended. In its thread."""
        self._calls.discard(call)

    def stop(self) -> None:
        """The service ends: whoever runs now is not interrupted any more."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _look(self) -> None:
        if self._stopped:
            return
        self._cancel()
        self._next = math.inf
        now = self._now()
        for call in list(self._calls):
            if call.due <= now:
                try:
                    self._act(call, now)
                except Exception:
                    _log.failure("A task's time limit could not be kept")
                    call.due = now + REPEAT
        due = min((call.due for call in list(self._calls)), default=None)
        if due is not None:
            delay = min(max(0.0, due - now), LONGEST)
            self._next = now + delay
            self._timer = self._reactor.callLater(delay, self._look)

    def _act(self, call: Call, now: float) -> None:
        if call.interrupted_at is None:
            call.interrupted_at = now
        stuck_at = call.interrupted_at + STUCK_AFTER
        if now < stuck_at:
            call.interrupt()
            call.due = min(now + REPEAT, stuck_at)
        else:
            self._calls.discard(call)
            if call.abandon():
                self._on_stuck(call)
