# SPDX-License-Identifier: Apache-2.0
"""Calls of handlers, and when their thread's connections are looked at."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.db.backends.signals import connection_created

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


class Connections:
    """Counts the looks, and has what it is told to have."""

    def __init__(self) -> None:
        self.looks = 0
        self.found: list[Any] = []

    def all(self, initialized_only: bool) -> list[Any]:
        assert initialized_only
        self.looks += 1
        return self.found


def test_in_a_thread_that_is_connected_to_nothing_there_is_nothing_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Django looks up each alias, at every call, and most handlers of messages have no database."""
    there = Connections()
    monkeypatch.setattr(execution, "connections", there)
    monkeypatch.setattr(execution, "_thread", threading.local())
    monkeypatch.setattr(execution, "_in_transaction", lambda _connection: False)
    looks = []

    def clean() -> None:
        execution.clean_connections()
        looks.append(there.looks)

    clean()
    clean()
    connection: Any = SimpleNamespace(
        connection=object(),
        in_atomic_block=False,
        queries_log=[],
        close_if_unusable_or_obsolete=lambda: None,
    )
    there.found = [connection]
    # Django sends this in each thread that connects.
    connection_created.send(sender=SimpleNamespace, connection=connection)
    clean()
    clean()
    connection.connection = None
    clean()
    clean()
    assert looks == [1, 1, 2, 3, 4, 4]
