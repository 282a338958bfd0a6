# SPDX-License-Identifier: Apache-2.0
"""``--workers N``: keeps several processes of the same service running, each with all its parts.

Twisted's ``ProcessMonitor`` starts them, again when they end, later and later when they end at
once, and kills what does not stop. Added here: what the exit status says is heeded; a stop waits
for them; one that stands still is killed; long lines of their output break nothing.

A worker tells how it fares by systemd's protocol, over a socket of its own: see ``following``.
Importing this module imports the reactor.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall
from twisted.runner.procmon import LoggingProtocol, ProcessMonitor
from txaio.tx import make_logger

from carrot_twisted.service import following

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.python.failure import Failure

_log = make_logger()

#: Its exit statuses that say more than that it has ended: sysexits.h's EX_TEMPFAIL and EX_CONFIG.
EXIT_FRESH, EXIT_CONFIG = 75, 78
#: Seconds a worker must have lived to be started again at once.
SETTLED = 30.0
#: Most seconds until one is started again that ends at once, time after time.
LATEST_RESTART = 30.0
#: Seconds until a worker is killed that was told to stop, beyond what it says that it needs; and
#: what is taken for that until it has said so.
STOP_MARGIN, STOP_TIME = 10.0, 60.0
#: Seconds without a sign of life after which a worker is killed.
SIGNS = 60.0
#: Seconds between looks for such signs.
LOOK = 5.0
#: Bytes of an unfinished line of output that are kept.
LONGEST_LINE = 16_000


def command(arguments: Sequence[str], path: Sequence[str]) -> list[str]:
    """The command line of a worker.

    Args:
        arguments: of the service, as they were given.
        path: where Python imports from.
    """
    code = (
        f"import sys; sys.path[:] = {list(path)!r}; sys.argv[0] = 'twistd'; "
        "from twisted.scripts.twistd import run; run()"
    )
    logger = f"--logger={following.PLAIN_LOG}"
    return [
        *(sys.executable, "-c", code, "--nodaemon", "--pidfile=", logger, "carrot"),
        *arguments,
    ]


@dataclass(slots=True)
class _State:
    """What is known of one worker's present process."""

    number: int
    ready: bool = False
    status: str = "starting"
    seen: float | None = None
    """When it has last given a sign of life; None: not yet."""


class WorkerProtocol(LoggingProtocol):
    """One process: its output goes to our log, line by line, and its end to the monitor."""

    service: Workers

    def connectionMade(self) -> None:
        """It was started."""
        super().connectionMade()
        self._unfinished = {1: b"", 2: b""}

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Log the lines that are complete; Twisted's own reader fails at those above 16 KB."""
        *lines, rest = (self._unfinished[childFD] + data).split(b"\n")
        while len(rest) > LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._unfinished[childFD] = rest
        for line in lines:
            self.service.tell(self.name, line)

    def processEnded(self, reason: Failure) -> None:
        """Log what is left, and let the monitor decide what comes next."""
        for line in filter(None, self._unfinished.values()):
            self.service.tell(self.name, line)
        self.service.judge(self.name, reason.value)
        super().processEnded(reason)
        self.service.look_for_the_end()


class _Ear(DatagramProtocol):
    """Hears what one worker tells."""

    def __init__(self, hear: Callable[[dict[str, str]], None]) -> None:
        self._hear = hear

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        lines = datagram.decode(errors="replace").splitlines()
        self._hear(dict(line.split("=", 1) for line in lines if "=" in line))


