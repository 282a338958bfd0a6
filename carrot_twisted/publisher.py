# SPDX-License-Identifier: Apache-2.0
"""Hands committed rows to the broker: one daemon thread and one lasting connection per process.

Any process that publishes (a web worker, a shell, a command) gets its thread with the first
commit, and a new one after a fork, so nothing is shared between processes. The caller never waits
for the broker. What cannot be sent within a short time stays in the outbox, the table itself, for
the relay of any running service; so killing this process on any line costs a delay, not a task.

Inside the service the reactor's own publishing connection takes this place (see ``install``).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from django.db import close_old_connections
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.exceptions import IncompatibleProtocolError

from carrot_twisted import conf, failpoints, outbox, signals
from carrot_twisted.outage import Outage
from carrot_twisted.publishing import PublishingSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pika.connection import Connection

    from carrot_twisted.models import MessageLog
    from carrot_twisted.outbox import Post
    from carrot_twisted.virtual_host import VirtualHost

_logger = logging.getLogger("carrot_twisted.publisher")
# pika tells each failed connection in half a dozen errors. A project that configures logging gets
# them; without that, Python would print them beside our one warning.
logging.getLogger("pika").addHandler(logging.NullHandler())

#: Seconds without a sign of the broker after which posts are left to the relay.
BUDGET = 1.0
#: So many looks for signs make these seconds. Between two of them the connection is read: a process
#: that gets no processor for a while does not take its own silence for the broker's.
LOOKS = 2
#: Seconds between a failed connection and the next attempt; posts meanwhile go to the relay.
RECONNECT = 2.0
#: Confirms are collected for so many seconds, or up to so many, before one statement notes them.
NOTE_DELAY = 1.0
#: Seconds that connections get to close at the end of the process.
FAREWELL = 0.5
NOTE_BATCH = 2000
#: Seconds until the next look at the inbox for each row that the last one has found, and at most.
#: Up to a thousand rows a second each goes out at once; beyond that they go out in small batches,
#: which costs caller and broker much less.
COLLECT = 0.001
COLLECT_MOST = 0.01
#: Rows that become messages at once. Then these are sent, before the next ones are made: the broker
#: is at work from the first ones on.
CHUNK = 500
#: Why a message was not published that no row stands for.
OVER = "the publisher of this process has ended"
#: At most so many posts wait in memory; the rest is the relay's.
MAX_WAITING = 100_000


class Publisher(Protocol):
    """What takes committed rows to the broker in this process."""

    def submit(self, rows: Sequence[MessageLog], using: str) -> None:
        """Take over rows from any thread, without waiting."""

    def flush(self, timeout: float) -> bool:
        """Wait until everything taken over is confirmed and noted, or left to the relay.

        Args:
            timeout: seconds at most.

        Returns:
            Whether it all came to an end in time.
        """

    def submit_post(
        self, host: VirtualHost, post: Post, settled: Callable[[str | None], None]
    ) -> None:
        """Send a message that no row stands for, from any thread, without waiting.

        Args:
            host: the broker.
            post: the message.
            settled: called in any thread with None (the broker has it), or the reason why that is
                not certain; ``publishing.Refused``, if the broker would say no again.
        """

    def alarm(self, host: VirtualHost) -> str | None:
        """Why a broker takes no messages from anybody now; None: it does, as far as is known."""


class _Connection(SelectConnection):
    """pika's select adapter, sending once per turn of its loop.

    pika makes three frames of a message and a system call of each frame; together that takes more
    time than all the rest of publishing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unsent: list[bytes] = []
        super().__init__(*args, **kwargs)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._unsent:
            self._adapter_call_later(0, self._send)
        self._unsent.append(data)

    def _adapter_disconnect_stream(self) -> None:
        self._send()
        super()._adapter_disconnect_stream()

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            super()._adapter_emit_data(b"".join(unsent))


