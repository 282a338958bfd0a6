# SPDX-License-Identifier: Apache-2.0
"""Callbacks of the tests; what they do is said by the message's text."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from django.db.utils import OperationalError
from twisted.internet.defer import succeed
from twisted.internet.threads import blockingCallFromThread

import carrot_twisted
from carrot_twisted.exceptions import Drop, HaltConsumer, Nack, PermanentFailure
from tests.project.tasks import ledger

if TYPE_CHECKING:
    from carrot_twisted.handlers import Message

_running: list[int] = []
_spoiled: list[bytes] = []


def obey(message: Message) -> None:
    """Do what the message says, and leave a trace."""
    text = str(message.content)
    _running.append(1)
    try:
        ledger(f"begin {text}")
        if len(_running) > 1:
            ledger(f"{len(_running)} at once")
        _obey(text, message)
        ledger(f"end {text}")
    finally:
        _running.pop()


def _obey(text: str, message: Message) -> None:
    match text.split():
        case ["nack"]:
            raise Nack
        case ["nack", "once"]:
            if not message.redelivered:
                raise Nack
        case ["drop"]:
            raise Drop("not wanted")
        case ["halt", *arguments]:
            raise HaltConsumer(int(arguments[0]), "enough", requeue="requeue" in arguments)
        case ["fail", *_]:
            raise ValueError(text)
        case ["exit"]:
            raise SystemExit(4)
        case ["mend", *_]:
            if not Path(os.environ["CARROT_TEST_LEDGER"]).with_name("ledger.go").exists():
                raise ValueError(text)
        case ["permanent"]:
            raise PermanentFailure(text)
        case ["wait", "halt", code]:
            wait()
            raise HaltConsumer(int(code))
        case ["wait", *_]:
            wait()
        case ["database"]:
            if message.body not in _spoiled:
                _spoiled.append(message.body)
                error = OperationalError("database is locked")
                error.__cause__ = type("Locked", (Exception,), {"sqlite_errorcode": 5})()
                raise error
        case ["publish", key]:
            carrot_twisted.publish("published", routing_key=key)
        case ["twisted", key]:
            from twisted.internet import reactor

            assert blockingCallFromThread(reactor, succeed, 7) == 7  # type: ignore[arg-type]
            blockingCallFromThread(
                reactor,  # type: ignore[arg-type]
                carrot_twisted.twisted_publish,  # type: ignore[arg-type]
                "published",
                routing_key=key,
            )
        case ["json"]:
            ledger(f"{message.exchange} {message.routing_key} {message.content}")


def wait() -> None:
    """Until the test says so."""
    go = Path(os.environ["CARROT_TEST_LEDGER"]).with_name("ledger.go")
    end = time.monotonic() + 60
    while not go.exists() and time.monotonic() < end:
        time.sleep(0.01)


def tell(message: Message) -> None:
    """Leave a trace of all that a message says."""
    ledger(f"{message.exchange!r} {message.routing_key} {message.content}")


async def coroutine(message: Message) -> None:
    """The same as ``obey``, for messages that ask for little."""
    ledger(f"coroutine {message.content}")


class Counting:
    """A class: of which one object is made."""

    def __init__(self) -> None:
        self.count = 0
        ledger("made")

    def __call__(self, message: Message) -> None:
        self.count += 1
        ledger(f"{self.count} {message.content} {threading.current_thread().name}")


class Demanding:
    """No object of it can be made without arguments."""

    def __init__(self, path: str) -> None: ...

    def __call__(self, message: Message) -> None: ...


def takes_two(message: Message, other: object) -> None:
    """No callback."""
