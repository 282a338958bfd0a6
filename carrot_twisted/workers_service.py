# SPDX-License-Identifier: Apache-2.0
"""The process of ``twistd carrot --workers=4``: it watches over the others.

To whoever started it, it is the service: one pid file, one log, one signal to stop, one word of
readiness.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from txaio.tx import make_logger

from carrot_twisted.service import process_end
from carrot_twisted.service.notify import READY_INTERVAL, Notifier
from carrot_twisted.service.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carrot_twisted.service.guise import Guise
    from carrot_twisted.service.pid_file import PidFile
    from carrot_twisted.service.workers import Workers

_log = make_logger()


class WorkersService(Service):
    """The process that watches over several others, each with a ``CarrotService``.

    It sets up no Django: what is wrong with the settings is told by those.

    Args:
        count: how many.
        arguments: of the service, as they were given.
        folder: the project's folder, put on their import path; None if that is done.
        settings_module: as for ``CarrotService``.
        pid_file: held by this process.
        guise: in which twistd starts us; dropped when root is needed.
    """

    name = "carrot"

    def __init__(
        self,
        count: int,
        arguments: Sequence[str],
        folder: str | None,
        settings_module: str | None,
        pid_file: PidFile | None,
        guise: Guise | None,
    ) -> None:
        self._count = count
        self._arguments = arguments
        self._path = [*([] if folder is None else [folder]), *sys.path]
        self._settings_module = settings_module
        self._pid_file = pid_file
        self._guise = guise
        self._notifier = Notifier()
        self._reactor: Any = None
        self._workers: Workers | None = None
        self._watchdog: Watchdog | None = None
        self._signals = 0
        self._telling = LoopingCall(self._tell_state)

    def privilegedStartService(self) -> None:
        """twistd has its files, and is about to change the user for good."""
        super().privilegedStartService()
        if self._guise is not None:
            self._guise.drop()

    def startService(self) -> None:
        """Start the processes."""
        super().startService()
        from twisted.internet import reactor

        from carrot_twisted.service import workers

        self._reactor = self._telling.clock = reactor
        self._reactor.seconds = time.monotonic
        if self._pid_file is not None:
            self._pid_file.write(os.getpid())
            self._reactor.addSystemEventTrigger("after", "shutdown", self._pid_file.remove)
        self._reactor.addSystemEventTrigger(
            "after", "shutdown", process_end.on_signals, signal.SIG_IGN
        )
        environment = dict(os.environ)
        if self._settings_module is not None:
            environment["DJANGO_SETTINGS_MODULE"] = self._settings_module
        self._workers = workers.Workers(
            self._count,
            workers.command(self._arguments, self._path),
            environment,
            self._reactor,
            self._end,
            self._notifier.watchdog or workers.SIGNS,
        )
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        process_end.on_signals(self._on_signal)
        assert self._workers is not None
        _log.info("carrot starts {n} workers", n=self._count)
        self._workers.startService()
        self._watchdog = Watchdog(self._notifier, lambda: 0.0, self._reactor)
        self._watchdog.start()
        if self._notifier.is_heard:
            self._telling.start(READY_INTERVAL)

    def _tell_state(self) -> None:
        assert self._workers is not None
        self._telling.interval = self._notifier.tell_news(
            ready=self._workers.ready, status=self._workers.status
        )

    def _on_signal(self, number: int, _frame: Any) -> None:
        if number == signal.SIGHUP and self._signals:
            return
        self._signals += 1
        self._reactor.callFromThread(self._stop_on_request if self._signals == 1 else self._hurry)

    def _stop_on_request(self) -> None:
        _log.info("Stopping on request; a second signal ends at once")
        self._end(0)

    def _hurry(self) -> None:
        if self._workers is not None:
            self._workers.hurry()

    def _end(self, status: int) -> None:
        if status:
            process_end.exit_with(status)
        if self._reactor.running:
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Wait until the processes have ended."""
        super().stopService()
        self._notifier.tell(STOPPING="1", STATUS="Stopping")
        if self._telling.running:
            self._telling.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._workers is None or not self._workers.running:
            return succeed(None)
        return self._workers.stopService()
