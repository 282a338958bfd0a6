# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot``: its options, and the process around the engine.

``makeService`` runs before twistd becomes a daemon and gives up root: it touches neither Django
nor a socket nor a thread. ``startService`` does, in the process that stays.

twistd's own handling of its pid file has races, believes whatever number stands in the file, and
follows links: it is told that there is none, and the service holds that file (``PidFile``).
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.python import usage
from txaio.tx import make_logger, set_global_log_level

from carrot_twisted.callback_options import CallbackOptions
from carrot_twisted.limits import MAX_SECONDS
from carrot_twisted.service import following, json_log, log_levels
from carrot_twisted.service.guise import Guise
from carrot_twisted.service.notify import Notifier
from carrot_twisted.service.pid_file import PidFile
from carrot_twisted.service.reactor_watch import ReactorWatch
from carrot_twisted.service.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.service.consumption import Consumption
    from carrot_twisted.service.engine import Engine, ServiceOptions
    from carrot_twisted.service.health import HealthServer
    from carrot_twisted.service.web import WebServer
    from carrot_twisted.service.workers import Workers

_log = make_logger()

EXIT_CRASH = 1
#: sysexits.h's EX_TEMPFAIL: a supervisor should start a fresh process.
EXIT_RECYCLE = 75
#: sysexits.h's EX_CONFIG: a supervisor should not try again.
EXIT_CONFIG = 78
#: Seconds that the interpreter gets to end, once the service has.
LAST_MOMENT = 3.0
#: Seconds that a stop gets after the second signal.
HURRIED = 7.0
#: Seconds between looks whether all queues are consumed, until they are.
READY_INTERVAL = 0.1
#: Seconds between looks whether they still are, for whoever listens.
STATE_INTERVAL = 1.0


def number(text: str) -> int:
    """Read a whole number above 0.

    Raises:
        ValueError: it is none.
    """
    value = int(text)
    if value < 1:
        raise ValueError("must be 1 or more")
    return value


def seconds(text: str) -> float:
    """Read a number of seconds above 0.

    Raises:
        ValueError: it is none, or more than a hundred years.
    """
    value = float(text)
    if not 0 < value <= MAX_SECONDS:
        raise ValueError("must be more than 0, and less than a hundred years")
    return value


def port_of(endpoint: str, number: int) -> str:
    """The endpoint of one of several processes: the first one's port, or one of the next ones.

    Args:
        endpoint: of Twisted's, for example "tcp:9090:interface=127.0.0.1".
        number: of the process, from 1.
    """

    def later(found: re.Match[str]) -> str:
        port = int(found[2])
        # 0: one that is free.
        return f"{found[1]}{port + number - 1 if port else 0}"

    return re.sub(r"^(\w+:(?:port=)?)(\d+)", later, endpoint)


def level(text: str) -> str:
    """Read a log level, in capital letters or small ones, and give it txaio's name.

    Raises:
        ValueError: it is none.
    """
    name = text.lower()
    name = {"warning": "warn"}.get(name, name)
    if name not in ("debug", "info", "warn", "error", "critical"):
        raise ValueError("must be one of debug, info, warning, error, critical")
    return name


def log_format(text: str) -> str:
    """Read the form of the log.

    Raises:
        ValueError: there is no such form.
    """
    if text not in ("text", "json"):
        raise ValueError("must be text or json")
    return text


