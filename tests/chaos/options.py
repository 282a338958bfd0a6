# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.sabotage import KINDS as SABOTAGES
from tests.chaos.schedule import KINDS, MEANING, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A few faults of each kind, for every test run.
SHORT: dict[str, Any] = {
    "tasks": 2000,
    "seconds": 45.0,
    "lease": 3.0,
    "counts": {
        "kill-service": 3,
        "stop-service": 1,
        "freeze-service": 1,
        "kill-publisher": 2,
        "kill-broker": 1,
        "restart-broker": 1,
        "delete-queue": 1,
        "crash-database": 1,
        "restart-database": 1,
        "cut": 4,
        "black-hole": 3,
        "one-way": 3,
        "delay": 2,
        "refuse": 1,
        "torn-frame": 3,
        "poison": 6,
    },
}
#: The one that the documentation tells of.
LONG: dict[str, Any] = {
    "tasks": 100_000,
    "seconds": 600.0,
    "lease": 10.0,
    "counts": {
        "kill-service": 20,
        "stop-service": 3,
        "freeze-service": 3,
        "kill-publisher": 10,
        "kill-broker": 3,
        "restart-broker": 2,
        "delete-queue": 3,
        "crash-database": 3,
        "restart-database": 2,
        "cut": 12,
        "black-hole": 8,
        "one-way": 8,
        "delay": 8,
        "refuse": 4,
        "torn-frame": 12,
        "poison": 30,
    },
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do."""

    plan: Plan
    patience: float
    sabotage: str
    json: Path | None
    keep: Path | None


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; on a mistake, tell it and end the program."""
    parser = argparse.ArgumentParser(
        prog="run.py chaos",
        description="Publishes and runs tasks under faults of every kind, then checks that "
        "nothing was lost. Ends with status 1 if a promise was broken.",
    )
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument(
        "--short", action="store_const", dest="preset", const=SHORT, help="2,000 tasks (default)"
    )
    preset.add_argument(
        "--long", action="store_const", dest="preset", const=LONG, help="100,000 tasks"
    )
    parser.add_argument("--seed", type=int, help="decides about all chance; default: a new one")
    for name, kind, meaning in (
        ("--tasks", int, "tasks that publishers commit, at least"),
        ("--seconds", float, "time in which that is to happen, and faults begin"),
        ("--lease", float, "CARROT['lease'] of the services"),
    ):
        parser.add_argument(name, type=kind, metavar="N", help=f"{meaning}; default: the preset's")
    parser.add_argument("--services", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--publishers", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="from the last fault until every task must have come to its end; default: 120",
    )
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="a defect to be found")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy logs and ledgers there")
    faults = parser.add_argument_group("faults", "how often each comes; default: the preset's")
    for fault in KINDS:
        faults.add_argument(f"--{fault}", type=int, metavar="N", dest=fault, help=MEANING[fault])
    parser.add_argument("--calm", action="store_true", help="no faults but those that are named")
    given = parser.parse_args(arguments)
    chosen = given.preset or SHORT
    counts: dict[str, int] = {}
    for fault in KINDS:
        number: int | None = getattr(given, fault)
        counts[fault] = (
            number if number is not None else 0 if given.calm else chosen["counts"][fault]
        )
    return Options(
        plan=Plan(
            tasks=given.tasks or chosen["tasks"],
            seed=given.seed if given.seed is not None else random.randrange(1_000_000),
            services=given.services,
            publishers=given.publishers,
            seconds=given.seconds or chosen["seconds"],
            lease=given.lease or chosen["lease"],
            counts=counts,
        ),
        patience=given.patience,
        sabotage=given.sabotage,
        json=given.json,
        keep=given.keep,
    )
