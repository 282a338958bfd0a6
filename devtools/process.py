# SPDX-License-Identifier: Apache-2.0
"""A server process under a guardian: it never outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GUARDIAN = Path(__file__).with_name("guardian.py")


class ServerError(Exception):
    """A private server could not be prepared, started or stopped; the text says what to do."""


def tail(log: Path, lines: int = 25) -> str:
    """Return the last lines of a log file, indented, for an error message."""
    if not log.exists():
        return "    (no log was written)"
    with log.open(errors="replace") as stream:
        return "".join(f"    {line.rstrip()}\n" for line in deque(stream, lines)).rstrip("\n")


def children_of(pid: int) -> list[int]:
    """The process ids of a process's children."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Process:
    """One run of a server. `end_signal` is what ends it when its starter is gone."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        environment: Mapping[str, str],
        user: str | None = None,
        end_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        with log.open("ab") as stream:
            self._guardian = subprocess.Popen(
                [sys.executable, "-IS", str(GUARDIAN), user or "", end_signal.name, *command],
                stdin=subprocess.PIPE,  # the lifeline: closed when this process ends
                stdout=subprocess.PIPE,
                stderr=stream,
                cwd=folder,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is for us, not for the server
            )
        assert self._guardian.stdout is not None
        first_line = self._guardian.stdout.readline()
        if not first_line:
            self.wait(10)
            raise ServerError(f"{command[0]} could not be run:\n{tail(log)}")
        self.pid = int(first_line)

    @property
    def running(self) -> bool:
        return self._guardian.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server itself; nothing happens when it has ended."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Wait until the server and all its children have ended; return its exit status."""
        try:
            return self._guardian.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerError(f"process {self.pid} has not ended in {seconds:g} s") from None
        finally:
            if not self.running:
                for pipe in (self._guardian.stdin, self._guardian.stdout):
                    assert pipe is not None
                    pipe.close()

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """End the server with a signal; if that takes too long, by force."""
        self.send(number)
        self.send(signal.SIGCONT)  # a paused server would not see the signal
        try:
            self.wait(seconds)
        except ServerError:
            self.kill()

    def kill(self) -> None:
        """kill -9: the server has no chance to tidy up; its children follow it."""
        self.send(signal.SIGKILL)
        self.wait(10)
