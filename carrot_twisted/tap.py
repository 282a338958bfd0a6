# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot``: its options, and the process around the engine.

``makeService`` runs before twistd becomes a daemon and gives up root: it touches neither Django
nor a socket nor a thread. ``startService`` does, in the process that stays.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.python import usage
from txaio.tx import make_logger, set_global_log_level

from carrot_twisted.service.notify import Notifier
from carrot_twisted.service.pid_file import PidFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.service.engine import Engine, ServiceOptions

_log = make_logger()

EXIT_CRASH = 1
#: sysexits.h's EX_CONFIG: a supervisor should not try again.
EXIT_CONFIG = 78
#: Seconds that the interpreter gets to end, once the service has.
LAST_MOMENT = 3.0
#: Seconds that a stop gets after the second signal.
HURRIED = 7.0
#: Seconds between looks whether all queues are consumed, until they are.
READY_INTERVAL = 0.1


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
        ValueError: it is none.
    """
    value = float(text)
    if not value > 0:
        raise ValueError("must be more than 0")
    return value


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


class Options(usage.Options):
    """Options of ``twistd carrot``."""

    synopsis = "[twistd options] carrot --settings=proj.settings [options]"
    longdesc = (
        "Runs the tasks that a Django project publishes to RabbitMQ. Start it in the folder of "
        "manage.py. With twistd's -n it stays in the foreground and logs to standard output."
    )
    optParameters = (
        ["settings", "s", None, "Settings module of the project; default: DJANGO_SETTINGS_MODULE."],
        ["concurrency", "c", None, "Tasks at once per queue, instead of the settings'.", number],
        ["shutdown-timeout", None, None, "Seconds for running tasks to end.", seconds],
        ["loglevel", "l", "info", "debug, info, warning, error or critical.", level],
        ["consumer-class", None, None, "Dotted path, for all queues, instead of the settings'."],
    )
    optFlags = (["no-scheduler", None, "Publish no scheduled tasks; only consume."],)

    def __init__(self) -> None:
        super().__init__()
        #: Put on the import path; None where ``manage.py`` has set it up already.
        self.folder: str | None = os.getcwd()
        self["queues"] = []

    def opt_queue(self, name: str) -> None:
        """Consume from this queue only; may be given several times."""
        self["queues"].append(name)

    opt_q = opt_queue

    def postOptions(self) -> None:
        """Take the settings module from the environment if it was not given."""
        self["settings"] = self["settings"] or os.environ.get("DJANGO_SETTINGS_MODULE")
        if not self["settings"]:
            raise usage.UsageError(
                "Say which Django project to run: twistd carrot --settings=proj.settings"
            )


class CarrotService(Service):
    """The process: Django's set-up, signals, exit status. The work is the engine's.

    Args:
        settings_module: dotted path of the Django settings.
        options: the engine's options.
        folder: the project's folder, put on the import path; None if that is done.
        nodaemon: twistd stays in the foreground.
        pid_file: twistd's, held by this process.
    """

    name = "carrot"

    def __init__(
        self,
        settings_module: str,
        options: dict[str, Any],
        folder: str | None,
        nodaemon: bool,
        pid_file: PidFile | None = None,
    ) -> None:
        self._settings_module = settings_module
        self._options = options
        self._folder = folder
        self._nodaemon = nodaemon
        self._pid_file = pid_file
        self._terminal = None if nodaemon else _terminal()
        self._engine: Engine | None = None
        self._reactor: Any = None
        self._signals = 0
        self._notifier = Notifier()

    def startService(self) -> None:
        """Set up Django and start the engine."""
        super().startService()
        from twisted.internet import reactor

        self._reactor = reactor
        # Twisted's clock is the wall's: a clock that is set would stall or fire every timer.
        self._reactor.seconds = time.monotonic
        _on_signals(self._end_before_beginning)
        if self._pid_file is not None:
            self._pid_file.let_go_in_children()
        if self._folder is not None and self._folder not in sys.path:
            sys.path.insert(0, self._folder)
        os.environ["DJANGO_SETTINGS_MODULE"] = self._settings_module
        try:
            self._engine = self._make_engine()
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

    def _make_engine(self) -> Engine:
        from carrot_twisted.exceptions import CarrotConfigException

        try:
            import django
            from django.core.exceptions import ImproperlyConfigured

            django.setup()
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
            raise _Misconfigured(f"Django does not start: {traceback.format_exc()}") from error
        from django.apps import apps

        if not apps.is_installed("carrot_twisted"):
            raise _Misconfigured("Add 'carrot_twisted' to INSTALLED_APPS.")
        from carrot_twisted import checks, conf
        from carrot_twisted.service.engine import Engine

        try:
            checks.require()
            return Engine(
                conf.current(), self._engine_options(), self._reactor, self._fatal, self._crash
            )
        except CarrotConfigException as error:
            raise _Misconfigured(str(error)) from error
        except (Exception, SystemExit) as error:
            # A consumer class of the project's: only the traceback says where.
            raise _Misconfigured(f"No consumer is made: {traceback.format_exc()}") from error

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
            name=self._engine.worker.name,
            settings=self._settings_module,
        )
        Deferred.fromCoroutine(self._engine.start()).addErrback(self._crash)
        self._notifier.tell(STATUS="Starting: not yet consuming from all queues")
        self._tell_when_ready()

    def _tell_when_ready(self) -> None:
        assert self._engine is not None
        if self._engine.consuming:
            self._notifier.tell(READY="1", STATUS="Consuming from all queues")
        elif self._reactor.running:
            self._reactor.callLater(READY_INTERVAL, self._tell_when_ready)

    def _on_signal(self, number: int, _frame: Any) -> None:
        if number == signal.SIGHUP and self._signals:
            # A terminal that is closed sends it twice, by way of the shell and by itself.
            return
        self._signals += 1
        first = self._signals == 1
        self._reactor.callFromThread(self._stop_on_request if first else self._hurry)
        assert self._engine is not None
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
        self._stop_reactor()

    def _stop_reactor(self) -> None:
        if self._reactor.running:
            self._reactor.stop()

    def _hurry(self) -> None:
        if self._engine is not None:
            self._engine.hurry()

    def stopService(self) -> Deferred[None]:
        """Drain: the reactor runs until this has fired."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop()).addErrback(self._crash)

    async def _stop(self) -> None:
        if self._engine is not None:
            running = self._engine.running
            self._notifier.tell(STOPPING="1", STATUS=f"Stopping; {running} tasks are still running")
            clean = await self._engine.stop()
            _log.info("Stopped; {n} tasks were run", n=self._engine.finished)
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
            # Not SystemExit: twistd would leave its pid file behind.
            self._reactor.callWhenRunning(self._fatal, text)
            return
        _log.critical("{text}", text=text)
        # By itself twistd tells the command that was typed 98 characters of an exception.
        assert self._terminal is not None
        os.write(self._terminal, f"carrot: {text}\n".encode(errors="replace"))
        _exit_with(EXIT_CONFIG)
        _end_in_time()
        raise RuntimeError("carrot cannot start, for the reason above")


