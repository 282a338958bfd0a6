# SPDX-License-Identifier: Apache-2.0
"""Waiting for a row to come to its end: one cheap question after another, at growing intervals."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connections

from carrot_twisted import running
from carrot_twisted.exceptions import CannotWait, NotFinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_logger = logging.getLogger("carrot_twisted.waiting")

#: Seconds between two questions: the first time, and at most.
FIRST, LONGEST = 0.01, 1.0
#: Each pause is longer than the one before, by this factor.
GROWTH = 1.3
#: Tasks that were told not to wait.
_told: set[str] = set()


def wait(what: str, has_ended: Callable[[], bool], timeout: float | None, using: str) -> None:
    """Ask until the answer is yes. The pause between two questions blocks this thread.

    Args:
        what: is waited for, for people.
        has_ended: asks the database.
        timeout: seconds; None: for ever.
        using: alias of that database.

    Raises:
        NotFinished: it was not in that time.
        CannotWait: the answer is no, and in a transaction, or in the reactor's thread, it would
            not change.
    """
    if has_ended():
        return
    _check_place(what, using)
    for pause in _pauses(what, timeout):
        time.sleep(pause)
        if has_ended():
            return


async def wait_async(
    what: str, has_ended: Callable[[], bool], timeout: float | None, using: str
) -> None:
    """The same in a coroutine, whose event loop goes on meanwhile.

    Raises:
        NotFinished: it was not in that time.
        CannotWait: in a transaction it never will.
    """
    ask = sync_to_async(has_ended)
    if await ask():
        return
    await sync_to_async(_check_transaction)(what, using)
    for pause in _pauses(what, timeout):
        await asyncio.sleep(pause)
        if await ask():
            return


def _pauses(what: str, timeout: float | None) -> Iterator[float]:
    """How long to pause, until the time is up.

    Raises:
        NotFinished: it is.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pause = FIRST
    while True:
        left = LONGEST if end is None else end - time.monotonic()
        if left <= 0:
            raise NotFinished(f"{what} has not come to its end within {timeout:g} s.")
        yield min(pause, left)
        pause = min(pause * GROWTH, LONGEST)


def _check_place(what: str, using: str) -> None:
    # Who has no Twisted has no reactor; and a web process shall not load it for this.
    threads: Any = sys.modules.get("twisted.python.threadable")
    if threads is not None and threads.ioThread == threading.get_ident():
        raise CannotWait(
            f"{what} cannot be waited for in the reactor's thread: nothing would go on meanwhile."
        )
    _check_transaction(what, using)
    run = running.current.get()
    if run is not None and run.task not in _told:
        _told.add(run.task)
        _logger.warning(
            "Task %s waits for %s. Its thread does nothing else meanwhile; if all threads of a "
            "service wait like this, nothing runs that they wait for. A flow needs no waiting.",
            run.task,
            what,
        )


def _check_transaction(what: str, using: str) -> None:
    if connections[using].in_atomic_block:
        raise CannotWait(
            f"{what} cannot be waited for in a transaction: what was published in it is sent when "
            "it is committed, and it may not see what others write. Wait after it."
        )
