# SPDX-License-Identifier: Apache-2.0
"""What a service does again and again tells when it fails, and when it works again."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from carrot_twisted.service import chore as module
from carrot_twisted.service.chore import Chore
from tests.unit.test_outcomes import driver_error


class Sweeping:
    """A chore, and what it told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.chore = Chore("The broom sweeps", self.clock.seconds)
        self.lines: list[str] = []
        for level in ("info", "warn", "failure"):

            def keep(text: str, level: str = level, **values: Any) -> None:
                self.lines.append(f"{level}: {text.format(**values)}")

            monkeypatch.setattr(module._log, level, keep)

    def fails(self, error: Exception) -> None:
        self.chore.failed(Failure(error))
        self.clock.advance(1)


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> Sweeping:
    return Sweeping(monkeypatch)


def deadlock(detail: str) -> OperationalError:
    error = OperationalError(f"deadlock detected\nDETAIL:  {detail}")
    error.__cause__ = driver_error("DeadlockDetected", sqlstate="40P01")
    return error


def test_a_failure_is_told_with_its_traceback_and_so_is_that_it_works_again(
    sweeping: Sweeping,
) -> None:
    sweeping.chore.succeeded()
    for _ in range(3):
        sweeping.fails(ValueError("no\nbroom"))
    sweeping.chore.succeeded()
    sweeping.chore.succeeded()
    assert sweeping.lines == [
        "failure: The broom sweeps: it failed and goes on: no broom",
        "info: The broom sweeps: it works, again after 3.0 s",
    ]


def test_a_conflict_is_one_line_whatever_transactions_it_names(sweeping: Sweeping) -> None:
    for number in range(30):
        sweeping.fails(deadlock(f"Process {number} waits"))
    assert sweeping.lines == [
        "warn: The broom sweeps: others were in its way: deadlock detected",
    ]