def _terminal() -> int:
    """Standard error for later: as a daemon, twistd has none."""
    try:
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


class _Misconfigured(Exception):
    """The service cannot start with these settings."""


_exit_status: int | None = None


def _exit_with(status: int) -> None:
    """Let the process end with this status once twistd has tidied up.

    twistd knows no exit status, and the interpreter would wait for nothing that a stuck thread
    holds: the last thing that runs ends the process.
    """
    global _exit_status
    if _exit_status is None:
        atexit.register(_exit)
        _exit_status = status


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
    os._exit(EXIT_CRASH)


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_status or 0)


def makeService(options: Options) -> CarrotService:
    """What twistd runs. Nothing of Django is imported yet."""
    set_global_log_level(options["loglevel"])
    parent = options.parent
    return CarrotService(
        settings_module=options["settings"],
        options={
            "queues": tuple(options["queues"]),
            "concurrency": options["concurrency"],
            "shutdown_timeout": options["shutdown-timeout"],
            "scheduler": not options["no-scheduler"],
            "consumer_class": options["consumer-class"],
        },
        folder=options.folder,
        nodaemon=bool(parent is None or parent["nodaemon"]),
        pid_file=_hold(parent),
    )


def _hold(twistd: Any) -> PidFile | None:
    """Lock twistd's pid file before twistd, and perhaps a second one, writes into it."""
    if twistd is None or not twistd.get("pidfile") or twistd.get("chroot"):
        return None
    pid_file = PidFile(twistd["pidfile"])
    try:
        if not pid_file.take(create=True):
            raise SystemExit(
                f"carrot runs already, as process {pid_file.read()}. For a second service give "
                f"twistd another --pidfile than {pid_file.path}"
            )
    except OSError as error:
        raise SystemExit(f"{error}. Give twistd another --pidfile.") from error
    # twistd takes an empty file for somebody else's.
    pid_file.write(os.getpid())
    return pid_file
