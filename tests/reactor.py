# SPDX-License-Identifier: Apache-2.0
"""Tests inside the reactor, and what they may not leave behind in it.

pytest-twisted runs every test in the reactor's turn, and lets a test pass whose timers and
connections live on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest_twisted
from pika.heartbeat import HeartbeatChecker
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

if TYPE_CHECKING:
    import pytest

reactor = cast("Any", _reactor)
Test = TypeVar("Test", bound=Callable[..., Any])


def in_reactor(test: Test) -> Test:
    """Run an ``async def`` test in the reactor: pytest-twisted's decorator, with its type."""
    return cast("Test", pytest_twisted.ensureDeferred(test))


def pause(seconds: float) -> Deferred[None]:
    """Let the reactor work for a moment."""
    return deferLater(reactor, seconds, lambda: None)


async def until(condition: Callable[[], object], seconds: float = 15.0, what: object = "") -> None:
    """Let the reactor work until something becomes true.

    Raises:
        AssertionError: it did not in time.
    """
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, f"not within {seconds:g} s: {what or condition}"
        await pause(0.01)


async def soon(result: Awaitable[Any], seconds: float) -> Any:
    """Wait for a result.

    Raises:
        TimeoutError: it did not come in time.
    """

    async def wait() -> Any:
        return await result

    return await Deferred.fromCoroutine(wait()).addTimeout(seconds, reactor)


def hasten_heartbeats(patch: pytest.MonkeyPatch) -> float:
    """Let connections of this process give up a silent peer sooner; seconds beyond a heartbeat.

    pika looks whether something came each time that a heartbeat and five seconds have passed. What
    becomes of a peer that was silent between two looks is not told any better by waiting for it.
    """
    grace = 1.0
    start = HeartbeatChecker._start_check_timer

    def start_sooner(checker: Any) -> None:
        checker._check_interval = checker._timeout + grace
        start(checker)

    patch.setattr(HeartbeatChecker, "_start_check_timer", start_sooner)
    return grace


def contents() -> set[Any]:
    """All that the reactor holds: timers, sockets, listening ports."""
    return {*reactor.getDelayedCalls(), *reactor.getReaders(), *reactor.getWriters()}


@contextmanager
def left_clean() -> Iterator[None]:
    """For a fixture: fail if what happens inside leaves timers or connections behind."""
    pytest_twisted.blockon(pause(0))  # the reactor has its own things in place once it runs
    before = contents()
    yield
    pytest_twisted.blockon(pause(0.1))  # both ends of a connection notice that it is closed
    left = contents() - before
    assert not left, f"left behind in the reactor: {[str(one) for one in left]}"
