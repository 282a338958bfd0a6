# SPDX-License-Identifier: Apache-2.0
"""Writes rows that tell of messages in a process that asks nothing else of the database.

A database that is away costs rows, never a message nor its callback: it is not asked before there
is a row to write, and nothing waits for it but the writer's own thread. Times in the rows are
those of this machine, which has no heartbeat to compare clocks by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from txaio.tx import make_logger

from carrot_twisted.service.journal import Journal
from carrot_twisted.service.log_writer import LogWriter

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from carrot_twisted.service.journal import Handled

_log = make_logger()


class RowWriter:
    """A journal with a writer of its own.

    Args:
        using: database alias.
        worker: name of this process.
        limit: characters that are kept of a body.
        reactor: Twisted's reactor.
    """

    def __init__(self, using: str, worker: str, limit: int, reactor: Any) -> None:
        self._writer = LogWriter(
            _no_claims,
            using,
            reactor,
            away="is away, rows of messages wait for it",
            on_away=lambda _reason: None,
            on_back=lambda: None,
            on_broken=self._broken,
        )
        self._journal = Journal(self._writer, worker, limit, reactor)

    @property
    def problem(self) -> str | None:
        """Why nothing can be written just now, for people; None if all is well."""
        return self._writer.problem

    @property
    def silence(self) -> float:
        """Seconds since its thread has last shown that it works; 0 while it has nothing to do."""
        return self._writer.silence

    def note(self, handled: Handled) -> None:
        """A message is settled. From the reactor; never waits."""
        self._journal.note(handled)

    def start(self) -> None:
        """Start the thread."""
        self._writer.start()

    def give_up(self) -> None:
        """Do not wait for a database that is away any longer: its rows are left out."""
        self._writer.give_up()

    async def end(self, seconds: float) -> bool:
        """Write what is left. Returns whether that is over, as ``LogWriter.end``."""
        ended = await self._writer.end(seconds)
        if not ended:
            _log.error("The database did not answer; the last messages have no rows")
        self._journal.stop()
        return ended

    def _broken(self, failure: Failure) -> None:
        """The journal counts what is left out."""
        _log.failure("Rows of messages met an error that is no database's", failure=failure)


def _no_claims(_alone: bool) -> NoReturn:
    raise AssertionError("no rows are claimed here")
