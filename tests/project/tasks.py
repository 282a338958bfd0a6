# SPDX-License-Identifier: Apache-2.0
"""Tasks that the tests publish. Effects go to a ledger file: it outlives every database."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from django.db import connection, transaction

from carrot_twisted import conf, running
from carrot_twisted.models import MessageLog
from carrot_twisted.periodic import periodic_task
from carrot_twisted.utilities import create_message, publish_many, publish_message
from carrot_twisted.virtual_host import VirtualHost

logger = logging.getLogger(__name__)
carrot_logger = logging.getLogger("carrot")


def noop() -> None:
    """Nothing."""


def ledger(line: str) -> None:
    """Append a line to the ledger, in one write: also when the process is killed at once."""
    path = Path(os.environ["CARROT_TEST_LEDGER"])
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def effect(key: str, pause: float = 0.0) -> str:
    """Take some time, then leave a trace."""
    time.sleep(pause)
    ledger(key)
    return f"did {key}"


def trace() -> str:
    """The trace that this is part of."""
    # Not everybody who runs these tasks has it.
    from opentelemetry.trace import get_current_span

    return f"{get_current_span().get_span_context().trace_id:x}"


def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Give back what arrived."""
    return {"args": list(args), "kwargs": kwargs}


def fail(text: str) -> None:
    """Raise."""
    logger.warning("about to fail")
    raise ValueError(text)


def leave(status: int) -> None:
    """Try to end the process the polite way."""
    sys.exit(status)


def die() -> None:
    """End the process the hard way."""
    os.kill(os.getpid(), 9)


def log_lines(name: str) -> None:
    """Write to both captured loggers."""
    carrot_logger.debug("debug of %s", name)
    carrot_logger.info("info of %s", name)
    time.sleep(0.05)
    logger.info("module line of %s", name)
    logging.getLogger("somewhere.else").error("not captured")


def publish_another(key: str) -> str:
    """A task that publishes a task."""
    return str(publish_message(effect, key).pk)


def publish_when(path: str, key: str) -> str:
    """Wait for a file, then publish a task."""
    while not Path(path).exists():
        time.sleep(0.02)
    return publish_another(key)


def publish_burst(count: int, queue: str) -> None:
    """A task that publishes many tasks, in its service."""
    publish_many([create_message(noop, queue=queue) for _ in range(count)])


def ask_reactor() -> str:
    """Call the reactor from the worker thread and wait for its answer."""
    from twisted.internet import reactor as module
    from twisted.internet.task import deferLater
    from twisted.internet.threads import blockingCallFromThread

    reactor: Any = module

    def answer() -> Any:
        in_main = threading.current_thread() is threading.main_thread()
        return deferLater(reactor, 0.01, lambda: in_main)

    return f"in the reactor: {blockingCallFromThread(reactor, answer)}"


async def coroutine(value: int) -> int:
    """An ``async def`` task that uses Django's async ORM."""
    return value + await MessageLog.objects.filter(task="no such task").acount()


def leak_transaction() -> None:
    """Leave the connection in an open transaction, as a careless task would."""
    transaction.atomic().__enter__()
    MessageLog.objects.count()


def session_killed() -> str:
    """The database ends this task's session in the middle, once."""
    marker = Path(os.environ["CARROT_TEST_LEDGER"] + ".killed")
    with connection.cursor() as cursor:
        if not marker.exists():
            marker.touch()
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        cursor.execute("SELECT 'alive'")
        return str(cursor.fetchone()[0])


def talk(path: str, lock: bool = False) -> str:
    """Say something, and go on until a file appears; all the while the own row may be locked."""
    run = running.current.get()
    assert run is not None
    with transaction.atomic() if lock else contextlib.nullcontext():
        if lock:
            MessageLog.objects.select_for_update().get(pk=run.uuid)
        logger.info("attempt %s has begun", run.attempt)
        return wait_for_file(path)


def wait_for_file(path: str, seconds: float = 30.0) -> str:
    """Run until a file appears."""
    end = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.02)
    ledger("saw the file")
    return "saw the file"


def when_told(path: str, key: str, touch: bool = False) -> str:
    """Wait for a file; leave a trace, if asked to only after a write to the database."""
    while not Path(path).exists():
        time.sleep(0.01)
    if touch:
        touch_database(key)
    else:
        ledger(key)
    return f"did {key}"


def touch_database(key: str) -> None:
    """Write to the database, then leave a trace: of that, and of each attempt that failed."""
    run = running.current.get()
    assert run is not None
    try:
        MessageLog.objects.filter(pk=run.uuid).update(priority=1)
    except Exception:
        ledger(f"no database for {key}")
        raise
    ledger(key)


def modules() -> dict[str, list[str]]:
    """What this process has imported."""
    return {"modules": sorted(sys.modules)}


def _private() -> None:
    """No task: its name begins with an underscore, and no row names it."""
    ledger("private")


#: What no terminal and no database likes.
NASTY = "nul \x00, half a pair \ud800, red \x1b[31m, back \r\b, line\u2028, left \u202e"


def nasty(how: str) -> str:
    """Log, and return or raise, what is hard to store."""
    logger.info("logging %s", NASTY)
    if how == "raise":
        raise ValueError(NASTY)
    return NASTY


def tell_all() -> None:
    """Say and raise all that could hold the broker's password."""
    settings = conf.current()
    host = settings.default_broker
    for thing in (settings, host, host.parameters(), host.servers, vars(settings)):
        logger.info("%r %s", thing, thing)
    print(settings, host, host.parameters())  # noqa: T201
    elsewhere = VirtualHost(host=host.servers[0][0], port=host.port, name="no-such", **login(host))
    try:
        elsewhere.blocking_connection.close()
    except Exception as error:
        logger.exception("as expected")
        raise ValueError(repr(error), elsewhere) from error


def login(host: VirtualHost) -> dict[str, Any]:
    return {"username": host.username, "password": host.password}


def fake_lines() -> None:
    """Raise what would look like another line of the service's log."""
    raise ValueError("first\r2026-01-01T00:00:00+0000 [fake#critical] \x1b[2Jfake line")


def database_threads() -> int:
    """Where a task's queries run: one connection per thread."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return threading.get_ident()


if "CARROT_TEST_PERIODIC" in os.environ:
    # For the services of the one test that asks for it.
    periodic_task(seconds=1, task_name="from the code", kwargs={"key": "periodic"})(effect)
