# SPDX-License-Identifier: Apache-2.0
"""A system of tasks, and one deployed: its database, its queue, its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.failure import BenchmarkFailed
from benchmarks.probe import READY
from devtools.environment import peer_python
from devtools.process import Process, ServerError, tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.peers import Peer
    from benchmarks.queues import Queues

TOP = Path(__file__).resolve().parent.parent
SECONDS_FOR_A_STEP = 1200
SECONDS_TO_STOP = 60


@dataclass(frozen=True, kw_only=True)
class System:
    """How to start a system's processes."""

    key: str
    label: str
    site: str
    """The package of its Django project."""
    service: tuple[str, ...]
    """Command that runs tasks. ``{python}``, ``{folder}`` of its programs, ``{queue}``,
    ``{concurrency}`` and ``{workers}`` are put in."""
    logging: tuple[str, ...] = ()
    """More arguments, where the log lines of tasks are to be kept."""
    settings: str = "settings"
    """Module of its site."""
    peer: Peer | None = None
    """Whose environment it runs in; None: ours."""
    has_queue: bool = True
    """Whether its tasks wait in a broker; else, in the database."""
    on_redis: bool = False
    """Whether that broker is Redis, which has the results, too: no task has a row then."""
    killed: bool = False
    """Whether it is killed in the end, since it may hang or fail when told to stop."""
    lacks: str = ""
    """What it does not promise, as letters of ``contestants.LACKS``."""

    @property
    def has_workers(self) -> bool:
        """Whether its service is several processes."""
        return any("{workers}" in part for part in self.service)

    @property
    def python(self) -> str:
        return sys.executable if self.peer is None else peer_python(self.peer.name)

    @property
    def probe(self) -> str:
        """The module of its steps."""
        return f"{self.site}.probe"


class Deployment:
    """One system with a database and a queue of its own.

    Args:
        system: which one.
        database: URL of its database.
        queues: its broker.
        queue: name of its queue.
        concurrency: threads of its service, where a measure asks for no other number.
        folder: for log files.
        workers: processes of its service, where it is asked for that.
        variables: more of its environment.
    """

    def __init__(
        self,
        system: System,
        *,
        database: str,
        queues: Queues,
        queue: str,
        concurrency: int,
        folder: Path,
        workers: int = 1,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.system = system
        self.queues = queues
        self.queue = queue
        self.log = folder / f"{queue}.log"
        self._workers = workers
        self._concurrency = concurrency
        self._variables: Mapping[str, str] = {
            **os.environ,
            "BENCHMARK_BROKER": queues.url,
            "BENCHMARK_DATABASE": database,
            "BENCHMARK_QUEUE": queue,
            "BENCHMARK_CONCURRENCY": str(concurrency),
            "BENCHMARK_SITE": system.site,
            "DJANGO_SETTINGS_MODULE": f"{system.site}.{system.settings}",
            # twistd and celery are scripts: they find neither the project nor the plugin here.
            "PYTHONPATH": str(TOP),
            "PYTHONUNBUFFERED": "1",
            **(variables or {}),
        }

    def tidy_up(self) -> None:
        """Leave nothing in the broker."""
        self.queues.delete(self.queue)

    def step(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run a step of the site's probe to its end; return its result."""
        return self.run(self.system.probe, name, *arguments)

    def run(self, module: str, *arguments: object) -> dict[str, Any]:
        """Run a module in the site's project to its end; return its result."""
        with self.running(module, *arguments) as process:
            return self.result(process)

    @contextmanager
    def watcher(self, module: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Have a module's step "watch" running inside the block, where it watches already.

        Its imports are over, and leave the processors to the service.
        """
        with self.running(module, "watch", *arguments) as process:
            assert process.stdout is not None
            if process.stdout.readline().decode().strip() != READY:
                self.result(process)
            yield process

    @contextmanager
    def running(self, module: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Have a module running inside the block; its last line is its result, see ``result``."""
        command = [self.system.python, "-m", module, *map(str, arguments)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=TOP,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # a line may be read on its own, and the rest stays in the pipe
            )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def result(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait for a module to end; return its result."""
        try:
            output, _ = process.communicate(timeout=SECONDS_FOR_A_STEP)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkFailed(f"a step did not end. {self.log_tail()}") from error
        if process.returncode:
            raise BenchmarkFailed(f"a step failed. End of its output:\n{tail(self.log)}")
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    def threads(self, in_all: int | None) -> int:
        """Return the threads of each process of its service.

        Args:
            in_all: of all its processes together; None: as many in each as it always has.
        """
        if in_all is None:
            return self._concurrency
        return max(1, in_all // (self._workers if self.system.has_workers else 1))

    @contextmanager
    def service(self, *, keep_lines: bool, concurrency: int | None = None) -> Iterator[Process]:
        """Have the service running inside the block; it must stop cleanly when asked to.

        Args:
            keep_lines: whether it keeps the log lines of tasks.
            concurrency: see ``threads``.
        """
        threads = str(self.threads(concurrency))
        command = [
            part.format(
                python=self.system.python,
                folder=Path(self.system.python).parent,
                queue=self.queue,
                concurrency=threads,
                workers=self._workers,
            )
            for part in (*self.system.service, *(self.system.logging if keep_lines else ()))
        ]
        variables = {
            **self._variables,
            "BENCHMARK_CONCURRENCY": threads,
            "BENCHMARK_LOG_LEVEL": "INFO" if keep_lines else "WARNING",
        }
        try:
            process = Process(command, folder=TOP, log=self.log, environment=variables)
        except ServerError as error:
            raise BenchmarkFailed(f"the service did not start: {error}") from None
        try:
            yield process
            process.send(signal.SIGKILL if self.system.killed else signal.SIGTERM)
            status = process.wait(SECONDS_TO_STOP)
        except ServerError as error:
            raise BenchmarkFailed(f"the service did not stop: {error}") from None
        finally:
            process.kill()
        if status and not self.system.killed:
            raise BenchmarkFailed(f"the service ended with status {status}. {self.log_tail()}")

    def log_tail(self) -> str:
        return f"End of its log:\n{tail(self.log)}"
