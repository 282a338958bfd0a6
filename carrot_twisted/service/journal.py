# SPDX-License-Identifier: Apache-2.0
"""Rows that tell of messages with handlers or callbacks: what became of each, for people to see.

Such a row is written when its message is settled, with the next batch of the writer, and says how
that ended. COMPLETED: the handler has returned. FAILED: the message went to the archive; one with
a callback also if that has dropped it, or has ended its consumer by an error, where the message
may be back in its queue. It is never PUBLISHED or IN PROGRESS, so nothing claims it, sends it or
takes it for a task. No message depends on it: while the database is away rows wait, up to
MAX_WAITING, and what comes then is left out and counted; a process that is killed takes those
along that wait.

In such a row ``task`` is the dotted path of the handler or callback, ``content`` the body as people
read it, and ``task_args`` an object with the message's properties (see ``MessageLog.is_task``).
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import copies, outcomes, showing
from carrot_twisted.message_log import MAX_TASK
from carrot_twisted.models import MessageLog
from carrot_twisted.service import copying
from carrot_twisted.service.operations import Entry

if TYPE_CHECKING:
    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.retry import Failure
    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.service.log_writer import LogWriter

_log = make_logger()

#: Bytes of rows that wait for the database.
MAX_WAITING = 32 * 1024 * 1024
#: Of these, what a row counts for beside its body.
ROW_SIZE = 4096
#: Characters that are kept of all headers of a message.
MAX_HEADERS = 10_000
#: Seconds between lines that tell how many rows were left out.
TELL_INTERVAL = 10.0
#: The largest number of retries that every database takes: anybody may write it into a message.
MAX_RETRIES = 1_000_000
#: Headers that the row has columns for.
_TOLD = (copies.EXCEPTION_HEADER, copies.TRACEBACK_HEADER)


@dataclass(slots=True, kw_only=True)
class Handled:
    """A message that is settled."""

    queue: HandlerQueue
    delivery: Delivery
    failure: Failure | None
    """What went wrong; None: nothing did."""
    arrived: float
    """Seconds since the epoch, on this host's clock."""
    started: float
    ended: float


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A row that is not written yet."""

    handled: Handled
    worker: str
    limit: int
    offset: float
    told: bool = False
    """It is known what became of it."""
    _row: MessageLog | None = field(default=None, init=False)

    def row(self) -> MessageLog:
        if self._row is None:
            self._row = row_of(self.handled, self.worker, self.limit, self.offset)
        return self._row


class Journal:
    """Has rows written for those messages whose queues ask for it.

    Args:
        writer: writes them.
        worker: name of this process.
        limit: characters that are kept of a body.
        reactor: Twisted's reactor.
    """

    def __init__(self, writer: LogWriter, worker: str, limit: int, reactor: Any) -> None:
        self._writer = writer
        self._worker = worker
        self._limit = limit
        self._reactor = reactor
        self._lock = threading.Lock()
        #: Bytes of what waits.
        self._size = 0
        #: How many rows were left out since that was told, by reason.
        self._left: Counter[str] = Counter()
        self._telling: Any = None

    def note(self, handled: Handled) -> None:
        """A message is settled. From the reactor; never waits."""
        wanted = handled.queue.log
        if wanted == "none" or (wanted == "failures" and handled.failure is None):
            return
        size = len(handled.delivery.body) + ROW_SIZE
        with self._lock:
            fits = not self._size or self._size + size <= MAX_WAITING
            if fits:
                self._size += size
        if not fits:
            self._leave_out("too many wait for the database")
            return

        def done(error: str | None) -> None:
            with self._lock:
                if waiting.told:
                    return
                waiting.told = True
                self._size -= size
            if error is not None:
                self._reactor.callFromThread(self._leave_out, error)

        waiting = _Waiting(
            handled=handled,
            worker=self._worker,
            limit=self._limit,
            offset=self._writer.clock_offset,
        )
        self._writer.submit(Entry(row=waiting.row, done=done))

    def stop(self) -> None:
        """Tell now what is to be told."""
        if self._telling is not None:
            self._telling.cancel()
            self._tell()

    def _leave_out(self, reason: str) -> None:
        self._left[reason] += 1
        if self._telling is None:
            self._telling = self._reactor.callLater(TELL_INTERVAL, self._tell)

    def _tell(self) -> None:
        self._telling = None
        left, self._left = self._left, Counter()
        for reason, count in left.items():
            _log.error(
                "{n} handled messages have no row in the MessageLog: {reason}. The messages "
                "themselves are settled",
                n=count,
                reason=reason,
            )


def row_of(handled: Handled, worker: str, limit: int, offset: float) -> MessageLog:
    """The row of a message. Whatever it holds, every database takes the row.

    Args:
        handled: the message.
        worker: who has handled it.
        limit: characters that are kept of the body.
        offset: seconds that the database's clock is ahead of this host's.
    """
    delivery, failure = handled.delivery, handled.failure
    exchange, routing_key = copying.origin_of(delivery)
    ended = _time(handled.ended + offset)
    return MessageLog.new(
        status=MessageLog.COMPLETED if failure is None else MessageLog.FAILED,
        task=_name(handled.queue.handler, MAX_TASK),
        task_args=_about(delivery),
        content=showing.readable(delivery.body, delivery.properties.content_encoding, limit),
        exchange=_name(exchange, 255),
        queue=_name(handled.queue.name, 255),
        routing_key=_name(routing_key, 255),
        priority=delivery.properties.priority or 0,
        publish_time=_time(handled.arrived + offset),
        start_time=_time(handled.started + offset),
        completion_time=ended if failure is None else None,
        failure_time=None if failure is None else ended,
        exception=None if failure is None else failure.exception,
        traceback=None if failure is None else failure.traceback,
        attempts=min(handled.queue.policy.retries(delivery.properties.headers), MAX_RETRIES) + 1,
        worker=worker,
    )


def _about(delivery: Delivery) -> str:
    """What a message says of itself, as a JSON object."""
    properties = delivery.properties
    about = {name: getattr(properties, name) for name in showing.PROPERTIES}
    about = {name: value for name, value in about.items() if value is not None}
    headers = {
        str(key): value for key, value in (properties.headers or {}).items() if key not in _TOLD
    }
    if headers:
        about["headers"] = headers
    try:
        text = json.dumps(about, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not 0 < len(text) <= MAX_HEADERS:
        about["headers"] = "they are too long, or too deep, to be kept"
        text = json.dumps(about, ensure_ascii=False, default=str)
    return outcomes.stored(text, len(text))


def _name(text: Any, limit: int) -> str:
    return outcomes.stored(str(text), limit)[:limit]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
