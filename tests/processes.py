# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot`` as a process, and waiting for what it does."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Launch = Callable[[Sequence[str], Mapping[str, str], Path], "Running"]

REPOSITORY = Path(__file__).resolve().parents[1]
TWISTD = Path(sysconfig.get_path("scripts"), "twistd")


def python_for_others() -> Path | None:
    """An interpreter of this version that every user may run; None if there is none.

    The one that runs the tests may be hidden in its owner's home folder.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for path in (Path(sys.executable).resolve(), Path("/usr/bin", version)):
        if path.exists() and all(place.stat().st_mode & stat.S_IXOTH for place in path.parents):
            return path
    return None


def carrot(**settings: Any) -> dict[str, str]:
    """The environment of a service with these in its ``settings.CARROT``: once for all of them."""
    return {"CARROT_TEST_SETTINGS": json.dumps(settings)}


def constants(values: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a service with other constants, where a test would wait for nothing else.

    Args:
        values: by their path in the package, for example "service.relay.INTERVAL".
    """
    return {"CARROT_TEST_CONSTANTS": json.dumps(values)}


def as_published(properties: Any) -> Any:
    """A message's properties without what the broker adds: quorum queues of 3.10 count, from 0."""
    headers = dict(properties.headers or {})
    headers.pop("x-delivery-count", None)
    properties.headers = headers or None
    return properties


def wait_until(
    condition: Callable[[], object], seconds: float = 30.0, what: str = "", every: float = 0.02
) -> None:
    """Wait for something to become true.

    Args:
        condition: asked again and again.
        seconds: how long.
        what: what is waited for, in words.
        every: seconds between two questions; more where the question itself is work, as it is for
            rabbitmqctl.

    Raises:
        AssertionError: it did not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what or condition}"
        time.sleep(every)


def secrets_of(url: str) -> list[str]:
    """The password in a broker's URL, as it stands there and as it is meant.

    Short ones, such as "guest", are no secrets, and may be met anywhere.
    """
    found = re.match(r"\w+://[^:/@]*:([^/@]{8,})@", url)
    return sorted({found[1], unquote(found[1])}) if found else []


class Running(Protocol):
    """A process, as ``subprocess.Popen`` has it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit status, if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit status."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it still runs."""

    def kill(self) -> None:
        """kill -9."""


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    cwd: Path = REPOSITORY,
    inside: Sequence[str] = (),
) -> Running:
    """Start ``twistd`` with these arguments, and this process's environment with those.

    Args:
        command: the arguments.
        environment: further variables.
        log: takes what it prints.
        cwd: to run in.
        inside: beginning of the command line, of a program that runs the rest.
    """
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*inside, str(TWISTD), *command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def run_to_end(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: Path = REPOSITORY,
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run a program, with this process's environment and that; all it prints is in ``stdout``."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


class ServiceProcess:
    """One ``twistd -n carrot`` with its log in a file.

    Args:
        folder: for log and pid file; made here.
        options: after ``carrot``.
        environment: added to this process's.
        settings: module of the Django settings.
        pid_file: twistd's; by default one of this service's own.
        launch: starts the process.
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        environment: Mapping[str, str],
        settings: str = "tests.settings",
        pid_file: Path | None = None,
        launch: Launch = spawn,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / "log"
        self.log_path.touch()
        #: What its log must not hold.
        self.secrets = secrets_of(environment.get("CARROT_BROKER_URL", ""))
        self.process = launch(
            [
                "-n",
                f"--pidfile={pid_file or folder / 'pid'}",
                "carrot",
                f"--settings={settings}",
                *options,
            ],
            {"PYTHONUNBUFFERED": "1", **environment},
            self.log_path,
        )

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self.log_path.read_text()

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        """Wait until the log holds a text; fails at once if the process ends."""

        def there() -> bool:
            if text in self.log:
                return True
            assert self.process.poll() is None, f"the service has ended:\n{self.log}"
            return False

        wait_until(there, seconds, f"{text!r} in the log:\n{self.log}")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, if it still runs."""
        self.process.send_signal(number)

    def ends(self, seconds: float = 30.0) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(seconds)

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM, and the exit status."""
        self.signal()
        return self.ends(seconds)

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
