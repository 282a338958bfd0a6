# SPDX-License-Identifier: Apache-2.0
"""A publisher: a process that publishes tasks in all ways there are, and keeps a ledger.

    python -m tests.chaos.publisher <prefix> <tasks> <seconds> <mean seconds of a task>

It ends when so many tasks are committed, at an even rate over so many seconds. An attempt is
recorded before it is made. What became of it is recorded after: *committed*, *rolled back*, or
*unknown* where an error leaves that open. A publisher that is killed in between leaves it open,
too; then the database tells in the end.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import django
from django.db import Error, close_old_connections, connection, transaction

from tests.chaos import ledger, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How many of a hundred publishes are of each kind.
WEIGHTS = {"plain": 35, "atomic": 25, "rolled_back": 10, "many": 5, "flow": 5, "late": 20}
#: How many of a hundred tasks are of each kind.
TASKS = {
    **{"work": 60, "store": 15, "spawn": 5, "fail": 5, "long": 5},
    **{"slotted": limits.SLOTTED, "rated": limits.RATED, "lonely": limits.BOTH},
}
#: How much longer a long task takes than the mean.
LONG = 8


class Rollback(Exception):
    """The transaction of a publish is not to be committed."""


class ChaosPublisher:
    """Publishes as the projects of a hundred users would.

    Args:
        prefix: of all keys; the place of this publisher and how often it was replaced.
        mean: seconds that a task takes.
    """

    def __init__(self, prefix: str, mean: float) -> None:
        self._prefix = prefix
        self._mean = mean
        self._chance = random.Random(prefix)
        self._number = 0
        self.committed = 0

    def publish(self) -> None:
        """One publish of some kind; never raises."""
        (kind,) = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        count = self._chance.randint(5, 40) if kind in ("many", "flow") else 1
        keys = []
        for _ in range(count):
            self._number += 1
            keys.append(f"{self._prefix}.{self._number}")
        self._note(keys, kind, "attempted")
        method: Callable[[list[str]], None] = getattr(self, f"_{kind}")
        try:
            method(keys)
        except Rollback:
            self._note(keys, kind, "rolled back")
        except Error as error:
            self._note(keys, kind, "unknown", error=f"{type(error).__name__}: {error}")
            time.sleep(0.2)
            close_old_connections()
        else:
            self._note(keys, kind, "committed")
            self.committed += count

    def _note(self, keys: Sequence[str], kind: str, outcome: str, **more: str) -> None:
        records = [{"key": key, "kind": kind, "outcome": outcome, **more} for key in keys]
        ledger.record(os.environ["CHAOS_PUBLISHES"], *records)

    def _plain(self, keys: Sequence[str]) -> None:
        """Outside of any transaction."""
        for key in keys:
            self._send(key)

    def _atomic(self, keys: Sequence[str]) -> None:
        """In a transaction with a write of the project's."""
        with transaction.atomic():
            self._write(keys)
            self._plain(keys)

    def _late(self, keys: Sequence[str]) -> None:
        """In a transaction that goes on for a while, with a savepoint that is rolled back."""
        undone = f"{keys[0]}.undone"
        self._note([undone], "savepoint", "rolled back")
        with transaction.atomic():
            self._plain(keys)
            time.sleep(0.01)
            with suppress(Rollback), transaction.atomic():
                self._send(undone)
                raise Rollback
            self._write(keys)

    def _rolled_back(self, keys: Sequence[str]) -> None:
        with transaction.atomic():
            self._plain(keys)
            self._write(keys)
            raise Rollback

    def _many(self, keys: Sequence[str]) -> None:
        """Many in one go."""
        from carrot_twisted.utilities import create_message, publish_many

        messages = []
        for key in keys:
            task, arguments, queue = self._task(key)
            messages.append(create_message(task, queue=queue, task_args=arguments))
        publish_many(messages)

    def _flow(self, keys: Sequence[str]) -> None:
        """Side by side, and the last one when all have ended."""
        from carrot_twisted.flows import group, signature
        from carrot_twisted.utilities import create_message

        *members, last = keys
        group(
            [
                create_message("tests.chaos.tasks.work", task_args=[key, round(self._mean, 4)])
                for key in members
            ],
            then=signature("tests.chaos.tasks.gather", last, members),
        ).publish()

    def _send(self, key: str) -> None:
        from carrot_twisted.utilities import publish_message

        task, arguments, queue = self._task(key)
        publish_message(task, *arguments, queue=queue)

    def _task(self, key: str) -> tuple[str, list[Any], str]:
        """Path and arguments of a task of some kind, and its queue."""
        (kind,) = self._chance.choices(list(TASKS), list(TASKS.values()))
        arguments: list[Any] = [key]
        if kind in ("work", "long"):
            seconds = self._chance.uniform(0, 2 * self._mean)
            arguments.append(round(seconds * LONG if kind == "long" else seconds, 4))
            kind = "work"
        elif kind == "slotted":
            seconds = limits.LONG * self._chance.uniform(0, 2 * self._mean)
            arguments += [round(seconds, 4), self._chance.choice(limits.SHOPS)]
        elif kind == "lonely":
            arguments.append(round(self._chance.uniform(0, 2 * self._mean), 4))
        queue = "other" if self._chance.random() < 0.1 else "default"
        return f"tests.chaos.tasks.{kind}", arguments, queue

    def _write(self, keys: Sequence[str]) -> None:
        """What a project writes beside publishing; the one must not be there without the other."""
        with connection.cursor() as cursor:
            for key in keys:
                cursor.execute("INSERT INTO chaos_note (key) VALUES (%s)", [key])


def main(prefix: str, tasks: int, seconds: float, mean: float) -> None:
    """Publish, and leave when all is done."""
    logging.basicConfig(level=logging.INFO)
    # It tells a lost connection in a dozen lines and two tracebacks; the product in one line.
    logging.getLogger("pika").propagate = False
    django.setup()
    # What their decorators say goes into the rows: a path alone would be published without limits.
    import_module("tests.chaos.tasks")
    publisher = ChaosPublisher(prefix, mean)
    begin = time.monotonic()
    while publisher.committed < tasks:
        ahead = publisher.committed * seconds / tasks - (time.monotonic() - begin)
        if ahead > 0:
            time.sleep(min(ahead, 1.0))
        else:
            publisher.publish()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
