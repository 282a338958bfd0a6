# SPDX-License-Identifier: Apache-2.0
"""The processes of ``--workers N``, with a clock and processes that the test ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from carrot_twisted.service import following, workers
from carrot_twisted.service.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Process:
    """A transport of a process that does nothing."""

    def __init__(self, protocol: Any, environment: dict[str, str]) -> None:
        self.protocol = protocol
        self.environment = environment
        self.signals: list[str] = []
        self.over = False
        protocol.makeConnection(self)

    def signalProcess(self, name: str) -> None:  # noqa: N802 - Twisted's
        if self.over:
            raise ProcessExitedAlready
        self.signals.append(name)

    def end(self, status: int | None = 0, signal: int | None = None) -> None:
        self.over = True
        reason = ProcessTerminated(status, signal) if status or signal else ProcessDone(0)
        self.protocol.processEnded(Failure(reason))


@implementer(IReactorProcess)
class Reactor(Clock):
    """Time, processes and sockets in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.ears: dict[str, Any] = {}
        self.refuses = False

    def spawnProcess(self, protocol: Any, *arguments: Any) -> None:  # type: ignore[override]  # noqa: N802
        if self.refuses:
            raise OSError("no more processes")
        self.processes.append(Process(protocol, arguments[2]))

    def listenUNIXDatagram(self, address: str, protocol: Any) -> Any:  # noqa: N802 - Twisted's
        self.ears[address] = protocol

        class Port:
            def stopListening(self) -> None:  # noqa: N802 - Twisted's
                del ears[address]

        ears = self.ears
        return Port()


@pytest.fixture
def reactor() -> Reactor:
    reactor = Reactor()
    reactor.advance(1000)
    return reactor


@pytest.fixture
def ends() -> list[int]:
    """Exit statuses with which the whole was to end."""
    return []


@pytest.fixture
def two(reactor: Reactor, ends: list[int]) -> Iterator[Workers]:
    """Two of them, started."""
    monitor = Workers(2, ["carrot"], {"PATH": "p"}, reactor, ends.append)
    monitor.startService()
    yield monitor
    if monitor.running:
        monitor.stopService()


def says(reactor: Reactor, process: Process, text: str) -> None:
    """A process tells something by systemd's protocol."""
    reactor.ears[process.environment["NOTIFY_SOCKET"]].datagramReceived(text.encode(), None)


def test_each_knows_its_number_and_whom_to_tell(two: Workers, reactor: Reactor) -> None:
    first, second = reactor.processes
    assert [p.environment[following.NUMBER] for p in (first, second)] == ["1", "2"]
    assert first.environment["NOTIFY_SOCKET"] != second.environment["NOTIFY_SOCKET"]
    assert first.environment["WATCHDOG_USEC"] == "60000000"
    assert first.environment["PATH"] == "p"


def test_it_is_ready_when_all_are(two: Workers, reactor: Reactor) -> None:
    first, second = reactor.processes
    says(reactor, first, "READY=1\nSTATUS=Consuming from all queues")
    assert not two.ready
    assert two.status == "worker 1: Consuming from all queues; worker 2: starting"
    says(reactor, second, "STATUS=Consuming from all queues")
    says(reactor, second, "READY=1")
    assert two.ready
    assert two.status == "2 workers: Consuming from all queues"


def test_one_that_ends_at_once_is_started_later_and_later(two: Workers, reactor: Reactor) -> None:
    waits = []
    for _ in range(8):
        reactor.processes[-1].end(1)
        count, start = len(reactor.processes), reactor.seconds()
        while len(reactor.processes) == count:
            reactor.advance(0.5)
        waits.append(reactor.seconds() - start)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert reactor.processes[-1].environment[following.NUMBER] == "2"


@pytest.mark.parametrize(("lived", "status"), [(31, 1), (0.1, 75)])
def test_one_that_has_worked_or_asks_for_it_is_started_at_once(
    two: Workers, reactor: Reactor, lived: float, status: int
) -> None:
    for _ in range(3):
        reactor.advance(lived)
        reactor.processes[-1].end(status)
        reactor.advance(0)
    assert len(reactor.processes) == 5


def test_one_that_was_killed_is_not_ready_until_it_says_so(two: Workers, reactor: Reactor) -> None:
    for process in reactor.processes:
        says(reactor, process, "READY=1")
    reactor.processes[0].end(None, signal=9)
    assert not two.ready
    assert two.status.startswith("worker 1: ended with signal 9, is started again; worker 2:")
    reactor.advance(1)
    assert not two.ready
    says(reactor, reactor.processes[2], "READY=1")
    assert two.ready


