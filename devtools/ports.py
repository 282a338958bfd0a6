# SPDX-License-Identifier: Apache-2.0
"""Free TCP ports for servers that are stopped and started again on the same port."""

from __future__ import annotations

import secrets
import socket

CANDIDATES = range(15_000, 30_000)


def is_free(port: int) -> bool:
    """True if a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore dying connections
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a free port below those that the system gives to outgoing connections.

    A port from the system's own range (bind to port 0) could be taken by somebody's connection
    while the server is down. Worse, a client that tries to reach the stopped server may get that
    very port and connect to itself.
    """
    for _ in range(1_000):
        port = secrets.choice(CANDIDATES)  # `random` may be seeded alike in two test runs
        if is_free(port):
            return port
    raise OSError(f"no free port found in {CANDIDATES}")


def answers(port: int, question: bytes = b"") -> bool:
    """True if a server accepts a connection and, where there is a question, says something."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(question)
            return not question or bool(connection.recv(1))
    except OSError:
        return False
