# SPDX-License-Identifier: Apache-2.0
"""Tasks that misbehave. What waits for ever here is ended with its service."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from asgiref.sync import sync_to_async
from django.db import connection, transaction

from carrot_twisted import is_cancelled, progress, task
from carrot_twisted.exceptions import TaskCancelled, TimeLimitExceeded
from carrot_twisted.limits import time_limit
from carrot_twisted.message_log import MessageLog
from carrot_twisted.utilities import publish_message
from tests.project.tasks import effect, ledger

logger = logging.getLogger(__name__)


@time_limit(0.3)
def loop() -> None:
    """Never end, in Python."""
    while True:
        pass


@time_limit(0.3)
def loop_that_goes_on() -> None:
    """Let no item of many stop it, as careless batch jobs do."""
    while True:
        try:
            time.sleep(0.001)
            raise ValueError
        except Exception:
            logger.debug("and on")


@time_limit(0.3)
def swallow_once() -> None:
    """Catch everything, once."""
    try:
        loop()
    except:  # noqa: E722 - that is the misbehaviour
        ledger("swallowed")
    loop()


@time_limit(0.3)
def tidy_up() -> str:
    """Meet the limit with grace."""
    try:
        loop()
    except TimeLimitExceeded as error:
        return f"tidied up: {error}"
    return "never"


@time_limit(0.3)
def sleep_in_a_loop() -> None:
    """Sleep for ever, with pauses."""
    while True:
        time.sleep(0.05)


@time_limit(0.3)
def wait_for_lock() -> None:
    """Wait for ever, in C."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@time_limit(0.3)
def read_pipe(path: str) -> str:
    """Wait in C until somebody writes."""
    try:
        return Path(path).read_text()
    finally:
        ledger("woke up")


@time_limit(0.3)
async def await_for_ever() -> None:
    """Never end, and let the loop run."""
    try:
        await asyncio.sleep(3600)
    finally:
        ledger("cancelled")


@time_limit(0.3)
async def loop_without_awaiting() -> None:
    """Never end, and let the loop not run."""
    while True:
        pass


@time_limit(0.3)
async def await_synchronous_loop() -> None:
    """Never end, in the thread that Django's ORM would use."""
    await sync_to_async(loop)()


@time_limit(None)
def unlimited(pause: float) -> str:
    """Take longer than the others may."""
    time.sleep(pause)
    return "took its time"


def thread_names() -> str:
    """Who works here."""
    return " ".join(sorted(thread.name for thread in threading.enumerate()))


_kept: list[bytes] = []


def hog(megabytes: int) -> None:
    """Take memory and keep it."""
    _kept.append(b"x" * (megabytes * 1024 * 1024))


def large_result(megabytes: int) -> str:
    """Return far more than anybody wants to read."""
    return "x" * (megabytes * 1024 * 1024)


def flood(lines: int) -> None:
    """Log without measure."""
    for number in range(lines):
        logger.info("line %s", number)


def peak() -> int:
    """The most memory that this process ever had, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def close_connection(inside: bool) -> None:
    """Close Django's connection, perhaps in the middle of a transaction."""
    MessageLog.objects.count()
    if not inside:
        connection.close()
        return
    with transaction.atomic():
        MessageLog.objects.count()
        connection.close()


def raw_begin() -> None:
    """Leave a transaction open that Django does not know of."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1")


def autocommit_off() -> None:
    """Leave the connection such that nothing is committed."""
    transaction.set_autocommit(False)
    publish_message(effect, "never")


def leave_threads() -> None:
    """Leave threads behind, one of which holds up the end of the interpreter."""
    for daemon in (True, False):
        threading.Thread(target=threading.Event().wait, daemon=daemon).start()


def hold_gil(milliseconds: int, port: int) -> None:
    """Stop all Python code of this process, and be cut off from the broker meanwhile."""
    ledger("holds")
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as copy:
            if copy.family == socket.AF_INET and copy.getpeername()[1] == port:
                copy.shutdown(socket.SHUT_RDWR)
    ctypes.PyDLL(None).usleep(milliseconds * 1000)
    ledger("held")


@task(max_retries=3)
def works_on(told: str) -> None:
    """Goes on until it is interrupted, or told."""
    for n in range(6000):
        progress(n, 6000, told)
        if told == "looks" and is_cancelled():
            raise TaskCancelled("saw it")
        if told == "fails" and is_cancelled():
            raise ValueError("a reason to try again")
        time.sleep(0.01)


@task(cooperative_cancel=True)
def returns_when_told() -> str:
    """Is never interrupted."""
    while not is_cancelled():
        time.sleep(0.01)
    time.sleep(1.5)
    return "was told"


def swallows_for(seconds: float) -> str:
    """Goes on for a while, whatever is raised."""
    swallowed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            while time.monotonic() < end:
                time.sleep(0.01)
        except TaskCancelled:
            swallowed += 1
    return f"swallowed {swallowed}"
