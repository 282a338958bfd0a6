# SPDX-License-Identifier: Apache-2.0
"""The two systems, and one of them deployed: its database, its queue, its processes."""

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
from devtools.process import Process, ServerError, tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    """Command that runs tasks."""
    logging: tuple[str, ...] = ()
    """More arguments, where the log lines of tasks are to be kept."""


SYSTEMS = {
    "carrot": System(
        key="carrot",
        label="carrot-twisted",
        site="benchmarks.site_carrot",
        service=(
            str(Path(sys.executable).with_name("twistd")),
            *("--nodaemon", "--pidfile="),
            *("carrot", "--settings=benchmarks.site_carrot.settings", "--no-scheduler"),
        ),
    ),
    "celery": System(
        key="celery",
        label="Celery",
        site="benchmarks.site_celery",
        service=(
            *(sys.executable, "-m", "celery", "--app=benchmarks.site_celery.app", "worker"),
            *("--pool=threads", "--concurrency={concurrency}"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        # Without this it would throw away the lines that carrot-twisted stores.
        logging=("--loglevel=INFO",),
    ),
}


class Deployment:
    """One system with a database and a queue of its own.

    Args:
        system: which one.
        database: URL of its database.
        broker: URL of the broker.
        queue: name of its queue.
        concurrency: threads of its service.
        folder: for log files.
    """

    def __init__(
        self,
        system: System,
        *,
        database: str,
        broker: str,
        queue: str,
        concurrency: int,
        folder: Path,
    ) -> None:
        self.system = system
        self.queue = queue
        self._concurrency = concurrency
        self._log = folder / f"{queue}.log"
        self._variables: Mapping[str, str] = {
            **os.environ,
            "BENCHMARK_BROKER": broker,
            "BENCHMARK_DATABASE": database,
            "BENCHMARK_QUEUE": queue,
            "BENCHMARK_CONCURRENCY": str(concurrency),
            "DJANGO_SETTINGS_MODULE": f"{system.site}.settings",
            # twistd and celery are scripts: they find neither the project nor the plugin here.
            "PYTHONPATH": str(TOP),
            "PYTHONUNBUFFERED": "1",
        }

    def step(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run a step of the site's probe to its end; return its result."""
        with self.probe(name, *arguments) as process:
            return self.result(process)

    @contextmanager
    def probe(self, name: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Have a step of the site's probe running inside the block."""
        command = [sys.executable, "-m", f"{self.system.site}.probe", name, *map(str, arguments)]
        with self._log.open("ab") as log:
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
        """Wait for a step to end; return its result."""
        output, _ = process.communicate(timeout=SECONDS_FOR_A_STEP)
        if process.returncode:
            raise BenchmarkFailed(f"a step failed. End of its output:\n{tail(self._log)}")
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    @contextmanager
    def service(self, *, keep_lines: bool) -> Iterator[Process]:
        """Have the service running inside the block; it must stop cleanly when asked to."""
        command = [
            part.format(concurrency=self._concurrency)
            for part in (*self.system.service, *(self.system.logging if keep_lines else ()))
        ]
        process = Process(command, folder=TOP, log=self._log, environment=self._variables)
        try:
            yield process
            process.send(signal.SIGTERM)
            status = process.wait(SECONDS_TO_STOP)
        except ServerError as error:
            raise BenchmarkFailed(f"the service did not stop: {error}") from None
        finally:
            process.kill()
        if status:
            raise BenchmarkFailed(f"the service ended with status {status}. {self.log_tail()}")

    def log_tail(self) -> str:
        return f"End of its log:\n{tail(self._log)}"
