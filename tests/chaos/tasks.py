# SPDX-License-Identifier: Apache-2.0
"""The tasks of the chaos run. What each does last is to leave its effect in a ledger."""

from __future__ import annotations

import os
import time
import uuid

from django.db import connection, transaction

from carrot_twisted import Concurrency, Rate, running, task
from carrot_twisted.utilities import publish_message
from tests.chaos import ledger, limits

_rate = Rate(int(os.environ.get("CHAOS_STARTS", "1")), per=limits.PERIOD, group=limits.API)


class OnPurposeError(Exception):
    """This task had to fail."""


def effect(key: str) -> None:
    """Tell that this run of this task has done its work."""
    _tell("CHAOS_EFFECTS", key)


def begin(key: str) -> None:
    """Tell that this run begins."""
    _tell("CHAOS_BEGINS", key)


def _tell(ledger_of: str, key: str) -> None:
    run = running.current.get()
    assert run is not None
    ledger.record(
        os.environ[ledger_of],
        {
            "uuid": str(run.uuid),
            "key": key,
            "attempt": run.attempt,
            "pid": os.getpid(),
            "time": time.time(),
        },
    )


def work(key: str, seconds: float = 0.0) -> str:
    """Take some time."""
    time.sleep(seconds)
    effect(key)
    return f"did {key}"


@task(concurrency=Concurrency(limits.AT_ONCE["shop"], key="{shop}", group="shop"))
def slotted(key: str, seconds: float, shop: str) -> None:
    """Not too many at once, of each shop."""
    begin(key)
    work(key, seconds)


@task(rate=_rate)
def rated(key: str) -> None:
    """Not too many in a while."""
    begin(key)
    effect(key)


@task(concurrency=Concurrency(limits.AT_ONCE["lonely"], group="lonely"), rate=_rate)
def lonely(key: str, seconds: float) -> None:
    """One at once, and of these and those before not too many in a while."""
    begin(key)
    work(key, seconds)


def store(key: str) -> None:
    """Write to the database: this one meets the database's outages."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO chaos_mark (key) VALUES (%s)", [key])
        time.sleep(0.01)
    effect(key)


def spawn(key: str) -> str:
    """Publish another task."""
    child = f"{key}/{uuid.uuid4().hex[:8]}"
    publishes = os.environ["CHAOS_PUBLISHES"]
    ledger.record(publishes, {"key": child, "kind": "nested", "outcome": "attempted"})
    publish_message(work, child)
    ledger.record(publishes, {"key": child, "kind": "nested", "outcome": "committed"})
    effect(key)
    return child


def gather(results: list[str], key: str, members: list[str]) -> str:
    """Follows others in a flow, and has got what each of them has returned."""
    if results != [f"did {member}" for member in members]:
        raise ValueError(f"The results of {members} came as {results}")
    effect(key)
    return f"gathered {key}"


def fail(key: str) -> None:
    """Fail on purpose."""
    effect(key)
    raise OnPurposeError(f"on purpose: {key}")
