# SPDX-License-Identifier: Apache-2.0
"""The servers of a run: those that the environment names, and private ones in the place of others.

CARROT_BROKER_URL and CARROT_DATABASE_URL name them. Standard library only: it is read before
anything is installed.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devtools.machine import prepare_machine
from devtools.servers import PostgreSQL, RabbitMQ, Redis, temporary_folder
from devtools.steps import step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devtools.server import Server


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Servers that run, and a folder for the run's files, which goes with it."""

    folder: Path
    log: Path
    """Of preparations."""
    stack: ExitStack
    """What is to be stopped in the end."""
    broker_url: str | None
    """None: nobody has asked for it; here and below."""
    postgres_url: str | None

    def start_redis(self) -> str:
        """Start a private Redis, which its peer has had installed; return its URL."""
        return _start(Redis(self.folder / "redis"), self.stack)


@contextmanager
def running(*, broker: bool = True, postgres: bool) -> Iterator[Servers]:
    """Servers that run inside the block.

    Args:
        broker: a RabbitMQ is needed.
        postgres: a PostgreSQL is.

    Raises:
        StepFailed: one cannot be installed.
        ServerError: or does not start.
    """
    broker_url = os.environ.get("CARROT_BROKER_URL") if broker else None
    postgres_url = os.environ.get("CARROT_DATABASE_URL") if postgres else None
    own_broker, own_postgres = broker and not broker_url, postgres and not postgres_url
    with temporary_folder("carrot-benchmark-") as folder, ExitStack() as stack:
        log = folder / "preparation.log"
        prepare_machine(rabbitmq=own_broker, postgresql=own_postgres, log=log)
        if own_broker:
            broker_url = _start(RabbitMQ(folder / "rabbitmq"), stack)
        if own_postgres:
            postgres_url = _start(PostgreSQL(folder / "postgresql"), stack)
        yield Servers(
            folder=folder, log=log, stack=stack, broker_url=broker_url, postgres_url=postgres_url
        )


def _start(server: Server, stack: ExitStack) -> str:
    with step(f"Starting a private {server.label}"):
        stack.enter_context(server)
    return server.url
