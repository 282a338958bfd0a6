# SPDX-License-Identifier: Apache-2.0
"""The command line. Standard library only: it is read before anything is installed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DATABASES = ("postgres", "sqlite")
#: What is measured, and with whom. Celery has no call that publishes many tasks.
MEASURES = {
    "publish": ("carrot", "celery"),
    "publish_many": ("carrot",),
    "drain": ("carrot", "celery"),
    "drain_logs": ("carrot", "celery"),
    "consume": ("carrot", "fedora", "raw"),
    "handle": ("carrot", "kombu"),
}
#: Of messages that others publish. A database has no part in it.
OF_MESSAGES = ("consume", "handle")
SYSTEMS = tuple(dict.fromkeys(system for systems in MEASURES.values() for system in systems))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    rounds: int
    tasks: int
    peer_tasks: int
    single_tasks: int
    messages: int
    slow_messages: int
    concurrency: int
    systems: tuple[str, ...]
    databases: tuple[str, ...]
    measures: tuple[str, ...]
    json: Path | None

    def systems_of(self, measure: str) -> tuple[str, ...]:
        """Those that a measure is taken of."""
        return tuple(system for system in MEASURES[measure] if system in self.systems)

    @property
    def of_tasks(self) -> bool:
        """Whether anything is measured that needs a database."""
        return any(measure not in OF_MESSAGES for measure in self.measures)


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; on a mistake, tell it and end the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Publishes and drains tasks, and consumes messages, with carrot-twisted and "
        "with others in the same run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, default, meaning in (
        ("--rounds", 3, "times each measure is repeated"),
        ("--tasks", 20_000, "backlog of carrot-twisted"),
        ("--peer-tasks", 4_000, "backlog of Celery"),
        ("--single-tasks", 4_000, "tasks published one by one"),
        ("--messages", 40_000, "backlog of messages that others have published"),
        ("--slow-messages", 4_000, "the same for fedora-messaging"),
        ("--concurrency", 4, "threads of each system, for tasks"),
    ):
        parser.add_argument(name, default=default, type=_positive, metavar="N", help=meaning)
    parser.add_argument("--only", choices=SYSTEMS, help="leave the other systems out")
    parser.add_argument("--database", choices=(*DATABASES, "both"), default="both", help="where")
    parser.add_argument(
        "--measure", choices=MEASURES, action="append", help="may be repeated; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to a file")
    given = parser.parse_args(arguments)
    return Options(
        rounds=given.rounds,
        tasks=given.tasks,
        peer_tasks=given.peer_tasks,
        single_tasks=given.single_tasks,
        messages=given.messages,
        slow_messages=given.slow_messages,
        concurrency=given.concurrency,
        systems=(given.only,) if given.only else SYSTEMS,
        databases=DATABASES if given.database == "both" else (given.database,),
        measures=tuple(m for m in MEASURES if m in (given.measure or MEASURES)),
        json=given.json.absolute() if given.json else None,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
