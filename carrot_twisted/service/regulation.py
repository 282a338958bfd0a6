# SPDX-License-Identifier: Apache-2.0
"""Has each queue consumed, or not, as the database and the operators let it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from txaio.tx import make_logger

from carrot_twisted.models import Worker
from carrot_twisted.records import Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.subscription import Subscription
    from carrot_twisted.service.working import Working

_log = make_logger()


class Regulation:
    """Part of a service, in the reactor.

    Args:
        queues: the name of each, what consumes it, and who works on its messages.
        writer: knows whether the database is away.
        on_stop: called when operators want this worker to stop.
        on_obeyed: called when it does what operators want otherwise: they are waiting to see it.
    """

    def __init__(
        self,
        *,
        queues: Sequence[tuple[str, Subscription, Working]],
        writer: LogWriter,
        on_stop: Callable[[], object],
        on_obeyed: Callable[[], object],
    ) -> None:
        self._queues = queues
        self._writer = writer
        self._on_stop = on_stop
        self._on_obeyed = on_obeyed
        #: What operators want, as of the last heartbeat.
        self._wishes = Wishes()
        self._stopped = False

    @property
    def quiet(self) -> bool:
        """Whether operators want this worker to take nothing more."""
        return self._wishes.command == Worker.QUIET

    @property
    def summary(self) -> str:
        """Which queues are consumed when there are no problems, for people."""
        if self.quiet:
            return "Quiet: it takes nothing more"
        paused = [name for name, _, _ in self._queues if name in self._wishes.paused]
        return f"Consuming; paused: {', '.join(paused)}" if paused else "Consuming from all queues"

    def stop(self) -> None:
        """Operators' wishes are no matter any more: the worker stops."""
        self._stopped = True

    def obey(self, wishes: Wishes) -> None:
        """Do what operators want."""
        before, self._wishes = self._wishes, wishes
        if self._stopped or wishes == before:
            return
        if wishes.command == Worker.STOP:
            _log.info("Operators want this worker to stop")
            self._on_stop()
            return
        if wishes.command != before.command:
            _log.info(
                "This worker takes nothing more, as operators want"
                if self.quiet
                else "This worker takes tasks and messages again, as operators want"
            )
        for name, _, _ in self._queues:
            if name in wishes.paused - before.paused:
                _log.info("Queue {queue} is paused, as operators want", queue=name)
            elif name in before.paused - wishes.paused:
                _log.info("Queue {queue} goes on, as operators want", queue=name)
        self._regulate()
        self._on_obeyed()

    def database_away(self) -> None:
        """Nothing can be claimed: consume nothing."""
        self._regulate()

    def database_back(self) -> None:
        """Consume again."""
        if not self._stopped:
            self._regulate()

    def _regulate(self) -> None:
        away = self._writer.away
        for name, subscription, dispatcher in self._queues:
            resting = self.quiet or name in self._wishes.paused
            if not (away or resting):
                dispatcher.resume()
            subscription.want(not away, resting)
            if away or resting:
                dispatcher.pause()
            if resting and not away:
                dispatcher.recall()
