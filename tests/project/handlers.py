# SPDX-License-Identifier: Apache-2.0
"""Message handlers of the tests: registered for the services of the tests that ask for them."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.db import connection, transaction
from django.db.utils import DatabaseError, OperationalError

from carrot_twisted.handlers import Message, PermanentFailure, message_handler
from carrot_twisted.limits import time_limit
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.project.tasks import effect, ledger

if TYPE_CHECKING:
    from collections.abc import Callable


def ok(body: Any) -> None:
    """Leave a trace."""
    ledger(f"ok {body}")


async def coroutine(body: Any) -> None:
    """The same, with Django's async ORM."""
    count = await MessageLog.objects.filter(task="no such task").acount()
    ledger(f"coroutine {body} {count}")


def publish(body: Any) -> None:
    """Publish a task."""
    publish_message(effect, f"task of {body}")


class Object:
    """The same, as an object."""

    def __call__(self, body: Any) -> None:
        ledger(f"object {body}")


def named(name: str, body: Any) -> None:
    """The same, as a partial."""
    ledger(f"{name} {body}")


def whole(message: Message) -> None:
    """Tell all that a message says; fail at first."""
    ledger(
        f"whole {message.retries} {message.exchange!r} {message.routing_key} "
        f"{message.properties.message_id} {message.headers.get('x-own')} {message.body!r}"
    )
    if message.retries < int(message.headers.get("x-fail", 0)):
        raise ValueError("not yet")


def fail(body: Any) -> None:
    """Raise, always."""
    ledger(f"fail {body} {time.monotonic():.3f}")
    raise ValueError(f"no good: {body}")


def leave(body: Any) -> None:
    """End the process, if it could."""
    raise SystemExit(3)


def refuse(body: Any) -> None:
    """Raise what no retry can help."""
    raise PermanentFailure("never")


def wait(body: Any) -> None:
    """Wait for a file; raise then, if told to."""
    ledger(f"begin {body}")
    while not Path(os.environ["CARROT_TEST_LEDGER"] + ".go").exists():
        time.sleep(0.02)
    ledger(f"end {body}")
    if body == "fail":
        raise ValueError("as told")


def spoiled(body: Any) -> None:
    """The database is in the way, three times."""
    ledger(f"spoiled {body}")
    lines = Path(os.environ["CARROT_TEST_LEDGER"]).read_text().splitlines()
    if lines.count(f"spoiled {body}") <= 2:
        if connection.vendor == "sqlite":
            error = OperationalError("database is locked")
            error.__cause__ = type("Locked", (Exception,), {"sqlite_errorcode": 5})()
            raise error
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def mixed(message: Message) -> None:
    """Fail on some messages at first, on others for good."""
    number = message.content
    time.sleep(0.002)
    if number % 50 == 7:
        raise PermanentFailure("seven")
    if number % 11 == 3 and not message.retries:
        raise ValueError("again")
    ledger(f"mixed {number}")


@time_limit(0.3)
def slow(body: Any) -> None:
    """Take too long, in Python or where Python has no say."""
    if body == "loop":
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.01)
    if body == "stuck":
        time.sleep(30)
    ledger(f"slow {body}")


def count(body: Any) -> None:
    """Ask the database."""
    ledger(f"count {body} {MessageLog.objects.filter(task='no such task').count()}")


def disorder(body: Any) -> None:
    """Leave a transaction behind that the database has aborted, or ask the database."""
    if body == "break":
        transaction.atomic().__enter__()
        with suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT no_such_column")
    else:
        MessageLog.objects.exists()
    ledger(f"disorder {body}")


def crowd(body: Any) -> None:
    """Say how many of these are at work at once."""
    name = threading.current_thread().name
    ledger(f"in {name}")
    time.sleep(0.2)
    ledger(f"out {name}")


def delayed(message: Message) -> None:
    """Fail the first time; the content says how many retries a message begins with."""
    ledger(f"delayed {message.content} {message.retries} {time.time():.3f}")
    if message.retries == message.content:
        raise ValueError("later")


def deadly(body: Any) -> None:
    """Kill the process, as a fault in a library written in C does; others take a while."""
    ledger(f"deadly {body}")
    if body == "die":
        # Those that run beside it are under way, too.
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.2 if body == "beside" else 0.001)
    ledger(f"survived {body}")


def backoff(retries: int) -> float:
    """Quick retries."""
    return (0.1, 0.3, 0.5)[min(retries, 2)]


def falling_backoff(retries: int) -> float:
    """Each delay is shorter than the one before it."""
    return 0.8 - 0.1 * retries


if "CARROT_TEST_HANDLERS" in os.environ:
    _handlers: dict[str, Callable[..., Any]] = {
        "ok": ok,
        "coroutine": coroutine,
        "publish": publish,
        "object": Object(),
        "partial": functools.partial(named, "partial"),
        "whole": whole,
        "fail": fail,
        "leave": leave,
        "refuse": refuse,
        "wait": wait,
        "spoiled": spoiled,
        "mixed": mixed,
        "slow": functools.partial(slow),
        "count": count,
        "crowd": crowd,
        "delayed": delayed,
        "deadly": deadly,
        "disorder": disorder,
    }
    for _name, _handler in _handlers.items():
        message_handler(f"handled.{_name}")(_handler)
    message_handler("handled.quorum", queue_arguments={"x-queue-type": "quorum"})(fail)
    message_handler("#", queue="handled.storm", exchange="shop")(fail)
    message_handler("shop.#", queue="handled.shop", exchange="shop")(whole)
