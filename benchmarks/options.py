# SPDX-License-Identifier: Apache-2.0
"""The command line. Standard library only: it is read before anything is installed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.catalogue import MEASURES, ON_SQLITE, SLOW, SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

DATABASES = ("postgres", "sqlite")
#: Numbers, in a whole run and in a quick one.
NUMBERS = (
    ("--rounds", 3, 1, "times each measure is repeated"),
    ("--tasks", 20_000, 4_000, "backlog of carrot-twisted"),
    ("--peer-tasks", 1_600, 300, "backlog of other task queues"),
    ("--single-tasks", 2_000, 300, "tasks published one by one"),
    ("--messages", 40_000, 8_000, "backlog of messages that others have published"),
    ("--slow-messages", 4_000, 1_000, "the same for fedora-messaging and a prefetch of 1"),
    ("--concurrency", 4, 4, "threads of each system, where a measure has no number of its own"),
    ("--workers", 2, 2, "processes of carrot-twisted in a row of its own"),
)
#: Consumers of messages whose backlog is the smaller one.
SLOW_CONSUMERS = ("fedora", "kombu")
LEAST = 10


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
    workers: int
    systems: tuple[str, ...]
    databases: tuple[str, ...]
    measures: tuple[str, ...]
    json: Path | None
    charts: Path | None

    def systems_of(self, measure: str, database: str | None = None) -> tuple[str, ...]:
        """Those that a measure is taken of, on a database."""
        of_all = MEASURES[measure].systems
        if database == "sqlite":
            of_all = ON_SQLITE if MEASURES[measure].on_sqlite else ()
        return tuple(s for s in MEASURES[measure].systems if s in self.systems and s in of_all)

    def threads_of(self, measure: str) -> int:
        """How many threads each system has."""
        return MEASURES[measure].threads or self.concurrency

    def number_of(self, measure: str, system: str) -> int:
        """How many tasks or messages are published."""
        wanted = MEASURES[measure]
        if wanted.of_messages:
            return self.slow_messages if system in SLOW_CONSUMERS else self.messages
        if measure == "publish":
            number = self.single_tasks * SLOW.get(system, 1)
        elif system in ("carrot", "carrot-workers", "raw"):
            number = self.tasks * wanted.share
            if system == "carrot-workers":
                # So that it weighs less when one of them begins before another.
                number *= self.workers
        else:
            number = self.peer_tasks * wanted.peer_share * SLOW.get(system, 1)
        return max(LEAST, round(number))

    @property
    def of_tasks(self) -> bool:
        """Whether anything is measured that needs a database."""
        return any(not MEASURES[measure].of_messages for measure in self.measures)

    @property
    def taking_part(self) -> frozenset[str]:
        """All systems of all measures that are taken."""
        return frozenset(system for measure in self.measures for system in self.systems_of(measure))


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; on a mistake, tell it and end the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Publishes and drains tasks, and consumes messages, with carrot-twisted and "
        "with others in the same run.",
        epilog="Systems: " + ", ".join(SYSTEMS) + ". Measures: " + ", ".join(MEASURES) + ".",
    )
    for name, whole, quick, meaning in NUMBERS:
        told = f"{meaning} (default: {whole:,}; quick: {quick:,})"
        parser.add_argument(name, type=_positive, metavar="N", help=told)
    parser.add_argument(
        "--quick", action="store_true", help="one round of small backlogs, without SQLite"
    )
    parser.add_argument(
        *("--only", "--system"),
        choices=SYSTEMS,
        action="append",
        metavar="SYSTEM",
        help="leave the other systems out; may be repeated",
    )
    parser.add_argument(
        "--database", choices=(*DATABASES, "both"), help="where (default: both; quick: postgres)"
    )
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        action="append",
        metavar="MEASURE",
        help="may be repeated; default: all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to a file")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="write bar charts as SVG")
    given = parser.parse_args(arguments)
    numbers = {}
    for name, whole, quick, _ in NUMBERS:
        field = name[2:].replace("-", "_")
        numbers[field] = getattr(given, field) or (quick if given.quick else whole)
    database = given.database or ("postgres" if given.quick else "both")
    return Options(
        **numbers,
        systems=tuple(s for s in SYSTEMS if s in (given.only or SYSTEMS)),
        databases=DATABASES if database == "both" else (database,),
        measures=tuple(m for m in MEASURES if m in (given.measure or MEASURES)),
        json=given.json.absolute() if given.json else None,
        charts=given.charts.absolute() if given.charts else None,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
