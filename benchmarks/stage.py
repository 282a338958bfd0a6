# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share: their options, servers that are up, systems deployed on them."""

from __future__ import annotations

import argparse
import json
import secrets
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks import facts
from benchmarks.broker import Broker
from benchmarks.databases import Database, Postgres, Sqlite
from benchmarks.failure import attempted
from benchmarks.preparation import left_out
from benchmarks.redis import Redis
from benchmarks.servers import running
from benchmarks.systems import Deployment
from devtools.steps import say, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from benchmarks.queues import Queues
    from benchmarks.servers import Servers
    from benchmarks.systems import System

Found = TypeVar("Found")


class Stage:
    """Servers, and what is deployed on them.

    Args:
        servers: that are up.
        broker: the one that all use but those on Redis.
        database: where each system has one of its own.
    """

    def __init__(self, servers: Servers, broker: Broker, database: Database) -> None:
        self.broker = broker
        self.database = database
        self.folder = servers.folder
        self.failures: list[str] = []
        self._servers = servers
        self._facts: dict[str, str] = {**broker.facts(), **database.facts()}

    def available(self, systems: Iterable[str]) -> list[str]:
        """Have what they need installed; return those that are to be had."""
        wanted = list(systems)
        missing = left_out(wanted, log=self._servers.log, facts=self._facts, failures=self.failures)
        return [system for system in wanted if system not in missing]

    def deploy(
        self,
        system: System,
        *,
        name: str,
        concurrency: int,
        variables: Mapping[str, str] | None = None,
    ) -> Deployment:
        """Give a system a database and a queue of its own, and more variables."""
        queue = f"carrot_benchmark_{secrets.token_hex(3)}_{name}"
        queues: Queues = self._redis if system.on_redis else self.broker
        return Deployment(
            system,
            database=self.database.create(queue),
            queues=queues,
            queue=queue,
            concurrency=concurrency,
            folder=self.folder,
            variables=variables,
        )

    @contextmanager
    def attempted(self, title: str) -> Iterator[None]:
        """A step; whatever fails in it is noted, and the others go on."""
        with attempted(title, self.failures), step(title):
            yield

    def facts(self) -> dict[str, str]:
        """What numbers mean nothing without; the load of the machine, too."""
        return {**facts.gather(), **self._facts, **facts.load()}

    @cached_property
    def _redis(self) -> Redis:
        redis = self._servers.stack.enter_context(Redis(self._servers.start_redis()))
        self._facts |= redis.facts()
        return redis


@contextmanager
def stage(database: str) -> Iterator[Stage]:
    """Servers that run inside the block.

    Args:
        database: "postgres" or "sqlite".
    """
    use_postgres = database == "postgres"
    with running(postgres=use_postgres) as servers:
        broker = servers.stack.enter_context(Broker(servers.broker_url or ""))
        kept: Database = (
            Postgres(servers.postgres_url or "") if use_postgres else Sqlite(servers.folder)
        )
        yield Stage(servers, broker, servers.stack.enter_context(kept))


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A sub-command's command line, with the options that all of them have."""
    result = argparse.ArgumentParser(
        prog=f"python3 run.py bench {name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="times everything is measured, in turns"
    )
    result.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="threads of each service"
    )
    result.add_argument(
        "--database", choices=("postgres", "sqlite"), default="postgres", help="where rows are"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a file")
    return result


def perform(
    given: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Stage], Sequence[Found]],
    text_of: Callable[[Sequence[Found]], str],
) -> int:
    """Measure, print; return the exit status: 1 if anything failed or was lost."""
    with stage(given.database) as servers:
        found = measure(given, servers)
        known = servers.facts()
        failures = servers.failures
    say(text_of(found))
    say("\n".join(["", *(f"{name}: {fact}" for name, fact in known.items())]))
    for failure in failures:
        say(f"FAILED: {failure}")
    if given.json:
        told = {"facts": known, "found": found, "failures": failures}
        given.json.write_text(json.dumps(told, default=vars, indent=1) + "\n")
    return 1 if failures else 0
