# SPDX-License-Identifier: Apache-2.0
"""Looks for due schedules, once a second, as long as the service runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from txaio.tx import make_logger

from carrot_twisted import schedules

if TYPE_CHECKING:
    from carrot_twisted.service.log_writer import LogWriter

_log = make_logger()

#: Seconds between looks.
INTERVAL = 1.0


class Scheduler:
    """Publishes due schedules (see ``schedules.publish_due``).

    Args:
        writer: the way to the database.
        using: database alias.
        reactor: Twisted's reactor.
    """

    def __init__(self, writer: LogWriter, using: str, reactor: Any) -> None:
        self._writer = writer
        self._using = using
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin, with a look at once."""
        self._loop.start(INTERVAL, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> Deferred[None]:
        def failed(failure: Any) -> None:
            # A LoopingCall ends at its first failure; this one goes on.
            if not self._writer.away:
                _log.failure("The scheduler met an error and goes on", failure=failure)

        return Deferred.fromCoroutine(self._publish()).addErrback(failed)

    async def _publish(self) -> None:
        count = schedules.BATCH
        while count == schedules.BATCH and not self._writer.away:
            count = await self._writer.call(lambda: schedules.publish_due(self._using))
