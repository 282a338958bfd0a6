# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that does to a connection what networks do: one path from a port to a server.

Nothing is made up that a network would not do. What is held back is not read from the sender, so
its buffers fill as they do when no acknowledgements come, and what was held arrives when the path
is good again, or never if the connection was cut before. The end of a held connection stays unseen
by the other side.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone

if TYPE_CHECKING:
    from twisted.python.failure import Failure

#: Bytes of one direction that wait here for their time; more are left with the sender.
ROOM = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What a path does to its connections. *Up* is from client to server, *down* the way back."""

    refuse: bool = False
    """New connections are refused; those that stand go on."""
    hold_up: bool = False
    hold_down: bool = False
    """Nothing passes; new connections are accepted and lead nowhere. Both: a black hole."""
    latency: float = 0.0
    """Seconds that everything takes, each way."""
    jitter: float = 0.0
    """Seconds at most by which it takes longer; the order is kept."""
    rate: float = 0.0
    """Bytes a second, each way; 0: no limit."""
    cut_after_up: int | None = None
    cut_after_down: int | None = None
    """After so many more bytes of one connection it ends, in the middle of whatever that is."""


class Direction:
    """One way of one connection: takes from an end, gives to the other, in order."""

    def __init__(self, path: ProxiedPath, *, up: bool) -> None:
        self._path = path
        self._up = up
        self._queue: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._last_due = 0.0
        self._timer: Any = None
        self._full = False
        self._ended = False
        self._left: int | None = None
        self._source: Any = None
        self._sink: Any = None

    def join(self, source: Any, sink: Any) -> None:
        """Both ends are there: their transports."""
        self._source, self._sink = source, sink
        sink.registerProducer(self, True)
        self.follow(Faults())

    def follow(self, before: Faults) -> None:
        """The path's faults have changed."""
        name = "cut_after_up" if self._up else "cut_after_down"
        wanted: int | None = getattr(self._path.faults, name)
        if wanted != getattr(before, name):
            self._left = wanted
        self._flush()

    def take(self, data: bytes) -> None:
        """The source has sent this."""
        faults = self._path.faults
        due = self._path.reactor.seconds() + faults.latency + random.uniform(0, faults.jitter)
        due = max(due, self._last_due)
        if faults.rate:
            due += len(data) / faults.rate
        self._last_due = due
        self._queue.append((due, data))
        self._size += len(data)
        self._flush()

    def end(self) -> None:
        """The source sends no more."""
        self._ended = True
        self._flush()

    def drop(self) -> None:
        """Forget what waits; the connection is gone."""
        self._ended = False
        self._queue.clear()
        self._size = 0
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    # Called by the sink's transport, as a producer's methods

    def pauseProducing(self) -> None:
        self._full = True
        self._throttle()

    def resumeProducing(self) -> None:
        self._full = False
        self._flush()

    def stopProducing(self) -> None:
        """The sink is gone."""

    @property
    def _held(self) -> bool:
        faults = self._path.faults
        return faults.hold_up if self._up else faults.hold_down

    def _flush(self) -> None:
        if self._sink is None:
            return
        now = self._path.reactor.seconds()
        while self._queue and not self._held and not self._full and self._queue[0][0] <= now:
            self._write(self._queue.popleft()[1])
        self._throttle()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._held or self._full:
            return
        if self._queue:
            wait = self._queue[0][0] - now
            self._timer = self._path.reactor.callLater(max(0.0, wait), self._flush)
        elif self._ended:
            self._ended = False
            self._sink.unregisterProducer()
            self._sink.loseConnection()

    def _write(self, data: bytes) -> None:
        self._size -= len(data)
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._sink.write(data[: len(data) + self._left])
                # What was sent so far arrives, then the end; the sender is told the hard way.
                self._sink.unregisterProducer()
                self._sink.loseConnection()
                self.drop()
                self._source.abortConnection()
                return
        self._sink.write(data)

    def _throttle(self) -> None:
        """Read from the sender, or leave it alone."""
        if self._held or self._full or self._size > ROOM:
            self._source.pauseProducing()
        else:
            self._source.resumeProducing()