class _Link:
    """One broker's connection on the publisher's thread."""

    def __init__(self, thread: ThreadPublisher, host: VirtualHost) -> None:
        self._thread = thread
        self._host = host
        self._connection: _Connection | None = None
        self._session: PublishingSession | None = None
        self._waiting: deque[Post] = deque()
        self._servers = deque(host.shuffled())
        #: Servers of a cluster that have not failed since there was a connection.
        self._untried = len(self._servers)
        self._not_before = 0.0
        self._closing = False
        #: Counts what has gone forward here. What the broker answers the session counts.
        self._signs = 0
        #: All signs there were at the last look, and for how many looks there have been no others.
        self._seen: tuple[int, int] = (0, 0)
        self._quiet = 0
        self._outage = Outage(time.monotonic)

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or (self._session is not None and self._session.busy)

    def publish(self, posts: Sequence[Post]) -> None:
        if not self.busy:
            self._signs += 1
        if self._session is not None:
            self._session.publish(posts)
            return
        self._waiting.extend(posts)
        if self._connection is None and time.monotonic() >= self._not_before:
            self._connect()

    def check_progress(self) -> None:
        """Called now and then: leave to the relay what gets nowhere."""
        signs = (self._signs, 0 if self._session is None else self._session.answers)
        if not self.busy or signs != self._seen:
            self._seen, self._quiet = signs, 0
            return
        self._quiet += 1
        if self._quiet >= LOOKS:
            self._give_up("the broker did not answer in time")

    @property
    def alarm(self) -> str | None:
        return None if self._session is None else self._session.alarm

    @property
    def closed(self) -> bool:
        return self._connection is None

    def close(self) -> None:
        self._closing = True
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def _connect(self) -> None:
        server = self._servers[0]
        self._servers.rotate(-1)
        try:
            parameters = self._host.parameters(server, conf.current().heartbeat)
        except OSError as error:
            # A file that TLS needs is gone.
            self._failed(None, error)
            return
        self._connection = _Connection(
            parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._failed,
            on_close_callback=self._failed,
            custom_ioloop=self._thread.ioloop,
        )

    def _opened(self, connection: Connection) -> None:
        if self._closing:
            connection.close()
            return
        self._signs += 1
        after = self._outage.over()
        if after:
            _logger.info("Connected to the broker %s%s.", self._host.label, after)
        self._untried = len(self._servers)
        self._session = PublishingSession(connection, self._settled, self._thread.settle_waiters)
        posts, self._waiting = self._waiting, deque()
        self._session.publish(posts)

    def _failed(self, _connection: Connection | None, reason: object) -> None:
        if self._closing:
            self._connection = None
            return
        told = self._outage.failed(self._cause(reason))
        if told is not None:
            _logger.warning(
                "No connection to the broker %s (%s). Tasks are kept in the database; a running "
                "service sends them.",
                self._host.label,
                told,
            )
        self._connection = self._session = None
        self._untried -= 1
        if self._untried and self._waiting:
            self._connect()
            return
        self._untried = len(self._servers)
        self._not_before = time.monotonic() + RECONNECT
        self._give_up(f"no connection to the broker: {reason}")

    def _cause(self, reason: object) -> str:
        error = _innermost(reason)
        text = f"{type(error).__name__}: {error}"
        if self._host.secure and isinstance(error, IncompatibleProtocolError):
            # TLS 1.3 has no moment for the server's refusal, and pika misses its last words.
            text += (
                "; the broker hung up after TLS's handshake. It may want a client certificate, "
                "or another one: see certificate_file"
            )
        return text

    def _give_up(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for post in waiting:
            self._settled(post, reason)
        if self._session is not None:
            self._session.abandon_pending(reason)
        self._thread.settle_waiters()

    def _settled(self, post: Post, error: str | None) -> None:
        self._signs += 1
        self._thread.settled(post, error)


def _innermost(reason: Any) -> Any:
    """What pika wraps up to three times: "ConnectionRefusedError: …" and the like."""
    while True:
        nested = getattr(reason, "exceptions", None) or getattr(reason, "args", None) or [None]
        inner = getattr(reason, "exception", None) or nested[-1]
        if not isinstance(inner, Exception):
            return reason
        reason = inner


@dataclass(kw_only=True)
class _Note:
    """What became of some messages, to be written into their rows."""

    confirmed: dict[str, list[Post]] = field(default_factory=dict)
    """By database alias."""
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    """Reason by message id, by database alias."""
    missing: list[tuple[str, float, str]] = field(default_factory=list)
    """Queues that were missing: name, since when, database alias of the rows."""
    waiters: list[threading.Event] = field(default_factory=list)
    """Set when this and all before it are written."""
    size: int = 0

    def write(self) -> None:
        try:
            for using, posts in self.confirmed.items():
                outbox.note_confirmed(posts, using)
            for using, texts in self.errors.items():
                outbox.note_errors(texts, using, delay=0)
            for missing in self.missing:
                while outbox.queue_was_missing(*missing) == outbox.RING_BATCH:
                    pass
        except Exception as error:
            # The thread goes on. The relay will send them once more, which does no harm.
            _logger.warning("Confirms could not be noted in the database: %s", error)
        finally:
            close_old_connections()
            for waiter in self.waiters:
                waiter.set()


class ThreadPublisher:
    """A daemon thread with pika's select adapter: every pika object stays on that thread.

    A second one notes confirms in the database, so that neither waits for the other's server.
    """

    def __init__(self) -> None:
        self.ioloop: Any = IOLoop()
        self._lock = threading.Lock()
        self._inbox: list[tuple[Sequence[MessageLog], str]] = []
        #: Whether a look at the inbox is due.
        self._awake = False
        #: Rows that are no messages yet, at most CHUNK of them each, with their database alias.
        self._chunks: deque[tuple[Sequence[MessageLog], str]] = deque()
        self._links: dict[VirtualHost, _Link] = {}
        self._using: dict[str, str] = {}
        #: Of messages that no row stands for.
        self._callbacks: dict[Post, Callable[[str | None], None]] = {}
        #: The thread does nothing more.
        self._over = False
        self._note = _Note()
        self._notes: SimpleQueue[_Note | None] = SimpleQueue()
        self._waiters: list[threading.Event] = []
        self._thread = threading.Thread(target=self._run, name="carrot-publisher", daemon=True)
        self._noter = threading.Thread(target=self._write, name="carrot-confirms", daemon=True)
        self._thread.start()
        self._noter.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; an error that nobody foresaw may have ended it."""
        return self._thread.is_alive()

    # Called from any thread.

    def submit(self, rows: Sequence[MessageLog], using: str) -> None:
        with self._lock:
            wake, self._awake = not self._awake, True
            self._inbox.append((rows, using))
        if wake:
            self.ioloop.add_callback_threadsafe(self._take)

    def flush(self, timeout: float) -> bool:
        if not self.alive:
            # Whatever it had is in the outbox.
            return True
        done = threading.Event()

        def wait() -> None:
            self._waiters.append(done)
            self.settle_waiters()

        self.ioloop.add_callback_threadsafe(wait)
        return done.wait(timeout)

    def submit_post(
        self, host: VirtualHost, post: Post, settled: Callable[[str | None], None]
    ) -> None:
        with self._lock:
            if not self._over:
                self._callbacks[post] = settled
                self.ioloop.add_callback_threadsafe(lambda: self._link(host).publish([post]))
                return
        settled(OVER)

    def alarm(self, host: VirtualHost) -> str | None:
        link = self._links.get(host)
        return None if link is None else link.alarm

    def close(self, timeout: float) -> None:
        """Flush, close the connections and end the threads."""
        self.flush(timeout)
        if self.alive:
            self.ioloop.add_callback_threadsafe(self._close)
        self._thread.join(timeout)
        # The last thing that the one thread does is to end the other.
        self._noter.join(timeout)

    # Called on the thread.

    def settled(self, post: Post, error: str | None) -> None:
        callback = self._callbacks.pop(post, None)
        if callback is not None:
            callback(error)
            return
        using = self._using.pop(post.message_id, None)
        if using is None:
            return
        note = self._note
        if error is None:
            note.confirmed.setdefault(using, []).append(post)
            if post.missing_since is not None and not post.exchange:
                note.missing.append((post.routing_key, post.missing_since, using))
        else:
            note.errors.setdefault(using, {})[post.message_id] = error
        note.size += 1
        if note.size == 1:
            self.ioloop.call_later(NOTE_DELAY, partial(self._hand_over, note))
        elif note.size == NOTE_BATCH:
            self._hand_over(note)

    def settle_waiters(self) -> None:
        """Answer those who wait in ``flush``, if nothing is under way any more."""
        if (
            self._waiters
            and not (self._inbox or self._chunks)
            and not any(x.busy for x in self._links.values())
        ):
            self._note.waiters, self._waiters = self._waiters, []
            self._hand_over(self._note)

    def _run(self) -> None:
        self._tick()
        try:
            self.ioloop.start()
        except Exception as error:
            # pika lets out what a peer does at a bad moment: a reset between the end of connect()
            # and its look at the socket, for one.
            _logger.warning(
                "The publisher met an error (%s: %s); with the next task it starts anew. Tasks "
                "are kept in the database; a running service sends them.",
                type(error).__name__,
                error,
            )
            with suppress(Exception):
                self._close()
                self.ioloop.start()
        finally:
            with self._lock:
                self._over = True
            for settled in self._callbacks.values():
                settled(OVER)
            self.ioloop.close()
            self._note.waiters += self._waiters
            self._hand_over(self._note)
            self._notes.put(None)

    def _tick(self) -> None:
        for link in self._links.values():
            link.check_progress()
        self.ioloop.call_later(BUDGET / LOOKS, self._tick)

    def _take(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
            self._awake = bool(inbox)
        if not inbox:
            return
        found = sum(len(rows) for rows, _ in inbox)
        self.ioloop.call_later(min(COLLECT * found, COLLECT_MOST), self._take)
        feeds = bool(self._chunks)
        room = MAX_WAITING - len(self._using) - sum(len(rows) for rows, _ in self._chunks)
        for rows, using in inbox:
            self._chunks.extend((chunk, using) for chunk in chunks_of(rows[: max(0, room)]))
            room -= len(rows)
        if not feeds:
            self._feed()

    def _feed(self) -> None:
        """Make messages of some rows, and send them; then of the next ones."""
        room = CHUNK
        while self._chunks and room > 0:
            rows, using = self._chunks.popleft()
            room -= len(rows)
            try:
                grouped = outbox.posts(rows)
            except Exception:
                # The rows are committed: whatever is wrong with one, the relay tells on the row.
                _logger.exception("Rows could not be made into messages; they stay in the outbox.")
                continue
            for host, posts in grouped.items():
                for post in posts:
                    self._using[post.message_id] = using
                self._link(host).publish(posts)
        if self._chunks:
            self.ioloop.call_later(0, self._feed)
        else:
            self.settle_waiters()

    def _link(self, host: VirtualHost) -> _Link:
        if host not in self._links:
            self._links[host] = _Link(self, host)
        return self._links[host]

    def _hand_over(self, note: _Note) -> None:
        """Have the note written, unless it was already."""
        if note is self._note:
            self._note = _Note()
            self._notes.put(note)

    def _write(self) -> None:
        """On the noting thread."""
        while (note := self._notes.get()) is not None:
            note.write()

    def _close(self) -> None:
        for link in self._links.values():
            link.close()
        self._stop_when_closed(time.monotonic() + FAREWELL)

    def _stop_when_closed(self, end: float) -> None:
        """A connection that is left behind keeps its socket; a broker may say nothing any more."""
        if time.monotonic() > end or all(link.closed for link in self._links.values()):
            self.ioloop.stop()
        else:
            self.ioloop.call_later(0.01, partial(self._stop_when_closed, end))


def chunks_of(rows: Sequence[MessageLog]) -> Iterator[Sequence[MessageLog]]:
    """Rows in parts that become messages at once."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


_lock = threading.Lock()
_publisher: Publisher | None = None
_owner_pid = 0
#: Publishers of a parent process. Kept so that nothing of them is closed in the child, where
#: closing would end the parent's connection.
_inherited: list[Publisher] = []


def current() -> Publisher:
    """This process's publisher; made on first use."""
    global _publisher, _owner_pid
    with _lock:
        dead = isinstance(_publisher, ThreadPublisher) and not _publisher.alive
        if _publisher is None or _owner_pid != os.getpid() or dead:
            _publisher = ThreadPublisher()
            _owner_pid = os.getpid()
        return _publisher


def install(publisher: Publisher | None) -> Publisher | None:
    """Let another publisher take the place in this process; None: the next use makes a new one.

    Returns:
        The one that had the place.
    """
    global _publisher, _owner_pid
    with _lock:
        before, _publisher = _publisher, publisher
        _owner_pid = os.getpid()
        return before


def flush(timeout: float) -> bool:
    """Wait until all that this process handed over is confirmed, or left to the relay.

    Args:
        timeout: seconds at most.

    Returns:
        False if some messages were still under way after ``timeout``.
    """
    return True if _publisher is None else current().flush(timeout)


def _after_fork() -> None:
    global _lock, _publisher
    _lock = threading.Lock()
    if _publisher is not None:
        _inherited.append(_publisher)
    _publisher = None


def _at_exit() -> None:
    """What was published a moment ago still goes out; a broker that is away costs BUDGET."""
    if isinstance(_publisher, ThreadPublisher) and _owner_pid == os.getpid():
        _publisher.close(2 * BUDGET)


def _on_rows_committed(*, rows: Sequence[MessageLog], using: str, **_: Any) -> None:
    failpoints.reached("after_commit_before_publish")
    current().submit(rows, using)


signals.rows_committed.connect(_on_rows_committed, dispatch_uid="carrot_twisted.publisher")
os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
