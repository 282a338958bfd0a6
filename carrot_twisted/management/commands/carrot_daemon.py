# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_daemon start|stop|restart|status``: the service as a daemon of twistd's.

Whether it runs is told by the lock on its pid file, see ``service.pid_file``: no process is ever
signalled because its number stands in some file.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from django.core.management.base import CommandError
from django.db import connections
from twisted.scripts.twistd import runApp

from carrot_twisted import checks, conf, service_options
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.management import launching
from carrot_twisted.management.commands import carrot
from carrot_twisted.management.launching import Outcome
from carrot_twisted.service import process_end
from carrot_twisted.service.pid_file import PidFile

if TYPE_CHECKING:
    from django.core.management.base import CommandParser
    from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

MODES = ("start", "stop", "restart", "status")
#: Seconds that a start gets.
START_TIMEOUT = 30.0
#: Seconds that a stop gets beyond those of the running tasks.
STOP_MARGIN = 10.0
#: Seconds between looks whether the service has ended, and between words on what is waited for.
LOOK = 0.1
TELL = 5.0
#: Lines of the log that are shown when a start fails.
LOG_LINES = 20
#: Bytes that are read for them, at most.
LOG_BYTES = 16 * 1024

# Exit statuses of `status`, as init scripts have them (Linux Standard Base).
EXIT_DEAD = 1
EXIT_NOT_RUNNING = 3
EXIT_UNKNOWN = 4


class PidExists(CommandError):
    """The service runs already."""


class MissingPid(CommandError):
    """The service does not run. ``returncode`` is that of ``status``."""


