# SPDX-License-Identifier: Apache-2.0
"""The tests that meet a broker, on each RabbitMQ that can be had, with each type of queue."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from devtools.debian_root import debian_root
from devtools.rabbitmq import version_of
from devtools.steps import StepFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = "this"
#: Debian 13 has RabbitMQ 4.0; testing, Debian 14 to be, has a later one.
BROKERS = (HERE, "trixie", "forky")
QUEUE_TYPES = ("classic", "quorum")
#: Those in which it matters what the broker does.
TESTS = (
    "tests/contract",
    "tests/integration/test_queue_types.py",
    "tests/integration/test_cluster.py",
    "tests/integration/test_service.py",
    "tests/integration/test_outages.py",
    "tests/integration/test_publishing.py",
    "tests/integration/test_callbacks.py",
    "tests/integration/test_connection.py",
    "tests/integration/test_consumer_hooks.py",
    "tests/integration/test_housekeeping.py",
    "tests/integration/test_tls.py",
    "tests/acceptance/test_command_line.py",
)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command's own arguments; the rest is pytest's."""
    parser = argparse.ArgumentParser(
        prog="run.py brokers",
        description=(
            "Run the tests that meet a broker on each RabbitMQ, with each type of queue; tell the "
            "outcomes in a table. What else is given goes to pytest; files to test take the place "
            "of the usual ones."
        ),
    )
    parser.add_argument(
        "--broker",
        action="append",
        metavar="WHICH",
        help=(
            f"{HERE!r} (of this machine), a Debian release such as trixie, or the root of a Debian "
            f"system with a RabbitMQ; several times; default: {', '.join(BROKERS)}"
        ),
    )
    parser.add_argument(
        "--queue-type", action="append", choices=QUEUE_TYPES, help="default: both, one by one"
    )
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    options, rest = parser.parse_known_args(arguments)
    options.broker = options.broker or list(BROKERS)
    options.queue_type = options.queue_type or list(QUEUE_TYPES)
    return options, rest


def combinations(options: argparse.Namespace, *, log: Path) -> dict[str, dict[str, str]]:
    """Environment variables of each run, by its name; what is missing is fetched."""
    result = {}
    for broker in options.broker:
        root = None if broker == HERE else _root(broker, log)
        version = version_of(root or Path("/")) or "installed here"
        for queue_type in options.queue_type:
            result[f"RabbitMQ {version}, {queue_type}"] = {
                "CARROT_TEST_RABBITMQ": str(root or ""),
                "CARROT_TEST_QUEUE_TYPE": queue_type,
                "CARROT_TEST_DATABASE": options.database,
            }
    return result


def files(rest: Sequence[str]) -> list[str]:
    """Arguments for pytest: the usual tests, unless some are named."""
    named = any(Path(argument.partition("::")[0]).exists() for argument in rest)
    return [*rest] if named else [*TESTS, *rest]


def _root(broker: str, log: Path) -> Path:
    if "/" not in broker:
        return debian_root(broker, log=log)
    root = Path(broker).absolute()
    if version_of(root) is None:
        raise StepFailed(f"There is no RabbitMQ in {root}.")
    return root
