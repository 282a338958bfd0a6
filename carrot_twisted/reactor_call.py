# SPDX-License-Identifier: Apache-2.0
"""What a coroutine in an event loop of asyncio has done in Twisted's reactor, and its result.

Twisted is imported in functions: modules with tasks, and with them web processes, import this one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred


async def in_reactor(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in the reactor's thread, and await what it returns.

    Nearly all of Twisted must be called there. In a task: ``await in_reactor(treq.get, url)``.

    Args:
        function: may return a Deferred, or be an ``async def`` that awaits some.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        What it returns in the end.

    Raises:
        RuntimeError: no reactor runs in this process: call it in a task of the service.
        BaseException: what the function raises.
    """
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, maybeDeferred

    if not reactor.running:
        raise RuntimeError(
            "in_reactor works where Twisted's reactor runs: in a task that the service runs."
        )
    begun: list[Deferred[Any]] = []
    called: Deferred[Any] = Deferred(lambda _: begun[0].cancel())

    def call() -> None:
        begun.append(maybeDeferred(function, *args, **kwargs))
        begun[0].addBoth(called.callback)

    loop: Any = reactor
    loop.callFromThread(call)
    return await result_of(called, loop)


async def result_of(deferred: Deferred[Any], reactor: Any) -> Any:
    """Await a Deferred of the reactor's thread in a loop of asyncio's.

    Args:
        deferred: keeps its result, unless that is a failure. Cancelled where the coroutine is.
        reactor: Twisted's reactor.
    """
    from twisted.python.failure import Failure

    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any) -> None:
        if future.done():
            return
        if not isinstance(result, Failure):
            future.set_result(result)
        elif isinstance(result.value, Exception) and not isinstance(result.value, StopIteration):
            future.set_exception(result.value)
        else:
            # asyncio takes no StopIteration: it would end a coroutine.
            future.set_exception(RuntimeError(f"a Deferred failed with {result.value!r}"))

    def fired(result: Any) -> Any:
        # The loop may be closed: its service has stopped.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, result)
        # A failure is the coroutine's from here on. A result stays: the Deferred gives it out.
        return None if isinstance(result, Failure) else result

    reactor.callFromThread(deferred.addBoth, fired)
    try:
        return await future
    except asyncio.CancelledError:
        if not future.done() or future.cancelled():
            reactor.callFromThread(deferred.cancel)
        raise
