# SPDX-License-Identifier: Apache-2.0
"""Has it noted which messages that come again are being handled: in batches, by the writer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

if TYPE_CHECKING:
    from collections.abc import Collection

    from twisted.internet.defer import Deferred

    from carrot_twisted.begun_message import Losses
    from carrot_twisted.service.log_writer import LogWriter

_log = make_logger()


class LossCounter:
    """Counts processes that are lost while messages are handled, for all queues of one process.

    Args:
        losses: reads and writes the records.
        writer: has that done.
        reactor: Twisted's reactor.
    """

    def __init__(self, losses: Losses, writer: LogWriter, reactor: Any) -> None:
        self._losses = losses
        self._writer = writer
        self._reactor = reactor
        self._ended: list[str] = []
        self._busy = False

    def begin(self, fingerprints: Collection[str], *, alone: bool) -> Deferred[dict[str, int]]:
        """See ``Losses.begin``."""
        return self._writer.call(partial(self._losses.begin, fingerprints, alone=alone))

    def may_begin(self, lost: int, *, alone: bool) -> bool:
        """See ``Losses.may_begin``."""
        return self._losses.may_begin(lost, alone=alone)

    def is_too_much(self, lost: int) -> bool:
        """See ``Losses.is_too_much``."""
        return self._losses.is_too_much(lost)

    def end(self, fingerprint: str) -> None:
        """A message is not being handled any more."""
        self._ended.append(fingerprint)
        if not self._busy:
            self._busy = True
            self._reactor.callLater(0, self._end_all)

    def _end_all(self) -> None:
        """While the database has one batch the next collects."""
        ended, self._ended = self._ended, []
        self._busy = bool(ended)
        if not ended:
            return
        # Where this fails only a loss may be counted that was none, if the message comes again.
        done = self._writer.call(partial(self._losses.end, ended)).addErrback(
            lambda failure: _log.debug("Ended messages are not noted: {e}", e=failure.value)
        )
        done.addCallback(lambda _: self._end_all())
