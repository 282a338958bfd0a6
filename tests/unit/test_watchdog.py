# SPDX-License-Identifier: Apache-2.0
"""Signs of life: how often, for whom, and when none is sent."""

from __future__ import annotations

import os

import pytest
from twisted.internet.task import Clock

from carrot_twisted.service import watchdog
from carrot_twisted.service.notify import Notifier
from carrot_twisted.service.watchdog import PATIENCE, Watchdog


class Listener:
    """Stands in for the Notifier."""

    def __init__(self, seconds: float | None) -> None:
        self.watchdog = seconds
        self.told: list[dict[str, str]] = []

    def tell(self, **state: str) -> bool:
        self.told.append(state)
        return True


class Desk:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float | None) -> None:
        self.clock = Clock()
        self.silence = 0.0
        self.logged: list[str] = []
        for level in ("info", "critical"):
            monkeypatch.setattr(
                watchdog._log, level, lambda *_, level=level, **__: self.logged.append(level)
            )
        self.listener = Listener(seconds)
        self.watchdog = Watchdog(
            self.listener,  # type: ignore[arg-type]
            *(lambda: self.silence, self.clock),
        )
        self.watchdog.start()

    def signs(self, seconds: float = 0.0) -> int:
        """How many signs came meanwhile, and nothing else."""
        self.clock.pump([1.0] * int(seconds))
        told, self.listener.told = self.listener.told, []
        assert told == [{"WATCHDOG": "1"}] * len(told)
        return len(told)


def test_signs_come_twice_in_each_period_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(monkeypatch, 60.0)
    assert desk.signs() == 1
    assert desk.signs(90) == 3
    desk.watchdog.stop()
    assert desk.signs(90) == 0
    assert not desk.clock.getDelayedCalls()


def test_who_wants_none_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, None)
    assert desk.signs(100) == 0
    desk.watchdog.stop()


def test_while_nobody_writes_results_none_is_sent_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(monkeypatch, 60.0)
    desk.silence = PATIENCE
    assert desk.signs(30) == 2
    desk.silence = PATIENCE + 1
    assert desk.signs(45) == 0
    assert desk.logged == ["critical"]
    desk.silence = 0.0
    assert desk.signs(30) == 1
    assert desk.logged == ["critical", "info"]


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        (None, None, None),
        ("60000000", None, 60.0),
        ("1500000", os.getpid(), 1.5),
        ("60000000", 1, None),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_environment_says_who_is_to_send_signs_and_how_often(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: int | None, seconds: float
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(value))
    assert Notifier().watchdog == seconds
    # A program that a task starts is not the one that is meant.
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
