# SPDX-License-Identifier: Apache-2.0
"""The process of one service: Django's set-up, signals, readiness, exit status.

``startService`` is the first that touches Django, a socket or a thread: twistd has become a daemon
by then, and given up root.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from txaio.tx import make_logger

from carrot_twisted.service import following, log_levels, process_end
from carrot_twisted.service.notify import Notifier
from carrot_twisted.service.reactor_watch import ReactorWatch
from carrot_twisted.service.watchdog import Watchdog

if TYPE_CHECKING:
    from carrot_twisted.service.consumption import Consumption
    from carrot_twisted.service.engine import Engine
    from carrot_twisted.service.engine_options import ServiceOptions
    from carrot_twisted.service.guise import Guise
    from carrot_twisted.service.health import HealthServer
    from carrot_twisted.service.pid_file import PidFile
    from carrot_twisted.service.web import WebServer

_log = make_logger()

#: Seconds that a stop gets after the second signal.
HURRIED = 7.0


class _Misconfigured(Exception):
    """The service cannot start with these settings."""


class CarrotService(Service):
    """The process: Django's set-up, signals, exit status. The work is the engine's.

    Args:
        settings_module: dotted path of the Django settings; None: a callback without a project.
        options: the engine's options.
        folder: the project's folder, put on the import path; None if that is done.
        nodaemon: twistd stays in the foreground.
        log_file: twistd's; None: standard output.
        pid_file: held by this process.
        guise: in which twistd starts us; dropped when root is needed.
        consume: arguments of ``consume``, instead of tasks; "callback" is its path.
        web: endpoint at which pages are served; None: none are.
        number: of this worker, if there are several; None: it is alone.
        http: endpoint at which health and metrics are served; None: they are not.
    """

    name = "carrot"

    def __init__(
        self,
        settings_module: str | None,
        options: dict[str, Any],
        folder: str | None,
        nodaemon: bool,
        log_file: str | None = None,
        pid_file: PidFile | None = None,
        guise: Guise | None = None,
        consume: dict[str, Any] | None = None,
        web: str | None = None,
        number: int | None = None,
        http: str | None = None,
    ) -> None:
        self._number = number
        self._settings_module = settings_module
        self._options = options
        self._folder = folder
        self._nodaemon = nodaemon
        self._log_file = log_file
        self._pid_file = pid_file
        self._guise = guise
        self._consume = consume
        self._web_endpoint = web
        self._web: WebServer | None = None
        self._http_endpoint = http
        self._http: HealthServer | None = None
        self._terminal = None if nodaemon else _terminal()
        self._engine: Engine | Consumption | None = None
        self._started = False
        self._reactor: Any = None
        self._watch: ReactorWatch | None = None
        self._watchdog: Watchdog | None = None
        self._signals = 0
        self._ending = False
        self._notifier = Notifier()
        self._looking: Any = None

    def privilegedStartService(self) -> None:
        """twistd has its files, and is about to change the user for good."""
        super().privilegedStartService()
        if self._guise is not None:
            self._guise.drop()

    def startService(self) -> None:
        """Set up Django and start the engine."""
        super().startService()
        from twisted.internet import reactor

        self._reactor = reactor
        # Twisted's clock is the wall's: a clock that is set would stall or fire every timer.
        self._reactor.seconds = time.monotonic
        process_end.on_signals(self._end_before_beginning)
        if self._number is not None:
            following.follow(self._stop_without_monitor, reactor)
        if self._pid_file is not None:
            self._pid_file.write(os.getpid())
            self._pid_file.let_go_in_children()
            self._reactor.addSystemEventTrigger("after", "shutdown", self._pid_file.remove)
        if self._folder is not None and self._folder not in sys.path:
            sys.path.insert(0, self._folder)
        if self._settings_module is not None:
            os.environ["DJANGO_SETTINGS_MODULE"] = self._settings_module
        try:
            self._engine = self._make_engine()
            self._http = self._make_http(self._engine)
            log_levels.respect()
        except _Misconfigured as error:
            self._refuse(str(error))
        else:
            self._reactor.callWhenRunning(self._begin)
        finally:
            if self._terminal is not None:
                os.close(self._terminal)
        self._reactor.addSystemEventTrigger("after", "shutdown", process_end.end_in_time)
        # Else a second signal kills the interpreter while it tidies up, and the status is not 0.
        self._reactor.addSystemEventTrigger(
            "after", "shutdown", process_end.on_signals, signal.SIG_IGN
        )

    def _make_engine(self) -> Engine | Consumption:
        from carrot_twisted.exceptions import CarrotConfigException

        try:
            from django.core.exceptions import ImproperlyConfigured

            from carrot_twisted import conf

            conf.set_up()
        except ImportError as error:
            raise _Misconfigured(
                f"Settings {self._settings_module!r} or an app cannot be imported: {error}. "
                "Start twistd in the folder of manage.py, or set PYTHONPATH."
            ) from error
        except CarrotConfigException as error:
            raise _Misconfigured(str(error)) from error
        except (ImproperlyConfigured, ValueError, LookupError, SyntaxError) as error:
            raise _Misconfigured(f"Django does not start: {error}") from error
        except (Exception, SystemExit) as error:
            # The project's own code: only the traceback says where.
            raise _Misconfigured(f"Django does not start: {_traceback()}") from error
        if self._consume is not None:
            return self._make_consumption(**self._consume)
        from carrot_twisted import checks
        from carrot_twisted.service.engine import Engine

        try:
            checks.require()
            engine = Engine(
                conf.current(),
                self._engine_options(),
                self._reactor,
                on_fatal=self._fatal,
                on_crash=self._crash,
                on_recycle=self._recycle,
                on_stop=self._stop_on_request,
            )
            self._web = self._make_web()
        except CarrotConfigException as error:
            raise _Misconfigured(str(error)) from error
        except (Exception, SystemExit) as error:
            # A consumer class of the project's: only the traceback says where.
            raise _Misconfigured(f"No consumer is made: {_traceback()}") from error
        return engine

    def _make_web(self) -> WebServer | None:
        if self._web_endpoint is None:
            return None
        from carrot_twisted.exceptions import CarrotConfigException
        from carrot_twisted.service.web import WebServer

        try:
            return WebServer(self._web_endpoint, self._reactor)
        except CarrotConfigException as error:
            raise _Misconfigured(str(error)) from error
        except (Exception, SystemExit) as error:
            # The project's URLs and middleware: only the traceback says where.
            raise _Misconfigured(f"No pages can be served: {_traceback()}") from error

    def _make_http(self, engine: Engine | Consumption) -> HealthServer | None:
        if self._http_endpoint is None:
            return None
        from carrot_twisted.exceptions import CarrotConfigException
        from carrot_twisted.service.health import HealthServer

        try:
            return HealthServer(self._http_endpoint, engine, self._reactor)
        except CarrotConfigException as error:
            raise _Misconfigured(str(error)) from error

    def _make_consumption(self, callback: str, **arguments: Any) -> Consumption:
        from carrot_twisted import callbacks
        from carrot_twisted.exceptions import CarrotConfigException, InvalidCallback
        from carrot_twisted.service.consumption import Consumption

        try:
            called = callbacks.prepared(callbacks.load(callback))
            queues = callbacks.queues_of(called, **arguments)
        except (CarrotConfigException, InvalidCallback) as error:
            raise _Misconfigured(str(error)) from error
        except (Exception, SystemExit) as error:
            # The project's own code: only the traceback says where.
            raise _Misconfigured(f"The callback fails: {_traceback()}") from error
        timeout = self._options["shutdown_timeout"]
        consumption = Consumption(queues, self._reactor, timeout)
        for consumer in consumption.consumers:
            consumer.result.addErrback(self._consumer_ended)
        return consumption

    def _consumer_ended(self, failure: Any) -> None:
        """Its dispatcher has told why."""
        from carrot_twisted.service.consumption import status_of

        process_end.exit_with(status_of(failure.value))
        self._stop_reactor()

    def _engine_options(self) -> ServiceOptions:
        from carrot_twisted.service.engine_options import ServiceOptions

        return ServiceOptions(**self._options)

    def _begin(self) -> None:
        # The reactor has put its own handlers there. twistd ends itself with the signal it was
        # stopped by; a clean stop shall exit with 0.
        process_end.on_signals(self._on_signal)
        assert self._engine is not None
        _log.info(
            "carrot starts as worker {name} for {settings}",
            name=self._engine.name,
            settings=self._settings_module or "a callback",
        )
        self._watch = ReactorWatch(self._log_file, self._reactor)
        self._watch.start()
        engine = self._engine
        self._watchdog = Watchdog(self._notifier, lambda: engine.silence, self._reactor)
        self._watchdog.start()
        Deferred.fromCoroutine(self._start()).addErrback(self._crash)
        self._notifier.tell(
            STATUS="Starting: not yet consuming from all queues",
            **{following.STOP_SECONDS: f"{engine.longest_stop + process_end.LAST_MOMENT:g}"},
        )
        self._tell_state()

    async def _start(self) -> None:
        from carrot_twisted.exceptions import CarrotConfigException

        assert self._engine is not None
        for server in (self._http, self._web):
            try:
                if server is not None:
                    await server.start()
            except CarrotConfigException as error:
                self._fatal(str(error))
                return
        if not self._ending:
            self._started = True
            await self._engine.start()
        if self._http is not None and not self._ending:
            self._http.started()

    def _tell_state(self) -> None:
        """Say when it is ready, and from then on what keeps it from working."""
        engine = self._engine
        assert engine is not None
        status = "; ".join(engine.problems) or engine.summary
        interval = self._notifier.tell_news(ready=engine.consuming, status=status)
        if self._notifier.is_heard:
            self._looking = self._reactor.callLater(interval, self._tell_state)

    def _on_signal(self, number: int, _frame: Any) -> None:
        if number == signal.SIGHUP and self._signals:
            # A terminal that is closed sends it twice, by way of the shell and by itself.
            return
        if number == signal.SIGTERM and self._signals and self._number is not None:
            # Once from a supervisor that tells every process, and once passed on: see Workers.
            return
        self._signals += 1
        first = self._signals == 1
        self._reactor.callFromThread(self._stop_on_request if first else self._hurry)
        assert self._engine is not None
        # From here: if something holds up the reactor, it does not get to the other one.
        process_end.later(
            (self._engine.longest_stop if first else HURRIED) + process_end.LAST_MOMENT,
            process_end.leave_by_force,
        )

    def _end_before_beginning(self, _number: int, _frame: Any) -> None:
        """Django is being set up, which may take long; nothing of ours has begun."""
        with suppress(Exception):
            # Perhaps a line was being written just now.
            _log.info("Stopped before anything has begun")
        if self._pid_file is not None:
            self._pid_file.remove()
        process_end.exit_now()

    def _stop_on_request(self) -> None:
        _log.info("Stopping on request; a second signal ends at once")
        # Also where it was about to make room for a fresh process.
        process_end.stay_ended()
        self._stop_reactor()

    def _stop_without_monitor(self) -> None:
        _log.critical("The process that watches over the workers is gone: stopping")
        self._stop_reactor()

    def _recycle(self, reason: str) -> None:
        _log.info("Stopping, a fresh process should take over: {reason}", reason=reason)
        process_end.exit_with(process_end.EXIT_RECYCLE)
        self._stop_reactor()

    def _stop_reactor(self) -> None:
        if self._reactor.running and not self._ending:
            self._ending = True
            if self._engine is not None:
                process_end.later(
                    self._engine.longest_stop + process_end.LAST_MOMENT, process_end.leave_by_force
                )
            self._reactor.stop()

    def _hurry(self) -> None:
        if self._web is not None:
            self._web.hurry()
        if self._engine is not None:
            self._engine.hurry()

    def stopService(self) -> Deferred[None]:
        """Drain: the reactor runs until this has fired."""
        super().stopService()
        self._ending = True
        if self._looking is not None and self._looking.active():
            self._looking.cancel()
        return Deferred.fromCoroutine(self._stop()).addErrback(self._crash)

    async def _stop(self) -> None:
        if self._engine is not None:
            running, what = self._engine.running, self._engine.work
            self._notifier.tell(
                STOPPING="1", STATUS=f"Stopping; {running} {what} are still running"
            )
            if self._http is not None:
                self._http.stopping()
            # No new requests from now on; those under way end while tasks do.
            web = succeed(True) if self._web is None else Deferred.fromCoroutine(self._web.stop())
            clean = await self._engine.stop() if self._started else True
            clean = await web and clean
            if self._http is not None:
                await self._http.stop()
            _log.info("Stopped; {n} {what} were run", n=self._engine.finished, what=what)
            if self._watch is not None:
                self._watch.stop()
            if self._watchdog is not None:
                self._watchdog.stop()
            # The reactor waits for its threads now: for a look-up of a name, for example.
            process_end.end_in_time()
            if not clean:
                # A thread that is stuck must not hold up the end of the process.
                process_end.exit_with(0)

    def _fatal(self, text: str) -> None:
        _log.critical("{text}", text=text)
        process_end.exit_with(process_end.EXIT_CONFIG)
        self._stop_reactor()

    def _crash(self, failure: Any) -> None:
        _log.failure("The service met an error that it cannot live with", failure=failure)
        process_end.exit_with(process_end.EXIT_CRASH)
        self._stop_reactor()

    def _refuse(self, text: str) -> None:
        if self._nodaemon:
            # Not SystemExit: the reactor's shutdown tidies up.
            self._reactor.callWhenRunning(self._fatal, text)
            return
        _log.critical("{text}", text=text)
        # By itself twistd tells the command that was typed 98 characters of an exception.
        assert self._terminal is not None
        os.write(self._terminal, f"carrot: {text}\n".encode(errors="replace"))
        if self._pid_file is not None:
            self._pid_file.remove()
        process_end.exit_with(process_end.EXIT_CONFIG)
        process_end.end_in_time()
        raise RuntimeError("carrot cannot start, for the reason above")


def _terminal() -> int:
    """Standard error for later: as a daemon, twistd has none."""
    try:
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _traceback() -> str:
    """That of the exception being handled; its lines of code may hold a broker's URL."""
    return re.sub(r"(://[^:/@\s]*:)\S+@", r"\1***@", traceback.format_exc())
