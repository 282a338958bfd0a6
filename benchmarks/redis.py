# SPDX-License-Identifier: Apache-2.0
"""huey's side of Redis: how many tasks wait, and tidying up. In Redis' protocol, without a client.

Standard library only: huey's site reads it, too, in an environment of its own.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from benchmarks import processes
from benchmarks.file_systems import file_system
from benchmarks.queues import Queues

if TYPE_CHECKING:
    from typing import BinaryIO

#: Keys of huey's for a queue; and when its first task began, which the site notes.
WAITING, RESULTS, FIRST_START = "huey.redis.{}", "huey.results.{}", "benchmark.first.{}"
PORT = 6379

Reply = int | str | list["Reply"] | None


class Redis(Queues):
    """A Redis server that holds huey's queues, and its results."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        address = (parts.hostname or "127.0.0.1", parts.port or PORT)
        super().__init__(url, processes.find_server(*address))
        self._socket = socket.create_connection(address)
        self._answers = self._socket.makefile("rb")
        if parts.password:
            self._ask("AUTH", unquote(parts.password))

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def facts(self) -> dict[str, str]:
        about = str(self._ask("INFO", "server")).splitlines()
        version = next(s.partition(":")[2] for s in about if s.startswith("redis_version:"))
        found = [f"{name}={self._setting(name)}" for name in ("appendonly", "appendfsync")]
        if self._pid:
            found.append(f"data on {file_system(Path(self._setting('dir')))}")
        return {"Redis": ", ".join([version, *found])}

    def delete(self, queue: str) -> None:
        self._ask("DEL", *(key.format(queue) for key in (WAITING, RESULTS, FIRST_START)))

    def _waiting(self, queue: str) -> int:
        waiting = self._ask("LLEN", WAITING.format(queue))
        assert isinstance(waiting, int)
        return waiting

    def _setting(self, name: str) -> str:
        answer = self._ask("CONFIG", "GET", name)
        assert isinstance(answer, list)
        return str(answer[1])

    def _ask(self, *words: str) -> Reply:
        self._socket.sendall(f"{' '.join(words)}\r\n".encode())
        return read(self._answers)


def read(stream: BinaryIO) -> Reply:
    """Read one reply.

    Raises:
        ConnectionError: Redis refuses what was asked for, or has gone.
    """
    line = stream.readline().decode().rstrip("\r\n")
    kind, rest = line[:1], line[1:]
    if kind == "+":
        return rest
    if kind == ":":
        return int(rest)
    if kind == "$":
        size = int(rest)
        return None if size < 0 else stream.read(size + 2)[:-2].decode()
    if kind == "*":
        return [read(stream) for _ in range(int(rest))]
    raise ConnectionError(f"Redis: {rest or 'no answer'}")