class _End(Protocol):
    """One of the two sockets of a connection."""

    transport: Any

    def __init__(self, connection: ProxiedConnection, outgoing: Direction) -> None:
        self.connection = connection
        self.outgoing = outgoing

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.pauseProducing()
        self.connection.made()

    def dataReceived(self, data: bytes) -> None:
        self.outgoing.take(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connection.lost(self)


class ProxiedConnection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, path: ProxiedPath) -> None:
        self._path = path
        self.up = Direction(path, up=True)
        self.down = Direction(path, up=False)
        self.near = _End(self, self.up)
        self.far = _End(self, self.down)
        self._dialled = False
        self._cut = False
        self._open: set[_End] = set()

    def made(self) -> None:
        """One of the two ends is connected."""
        if self.far.transport is None:
            self._open.add(self.near)
            self.dial()
        else:
            self._open.add(self.far)
            if self._cut or self.near not in self._open:
                self.far.transport.abortConnection()
                return
            self.up.join(self.near.transport, self.far.transport)
            self.down.join(self.far.transport, self.near.transport)

    def dial(self) -> None:
        """Connect to the server, unless the path is held: then the client waits."""
        faults = self._path.faults
        if not self._dialled and not self._cut and not faults.hold_up and not faults.hold_down:
            self._dialled = True
            factory = _ToServer(self)
            self._path.reactor.connectTCP("127.0.0.1", self._path.target, factory, timeout=5)

    def follow(self, before: Faults) -> None:
        """The path's faults have changed."""
        self.dial()
        self.up.follow(before)
        self.down.follow(before)

    def lost(self, end: _End) -> None:
        """One of the two ends is gone: the other follows when all is passed on."""
        self._open.discard(end)
        (self.down if end is self.near else self.up).drop()
        if self._open:
            end.outgoing.end()
        if not self._open or self.far.transport is None:
            self._path.forget(self)

    def cut(self) -> None:
        """Reset both ends; what was under way is lost."""
        self._cut = True
        self.up.drop()
        self.down.drop()
        for end in tuple(self._open):
            end.transport.abortConnection()


class _ToServer(ClientFactory):
    """Connects one connection's far end."""

    noisy = False

    def __init__(self, connection: ProxiedConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._connection.far

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._connection.cut()


class _Listener(Factory):
    noisy = False

    def __init__(self, path: ProxiedPath) -> None:
        self._path = path

    def buildProtocol(self, addr: Any) -> Protocol:
        connection = ProxiedConnection(self._path)
        self._path.connections.add(connection)
        return connection.near


class ProxiedPath:
    """Listens on a port of 127.0.0.1 and passes each connection on to another.

    Args:
        port: to listen on.
        target: port of the server.
        reactor: Twisted's reactor.
    """

    def __init__(self, port: int, target: int, reactor: Any) -> None:
        self.port = port
        self.target = target
        self.reactor = reactor
        self.faults = Faults()
        self.connections: set[ProxiedConnection] = set()
        self._listening: Any = None

    def start(self) -> None:
        """Listen."""
        if self._listening is None:
            listener = _Listener(self)
            self._listening = self.reactor.listenTCP(self.port, listener, interface="127.0.0.1")

    def stop(self) -> Deferred[Any]:
        """Listen no more, and reset all connections."""
        self.cut()
        return self._deafen()

    def suffer(self, faults: Faults) -> Deferred[Any]:
        """From now on these faults, and no others; fires when they are in force."""
        before, self.faults = self.faults, faults
        for connection in tuple(self.connections):
            connection.follow(before)
        if faults.refuse:
            return self._deafen()
        self.start()
        return succeed(None)

    def cut(self) -> int:
        """Reset all connections (RST to both sides); returns how many there were."""
        victims = tuple(self.connections)
        for connection in victims:
            connection.cut()
        return len(victims)

    def forget(self, connection: ProxiedConnection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)

    def _deafen(self) -> Deferred[Any]:
        listening, self._listening = self._listening, None
        if listening is None:
            return succeed(None)
        return maybeDeferred(listening.stopListening)
