# SPDX-License-Identifier: Apache-2.0
"""Calls of handlers, and when their thread's connections are looked at."""

from __future__ import annotations

import pytest

from carrot_twisted import execution, handling
from carrot_twisted.retry import Fault


def fail() -> None:
    raise ValueError("no")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each look at the connections."""
    found: list[str] = []
    monkeypatch.setattr(execution, "clean_connections", lambda: found.append("look"))
    handling.handle(fail)
    found.clear()
    return found


def test_between_two_calls_that_go_well_connections_are_looked_at_once(looks: list[str]) -> None:
    assert handling.handle(lambda: looks.append("first")) is None
    handling.handle(lambda: looks.append("second"))
    assert looks == ["look", "first", "look", "second", "look"]


def test_after_a_failure_they_are_looked_at_again(looks: list[str]) -> None:
    """The project's backoff function may have used them meanwhile."""
    failure = handling.handle(fail)
    assert failure is not None
    assert failure.fault is Fault.HANDLER
    handling.handle(lambda: looks.append("second"))
    assert looks == ["look", "look", "look", "second", "look"]


def test_after_a_while_they_may_be_too_old(
    looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handling.handle(lambda: looks.append("first"))
    monkeypatch.setattr(handling, "CLEAN_FOR", -1.0)
    handling.handle(lambda: looks.append("second"))
    assert looks == ["look", "first", "look", "look", "second", "look"]