class Options(CallbackOptions):
    """Options of ``twistd carrot``."""

    synopsis = "[twistd options] carrot --settings=proj.settings [options]"
    longdesc = (
        "Runs the tasks that a Django project publishes to RabbitMQ. Start it in the folder of "
        "manage.py. With twistd's -n it stays in the foreground and logs to standard output."
    )
    optParameters: tuple[list[Any], ...] = (
        ["settings", "s", None, "Settings module of the project; default: DJANGO_SETTINGS_MODULE."],
        ["concurrency", "c", None, "Tasks at once per queue, instead of the settings'.", number],
        ["shutdown-timeout", None, None, "Seconds for running tasks to end.", seconds],
        ["loglevel", "l", "info", "debug, info, warning, error or critical.", level],
        ["log-format", None, "text", "text, or json: each event a line of JSON.", log_format],
        ["consumer-class", None, None, "Dotted path, for all queues, instead of the settings'."],
        ["max-tasks", None, None, "End with status 75 after so many tasks.", number],
        ["max-memory", None, None, "End with status 75 above so many MB of memory.", number],
        ["web", None, None, "Serve pages, too: tcp:8080:interface=127.0.0.1, for example."],
        ["workers", "w", 1, "Processes; all options are those of each of them.", number],
        ["http", None, None, "Serve health and metrics: tcp:9090:interface=127.0.0.1, for one."],
    )
    optFlags = (["no-scheduler", None, "Publish no scheduled tasks; only consume."],)

    def __init__(self) -> None:
        super().__init__()
        #: Put on the import path; None where ``manage.py`` has set it up already.
        self.folder: str | None = os.getcwd()
        self["queues"] = []
        #: twistd's pid file, which the service takes care of; "": none, or not ours.
        self.pid_path = ""
        #: Arguments of ``consume``; None: it runs tasks.
        self.consume: dict[str, Any] | None = None
        #: The command line, for further processes.
        self.arguments: tuple[str, ...] = ()

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the command line, and keep it."""
        self.arguments = tuple(sys.argv[1:] if options is None else options)
        super().parseOptions(options)

    def opt_queue(self, name: str) -> None:
        """Consume from this queue only; may be given several times."""
        self["queues"].append(name)

    opt_q = opt_queue

    def postOptions(self) -> None:
        """Take the settings module from the environment if it was not given."""
        twistd = self.parent
        if twistd is not None and twistd.get("pidfile") and not twistd.get("chroot"):
            self.pid_path, twistd["pidfile"] = twistd["pidfile"], ""
        self["settings"] = self["settings"] or os.environ.get("DJANGO_SETTINGS_MODULE")
        if self["log-format"] == "json" and twistd is not None:
            _log_as_json(twistd)
        self.consume = self.consume_arguments()
        if not self["settings"] and self.consume is None:
            raise usage.UsageError(
                "Say which Django project to run: twistd carrot --settings=proj.settings"
            )


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
        self._ready = False
        self._status = ""
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
        _on_signals(self._end_before_beginning)
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
        self._reactor.addSystemEventTrigger("after", "shutdown", _end_in_time)
        # Else a second signal kills the interpreter while it tidies up, and the status is not 0.
        self._reactor.addSystemEventTrigger("after", "shutdown", _on_signals, signal.SIG_IGN)

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

        _exit_with(status_of(failure.value))
        self._stop_reactor()

    def _engine_options(self) -> ServiceOptions:
        from carrot_twisted.service.engine import ServiceOptions

        return ServiceOptions(**self._options)

    def _begin(self) -> None:
        # The reactor has put its own handlers there. twistd ends itself with the signal it was
        # stopped by; a clean stop shall exit with 0.
        _on_signals(self._on_signal)
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
            **{following.STOP_SECONDS: f"{engine.longest_stop + LAST_MOMENT:g}"},
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
        news = {}
        if engine.consuming and not self._ready:
            news["READY"] = "1"
        status = "; ".join(engine.problems) or engine.summary
        if status != self._status:
            news["STATUS"] = status
        # What is not taken is told again with the next look.
        if news and self._notifier.tell(**news):
            self._ready = self._ready or "READY" in news
            self._status = status
        if self._notifier.is_heard:
            interval = STATE_INTERVAL if self._ready else READY_INTERVAL
            self._looking = self._reactor.callLater(interval, self._tell_state)

    def _on_signal(self, number: int, _frame: Any) -> None:
        if number == signal.SIGHUP and self._signals:
            # A terminal that is closed sends it twice, by way of the shell and by itself.
            return
        self._signals += 1
        first = self._signals == 1
        self._reactor.callFromThread(self._stop_on_request if first else self._hurry)
        assert self._engine is not None
        # From here: if something holds up the reactor, it does not get to the other one.
        _later((self._engine.longest_stop if first else HURRIED) + LAST_MOMENT, _leave_by_force)

    def _end_before_beginning(self, _number: int, _frame: Any) -> None:
        """Django is being set up, which may take long; nothing of ours has begun."""
        with suppress(Exception):
            # Perhaps a line was being written just now.
            _log.info("Stopped before anything has begun")
        if self._pid_file is not None:
            self._pid_file.remove()
        _exit()

    def _stop_on_request(self) -> None:
        _log.info("Stopping on request; a second signal ends at once")
        # Also where it was about to make room for a fresh process.
        _stay_ended()
        self._stop_reactor()

    def _stop_without_monitor(self) -> None:
        _log.critical("The process that watches over the workers is gone: stopping")
        self._stop_reactor()

    def _recycle(self, reason: str) -> None:
        _log.info("Stopping, a fresh process should take over: {reason}", reason=reason)
        _exit_with(EXIT_RECYCLE)
        self._stop_reactor()

    def _stop_reactor(self) -> None:
        if self._reactor.running and not self._ending:
            self._ending = True
            if self._engine is not None:
                _later(self._engine.longest_stop + LAST_MOMENT, _leave_by_force)
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
            _end_in_time()
            if not clean:
                # A thread that is stuck must not hold up the end of the process.
                _exit_with(0)

    def _fatal(self, text: str) -> None:
        _log.critical("{text}", text=text)
        _exit_with(EXIT_CONFIG)
        self._stop_reactor()

    def _crash(self, failure: Any) -> None:
        _log.failure("The service met an error that it cannot live with", failure=failure)
        _exit_with(EXIT_CRASH)
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
        _exit_with(EXIT_CONFIG)
        _end_in_time()
        raise RuntimeError("carrot cannot start, for the reason above")


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
        self._ready = False
        self._status = ""
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
        self._reactor.addSystemEventTrigger("after", "shutdown", _on_signals, signal.SIG_IGN)
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
        _on_signals(self._on_signal)
        assert self._workers is not None
        _log.info("carrot starts {n} workers", n=self._count)
        self._workers.startService()
        self._watchdog = Watchdog(self._notifier, lambda: 0.0, self._reactor)
        self._watchdog.start()
        if self._notifier.is_heard:
            self._telling.start(READY_INTERVAL)

    def _tell_state(self) -> None:
        assert self._workers is not None
        news = {}
        if self._workers.ready and not self._ready:
            news["READY"] = "1"
        if self._workers.status != self._status:
            news["STATUS"] = self._workers.status
        # What is not taken is told again with the next look.
        if news and self._notifier.tell(**news):
            self._ready = self._ready or "READY" in news
            self._status = news.get("STATUS", self._status)
            self._telling.interval = STATE_INTERVAL if self._ready else READY_INTERVAL

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
            _exit_with(status)
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


def _terminal() -> int:
    """Standard error for later: as a daemon, twistd has none."""
    try:
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _traceback() -> str:
    """That of the exception being handled; its lines of code may hold a broker's URL."""
    return re.sub(r"(://[^:/@\s]*:)\S+@", r"\1***@", traceback.format_exc())


