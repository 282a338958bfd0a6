# SPDX-License-Identifier: Apache-2.0
"""What all private servers share: a folder, a port, and being started and stopped."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from devtools.ports import free_port
from devtools.process import Process, ServerError, tail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self


class Startable(ABC):
    """What is started and stopped; as a context manager it is running inside the block."""

    @abstractmethod
    def start(self) -> None:
        """Start it and return when clients can connect."""

    @abstractmethod
    def stop(self) -> None:
        """End it; its data stay."""

    @abstractmethod
    def kill(self) -> None:
        """kill -9 of all its processes."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Server(Startable):
    """A server of our own on 127.0.0.1, with all its files in one folder.

    The same object may be started and stopped any number of times and keeps its port and its
    data; so does a new object on the folder of an earlier one, also of one that crashed.
    """

    label: ClassVar[str]
    seconds_to_start: ClassVar[float] = 60.0
    seconds_to_stop: ClassVar[float] = 30.0

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = Path(folder).absolute()
        self.port = port or free_port()
        self.log = self.folder / "server.log"
        self._process: Process | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, with user and password."""

    @abstractmethod
    def _launch(self) -> Process:
        """Prepare the folder where that is needed, and start the server's process."""

    @abstractmethod
    def _ready(self) -> bool:
        """True once clients can connect."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int | None:
        """The process id of the running server."""
        return self._process.pid if self._process and self._process.running else None

    def start(self) -> None:
        """Start the server and return when clients can connect."""
        if self.running:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process = self._launch()
        deadline = time.monotonic() + self.seconds_to_start
        while not self._ready():
            if not self.running:
                problem = f"ended with status {self._process.wait(10)} while starting"
            elif time.monotonic() > deadline:
                self.kill()
                problem = f"did not come up within {self.seconds_to_start:g} s"
            else:
                time.sleep(0.1)
                continue
            raise ServerError(f"{self.label} {problem}. End of {self.log}:\n{tail(self.log)}")

    def kill(self) -> None:
        """kill -9 of the server with all its processes."""
        if self._process:
            self._process.kill()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, nothing answers."""
        if self._process:
            self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        if self._process:
            self._process.send(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Paused inside the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def _stop_with(self, number: signal.Signals) -> None:
        if self._process:
            self._process.stop(number, self.seconds_to_stop)


def write_private(file: Path, text: str) -> None:
    """Write what only the owner may read; its folder is made, too."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


def clean_environment(home: Path) -> dict[str, str]:
    """Return an environment without the developer's settings for this or that server.

    The folders of administration tools are added to PATH because a plain user's lacks them.
    """
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": f"{path}:/usr/local/sbin:/usr/sbin:/sbin", "HOME": str(home), "LANG": "C.UTF-8"}
