# SPDX-License-Identifier: Apache-2.0
"""Tasks under limits, for the tests. Each tells the ledger when it begins, and when it ends."""

from __future__ import annotations

import asyncio
import time

from carrot_twisted import Concurrency, Rate, running, task
from tests.project import tasks


def traced(key: str, pause: float = 0.0, file: str = "") -> str:
    """Begin, take some time, or wait for a file, and end."""
    run = running.current.get()
    attempt = 0 if run is None else run.attempt
    tasks.ledger(f"+ {key} {attempt} {time.time()}")
    if file:
        tasks.wait_for_file(file, 60)
    time.sleep(pause)
    tasks.ledger(f"- {key}")
    return key


@task(concurrency=Concurrency(2, key="account:{account}"))
def by_account(account: int, pause: float = 0.0, file: str = "") -> str:
    """Two of each account at a time."""
    return traced(f"account:{account}", pause, file)


@task(concurrency=Concurrency(2, key="{account}"))
async def in_loop(account: int, pause: float) -> None:
    """Two of each account at a time, as coroutines."""
    tasks.ledger(f"+ {account}")
    await asyncio.sleep(pause)
    tasks.ledger(f"- {account}")


@task(concurrency=Concurrency(1))
def alone(key: str = "alone", pause: float = 0.0, file: str = "") -> str:
    """One at a time."""
    return traced(key, pause, file)


@task(rate=Rate(5, per=1.0, key=lambda server, **_: server))
def ask(server: str) -> str:
    """Five starts a second for each server."""
    return traced(server)


@task(
    concurrency=Concurrency(2, key="{account}", group="shop"), rate=Rate(20, per=1.0, group="shop")
)
def sync(account: int, pause: float = 0.0) -> str:
    """Two of each account at a time, twenty starts a second of all."""
    return traced(f"sync:{account}", pause)


@task(concurrency=Concurrency(2, key="{account}", group="shop"))
def upload(account: int, pause: float = 0.0) -> str:
    """Shares its slots with ``sync``."""
    return traced(f"sync:{account}", pause)


@task(concurrency=Concurrency(1, group="flaky"), max_retries=2, retry_backoff=0.3)
def flaky(key: str) -> str:
    """Fail twice."""
    run = running.current.get()
    assert run is not None
    traced(key)
    if run.retries < 2:
        raise ConnectionError(key)
    return key


@task(concurrency=Concurrency(1, group="die"))
def dies(key: str) -> str:
    """Kill the process the first time."""
    run = running.current.get()
    assert run is not None
    tasks.ledger(f"+ {key} {run.attempt} {time.time()}")
    if run.attempt == 1 and key == "first":
        tasks.die()
    tasks.ledger(f"- {key}")
    return key
