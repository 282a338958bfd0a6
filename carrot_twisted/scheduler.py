# SPDX-License-Identifier: Apache-2.0
"""Looks for due schedules, once a second, and at the moment of each slot in between."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from django.db import close_old_connections, router, transaction
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from carrot_twisted import failpoints, schedules
from carrot_twisted.histograms import Durations
from carrot_twisted.models import MessageLog
from carrot_twisted.service.chore import Chore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from carrot_twisted.models import ScheduledTask

#: Seconds between looks.
INTERVAL = schedules.AHEAD.total_seconds()
#: Seconds until what had to be done before the first look is tried again.
BEFORE_RETRY = 10.0
#: Seconds that a look waits at least for a slot: the clocks' ways to tell time differ.
SHORTEST = 0.001


class Database(Protocol):
    """Where the work is done. The service's is its ``LogWriter``."""

    @property
    def away(self) -> bool:
        """Whether it did not answer the last time, and tells so itself."""

    def call(
        self, function: Callable[[], Any], if_any: Callable[[], bool] | None = None
    ) -> Deferred[Any]:
        """Run ``function`` off the reactor's thread, in a transaction; fires with its result.

        Unless ``if_any``, asked before that and outside of it, says no: then with None.
        """


class ScheduledTaskManager:
    """Publishes due schedules, as long as it runs (see ``schedules``). One or many per database.

    Usable in any running reactor, then without arguments. ``start``, ``stop`` and ``add_task`` are
    called on the reactor's thread. The names are django-carrot's; it had a thread per schedule.

    Args:
        filters: look after these schedules only, as keyword arguments of ``filter()``. Schedules
            that are not active never run.
        run_now: publish each of them once at the start.
        database: the way to the database; by default the reactor's threads.
        using: database alias; by default that of ``MessageLog``.
        reactor: Twisted's reactor; by default the installed one.
        before: called in a transaction each, before the first look. What raises, or returns False,
            is called again after BEFORE_RETRY seconds; schedules are published meanwhile.
    """

    def __init__(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        run_now: bool = False,
        database: Database | None = None,
        using: str | None = None,
        reactor: Any = None,
        before: Sequence[Callable[[], object]] = (),
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        using = using or router.db_for_write(MessageLog)
        self._reactor = reactor
        self._database = database or _Threads(using, reactor)
        self.lateness = Durations()
        """How late its schedules were published, since the start."""
        self._publish = partial(schedules.look, using, filters, self.lateness.add)
        self._is_any_due = partial(schedules.is_any_due, using)
        self._before: list[Callable[[], object]] = [*before]
        self._before.append(partial(schedules.try_again, using, filters))
        if run_now:
            self._before.append(partial(schedules.publish_all, using, filters))
        self._before_at = 0.0
        self._preparing = Chore("The scheduler prepares its schedules", reactor.seconds)
        self._publishing = Chore("The scheduler looks for due schedules", reactor.seconds)
        self._looking = False
        self._again = False
        self._wake: Any = None
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin, with a look at once."""
        self._loop.start(INTERVAL, now=True)

    def stop(self) -> None:
        """Look no more. What is being published now is published."""
        if self._loop.running:
            self._loop.stop()
        self._wake_in(None)

    def add_task(self, task: ScheduledTask) -> None:
        """Look now: a schedule that was just saved need not wait for the next look."""
        if self._loop.running:
            self._look()

    def _look(self) -> Deferred[None]:
        if self._looking:
            self._again = True
            return succeed(None)

        def failed(failure: Failure) -> None:
            self._failed(self._publishing, failure)

        # A LoopingCall ends at its first failure; this one goes on.
        looked = Deferred.fromCoroutine(self._work())
        return looked.addCallbacks(lambda _: self._publishing.succeeded(), failed)

    def _failed(self, chore: Chore, failure: Failure) -> None:
        if not self._database.away:
            chore.failed(failure)

    async def _work(self) -> None:
        self._looking = True
        try:
            if self._before and self._reactor.seconds() >= self._before_at:
                self._before_at = self._reactor.seconds() + BEFORE_RETRY
                self._before = [one for one in self._before if not await self._is_done(one)]
                if not self._before:
                    self._preparing.succeeded()
            wait: float | None = 0.0
            while self._loop.running and (wait == 0 or self._again):
                self._again = False
                wait = await self._database.call(self._publish, self._is_any_due)
                if wait == 0:
                    failpoints.reached("after_schedule_commit")
            self._wake_in(wait)
        finally:
            self._looking = False

    async def _is_done(self, function: Callable[[], object]) -> bool:
        try:
            return await self._database.call(function) is not False
        except Exception:
            self._failed(self._preparing, Failure())
            return False

    def _wake_in(self, seconds: float | None) -> None:
        """Look again at the moment of the next slot, if that comes before the next look."""
        if self._wake is not None and self._wake.active():
            self._wake.cancel()
        self._wake = None
        if seconds is not None and self._loop.running:
            self._wake = self._reactor.callLater(max(seconds, SHORTEST), self._look)


class _Threads:
    """The reactor's own threads, outside of the service."""

    away = False

    def __init__(self, using: str, reactor: Any) -> None:
        self._using = using
        self._reactor = reactor

    def call(
        self, function: Callable[[], Any], if_any: Callable[[], bool] | None = None
    ) -> Deferred[Any]:
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, self._run, function, if_any)

    def _run(self, function: Callable[[], Any], if_any: Callable[[], bool] | None) -> Any:
        try:
            if if_any is not None and not if_any():
                return None
            with transaction.atomic(using=self._using):
                return function()
        finally:
            close_old_connections()