def test_one_that_is_stopped_by_somebody_stays_so_and_the_last_one_ends_it_all(
    two: Workers, reactor: Reactor, ends: list[int]
) -> None:
    first, second = reactor.processes
    first.end(0)
    reactor.advance(60)
    assert (len(reactor.processes), ends) == (2, [])
    second.end(0)
    assert ends == [0]
    assert not reactor.processes[2:]


def test_a_wrong_configuration_ends_it_all(two: Workers, reactor: Reactor, ends: list[int]) -> None:
    reactor.processes[0].end(78)
    assert ends == [78]


def test_one_that_stands_still_is_killed(two: Workers, reactor: Reactor) -> None:
    first, second = reactor.processes
    says(reactor, first, "WATCHDOG=1")
    for _ in range(13):
        reactor.advance(5)
        # That one may take long to start; this one is alive.
        assert not second.signals
    assert first.signals == ["KILL"]
    first.end(None, signal=9)
    reactor.advance(0)
    assert len(reactor.processes) == 3


def test_a_stop_waits_for_all_and_a_second_signal_is_passed_on(
    two: Workers, reactor: Reactor
) -> None:
    first, second = reactor.processes
    stopped: list[None] = []
    folder = os.path.dirname(first.environment["NOTIFY_SOCKET"])
    two.stopService().addCallback(stopped.append)
    assert first.signals == second.signals == ["TERM"]
    first.end(0)
    two.hurry()
    assert (first.signals, second.signals, stopped) == (["TERM"], ["TERM", "INT"], [])
    second.end(1)
    assert stopped == [None]
    assert not os.path.exists(folder)
    assert not reactor.ears
    reactor.advance(100)
    assert len(reactor.processes) == 2


def test_what_does_not_stop_in_the_time_that_it_says_is_killed(
    two: Workers, reactor: Reactor
) -> None:
    first, second = reactor.processes
    says(reactor, first, "X_STOP_SECONDS=5")
    two.stopService()
    reactor.advance(14.9)
    assert first.signals == ["TERM"]
    reactor.advance(0.2)
    assert first.signals == second.signals == ["TERM", "KILL"]
    first.end(None, signal=9)
    second.end(None, signal=9)


def test_a_stop_while_none_runs_is_done_at_once(two: Workers, reactor: Reactor) -> None:
    for process in reactor.processes:
        process.end(1)
    stopped: list[None] = []
    two.stopService().addCallback(stopped.append)
    assert stopped == [None]


def test_a_machine_without_room_for_another_process_is_tried_again(
    reactor: Reactor, ends: list[int]
) -> None:
    reactor.refuses = True
    monitor = Workers(1, ["carrot"], {}, reactor, ends.append)
    monitor.startService()
    assert monitor.status == "1 workers: cannot be started: no more processes"
    reactor.refuses = False
    reactor.advance(workers.LATEST_RESTART)
    assert len(reactor.processes) == 1
    monitor.stopService()
    reactor.processes[0].end(0)


def test_output_is_told_line_by_line_however_long(
    two: Workers, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, bytes]] = []
    monkeypatch.setattr(two, "tell", lambda name, line: told.append((name, line)))
    protocol = reactor.processes[0].protocol
    protocol.childDataReceived(1, b"one\ntw")
    protocol.childDataReceived(2, b"err")
    protocol.childDataReceived(1, b"o\n" + b"x" * 40_000)
    assert [line for _, line in told[:2]] == [b"one", b"two"]
    assert [len(line) for _, line in told[2:]] == [16_000, 16_000]
    reactor.processes[0].end(0)
    assert told[-2:] == [("worker 1", b"x" * 8_000), ("worker 1", b"err")]


def test_a_worker_knows_its_number_and_programs_of_its_tasks_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert following.own_number() is None
    monkeypatch.setenv(following.NUMBER, "3")
    assert following.own_number() == 3
    assert following.NUMBER not in os.environ


def test_the_command_line_runs_twistd_with_the_same_options(tmp_path: Path) -> None:
    arguments = workers.command(["--settings=a.b", "--workers=2"], ["/x", "it's"])
    assert arguments[-3:] == ["carrot", "--settings=a.b", "--workers=2"]
    assert "sys.path[:] = ['/x', \"it's\"]" in arguments[2]
    assert {"--nodaemon", "--pidfile="} < {*arguments}
