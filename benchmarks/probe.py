# SPDX-License-Identifier: Apache-2.0
"""What runs inside a site's own process: fills the queue, times publishing, watches the rows.

Each step is a process of its own (`python -m benchmarks.site_carrot.probe watch 2000`) whose
last line of output is its result as JSON. A site says how its system does each thing. One of the
sites runs with an old Python: nothing here is newer than 3.7.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import django
from django.core.management import call_command

if TYPE_CHECKING:
    from collections.abc import Callable

READY = "ready"
#: Published before the clock starts: connections, imports and caches belong to a process's start.
WARM_UP = 20
#: Publishing is timed in turns, so that a slow second of the machine hits both contestants.
TURNS = 10
#: The watcher gives up when no row became final for so long.
SECONDS_WITHOUT_PROGRESS = 60.0


class Rows(NamedTuple):
    """What the database says when all is done."""

    total: int
    confirmed: int
    """Of how many it is known that they are published."""
    succeeded: int
    first_start: float | None
    """Seconds since the epoch."""
    repeats: int | None
    """Starts of a task beyond its first one; None where the system does not count them."""


class Site(ABC):
    """One system under test, inside its Django project."""

    has_rows_first: ClassVar[bool] = False
    """Whether a published task has a row before it is run."""
    compares_inserts: ClassVar[bool] = False
    """Whether publishing is timed beside bare inserts of a row."""

    def begin(self) -> None:  # noqa: B027 - most have nothing to do
        """Make what must be there before anything is published."""

    @abstractmethod
    def publish(self, task: str) -> None:
        """Publish one task, as a view would."""

    def publish_all(self, task: str, count: int) -> None:
        """Publish a backlog by the fastest way that the system has; return when it is confirmed."""
        for _ in range(count):
            self.publish(task)

    def settle(self) -> None:  # noqa: B027 - most do not return before
        """Return when the broker, or the database, has everything that was published."""

    @abstractmethod
    def count_final(self) -> int:
        """Return how many tasks have ended, whatever their end."""

    @abstractmethod
    def rows(self) -> Rows:
        """Return what the rows say."""

    def insert_row(self) -> None:
        """Insert a bare row with its own commit, as publishing does."""
        raise NotImplementedError


def main(site: Callable[[], Site]) -> None:
    """Run the step that the command line names and print its result."""
    django.setup()
    step, *arguments = sys.argv[1:]
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        "prepare": prepare,
        "publish": publish,
        "publish_many": publish_many,
        "fill": fill,
        "watch": watch,
    }
    print(json.dumps(steps[step](site(), *arguments)), flush=True)


def prepare(_site: Site) -> dict[str, Any]:
    """Make the tables."""
    call_command("migrate", verbosity=0)
    return {}


def publish(site: Site, task: str, count: str) -> dict[str, Any]:
    """Time the caller of single publishes, in turns with bare inserts of a row."""
    begin(site)
    per_turn = max(1, int(count) // TURNS)
    contestants: dict[str, Callable[[], None]] = {"publish": lambda: site.publish(task)}
    if site.compares_inserts:
        contestants["bare_insert"] = site.insert_row
    caller_seconds = dict.fromkeys(contestants, 0.0)
    for call in contestants.values():
        timed(call, WARM_UP)
    site.settle()
    seconds = cpu = 0.0
    for turn in range(TURNS):
        # Who goes first changes from turn to turn.
        for name in sorted(contestants, reverse=bool(turn % 2)):
            started, cpu_before = time.perf_counter(), time.process_time()
            caller_seconds[name] += timed(contestants[name], per_turn)
            # Confirms come in behind the caller's back: inserts do not pay for them, the rate of
            # publishing does.
            site.settle()
            if name == "publish":
                seconds += time.perf_counter() - started
                cpu += time.process_time() - cpu_before
    return {
        **published(site, per_turn * TURNS + WARM_UP),
        "values": {
            "tasks": per_turn * TURNS,
            "seconds": seconds,
            "caller_seconds": caller_seconds["publish"],
            "bare_insert_seconds": caller_seconds.get("bare_insert"),
            "cpu": cpu,
        },
    }


def publish_many(site: Site, task: str, count: str) -> dict[str, Any]:
    """Time a backlog from the first message made to the last one confirmed."""
    begin(site)
    site.publish_all(task, 1)
    started, cpu = time.perf_counter(), time.process_time()
    site.publish_all(task, int(count))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        **published(site, int(count) + 1),
        "values": {"tasks": int(count), "seconds": seconds, "cpu": cpu},
    }


def fill(site: Site, task: str, count: str) -> dict[str, Any]:
    """Publish a backlog, for a service to drain."""
    begin(site)
    site.publish_all(task, int(count))
    return {**published(site, int(count)), "values": {}}


def published(site: Site, messages: int) -> dict[str, int]:
    """Return what must be in the broker now, and what must be and is confirmed by the rows."""
    confirmed = messages if site.has_rows_first else 0
    return {
        "messages": messages,
        "expected_rows": confirmed,
        "rows": site.rows().confirmed,
    }


def watch(site: Site, count: str) -> dict[str, Any]:
    """Wait until that many tasks are final; tell when that was, and what the rows say."""
    print(READY, flush=True)
    final = wait_for_all(site.count_final, int(count))
    end = time.time()
    rows = site.rows()
    return {
        "final": final,
        "end": end,
        "rows": rows.total,
        "succeeded": rows.succeeded,
        "first_start": rows.first_start,
        "repeats": rows.repeats,
    }


def wait_for_all(count_final: Callable[[], int], expected: int) -> int:
    """Return when so many are final, or nothing goes on any more: how many are."""
    started = progress = time.monotonic()
    first_seen = 0.0
    final = 0
    parent = os.getppid()
    while final < expected and time.monotonic() - progress < SECONDS_WITHOUT_PROGRESS:
        if os.getppid() != parent:
            raise SystemExit("Nobody waits for this any more.")
        time.sleep(pause(final, expected, time.monotonic() - (first_seen or started)))
        now_final = count_final()
        if now_final > final:
            progress = time.monotonic()
            first_seen = first_seen or progress
        final = now_final
    return final


def pause(final: int, expected: int, elapsed: float) -> float:
    """Return how long to leave the database alone: half of what the rest will take, in the end.

    So a count costs nothing while much is left, be it millions, and the end is seen within 10 ms.
    """
    if not final:
        return 0.1
    rest = elapsed / final * (expected - final)
    # Who has waited before the first of them overrates the rest: a second for each million at most.
    return max(0.01, min(rest / 2, max(0.5, min(rest / 10, expected / 1_000_000))))


def timed(call: Callable[[], None], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - begin


def begin(site: Site) -> None:
    """Begin as the first round did, with empty tables."""
    call_command("flush", verbosity=0, interactive=False)
    site.begin()
