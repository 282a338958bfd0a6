# SPDX-License-Identifier: Apache-2.0
"""Runs work alone under which workers were lost: if it kills this one too, only it is to blame.

A process that dies takes all its tasks and handlers with it, and nobody can tell which of them did
it. From the second loss on a row, or a message, is a suspect: the process claims nothing new, lets
its running tasks end, and then runs one suspect after another.

Where running tasks do not end for long, the others must not wait for a suspect as long as that:
they go on, and it is tried again later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carrot_twisted.service.working import Working

#: Seconds that running tasks get to end while nothing new is claimed.
PATIENCE = 60.0
#: Seconds for which work goes on as usual when they did not.
REST = 300.0


class Quarantine:
    """Looks after the suspects of all queues of one process.

    Args:
        dispatchers: of all queues.
        reactor: Twisted's reactor.

    Each of them tells by ``on_suspect`` when to look again.
    """

    def __init__(self, dispatchers: Sequence[Working], reactor: Any) -> None:
        self._dispatchers = dispatchers
        self._reactor = reactor
        self._held = False
        self._rests = False
        #: While it waits for running tasks to end.
        self._patience: Any = None
        for dispatcher in self._dispatchers:
            dispatcher.on_suspect = self._look

    def _look(self) -> None:
        waiting = next((d for d in self._dispatchers if d.suspects), None)
        if waiting is None and not self._held:
            return
        running = any(dispatcher.running for dispatcher in self._dispatchers)
        if waiting is not None and not self._held:
            if running and self._rests:
                return
            self._hold()
        if running:
            return
        self._stop_waiting()
        if waiting is not None:
            waiting.claim_suspect()
        else:
            self._unhold()

    def _hold(self) -> None:
        self._held = True
        self._patience = self._reactor.callLater(PATIENCE, self._rest)
        for dispatcher in self._dispatchers:
            dispatcher.hold()

    def _unhold(self) -> None:
        self._held = False
        for dispatcher in self._dispatchers:
            dispatcher.unhold()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _rest(self) -> None:
        """The running tasks take too long."""
        self._patience = None
        self._rests = True
        self._reactor.callLater(REST, self._end_rest)
        self._unhold()

    def _end_rest(self) -> None:
        self._rests = False
        self._look()