class _Misconfigured(Exception):
    """The service cannot start with these settings."""


_exit_status: int | None = None
#: Instead of the exit where a fresh process should take over and nobody else starts one.
successor: Callable[[], None] | None = None


def _exit_with(status: int) -> None:
    """Let the process end with this status once twistd has tidied up.

    twistd knows no exit status, and the interpreter would wait for nothing that a stuck thread
    holds: the last thing that runs ends the process.
    """
    global _exit_status
    if _exit_status is None:
        atexit.register(_exit)
        _exit_status = status


def _stay_ended() -> None:
    """A stop was asked for: whoever waits for a fresh process waits no more."""
    global _exit_status
    if _exit_status == EXIT_RECYCLE:
        _exit_status = 0


def _end_in_time() -> None:
    """Do not wait for threads that tasks left behind: the interpreter would, for ever."""
    _later(LAST_MOMENT, _exit)


def _later(seconds: float, function: Callable[[], None]) -> None:
    """Call a function in a thread of its own, if the process is still there."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def _on_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> None:
    """Have this done for each signal that asks for the end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # SIGHUP: its terminal was closed; under nohup that means nothing.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _leave_by_force() -> None:
    """The reactor has not ended although it had the time: code of the project's holds it up."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = "".join(traceback.format_stack(frame))
    # In a thread of its own: what is held up may be the log.
    teller = threading.Thread(
        target=lambda: _log.critical(
            "The stop is held up by code that does not return; leaving. What ran will run again. "
            "The reactor is at:\n{stack}",
            stack=stack,
        ),
        daemon=True,
    )
    teller.start()
    teller.join(1.0)
    _end(_exit_status or EXIT_CRASH)


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    _end(_exit_status or 0)


def _end(status: int) -> None:
    if status == EXIT_RECYCLE and successor is not None:
        successor()
    os._exit(status)


def makeService(options: Options) -> CarrotService | WorkersService:
    """What twistd runs. Nothing of Django is imported yet."""
    number = following.own_number()
    alone = number is not None or options["workers"] == 1
    # What workers tell was chosen by them already.
    set_global_log_level(options["loglevel"] if alone else "info")
    twistd = options.parent
    guise = _guise(twistd)
    log_file = _log_file(twistd)
    try:
        if log_file is not None:
            _require_writable(log_file)
        json_log.path = log_file
        pid_file = _hold(options.pid_path)
    except BaseException:
        if guise is not None:
            guise.drop()
        raise
    if not alone:
        return WorkersService(
            count=options["workers"],
            arguments=options.arguments,
            folder=options.folder,
            settings_module=options["settings"],
            pid_file=pid_file,
            guise=guise,
        )
    return CarrotService(
        settings_module=options["settings"],
        options={
            "queues": tuple(options["queues"]),
            "concurrency": options["concurrency"],
            "shutdown_timeout": options["shutdown-timeout"],
            "scheduler": not options["no-scheduler"],
            "consumer_class": options["consumer-class"],
            "max_tasks": options["max-tasks"],
            "max_memory": options["max-memory"],
        },
        folder=options.folder,
        nodaemon=bool(twistd is None or twistd["nodaemon"]),
        log_file=log_file,
        pid_file=pid_file,
        guise=guise,
        consume=options.consume,
        # Only one of several can have the port.
        web=options["web"] if number in (None, 1) else None,
        number=number,
        http=None if options["http"] is None else port_of(options["http"], number or 1),
    )


def _guise(twistd: Any) -> Guise | None:
    # Changing the root folder needs root, and comes before privilegedStartService.
    if twistd is None or twistd.get("uid") is None or twistd.get("chroot") or os.geteuid():
        return None
    return Guise(twistd["uid"], twistd.get("gid"))


def _log_as_json(twistd: Any) -> None:
    """Give twistd our log instead of its own. It finds it by name, once it has read all options."""
    if twistd.get("syslog") or twistd.get("logger") not in (None, following.PLAIN_LOG):
        raise usage.UsageError(
            "--log-format=json goes to a file or standard output, not together with twistd's "
            "--syslog or --logger"
        )
    twistd["logger"] = f"{json_log.__name__}.{json_log.observer.__name__}"


def _log_file(twistd: Any) -> str | None:
    """The file that twistd logs to; None: standard output, or no file at all."""
    if twistd is None or twistd.get("syslog"):
        return None
    if twistd.get("logger") not in (None, json_log.observer):
        return None
    name = twistd.get("logfile")
    if name == "-" or (not name and (twistd["nodaemon"] or twistd.get("debug"))):
        return None
    return os.path.abspath(name or "twistd.log")


def _require_writable(path: str) -> None:
    """twistd itself would tell by a traceback, and wait for ever for the reader of a named pipe."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
    except OSError as error:
        raise SystemExit(
            f"The log file {path} cannot be written as user {os.geteuid()} ({error.strerror}). "
            "Give twistd another --logfile, or change the owner of that file and its folder."
        ) from error


def _hold(path: str) -> PidFile | None:
    """Lock the pid file, so that a second service does not start beside this one."""
    if not path:
        return None
    pid_file = PidFile(path)
    try:
        if not pid_file.take(create=True):
            raise SystemExit(
                f"carrot runs already, as process {pid_file.read() or 'that is just starting'}. "
                f"For a second service give twistd another --pidfile than {pid_file.path}"
            )
        pid_file.read()
    except ValueError as error:
        raise SystemExit(f"{error}: is it the right --pidfile? It is left as it is.") from error
    except OSError as error:
        raise SystemExit(
            f"The pid file {pid_file.path} cannot be written as user {os.geteuid()} "
            f"({error.strerror}). Give twistd another --pidfile."
        ) from error
    pid_file.write(os.getpid())
    return pid_file
