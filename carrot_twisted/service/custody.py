# SPDX-License-Identifier: Apache-2.0
"""Looks after long work: messages are acknowledged in time, and none waits in vain behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from carrot_twisted.service.chore import Chore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carrot_twisted.service.working import Working

#: Seconds between looks for tasks whose message is to be acknowledged while they run, and for
#: messages that wait in vain.
INTERVAL = 15.0


class Custody:
    """Part of a service, in the reactor.

    Args:
        name: who does this, for people.
        dispatchers: who has the work.
        deadline: seconds after which a message is not to be with this process unsettled.
        reactor: Twisted's reactor.
    """

    def __init__(
        self, name: str, dispatchers: Sequence[Working], deadline: float, reactor: Any
    ) -> None:
        self._dispatchers = dispatchers
        self._deadline = deadline
        self._loop = LoopingCall(Chore(name, reactor.seconds).attempt, self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Look again and again."""
        self._loop.start(min(INTERVAL, self._deadline / 4), now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        for dispatcher in self._dispatchers:
            dispatcher.take_custody(self._deadline)
            dispatcher.free_waiting(self._deadline)
