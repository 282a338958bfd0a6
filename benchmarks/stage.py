# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share: servers that are up, and sites deployed on them.

CARROT_BROKER_URL and CARROT_DATABASE_URL name servers to use; where they are not set, private ones
are started.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import facts
from benchmarks.broker import Broker
from benchmarks.databases import Database, Postgres, Sqlite
from benchmarks.failure import BenchmarkFailed
from benchmarks.systems import SECONDS_FOR_A_STEP, TOP, Deployment, System
from devtools.machine import prepare_machine
from devtools.process import tail
from devtools.servers import PostgreSQL, RabbitMQ, temporary_folder
from devtools.steps import step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from devtools.server import Server


class Site(Deployment):
    """A deployed system, in whose project any module can be run."""

    @property
    def log(self) -> Path:
        """What its processes have written."""
        return self._log

    @contextmanager
    def module(self, name: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Have a module running inside the block; its last line is its result, see ``result``."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", name, *map(str, arguments)],
                cwd=TOP,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run a module to its end; return its result."""
        with self.module(name, *arguments) as process:
            output, _ = process.communicate(timeout=SECONDS_FOR_A_STEP)
        if process.returncode:
            raise BenchmarkFailed(f"{name} {arguments} failed:\n{tail(self._log)}")
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Servers, and where logs are kept."""

    broker: Broker
    database: Database
    folder: Path

    def site(
        self, system: System, *, name: str, concurrency: int, variables: dict[str, str]
    ) -> Site:
        """Give a system a database and a queue of its own, and more variables."""
        queue = f"carrot_benchmark_{secrets.token_hex(3)}_{name}"
        os.environ.update(variables)
        try:
            return Site(
                system,
                database=self.database.create(queue),
                broker=self.broker.url,
                queue=queue,
                concurrency=concurrency,
                folder=self.folder,
            )
        finally:
            for one in variables:
                del os.environ[one]

    def facts(self) -> dict[str, str]:
        """What numbers mean nothing without; the load of the machine, too."""
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        return {
            **facts.gather(),
            "RabbitMQ": self.broker.version,
            **self.database.facts(),
            "load of the machine in the end": load,
        }


@contextmanager
def stage(database: str) -> Iterator[Stage]:
    """Servers that run inside the block.

    Args:
        database: "postgres" or "sqlite".
    """
    broker_url = os.environ.get("CARROT_BROKER_URL")
    postgres_url = os.environ.get("CARROT_DATABASE_URL")
    with temporary_folder("carrot-benchmark-") as folder, ExitStack() as stack:
        use_postgres = database == "postgres"
        prepare_machine(
            rabbitmq=not broker_url,
            postgresql=use_postgres and not postgres_url,
            log=folder / "preparation.log",
        )
        if not broker_url:
            broker_url = _start(RabbitMQ(folder / "rabbitmq"), stack)
        if use_postgres and not postgres_url:
            postgres_url = _start(PostgreSQL(folder / "postgresql"), stack)
        broker = stack.enter_context(Broker(broker_url))
        kept: Database = Postgres(postgres_url or "") if use_postgres else Sqlite(folder)
        yield Stage(broker=broker, database=stack.enter_context(kept), folder=folder)


def _start(server: Server, stack: ExitStack) -> str:
    with step(f"Starting a private {server.label}"):
        stack.enter_context(server)
    return server.url


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
