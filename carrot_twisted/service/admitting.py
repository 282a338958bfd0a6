# SPDX-License-Identifier: Apache-2.0
"""Looks at limits whose time has come, and has those tasks run here that they let start.

Mostly who ends a run lets the next one start, in the writer's thread. This is for what time brings,
as a rate does, and for what nobody has done: its worker was killed, or a row was deleted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from carrot_twisted import task_options
from carrot_twisted.admission import Request
from carrot_twisted.identities import new_token
from carrot_twisted.service.chore import Chore
from carrot_twisted.service.operations import Admit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from carrot_twisted.records import Claimed
    from carrot_twisted.service.dispatcher import Dispatcher
    from carrot_twisted.service.log_writer import LogWriter

#: Seconds between looks; they cost a query on an index that holds limits somebody waits for.
INTERVAL = 1.0
#: So many times as long where no task is under a limit.
REST = 15
#: The least of them, where a rate lets the next task start sooner.
LEAST = 0.02


class Admitting:
    """Part of a service. In the reactor, but for the methods noted otherwise.

    Args:
        dispatchers: who runs tasks.
        writer: the way to the database.
        ring: called in the reactor when there is something new in the outbox.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        dispatchers: Sequence[Dispatcher],
        writer: LogWriter,
        ring: Callable[[], None],
        reactor: Any,
    ) -> None:
        self._dispatchers = {dispatcher.name: dispatcher for dispatcher in dispatchers}
        self._writer = writer
        self._reactor = reactor
        chore = Chore("The worker looks at limits", reactor.seconds)
        self._loop = LoopingCall(chore.attempt, self._look_by_time)
        self._loop.clock = reactor
        self._looks = False
        self._turns = 0
        self._timer: Any = None
        writer.admissions.places = self._places
        writer.admissions.hand_over = self._hand_over
        writer.admissions.on_ring = partial(reactor.callFromThread, ring)
        writer.admissions.on_look = self._on_look

    def start(self) -> None:
        """Begin, with a look at once."""
        self._loop.start(INTERVAL, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _look_by_time(self) -> None:
        # Where no task has a limit any more, rows may wait that had one.
        self._turns += 1
        if task_options.any_limited() or self._turns % REST == 1:
            self.look()

    def look(self) -> None:
        """Look, unless the last look has not ended yet."""
        if not self._looks and not self._writer.away:
            self._looks = True
            request = Request(token=new_token(), due=True)
            self._writer.submit(Admit(request=request, done=self._looked))

    def _looked(self, _seconds: float | None) -> None:
        """On the writer's thread."""
        self._looks = False

    def _on_look(self, seconds: float) -> None:
        """On the writer's thread: a limit lets the next one start in so many seconds."""
        if seconds < INTERVAL:
            self._reactor.callFromThread(self._look_in, max(seconds, LEAST))

    def _look_in(self, seconds: float) -> None:
        if not self._loop.running:
            return
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._reactor.seconds() + seconds:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(seconds, self.look)

    def _places(self, ended: Mapping[str, int]) -> dict[str, int]:
        """On the writer's thread."""
        found = {}
        for name, dispatcher in self._dispatchers.items():
            places = dispatcher.places(ended.get(name, 0))
            if places is not None:
                found[name] = places
        return found

    def _hand_over(self, rows: Sequence[Claimed]) -> None:
        """On the writer's thread."""
        by_queue: dict[str, list[Claimed]] = {}
        for one in rows:
            by_queue.setdefault(one.queue, []).append(one)
        for name, mine in by_queue.items():
            self._dispatchers[name].hand_over(mine, mine[0].token)