class Workers(ProcessMonitor):
    """Starts the processes, and sees to it that they run.

    Args:
        count: how many.
        command: of each.
        environment: of each; the monitor adds what tells a worker that it is one.
        reactor: Twisted's reactor.
        on_end: called with an exit status when the service should end: no process is left, or
            none can work with this configuration.
        signs: seconds without a sign of life after which a worker is killed.
    """

    threshold = SETTLED  # type: ignore[assignment]
    maxRestartDelay = LATEST_RESTART  # type: ignore[assignment]
    killTime = STOP_TIME + STOP_MARGIN  # type: ignore[assignment]

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        reactor: Any,
        on_end: Callable[[int], None],
        signs: float = SIGNS,
    ) -> None:
        super().__init__(reactor)
        self._spawner: Any = reactor
        self._timers: Any = reactor
        self._command = list(command)
        self._environment = dict(environment)
        self._on_end = on_end
        self._signs = signs
        self._states = {f"worker {number}": _State(number) for number in range(1, count + 1)}
        self._ears: list[Any] = []
        self._folder = ""
        self._stopped: Deferred[None] | None = None
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    @property
    def ready(self) -> bool:
        """Whether every process consumes from all its queues."""
        return all(state.ready for state in self._states.values())

    @property
    def status(self) -> str:
        """How they fare, for people."""
        states = {name: state.status for name, state in self._states.items()}
        texts = {*states.values()}
        if len(texts) == 1:
            return f"{len(states)} workers: {texts.pop()}"
        return "; ".join(f"{name}: {text}" for name, text in states.items())

    def startService(self) -> None:
        """Start them all."""
        # Readable by this user alone, as mkdtemp makes it.
        self._folder = tempfile.mkdtemp(prefix="carrot-")
        for name, state in self._states.items():
            ear = _Ear(partial(self._hear, name))
            self._ears.append(self._spawner.listenUNIXDatagram(self._address(state), ear))
            self.addProcess(name, self._command)
        super().startService()
        self._looking.start(LOOK, now=False)

    def _address(self, state: _State) -> str:
        return os.path.join(self._folder, str(state.number))

    def startProcess(self, name: str) -> None:
        """Start one process. Twisted's own way leaves no choice of the protocol."""
        if name in self.protocols:
            return
        state = self._states[name] = _State(self._states[name].number)
        environment = self._environment | {
            following.NUMBER: str(state.number),
            "NOTIFY_SOCKET": self._address(state),
            "WATCHDOG_USEC": str(round(self._signs * 1e6)),
        }
        protocol = WorkerProtocol()
        protocol.service, protocol.name = self, name
        try:
            self._spawner.spawnProcess(protocol, self._command[0], self._command, environment)
        except OSError as problem:
            # Too many processes, or no memory for another one.
            state.status = f"cannot be started: {problem}"
            _log.error("{name} {problem}", name=name, problem=state.status)
            self.restart[name] = self._timers.callLater(LATEST_RESTART, self.startProcess, name)
            return
        self.protocols[name] = protocol
        self.timeStarted[name] = self._timers.seconds()

    def judge(self, name: str, end: Any) -> None:
        """A process has ended: does it start again, and what is said of it?

        Args:
            name: its name.
            end: ``ProcessDone`` or ``ProcessTerminated``.
        """
        if not self.running:
            return
        if end.exitCode == EXIT_CONFIG:
            self._on_end(EXIT_CONFIG)
            return
        if end.exitCode == 0:
            _log.info("{name} has ended on request, and is not started again", name=name)
            self.removeProcess(name)
            del self._states[name]
            return
        if end.exitCode == EXIT_FRESH:
            # However short its life was: it has asked for it.
            self.timeStarted[name] = float("-inf")
        how = f"status {end.exitCode}" if end.signal is None else f"signal {end.signal}"
        self._states[name].ready = False
        self._states[name].status = f"ended with {how}, is started again"
        settled = self._timers.seconds() - self.timeStarted[name] >= self.threshold
        tell = _log.info if end.exitCode == EXIT_FRESH else _log.error
        tell(
            "{name} has ended with {how}. It is started again {when}",
            name=name,
            how=how,
            when="at once" if settled else f"in {self.delay[name]:g} s",
        )

    def look_for_the_end(self) -> None:
        """A process has ended, and what follows from it is decided."""
        if not self._states and self.running:
            self._on_end(0)
        if self._stopped is not None and not self.protocols:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def stopService(self) -> Deferred[None]:  # type: ignore[override]
        """Have them all stop; the Deferred fires when they have, or were killed."""
        self._looking.stop()
        stopped = self._stopped = Deferred()
        super().stopService()
        stopped.addCallback(lambda _: self._close()).addCallback(lambda _: None)
        self.look_for_the_end()
        return stopped

    def hurry(self) -> None:
        """Pass a second signal on: they leave without waiting for tasks.

        Not by SIGTERM: some supervisors send that to each process, and it is passed on, too. A
        worker takes it for the same stop, however often it comes.
        """
        self._signal("INT")

    def _close(self) -> Deferred[Any]:
        shutil.rmtree(self._folder, ignore_errors=True)
        return gatherResults([maybeDeferred(ear.stopListening) for ear in self._ears])

    def _signal(self, signal: str, names: Iterable[str] | None = None) -> None:
        for name in list(self.protocols if names is None else names):
            transport: Any = self.protocols[name].transport
            with suppress(error.ProcessExitedAlready):
                transport.signalProcess(signal)

    def tell(self, name: str, line: bytes) -> None:
        """Log a line of a worker's output."""
        _log.info("[{name}] {line}", name=name, line=line.decode(errors="replace"))

    def _hear(self, name: str, told: Mapping[str, str]) -> None:
        """What a worker tells of itself."""
        state = self._states.get(name)
        if state is None:
            return
        state.ready = state.ready or "READY" in told
        state.status = told.get("STATUS", state.status)
        if "WATCHDOG" in told:
            state.seen = self._timers.seconds()
        with suppress(ValueError):
            self.killTime = float(told.get(following.STOP_SECONDS, "")) + STOP_MARGIN

    def _look(self) -> None:
        """Kill what stands still; its end has it started again."""
        now = self._timers.seconds()
        for name in list(self.protocols):
            seen = self._states[name].seen
            if seen is not None and now - seen > self._signs:
                _log.critical(
                    "{name} has given no sign of life for {n:.0f} s, and is killed. Its tasks "
                    "will run again. Its last lines here tell where it stands",
                    name=name,
                    n=now - seen,
                )
                self._signal("KILL", [name])
