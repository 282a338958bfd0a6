# SPDX-License-Identifier: Apache-2.0
"""``async def`` tasks that the tests publish."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connection

from carrot_twisted import in_reactor, is_cancelled
from carrot_twisted.limits import time_limit
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

logger = logging.getLogger(__name__)
leaked: contextvars.ContextVar[str] = contextvars.ContextVar("leaked", default="nothing")
_running: set[int] = set()


async def sleep(seconds: float) -> int:
    """Returns how many of them ran at once."""
    me = id(asyncio.current_task())
    _running.add(me)
    await asyncio.sleep(seconds)
    most = len(_running)
    _running.discard(me)
    return most


def _connection_of(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    logger.info("in the thread of %s", name)
    return id(connection.connection)


async def everything(name: str, count: int) -> dict[str, Any]:
    """The asynchronous ORM, Twisted and context variables, beside ``count`` of its kind."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    before = leaked.get()
    leaked.set(name)
    logger.info("begins %s", name)
    me = id(asyncio.current_task())
    _running.add(me)
    first = await sync_to_async(_connection_of)(name)
    while len(_running) < count:
        await asyncio.sleep(0.01)
    second = await sync_to_async(_connection_of)(name)
    rows = await MessageLog.objects.filter(task=f"{__name__}.everything").acount()
    deferred: Deferred[str] = await in_reactor(lambda: [deferLater(reactor, 0.05, str, "late")])
    (one,) = deferred
    values = await asyncio.gather(_wait(one), in_reactor(_twisted, reactor))
    return {
        "before": before,
        "after": leaked.get(),
        "same": first == second,
        "connection": first,
        "rows": rows,
        "twisted": values,
    }


async def _wait(deferred: Deferred[str]) -> str:
    return await deferred


async def _twisted(reactor: Any) -> str:
    """A coroutine of Twisted's."""
    from twisted.internet.task import deferLater

    await deferLater(reactor, 0.01, str, "")
    try:
        await deferLater(reactor, 0.01, int, "no number")
    except ValueError as error:
        return str(error)
    return "no error"


async def fail(text: str) -> None:
    """Raise."""
    logger.warning("about to fail")
    await asyncio.sleep(0)
    raise ValueError(text)


async def block(path: str) -> str:
    """Hold up the event loop until a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)
    return "was in the way"


@time_limit(0.3)
async def never_awaits() -> None:
    """Hold up the event loop until somebody interrupts."""
    while True:
        pass


@time_limit(0.3)
async def swallows() -> None:
    """Goes on, whatever it hears."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            logger.info("swallowed")


async def wait_to_be_cancelled() -> None:
    """Tidies up, as it should."""
    try:
        await asyncio.sleep(60)
    finally:
        logger.info("tidied up, cancelled: %s", is_cancelled())
