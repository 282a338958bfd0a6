# SPDX-License-Identifier: Apache-2.0
"""This worker's lease: taken when it starts, renewed by heartbeats, given back at its end.

While the lease is fresh, what is claimed in the worker's name counts as running. Who was not heard
of for longer has lost its lease: others take its tasks, and forget it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.db.migrations.executor import MigrationExecutor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from txaio.tx import make_logger

from carrot_twisted import outcomes, records
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.outage import Outage
from carrot_twisted.records import Claimant
from carrot_twisted.service.chore import Chore

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from twisted.python.failure import Failure

    from carrot_twisted.conf import CarrotSettings
    from carrot_twisted.records import Wishes
    from carrot_twisted.service.log_writer import LogWriter

_log = make_logger()

#: Seconds between attempts to reach the database at the start.
START_RETRY = 1.0
#: Heartbeats per lease: three may be lost before anybody takes this worker for dead. With the lease
#: of 10 s they come every other second, together with other looks at the database, which costs less
#: than to wake up once more for them.
BEATS_PER_LEASE = 5
#: Characters that are told of an error's text.
MAX_REASON = 500


class Lease:
    """In the reactor, but for the methods noted otherwise.

    Args:
        worker: this process.
        settings: for its length, and for what is done about lost tasks.
        writer: the way to the database.
        using: database alias.
        state: what the worker tells with a heartbeat. In the reactor, whose objects know what is
            wrong.
        runs: whether a row is claimed here under this token. Called on the writer's thread.
        on_wishes: called in the reactor with what operators want, as of a heartbeat.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        worker: Worker,
        settings: CarrotSettings,
        writer: LogWriter,
        using: str,
        state: Callable[[], dict[str, Any]],
        runs: Callable[[UUID, int | None], bool],
        on_wishes: Callable[[Wishes], None],
        reactor: Any,
    ) -> None:
        self._worker = worker
        self._seconds = settings.lease
        self._max_crashes = settings.max_crashes
        self._writer = writer
        self._using = using
        self._state = state
        self._runs = runs
        self._on_wishes = on_wishes
        self._reactor = reactor
        self.registered = False
        """The worker has a row, perhaps."""
        #: The database's time when the reactor's clock was at zero: this host's may be set.
        self._database_zero: float = time.time() - reactor.seconds()
        self._since: float | None = None
        self._last_beat = 0.0
        self._registering = Outage(reactor.seconds)
        self._renewing = Chore("The worker renews its lease", reactor.seconds)
        self._stopping = False
        self._start_wait: Deferred[Any] | None = None
        self._heartbeat = LoopingCall(self.beat)
        self._heartbeat.clock = reactor

    @property
    def now(self) -> float:
        """The database's time, as far as it is known: seconds since the epoch."""
        return float(self._reactor.seconds()) + self._database_zero

    async def register(self) -> bool:
        """Make this worker known. Waits for a database that is away.

        Returns:
            False: the worker is to stop.

        Raises:
            CarrotConfigException: the database lacks tables.
        """
        while not self._stopping:
            # From here on perhaps: a stop may come before the answer.
            self.registered = True
            try:
                await self._writer.call(self._register)
            except CarrotConfigException:
                self.registered = False
                raise
            except Exception as error:
                self.registered = False
                text = outcomes.exception_line(error, MAX_REASON)
                told = self._registering.failed(text)
                if told is not None:
                    _log.error("The database cannot be reached: {error}. Trying on", error=told)
            else:
                after = self._registering.over()
                if after:
                    _log.info("The database is reached{after}", after=after)
                return not self._stopping
            self._start_wait = deferLater(self._reactor, START_RETRY)
            try:
                await self._start_wait
            except CancelledError:
                pass
            finally:
                self._start_wait = None
        return False

    def stop_registering(self) -> None:
        """The worker is to stop: do not wait for the database."""
        self._stopping = True
        if self._start_wait is not None:
            self._start_wait.cancel()

    def start(self) -> None:
        """Renew it again and again."""
        self._heartbeat.start(self._seconds / BEATS_PER_LEASE, now=False)

    def stop(self) -> None:
        """Renew it no more."""
        if self._heartbeat.running:
            self._heartbeat.stop()

    def beat(self) -> Deferred[None]:
        """Renew it, tell the worker's state, and hear what operators want."""

        def late(failure: Failure) -> None:
            self._since = None
            if not self._writer.away:
                self._renewing.failed(failure)

        def renewed() -> Deferred[None]:
            self._worker.state = self._state()
            return self._writer.call(self._renew, is_atomic=False)

        return maybeDeferred(renewed).addCallbacks(lambda _: self._renewing.succeeded(), late)

    def database_away(self) -> None:
        """Others could not renew theirs either: for one lease nobody is judged by it."""
        self._since = None

    def claimant(self, alone: bool = False) -> Claimant:
        """In whose name rows are claimed, or judged.

        On the writer's thread, inside the transaction that does so.

        Args:
            alone: nothing else runs in this process.
        """
        if self._reactor.seconds() - self._last_beat > self._seconds / 2:
            # Frozen or cut off for so long, this worker may have been taken for dead and forgotten:
            # what it claims now would be taken from it while it runs.
            self._renew()
        since = self._since
        return Claimant(
            worker=self._worker.name,
            lease=self._seconds,
            max_crashes=self._max_crashes,
            alone=alone,
            judges=since is not None and self._reactor.seconds() - since > self._seconds,
            runs=self._runs,
        )

    def give_back(self) -> None:
        """Forget this worker, if nothing is in progress under its name. On the writer's thread."""
        name, logs = self._worker.name, MessageLog.objects.using(self._using)
        if not logs.filter(worker=name, status=MessageLog.IN_PROGRESS).exists():
            Worker.objects.using(self._using).filter(name=name).delete()

    def _register(self) -> None:
        """On the writer's thread."""
        executor = MigrationExecutor(connections[self._using])
        app = Worker._meta.app_label
        if executor.migration_plan(executor.loader.graph.leaf_nodes(app)):
            raise CarrotConfigException(
                f"Database {self._using!r} lacks tables or columns of carrot_twisted. "
                "Run: python manage.py migrate"
            )
        self._renew()

    def _renew(self) -> None:
        """On the writer's thread, so that what it does next knows of it."""
        database_time, wishes = records.heartbeat(self._worker, self._using)
        self._writer.clock_offset = database_time - time.time()
        now = self._reactor.seconds()
        self._database_zero = database_time - now
        if self._since is None or now - self._last_beat > self._seconds / 2:
            # So late, others may have lost their leases: the database was frozen, say.
            self._since = now
        # In others' eyes only then: the transaction may be rolled back.
        transaction.on_commit(partial(self._renewed, now, wishes), using=self._using)

    def _renewed(self, when: float, wishes: Wishes) -> None:
        self._last_beat = when
        self._reactor.callFromThread(self._on_wishes, wishes)
