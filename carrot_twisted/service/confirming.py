# SPDX-License-Identifier: Apache-2.0
"""Publishes in the reactor a message that no row stands for, and waits for the confirm."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import defer
from twisted.internet.task import deferLater

from carrot_twisted.sending import RETRY

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from carrot_twisted.sending import Outgoing


async def publish(message: Outgoing, timeout: float, reactor: Any) -> None:
    """As ``sending.publish``, without blocking."""
    end = reactor.seconds() + timeout
    reason: str | None = None
    while True:
        answer: Deferred[str | None] = defer.Deferred()
        message.send(partial(reactor.callFromThread, partial(_answer, answer)))
        try:
            error = await answer.addTimeout(max(0.0, end - reactor.seconds()), reactor)
        except defer.TimeoutError:
            raise message.late(reason) from None
        if message.check(error, end - reactor.seconds()):
            return
        reason = error or reason
        await deferLater(reactor, RETRY)


def _answer(answer: Deferred[str | None], error: str | None) -> None:
    # After the time it is too late.
    if not answer.called:
        answer.callback(error)
