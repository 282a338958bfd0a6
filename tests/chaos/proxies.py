# SPDX-License-Identifier: Apache-2.0
"""Fault proxies for tests: a process with any number of paths, each to be spoilt and mended.

with Proxies({"broker": broker.port}) as proxies:
    url = proxies["broker"].through(broker.url)
    ...
    with proxies["broker"].suffering(hold_up=True, hold_down=True):
        ...  # a black hole
    proxies["broker"].cut()
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from devtools.ports import free_port
from tests.chaos.proxy import Faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

REPOSITORY = Path(__file__).resolve().parents[2]


class ProxyPath:
    """One path of the proxies: a port that leads to a server. For any thread."""

    def __init__(self, proxies: Proxies, number: int, port: int) -> None:
        self._proxies = proxies
        self._number = number
        self.port = port

    def through(self, url: str) -> str:
        """The server's URL, by way of this path."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{credentials}@127.0.0.1:{self.port}").geturl()

    def suffer(self, **faults: Any) -> None:
        """These faults (see ``Faults``) and no others from now on; none: the path is good."""
        self._proxies.command(path=self._number, faults=asdict(Faults(**faults)))

    @contextmanager
    def suffering(self, **faults: Any) -> Iterator[None]:
        """These faults inside the block."""
        self.suffer(**faults)
        try:
            yield
        finally:
            self.suffer()

    def cut(self) -> int:
        """Reset all connections of this path; returns how many there were."""
        return int(self._proxies.command(path=self._number, cut=True)["cut"])


class Proxies:
    """The proxies' process.

    Args:
        targets: port of a server, by the name of the path to it.
    """

    def __init__(self, targets: Mapping[str, int]) -> None:
        self._targets = targets
        self._paths = {
            name: ProxyPath(self, number, free_port()) for number, name in enumerate(targets)
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __getitem__(self, name: str) -> ProxyPath:
        return self._paths[name]

    def __enter__(self) -> Self:
        pairs = [f"{self._paths[name].port}:{port}" for name, port in self._targets.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.proxy_server", *pairs],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C at the terminal is for who uses the proxies
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(10)
        process.stdout.close()

    def command(self, **command: Any) -> dict[str, Any]:
        """Send a command; returns the answer, when it is in force."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with self._lock:
            process.stdin.write(f"{json.dumps(command)}\n")
            process.stdin.flush()
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the proxies' process has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer
