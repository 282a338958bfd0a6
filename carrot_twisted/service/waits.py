# SPDX-License-Identifier: Apache-2.0
"""How a stop waits for others: each time for so long at most, and less when somebody hurries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater
from txaio.tx import make_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

_log = make_logger()

#: Seconds that a further wait gets when the time for them is over.
MOMENT = 0.1
#: Seconds between looks whether something is true.
LOOK = 0.02


class Waits:
    """Those of one stop.

    Args:
        reactor: Twisted's reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._deadline: Deferred[None] | None = None
        self.hurried = False
        """Somebody does not want to wait any longer."""

    def hurry(self) -> None:
        """End the wait now."""
        self.hurried = True
        if self._deadline is not None:
            self._deadline.cancel()

    def left(self, end: float) -> float:
        """Seconds until that time of the reactor's clock, or a moment."""
        return max(end - float(self._reactor.seconds()), MOMENT)

    async def in_time(self, result: Deferred[Any], end: float) -> bool:
        """Wait for a result until that time, or a moment; False if it did not come, or failed."""
        try:
            await result.addTimeout(self.left(end), self._reactor)
        except Exception as error:
            _log.debug("Not waited for any longer: {error}", error=error)
            return False
        return True

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something is true, or the time is over, or somebody hurries."""
        end = self._reactor.seconds() + seconds
        while not condition() and self._reactor.seconds() < end:
            self._deadline = deferLater(self._reactor, LOOK)
            try:
                await self._deadline
            except CancelledError:
                break
            finally:
                self._deadline = None
