# SPDX-License-Identifier: Apache-2.0
"""What a service does again and again, and may fail each time: its failures in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import maybeDeferred
from txaio.tx import make_logger

from carrot_twisted import outcomes
from carrot_twisted.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

_log = make_logger()

#: Characters that are told of an error's text.
MAX_REASON = 200


class Chore:
    """One kind of such work. Told of how each attempt ended, it tells what is news.

    Args:
        name: who does what, for people: "The relay looks at the outbox".
        clock: seconds that only go forward.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._outage = Outage(clock)

    def attempt(self, work: Callable[[], object]) -> Deferred[None]:
        """Do it. For a LoopingCall, which ends at its first failure (Twisted ticket 1396)."""
        return maybeDeferred(work).addCallbacks(lambda _: self.succeeded(), self.failed)

    def failed(self, failure: Failure) -> None:
        """It has failed, and is going to be tried again."""
        error = failure.value
        assert error is not None
        reason = self._outage.failed(outcomes.exception_line(error, MAX_REASON))
        if reason is None:
            return
        if outcomes.is_conflict(error):
            _log.warn("{name}: others were in its way: {reason}", name=self._name, reason=reason)
        else:
            text = "{name}: it failed and goes on: {reason}"
            _log.failure(text, failure=failure, name=self._name, reason=reason)

    def succeeded(self) -> None:
        """It has not failed."""
        after = self._outage.over()
        if after:
            _log.info("{name}: it works{after}", name=self._name, after=after)
