# SPDX-License-Identifier: Apache-2.0
"""Has what long tasks have told so far written to their rows, for people who look on.

Once a second the threads are looked at. A task that has run for a second and has logged something
new, or has come further, gets that written with the next batch of the writer, as it is by then. The
end of the task writes it anew, so nothing depends on this; a service that is killed leaves what was
written last.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from carrot_twisted.service.chore import Chore
from carrot_twisted.service.operations import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.execution import Run
    from carrot_twisted.running import Progress
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
        on_long: called with each look that finds tasks which have run for LONG seconds.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        dispatchers: Sequence[Dispatcher],
        writer: LogWriter,
        limit: int,
        on_long: Callable[[], None],
        reactor: Any,
    ) -> None:
        self._dispatchers = dispatchers
        self._writer = writer
        self._limit = limit
        self._on_long = on_long
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
        runs = [run for dispatcher in self._dispatchers for run in dispatcher.long_runs(LONG)]
        if runs:
            self._on_long()
        for run in runs:
            transcript = run.transcript
            if transcript is None or transcript in self._under_way:
                continue
            count, progress = transcript.count, run.progress
            if count > transcript.written or progress is not run.told:
                self._under_way.add(transcript)
                self._writer.submit(
                    Lines(
                        uuid=run.uuid,
                        token=run.token,
                        text=partial(transcript.text, self._limit),
                        progress=None if progress is None else progress.column,
                        done=partial(self._done, run, transcript, count, progress),
                    )
                )

    def _done(
        self, run: Run, transcript: Transcript, count: int, progress: Progress | None, written: bool
    ) -> None:
        """On the writer's thread. What was not written is tried again with the next look."""
        if written:
            transcript.written = count
            run.told = progress
        self._under_way.discard(transcript)
