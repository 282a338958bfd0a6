# SPDX-License-Identifier: Apache-2.0
"""Signs of life for whoever started the service: systemd, with ``WatchdogSec``.

One that gets none in time kills the service and starts another. So they are sent from the reactor,
and only while the thread that writes to the database is at work: a service whose reactor is held up
by code that does not return, or whose results are written by nobody, is better started anew.

A database that is away, or silent for a while, is no reason: who is killed for it loses the results
that wait to be written, and a new process would meet the same database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall
from txaio.tx import make_logger

from carrot_twisted.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.service.notify import Notifier

_log = make_logger()

#: Seconds without a sign of the writer's thread after which none is sent. A new connection may help
#: where a database has not answered for so long.
PATIENCE = 600.0


class Watchdog:
    """Sends signs of life, twice in each period that the listener allows for.

    Args:
        notifier: the way to the listener, who may want none.
        silence: seconds since the writer's thread has last shown that it works.
        reactor: Twisted's reactor.
    """

    def __init__(self, notifier: Notifier, silence: Callable[[], float], reactor: Any) -> None:
        self._notifier = notifier
        self._silence = silence
        self._trouble = Outage(reactor.seconds)
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Send the first one, and go on."""
        if self._notifier.watchdog is not None:
            self._loop.start(self._notifier.watchdog / 2)

    def stop(self) -> None:
        """Send no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        silence = self._silence()
        if silence <= PATIENCE:
            after = self._trouble.over()
            if after:
                _log.info("The thread that writes to the database is at work{after}", after=after)
            self._notifier.tell(WATCHDOG="1")
            return
        told = self._trouble.failed(f"it has done nothing for more than {PATIENCE:.0f} s")
        if told is not None:
            _log.critical(
                "The thread that writes to the database does not work: {reason}. No more signs of "
                "life are sent: a new process should take over",
                reason=told,
            )
