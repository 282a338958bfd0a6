# SPDX-License-Identifier: Apache-2.0
"""Places for services and publishers: each has one process at a time, replaced when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.evidence import ServiceFacts
from tests.chaos.proxies import REPOSITORY
from tests.processes import ServiceProcess

if TYPE_CHECKING:
    from tests.chaos.schedule import Plan
    from tests.chaos.stage import Stage

#: Seconds that a service gets to stop: its own deadline of 25 s, and what comes after.
SECONDS_TO_STOP = 60
#: In the log of a service that has begun to consume.
CONSUMING = "Consuming queue default"


class ServicePlace:
    """A place for a service.

    Args:
        number: of the place, from 0.
        stage: what it works with.
    """

    def __init__(self, number: int, stage: Stage) -> None:
        self._number = number
        self._stage = stage
        self._count = 0
        self._lock = threading.RLock()
        self._service: ServiceProcess | None = None
        self._at_start: tuple[int, int, int] | None = None
        self.unexpected_ends: list[str] = []

    @property
    def name(self) -> str:
        return f"{self._number}-{self._count}"

    @property
    def consuming(self) -> bool:
        """Whether the present service has begun to consume."""
        return self._at_start is not None

    def start(self) -> None:
        """A new service takes the place."""
        with self._lock:
            self._count += 1
            self._at_start = None
            self._service = ServiceProcess(
                self._stage.folder / f"service-{self.name}",
                [],
                self._stage.environment("service", self._number),
                settings="tests.chaos.settings",
            )

    def tend(self) -> None:
        """Called now and then: replaces a service that ended by itself."""
        with self._lock:
            service = self._present
            if (status := service.process.poll()) is not None:
                self.unexpected_ends.append(f"service {self.name} with status {status}")
                self.start()
            elif not self._at_start and CONSUMING in service.log:
                self._at_start = usage(service.process.pid)

    def kill(self) -> None:
        """kill -9, and a new service."""
        with self._lock:
            self._present.kill()
            self.start()

    def restart(self) -> None:
        """SIGTERM, and a new service."""
        with self._lock:
            begun = self.consuming or CONSUMING in self._present.log
            status = self._stop()
            # One that was started a moment ago does not listen to signals yet, and dies of them.
            if status and (begun or status != -signal.SIGTERM):
                self.unexpected_ends.append(f"service {self.name} with status {status} on SIGTERM")
            self.start()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP for a while."""
        with self._lock:
            self._present.signal(signal.SIGSTOP)
            time.sleep(seconds)
            self._present.signal(signal.SIGCONT)

    def finish(self) -> ServiceFacts:
        """Look at the service, stop it for good, and tell."""
        with self._lock:
            pid = self._present.process.pid
            broker = self._stage.proxies[f"service-broker:{self._number}"]
            connections = connections_to(pid, broker.port)
            threads, files, memory = usage(pid)
            at_start = self._at_start or (threads, files, memory)
            return ServiceFacts(
                name=self.name,
                threads=threads,
                threads_at_start=at_start[0],
                files=files,
                files_at_start=at_start[1],
                memory=memory,
                memory_at_start=at_start[2],
                connections=connections,
                exit_status=self._stop(),
            )

    def end(self) -> None:
        """Whatever happens: no service stays behind."""
        if self._service is not None:
            self._service.kill()

    @property
    def _present(self) -> ServiceProcess:
        assert self._service is not None
        return self._service

    def _stop(self) -> int:
        try:
            return self._present.stop(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._present.kill()
            return -signal.SIGKILL


class PublisherPlace:
    """A place for a publisher, which has a share of all tasks to publish.

    Args:
        number: of the place, from 0.
        share: how many tasks are to be committed from here.
        plan: of the run.
        stage: what it works with.
    """

    def __init__(self, number: int, share: int, plan: Plan, stage: Stage) -> None:
        self._number = number
        self._share = share
        self._plan = plan
        self._stage = stage
        self._count = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.done = False
        self.unexpected_ends: list[str] = []

    def start(self) -> None:
        """A new publisher takes the place, for what is left of its share."""
        left = self._share - self._committed()
        if left <= 0:
            self.done = True
            return
        self._count += 1
        name = f"p{self._number}.{self._count}"
        numbers = (left, self._plan.seconds * left / self._share, self._plan.mean_task)
        with (self._stage.folder / f"publisher-{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.publisher", name, *map(str, numbers)],
                cwd=REPOSITORY,
                env={**os.environ, **self._stage.environment("publisher", self._number)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def tend(self) -> None:
        """Called now and then: sees whether the publisher is done."""
        with self._lock:
            if self.done or self._process is None or (status := self._process.poll()) is None:
                return
            if status:
                name = f"p{self._number}.{self._count}"
                self.unexpected_ends.append(f"publisher {name} with status {status}")
            self.start()

    def kill(self) -> None:
        """kill -9, and a new publisher."""
        with self._lock:
            self.end()
            if not self.done:
                self.start()

    def end(self) -> None:
        """No publisher stays behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _committed(self) -> int:
        if not self._stage.publishes.exists():
            return 0
        mine = f'{{"key": "p{self._number}.'
        with self._stage.publishes.open() as lines:
            return sum(line.startswith(mine) and '"committed"' in line for line in lines)


def usage(pid: int) -> tuple[int, int, int]:
    """Threads, open files and resident bytes of a process."""
    process = Path("/proc") / str(pid)
    threads = len(list((process / "task").iterdir()))
    files = len(list((process / "fd").iterdir()))
    pages = int((process / "statm").read_text().split()[1])
    return threads, files, pages * os.sysconf("SC_PAGE_SIZE")


def connections_to(pid: int, port: int) -> int:
    """How many TCP connections a process has to a port."""
    process = Path("/proc") / str(pid)
    sockets = set()
    for line in (process / "net" / "tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == port and fields[3] == "01":
            sockets.add(f"socket:[{fields[9]}]")
    return sum(os.readlink(one) in sockets for one in (process / "fd").iterdir())
