# SPDX-License-Identifier: Apache-2.0
"""A silent reactor is reported; where its stacks go follows the log. Nothing is waited for."""

from __future__ import annotations

import faulthandler
import os
import time
from typing import TYPE_CHECKING

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from carrot_twisted.service.reactor_watch import INTERVAL, SILENCE, ReactorWatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from twisted.logger import LogEvent


class Alarm:
    """Stands in for faulthandler's timer."""

    def __init__(self) -> None:
        self.timeout: float | None = None
        self.armed = 0
        self.file = -1

    def set(self, timeout: float, file: int) -> None:
        self.timeout = timeout
        self.armed += 1
        self.file = file

    def cancel(self) -> None:
        self.timeout = None


@pytest.fixture
def alarm(monkeypatch: pytest.MonkeyPatch) -> Alarm:
    made = Alarm()
    monkeypatch.setattr(faulthandler, "dump_traceback_later", made.set)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", made.cancel)
    return made


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Levels of what is logged meanwhile."""
    events: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event["log_level"].name)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.seconds)
    return made


def test_the_alarm_is_put_off_as_long_as_the_reactor_lives(
    alarm: Alarm, logged: list[str], clock: Clock, tmp_path: Path
) -> None:
    watch = ReactorWatch(str(tmp_path / "log"), clock)
    watch.start()
    clock.pump([INTERVAL] * 10)
    assert (alarm.armed, alarm.timeout) == (11, INTERVAL + SILENCE)
    watch.stop()
    assert alarm.timeout is None
    assert logged == []
    assert clock.getDelayedCalls() == []


def test_how_long_it_was_silent_is_told_afterwards(
    alarm: Alarm, logged: list[str], clock: Clock, tmp_path: Path
) -> None:
    watch = ReactorWatch(str(tmp_path / "log"), clock)
    watch.start()
    clock.advance(INTERVAL + SILENCE)
    assert logged == []
    clock.advance(INTERVAL + SILENCE + 1)
    assert logged == ["error"]
    clock.advance(INTERVAL)
    assert logged == ["error"]
    watch.stop()


def test_the_stacks_follow_a_log_that_is_renamed(
    alarm: Alarm, clock: Clock, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    watch = ReactorWatch(str(log), clock)
    watch.start()
    os.write(alarm.file, b"one\n")
    log.rename(tmp_path / "log.1")
    log.write_text("")
    clock.advance(INTERVAL)
    os.write(alarm.file, b"two\n")
    watch.stop()
    assert (tmp_path / "log.1").read_text() == "before\none\n"
    assert log.read_text() == "two\n"
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(alarm.file)


def test_without_a_file_they_go_to_standard_output(
    alarm: Alarm, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = ReactorWatch(None, clock)
    watch.start()
    os.write(alarm.file, b"stacks\n")
    watch.stop()
    assert capfd.readouterr().out == "stacks\n"


def test_a_lack_of_threads_is_told_and_stops_nothing(
    alarm: Alarm,
    logged: list[str],
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(timeout: float, file: int) -> None:
        raise RuntimeError("unable to start watchdog thread")

    watch = ReactorWatch(str(tmp_path / "log"), clock)
    with monkeypatch.context() as patch:
        patch.setattr(faulthandler, "dump_traceback_later", none_left)
        watch.start()
    assert (alarm.armed, logged) == (0, ["warn"])
    clock.advance(INTERVAL)
    assert (alarm.armed, logged) == (1, ["warn", "info"])
    watch.stop()


def test_a_file_that_may_not_be_opened_is_told_and_stops_nothing(
    alarm: Alarm, logged: list[str], clock: Clock, tmp_path: Path
) -> None:
    watch = ReactorWatch(str(tmp_path / "no" / "log"), clock)
    watch.start()
    assert (alarm.armed, logged) == (0, ["warn"])
    clock.pump([INTERVAL] * round(600 / INTERVAL))
    # Ten minutes: told again after one, three and seven.
    assert logged == ["warn"] * 4
    (tmp_path / "no").mkdir()
    clock.advance(INTERVAL)
    assert (alarm.armed, logged[4:]) == (1, ["info"])
    watch.stop()
