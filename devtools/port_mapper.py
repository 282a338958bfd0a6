# SPDX-License-Identifier: Apache-2.0
"""Erlang's port mapper (epmd), on a port of its own: a node alone has one, a cluster shares one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from devtools.ports import answers, free_port
from devtools.process import Process, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class PortMapper:
    """Tells nodes where others listen. None that runs already is used, and none is left behind."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: Process | None = None

    def start(
        self,
        command: Callable[..., Sequence[str]],
        *,
        folder: Path,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Have it answer before a node looks for it and starts a daemon; once is enough.

        Args:
            command: makes a command line of a program and its arguments.
            folder: to run in.
            log: of the node.
            environment: of the node.
        """
        if self._process is not None and self._process.running:
            return
        self._process = Process(
            command("epmd", "-address", "127.0.0.1", "-port", str(self.port)),
            folder=folder,
            log=log,
            environment=environment,
        )
        deadline = time.monotonic() + 10
        while not answers(self.port):
            if not self._process.running or time.monotonic() > deadline:
                raise ServerError(f"epmd did not come up on port {self.port}: {log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
