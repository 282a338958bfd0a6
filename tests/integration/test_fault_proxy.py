# SPDX-License-Identifier: Apache-2.0
"""The fault proxy, with plain sockets at both ends: what it passes on, and what it does not."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from devtools.ports import free_port
from tests.chaos.proxies import Proxies, ProxyPath
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once

SOON = 10.0
#: Long enough to say that something does not come.
NEVER = 0.3


class Path:
    """A proxied path with its server's listening socket."""

    def __init__(self, proxy: ProxyPath, server: socket.socket) -> None:
        self.proxy = proxy
        self._server = server
        self._sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.proxy.port), timeout=SOON)
        self._sockets.append(client)
        return client

    def accept(self) -> socket.socket:
        accepted, _ = self._server.accept()
        accepted.settimeout(SOON)
        self._sockets.append(accepted)
        return accepted

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A connection: the client's end and the server's."""
        client = self.connect()
        return client, self.accept()

    def close(self) -> None:
        for one in self._sockets:
            one.close()


@pytest.fixture(scope="module")
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SOON)
        yield server


@pytest.fixture(scope="module")
def proxies(server: socket.socket) -> Iterator[Proxies]:
    with Proxies({"server": server.getsockname()[1], "nobody": free_port()}) as proxies:
        yield proxies


@pytest.fixture
def path(proxies: Proxies, server: socket.socket) -> Iterator[Path]:
    path = Path(proxies["server"], server)
    yield path
    path.proxy.suffer()
    path.proxy.cut()
    path.close()


def received(end: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        assert more, f"the end after {len(data)} bytes"
        data += more
    return data


@contextmanager
def silence(end: socket.socket) -> Iterator[None]:
    """After the block, nothing arrives here for a while."""
    yield
    end.settimeout(NEVER)
    with pytest.raises(TimeoutError):
        end.recv(1)
    end.settimeout(SOON)


def test_a_good_path_passes_everything_both_ways_and_the_end(path: Path) -> None:
    client, server = path.pair()
    data = bytes(range(256)) * 4000
    for sender, receiver in ((client, server), (server, client)):
        sender.settimeout(SOON)
        sender.sendall(data[:100_000])
        assert received(receiver, 100_000) == data[:100_000]
    client.sendall(b"last words")
    client.close()
    assert received(server, 10) == b"last words"
    assert server.recv(1) == b""


def test_what_the_receiver_does_not_read_is_left_with_the_sender(path: Path) -> None:
    client, server = path.pair()
    client.settimeout(NEVER)
    sent = 0

    def buffers_are_full() -> bool:
        nonlocal sent
        try:
            sent += client.send(b"x" * 65536)
        except TimeoutError:
            return True
        return False

    wait_until(buffers_are_full)
    assert received(server, sent) == b"x" * sent


def test_a_refusing_path_lets_no_new_connection_in_and_keeps_the_old(path: Path) -> None:
    client, server = path.pair()
    with path.proxy.suffering(refuse=True):
        with pytest.raises(ConnectionRefusedError):
            path.connect()
        client.sendall(b"still here")
        assert received(server, 10) == b"still here"
    client, server = path.pair()
    client.sendall(b"let in")
    assert received(server, 6) == b"let in"


def test_a_cut_resets_both_ends(path: Path) -> None:
    client, server = path.pair()
    assert path.proxy.cut() == 1
    for end in (client, server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    client, server = path.pair()
    client.sendall(b"again")
    assert received(server, 5) == b"again"


def test_nothing_leaves_a_black_hole_until_the_path_is_mended(path: Path) -> None:
    client, server = path.pair()
    path.proxy.suffer(hold_up=True, hold_down=True)
    late = path.connect()
    with silence(server), silence(client):
        late.sendall(b"late")
        client.sendall(b"up")
        server.sendall(b"down")
    path.proxy.suffer()
    assert received(server, 2) == b"up"
    assert received(client, 4) == b"down"
    assert received(path.accept(), 4) == b"late"


def test_who_leaves_in_a_black_hole_is_not_missed(path: Path) -> None:
    client, server = path.pair()
    path.proxy.suffer(hold_up=True, hold_down=True)
    with silence(server):
        client.close()
    path.proxy.suffer()
    assert server.recv(1) == b""


def test_one_way_may_be_held_and_what_was_held_is_lost_with_a_cut(path: Path) -> None:
    client, server = path.pair()
    path.proxy.suffer(hold_down=True)
    client.sendall(b"question")
    assert received(server, 8) == b"question"
    with silence(client):
        server.sendall(b"answer")
    path.proxy.cut()
    path.proxy.suffer()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_latency_delays_each_way_and_keeps_the_order(path: Path) -> None:
    client, server = path.pair()
    path.proxy.suffer(latency=0.2, jitter=0.1)
    begin = time.monotonic()
    for number in range(10):
        client.sendall(b"%d" % number)
        time.sleep(0.01)
    assert received(server, 10) == b"0123456789"
    server.sendall(b"back")
    assert received(client, 4) == b"back"
    assert time.monotonic() - begin >= 0.4


def test_a_rate_limits_what_passes(path: Path) -> None:
    client, server = path.pair()
    path.proxy.suffer(rate=100_000)
    begin = time.monotonic()
    client.sendall(b"x" * 50_000)
    received(server, 50_000)
    assert time.monotonic() - begin >= 0.5


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_connection_is_cut_after_so_many_bytes_in_the_middle_of_whatever(
    path: Path, chunk: int
) -> None:
    client, server = path.pair()
    path.proxy.suffer(cut_after_up=25)

    def reset() -> bool:
        try:
            client.sendall(b"x" * chunk)
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    wait_until(reset)
    assert received(server, 25) == b"x" * 25
    assert server.recv(1) == b""
    path.proxy.suffer()
    client, server = path.pair()
    client.sendall(b"x" * 50)
    assert len(received(server, 50)) == 50


def test_a_server_that_is_away_resets_who_connects(proxies: Proxies, server: socket.socket) -> None:
    path = Path(proxies["nobody"], server)
    with pytest.raises(ConnectionResetError):
        path.connect().recv(1)
    path.close()
