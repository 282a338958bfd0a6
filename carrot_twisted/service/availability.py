# SPDX-License-Identifier: Apache-2.0
"""Whether the database is there for the log writer, as its attempts show: for the log and people.

A database that does not answer is *away*. One in which others' transactions are in the way is
*obstructed*: it takes some of what is written, and nothing pauses for that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import outcomes
from carrot_twisted.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

_log = make_logger()

#: Characters that are told of the database's words.
MAX_REASON = 500
#: Seconds after which a database that has neither answered nor refused is told to be silent.
SILENT = 5.0


class Availability:
    """Is told on the writer's thread; can be asked from any.

    Args:
        reactor: Twisted's reactor.
        words: what the log says when the database stops answering, before the reason.
        on_away: called in the reactor then, with the reason.
        on_back: called in the reactor when it answers again.
    """

    def __init__(
        self,
        reactor: Any,
        words: str,
        on_away: Callable[[str], None],
        on_back: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._words = words
        self._on_away = on_away
        self._on_back = on_back
        self._outage = Outage(time.monotonic)
        #: Others' transactions are in the way of what is to be written.
        self._obstruction = Outage(time.monotonic)
        #: When the database was asked what it has not answered yet.
        self._asked: float | None = None
        #: When the thread has last begun or ended something; None: it has nothing to do.
        self._sign: float | None = None

    @property
    def silence(self) -> float:
        """Seconds since the thread has last shown that it works; 0 while it has nothing to do.

        A database that is away is asked again and again: each time is a sign.
        """
        sign = self._sign
        return 0.0 if sign is None else time.monotonic() - sign

    @property
    def away(self) -> bool:
        """Whether the database did not answer the last time."""
        return self._outage.reason is not None

    @property
    def problem(self) -> str | None:
        """Why nothing can be written just now, for people; None if all is well."""
        for trouble, what in (
            (self._outage, "is away"),
            (self._obstruction, "does not take everything"),
        ):
            reason = trouble.reason
            if reason is not None:
                return f"the database {what} since {trouble.seconds:.0f} s: {reason}"
        asked = self._asked
        if asked is not None and (silent := time.monotonic() - asked) > SILENT:
            return f"the database has not answered for {silent:.0f} s"
        return None

    def rests(self) -> None:
        """The thread has nothing to do."""
        self._sign = None

    def works(self) -> None:
        """The thread has something to do."""
        self._sign = time.monotonic()

    def asked(self) -> None:
        """The database is asked for something."""
        self._asked = self._sign = time.monotonic()

    def answered(self) -> None:
        """It has answered, or refused."""
        self._asked = None
        self._sign = time.monotonic()

    def is_away(self, error: Exception) -> None:
        """It did not answer, or is not fit to."""
        begins = not self.away
        reason = outcomes.exception_line(error, MAX_REASON)
        told = self._outage.failed(reason)
        if told is not None:
            what = self._words if begins else "is still away"
            _log.error("The database {what}: {reason}", what=what, reason=told)
        if begins:
            self._reactor.callFromThread(self._on_away, reason)

    def is_obstructed(self, error: Exception) -> None:
        """Others' transactions were in the way."""
        told = self._obstruction.failed(outcomes.exception_line(error, MAX_REASON))
        if told is not None:
            _log.warn("The database does not take everything: {reason}", reason=told)

    def is_back(self, everything: bool) -> None:
        """The database has done something: it is there, whatever it may not have done.

        Args:
            everything: nothing waits for others' transactions.
        """
        if self.away:
            after = self._outage.over()
            if after is not None:
                _log.info("The database is back{after}", after=after)
            self._reactor.callFromThread(self._on_back)
        if everything:
            after = self._obstruction.over()
            if after:
                _log.info("The database takes everything{after}", after=after)
