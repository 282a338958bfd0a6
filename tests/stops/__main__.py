# SPDX-License-Identifier: Apache-2.0
"""``python3 run.py stops``: stops services in every state, again and again, at random moments.

Prints a table, and ends with status 1 if any service missed: it did not end in time, ended with
another status than it should, or left something behind. CARROT_TEST_DATABASE selects the database.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import django
from django.core.management import call_command

from devtools.folders import temporary_folder
from devtools.servers import PostgreSQL, RabbitMQ
from devtools.steps import say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Rounds with a miss after which a state is left.
MAX_WRONG = 3


def main(arguments: Sequence[str]) -> int:
    """Start servers, go through the states; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="run.py stops", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--times", type=int, default=50, help="stops in each state")
    parser.add_argument("--together", type=int, default=5, help="services that share a state")
    parser.add_argument("--seed", type=int, default=1, help="of moments and signals")
    parser.add_argument("--state", default="", help="only states with this in their name")
    given = parser.parse_args(arguments)
    with temporary_folder("carrot-stops-") as folder, ExitStack() as servers:
        broker = servers.enter_context(RabbitMQ(folder / "rabbitmq"))
        postgres = None
        if os.environ.get("CARROT_TEST_DATABASE") == "postgres":
            postgres = servers.enter_context(PostgreSQL(folder / "postgresql"))
        os.environ["CARROT_BROKER_URL"] = broker.url
        os.environ["CARROT_DATABASE_URL"] = (
            postgres.url if postgres else f"sqlite://{folder / 'carrot.sqlite3'}"
        )
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        django.setup()
        call_command("migrate", verbosity=0)
        return go_through(given, folder, broker, postgres)


def go_through(
    given: argparse.Namespace, folder: Path, broker: RabbitMQ, postgres: PostgreSQL | None
) -> int:
    """Print the line of each state when it is through; return the exit status."""
    # These need Django's settings.
    from tests.conftest import delete_queues
    from tests.nursery import Nursery
    from tests.stops.arena import TIMEOUT, Arena, Stop, forget_rows, run
    from tests.stops.states import STATES

    kind = "postgres" if postgres else "sqlite"
    states = [
        state
        for state in STATES.values()
        # What does not depend on the database is done with SQLite.
        if given.state in state.name
        and state.only in (None, kind)
        and not (state.once and postgres)
    ]
    say(f"Seed {given.seed}; tasks get {TIMEOUT:g} s. Slowest: seconds from the first signal.")
    say(f"{'state':47} {'times':>5} {'in time':>7} {'slowest':>7}  exit status")
    missed = 0
    nursery = Nursery()
    try:
        for state in states:
            stops: list[Stop] = []
            wrong: list[str] = []
            rounds = -(-given.times // given.together)
            for number in range(1, rounds + 1):
                if len(wrong) == MAX_WRONG:
                    break
                name = f"{state.name}, round {number}"
                forget_rows()
                delete_queues(broker.url)
                arena = Arena(
                    folder=folder / name,
                    broker=broker,
                    postgres=postgres,
                    launch=nursery.start,
                    chance=random.Random(f"{given.seed} {name}"),
                    count=min(given.together, given.times - len(stops)),
                )
                arena.folder.mkdir()
                try:
                    some, text = run(state, arena)
                except Exception as error:
                    # The next states shall have their turn all the same.
                    some, text = [], f"not done: {type(error).__name__}: {error}"
                stops += some
                if text:
                    wrong.append(f"    {name}: {text}")
            in_time = sum(stop.status is not None for stop in stops)
            slowest = max((stop.seconds for stop in stops), default=0.0)
            statuses = Counter(stop.status for stop in stops if stop.status is not None)
            say(
                f"{state.name:47} {len(stops):5} {in_time:7} {slowest:7.1f}  "
                + ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
            )
            for text in wrong:
                say(text)
            missed += bool(wrong)
    finally:
        nursery.close()
    say(f"{len(states) - missed} of {len(states)} states without a miss")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
