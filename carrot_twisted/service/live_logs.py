# SPDX-License-Identifier: Apache-2.0
"""Has what long tasks have logged so far written to their rows, for people who look on.

Once a second the threads are looked at. A task that has run for a second and has logged something
new gets its log written with the next batch of the writer, as it is by then. The end of the task
writes it anew, so nothing depends on this; a service that is killed leaves what was written last.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from carrot_twisted.service.chore import Chore
from carrot_twisted.service.log_writer import Lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carrot_twisted.service.dispatcher import Dispatcher
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.task_logging import Transcript

#: Seconds between looks.
INTERVAL = 1.0
#: Seconds that a task has run before its log is written while it runs.
LONG = 1.0


class LiveLogs:
    """Looks at the threads of some dispatchers. In the reactor, but for ``_done``.

    Args:
        dispatchers: whose tasks are looked at.
        writer: the way to the database.
        limit: characters that are kept of a log.
        reactor: Twisted's reactor.
    """

    def __init__(
        self, *, dispatchers: Sequence[Dispatcher], writer: LogWriter, limit: int, reactor: Any
    ) -> None:
        self._dispatchers = dispatchers
        self._writer = writer
        self._limit = limit
        chore = Chore("The worker writes the logs of running tasks", reactor.seconds)
        self._loop = LoopingCall(chore.attempt, self._look)
        self._loop.clock = reactor
        #: What the writer has not written yet.
        self._under_way: set[Transcript] = set()

    def start(self) -> None:
        """Begin to look."""
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        if self._writer.away:
            return
        for dispatcher in self._dispatchers:
            for run in dispatcher.long_runs(LONG):
                transcript = run.transcript
                if transcript is None or transcript in self._under_way:
                    continue
                count = transcript.count
                if count > transcript.written:
                    self._under_way.add(transcript)
                    self._writer.submit(
                        Lines(
                            uuid=run.uuid,
                            token=run.token,
                            text=partial(transcript.text, self._limit),
                            done=partial(self._done, transcript, count),
                        )
                    )

    def _done(self, transcript: Transcript, count: int, written: bool) -> None:
        """On the writer's thread. What was not written is tried again with the next look."""
        if written:
            transcript.written = count
        self._under_way.discard(transcript)
