# SPDX-License-Identifier: Apache-2.0
"""Between asyncio and Twisted: ``await`` of a Deferred in an event loop of asyncio.

The loop of ``async def`` tasks runs in a thread of its own, and Deferreds belong to the reactor's.
So a Deferred that a coroutine awaits is looked after in the reactor, and what comes of it is handed
to the loop. Each asyncio task of the loop is driven by ``driven``, which knows how.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from carrot_twisted.reactor_call import result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


async def driven(coroutine: Coroutine[Any, Any, Any], reactor: Any) -> Any:
    """Await a coroutine that may await asyncio's futures and Deferreds, in turn.

    Args:
        coroutine: to be awaited in the running loop of asyncio.
        reactor: Twisted's reactor, in another thread.
    """
    return await _drive(coroutine, reactor)


@types.coroutine
def _drive(coroutine: Coroutine[Any, Any, Any], reactor: Any) -> Generator[Any, Any, Any]:
    step: Callable[[Any], Any] = coroutine.send
    given: Any = None
    while True:
        try:
            awaited = step(given)
        except StopIteration as end:
            return end.value
        step, given = coroutine.send, None
        try:
            if isinstance(awaited, Deferred):
                yield from _fired(awaited, reactor).__await__()
            else:
                # A future of asyncio's: the loop's business.
                given = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step, given = coroutine.throw, error


async def _fired(deferred: Deferred[Any], reactor: Any) -> None:
    """Return when a Deferred has a result, which is left in it; raise if that is a failure."""
    await result_of(deferred, reactor)