class Command(carrot.Command):
    """The daemon: start, stop, restart, status."""

    help = (
        "Runs the service in the background. Give the same --pidfile to start, stop, restart and "
        "status; services with different pid files do not know of each other."
    )
    logfile = "/var/log/carrot.log"
    logfile_help = f"File to log to; default: {logfile}."
    recycling = "make room for a fresh process, which is started by itself and has another pid."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the mode, and options beside those of ``manage.py carrot``."""
        parser.add_argument(
            "mode", choices=MODES, metavar="|".join(MODES), help="What to do with the service."
        )
        super().add_arguments(parser)
        parser.add_argument(
            "-p",
            "--pidfile",
            default="/var/run/carrot.pid",
            help="File for the number of the process; default: /var/run/carrot.pid.",
        )
        parser.add_argument(
            "--hard",
            dest="force",
            action="store_true",
            help="With stop and restart: kill the service. Tasks that run then run again.",
        )
        parser.add_argument(
            "--timeout",
            type=carrot.read_by(service_options.seconds),
            metavar="SECONDS",
            help=f"Time to wait; default: {START_TIMEOUT:g} for a start, and for a stop "
            f"{STOP_MARGIN:g} more than --shutdown-timeout.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what ``mode`` says."""
        mode = options["mode"]
        hard = options["force"]
        if hard and mode not in ("stop", "restart"):
            raise CommandError(
                f"--hard goes with stop and restart, not with {mode}.",
                returncode=carrot.EXIT_USAGE,
            )
        if options["logfile"] == "-" and mode in ("start", "restart"):
            raise CommandError(
                "A daemon has no standard output: name a file with --logfile, or run "
                "manage.py carrot.",
                returncode=carrot.EXIT_USAGE,
            )
        self.pid_file = PidFile(options["pidfile"])
        self.options = options
        if mode == "status":
            self.status()
        if mode == "restart":
            # A mistake leaves the running service as it is.
            self.configuration(options)
            _require_good_settings()
        if mode in ("stop", "restart"):
            try:
                self.stop(hard)
            except MissingPid as error:
                self._tell(str(error))
        if mode in ("start", "restart"):
            self.start(**options)

    @property
    def pid(self) -> int | None:
        """The number in the pid file; None if there is no such file, or nothing in it."""
        try:
            return self.pid_file.read()
        except (OSError, ValueError) as error:
            raise CommandError(
                f"{error}: is it the right --pidfile? It is left as it is.",
                returncode=EXIT_UNKNOWN,
            ) from error

    def write_pid(self, pid: int) -> None:
        """Write the number of the process into the pid file, which this process holds."""
        self.pid_file.write(pid)

    def delete_pid(self) -> None:
        """Delete the pid file, which this process holds."""
        self.pid_file.remove()

    def start(self, **options: Any) -> None:
        """Start the service, and wait until it consumes from all its queues.

        Args:
            options: those of the command.

        Raises:
            PidExists: it runs already.
            CommandError: it did not start, or consumes nothing yet.
        """
        # Files that tasks make get the mode that they have in the foreground.
        configuration = self.configuration(options, f"--umask={_umask():o}")
        log = options["logfile"]
        before = os.path.getsize(log)
        self._hold_pid_file()
        connections.close_all()
        timeout = options["timeout"] or START_TIMEOUT
        outcome = launching.launch(
            lambda: self._be_daemon(configuration), self.pid_file.release, timeout
        )
        pid = self.pid
        if outcome in (Outcome.REFUSED, Outcome.ENDED):
            self.delete_pid()
        self.pid_file.release()
        if outcome is Outcome.READY:
            self._tell(f"carrot is running, pid {pid}. Its log: {os.path.abspath(log)}")
            return
        if outcome is not Outcome.REFUSED:
            self.stderr.write(_last_lines(log, before))
        where = f"Its log: {os.path.abspath(log)}"
        if outcome is Outcome.LATE:
            raise CommandError(
                f"carrot runs ({_shown(pid)}) and goes on trying, but after {timeout:g} s it "
                f"does not consume from all its queues yet. {where}. To end it: manage.py "
                f"carrot_daemon stop --pidfile={self.pid_file.path}"
            )
        raise CommandError(f"carrot did not start, for the reason above. {where}")

    def stop(self, hard_stop: bool = False) -> None:
        """Stop the service, and wait until its process is gone.

        Args:
            hard_stop: kill it; running tasks are cut off and run again.

        Raises:
            MissingPid: it does not run. A pid file that was left behind is removed.
            CommandError: it still runs after the time limit.
        """
        try:
            pid = self._running()
        except MissingPid as error:
            if error.returncode == EXIT_DEAD:
                self.delete_pid()
            self.pid_file.release()
            raise
        try:
            os.kill(pid, signal.SIGKILL if hard_stop else signal.SIGTERM)
        except PermissionError as error:
            raise CommandError(
                f"You may not stop process {pid}: do that as its owner, or as root."
            ) from error
        except ProcessLookupError:
            # It has ended this moment.
            pass
        self._wait_for_the_end(pid)
        self.delete_pid()
        self.pid_file.release()
        if hard_stop:
            self._tell(f"carrot, pid {pid}, was killed. Tasks that it was running will run again.")
        else:
            self._tell(f"carrot, pid {pid}, has stopped.")

    def status(self) -> NoReturn:
        """Say whether the service runs, by exit status, too."""
        try:
            pid = self._running()
        except MissingPid as error:
            self._tell(str(error))
            sys.exit(error.returncode)
        since = datetime.fromtimestamp(os.path.getmtime(self.pid_file.path), UTC).astimezone()
        self._tell(f"carrot is running, pid {pid}, since {since:%Y-%m-%d %H:%M:%S %z}.")
        sys.exit()

    def _hold_pid_file(self) -> None:
        """Take the pid file, for the daemon to inherit."""
        end = time.monotonic() + 10 * LOOK
        try:
            # Somebody who looks holds it for a moment, as a service does all its life.
            while not self.pid_file.take(create=True):
                if time.monotonic() > end:
                    raise PidExists(
                        f"carrot is running already, {_shown(self.pid)} ({self.pid_file.path}). "
                        "For a second one name another --pidfile."
                    )
                time.sleep(LOOK)
        except OSError as error:
            raise CommandError(
                f"The pid file {self.pid_file.path} cannot be written ({error.strerror}). Name "
                "another one with --pidfile."
            ) from error
        stale = self.pid
        if stale is not None:
            self._tell(f"The pid file was left behind by process {stale}, which is not carrot.")

    def _be_daemon(self, configuration: ServerOptions) -> None:
        """In the fork: become a daemon, and be the service until it is stopped."""
        from twisted.internet import reactor as module

        reactor: Any = module

        def begin() -> None:
            self.write_pid(os.getpid())
            self.pid_file.let_go_in_children()

        process_end.successor = self._make_room
        reactor.callWhenRunning(begin)
        reactor.addSystemEventTrigger("after", "shutdown", self.delete_pid)
        runApp(configuration)

    def _make_room(self) -> NoReturn:
        """Start a fresh daemon, as the last thing that this one does: nobody else would."""
        options = self.options
        log = os.path.abspath(options["logfile"])
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for standard in (1, 2):
            # As a daemon it has none; the reason why a start fails belongs into the log.
            os.dup2(descriptor, standard)
        arguments = [
            "carrot_daemon",
            "start",
            f"--pidfile={self.pid_file.path}",
            f"--logfile={log}",
        ]
        if options["timeout"] is not None:
            arguments.append(f"--timeout={options['timeout']}")
        arguments += carrot.service_arguments(options)
        # Not the command line that began all this: it need not have been one of ours.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from django.core.management import execute_from_command_line as execute; "
            "execute(['manage.py', *sys.argv[1:]])"
        )
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])  # noqa: S606

    def _running(self) -> int:
        """The pid of the running service.

        Raises:
            MissingPid: it does not run. The pid file is held then, if there is one.
        """
        path = self.pid_file.path
        try:
            free, pid = self._look()
        except FileNotFoundError as error:
            raise MissingPid(
                f"carrot is not running: there is no pid file {path}.", returncode=EXIT_NOT_RUNNING
            ) from error
        except OSError as error:
            raise CommandError(
                f"The pid file {path} cannot be read: {error.strerror}.", returncode=EXIT_UNKNOWN
            ) from error
        if free:
            raise MissingPid(
                f"carrot is not running: {_owner(pid)} left the pid file {path} behind.",
                returncode=EXIT_DEAD,
            )
        if pid is None:
            raise CommandError(
                "carrot is being started at this moment, or somebody else asks. Try again.",
                returncode=EXIT_UNKNOWN,
            )
        if not self.pid_file.is_open_in(pid):
            raise CommandError(
                f"The pid file {path} is locked, but not by process {pid}, which it names: that "
                "one is left alone. Who has the file open tells fuser or lsof.",
                returncode=EXIT_UNKNOWN,
            )
        return pid

    def _look(self) -> tuple[bool, int | None]:
        """Whether the pid file is free, then it is held; and the number in it."""
        end = time.monotonic() + 10 * LOOK
        while True:
            free = self.pid_file.take()
            pid = self.pid
            owned = free or (pid is not None and self.pid_file.is_open_in(pid))
            # Somebody else who looks holds it for a moment.
            if owned or time.monotonic() > end:
                return free, pid
            time.sleep(LOOK)

    def _wait_for_the_end(self, pid: int) -> None:
        patience = self.options["shutdown_timeout"] or _shutdown_timeout()
        limit = self.options["timeout"] or patience + STOP_MARGIN
        begin = time.monotonic()
        told = begin
        while not self.pid_file.take():
            now = time.monotonic()
            if now - begin > limit:
                raise CommandError(
                    f"carrot, pid {pid}, is still there after {limit:g} s. It was told to stop, "
                    "and ends when its running tasks have. To kill it: manage.py carrot_daemon "
                    f"stop --hard --pidfile={self.pid_file.path}"
                )
            if now - told > TELL:
                told = now
                self._tell(f"Waiting for carrot, pid {pid}: running tasks may end …")
            time.sleep(LOOK)

    def _tell(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def _shown(pid: int | None) -> str:
    return "being started" if pid is None else f"pid {pid}"


def _owner(pid: int | None) -> str:
    return "a start that was cut off" if pid is None else f"process {pid}"


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _require_good_settings() -> None:
    try:
        checks.require()
    except CarrotConfigException as error:
        raise CommandError(f"{error}\nNothing was stopped or started.") from error


def _shutdown_timeout() -> float:
    try:
        return conf.current().shutdown_timeout
    except CarrotConfigException:
        # Settings that were broken since the start must not keep it from being stopped.
        return float(conf.DEFAULTS["shutdown_timeout"])


def _last_lines(log: str, start: int) -> str:
    """What was logged from this byte on, the last lines of it."""
    with open(log, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        # A file that has shrunk was rotated meanwhile.
        file.seek(max(start if start <= end else 0, end - LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])
