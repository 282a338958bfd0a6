# SPDX-License-Identifier: Apache-2.0
"""Services and commands that start fast: forked from a process that has imported what they import.

Half a second each is saved, and a whole one where a command looks at the project's URLs. Nothing of
this package and no reactor is imported beforehand: what a service does first with those is part of
the test.

The process answers each request, a line of JSON, with a pid, and writes the exit status of each
child into the file that its request names. It ends, with all its children, at the end of its input.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any

from tests.processes import REPOSITORY, Running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PRELOADED = (
    "django.contrib.auth.hashers",
    "django.contrib.auth.management",
    "django.contrib.auth.password_validation",
    "django.core.mail",
    "django.core.management",
    "django.db.backends.postgresql.base",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.executor",
    "django.db.models",
    "django.middleware.csrf",
    "django.template.defaulttags",
    "django.views.debug",
    "email.headerregistry",
    "logging.config",
    "logging.handlers",
    "pika",
    "pygments.formatters.html",
    "pygments.lexers",
    "requests",
    "rest_framework.relations",
    "rest_framework.serializers",
    "twisted.application.app",
    "twisted.internet.endpoints",
    "twisted.internet.epollreactor",
    "twisted.internet.posixbase",
    "twisted.internet.ssl",
    "twisted.scripts._twistd_unix",
    "twisted.scripts.twistd",
    "txaio.tx",
    "uritemplate",
    "yaml",
)


class Nursery:
    """The process that forks, as its user sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            cwd=REPOSITORY,
            # What its children print is seen at once; they have no say in that any more.
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Running:
        """Run ``twistd`` with these arguments."""
        return self._fork(["twistd", *command], REPOSITORY, environment, log)

    def run_script(
        self, script: Path, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Running:
        """Run a Python file, in its folder."""
        return self._fork([str(script), *arguments], script.parent, environment, log)

    def _fork(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> Running:
        status = log.with_suffix(".status")
        status.unlink(missing_ok=True)
        request = {
            "command": command,
            "folder": str(folder),
            "environment": {**os.environ, **environment},
            "log": str(log),
            "status": str(status),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), status)

    def close(self) -> None:
        """End it, and what it has started."""
        self._process.communicate(timeout=30)


class Child:
    """A child of the nursery's; the part of ``subprocess.Popen`` that tests need."""

    def __init__(self, pid: int, status: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        if self.returncode is None and self._status.exists():
            self.returncode = int(self._status.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (60 if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.01)
        return status

    def send_signal(self, sig: int) -> None:
        # Its pid stays taken until the status is written.
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve() -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the child, and None at the end of input."""
    children: dict[int, Path] = {}
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing)
    while True:
        ready, _, _ = select([sys.stdin, reading], [], [])
        if reading in ready:
            os.read(reading, 1000)
            _note_ended(children)
        if sys.stdin in ready:
            line = os.read(0, 1_000_000)
            if not line:
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return None
            request: dict[str, Any] = json.loads(line)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(reading)
                os.close(writing)
                return request
            children[pid] = Path(request["status"])
            os.write(1, f"{pid}\n".encode())


def _note_ended(children: dict[int, Path]) -> None:
    for pid, file in list(children.items()):
        # Not reaped before the status is there: nobody may signal a pid that is free again.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            killed = ended.si_code != os.CLD_EXITED
            draft = file.with_suffix(".draft")
            draft.write_text(str(-ended.si_status if killed else ended.si_status))
            draft.rename(file)
            os.waitpid(pid, 0)
            del children[pid]


def become(request: Mapping[str, Any]) -> None:
    """In the child: be a ``twistd``, or another program, like any other."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for descriptor, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, place)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    # As at the start of an interpreter.
    sys.path[1:1] = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.argv[:] = request["command"]
    os.chdir(request["folder"])
    if sys.argv[0] == "twistd":
        from twisted.scripts.twistd import run

        run()
    else:
        sys.path[0] = request["folder"]
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    given = serve()
    if given is not None:
        become(given)
