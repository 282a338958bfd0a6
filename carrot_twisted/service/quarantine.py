# SPDX-License-Identifier: Apache-2.0
"""Runs a task alone under which workers were lost: if it kills this one too, only it is to blame.

A process that dies takes all its tasks with it, and the database cannot tell which of them did
it. From the second loss on a row is a suspect: the process claims nothing new, lets its running
tasks end, and then runs one suspect after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carrot_twisted.service.dispatcher import Dispatcher
    from carrot_twisted.service.working import Working


class Quarantine:
    """Looks after the suspects of all queues of one process.

    Args:
        dispatchers: of all queues of tasks.
        beside: of all other queues, whose work is held up, too.

    Each of them tells by ``on_suspect`` when to look again.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher], beside: Sequence[Working] = ()) -> None:
        self._dispatchers = dispatchers
        self._all: Sequence[Working] = [*dispatchers, *beside]
        self._held = False
        for dispatcher in self._all:
            dispatcher.on_suspect = self._look

    def _look(self) -> None:
        waiting = next((d for d in self._dispatchers if d.suspects), None)
        if waiting is None and not self._held:
            return
        if waiting is not None and not self._held:
            self._held = True
            for dispatcher in self._all:
                dispatcher.hold()
        if any(dispatcher.running for dispatcher in self._all):
            return
        if waiting is not None:
            waiting.claim_suspect()
        else:
            self._held = False
            for dispatcher in self._all:
                dispatcher.unhold()
