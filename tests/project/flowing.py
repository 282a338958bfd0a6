# SPDX-License-Identifier: Apache-2.0
"""Tasks that are parts of flows."""

from __future__ import annotations

import time
from typing import Any

from carrot_twisted import task
from carrot_twisted.exceptions import Retry
from carrot_twisted.models import MessageLog
from carrot_twisted.running import current
from tests.project.tasks import ledger

#: What ``tell`` was given, and what ``give`` cannot give.
told: list[Any] = []
broken: set[int] = set()


@task
def give(value: Any) -> Any:
    """What it is given."""
    if isinstance(value, int) and value in broken:
        raise ValueError(f"{value} is broken")
    return value


@task
def give_tuple() -> Any:
    """What JSON would change."""
    return (1, 2)


@task
def give_text(size: int) -> str:
    """A text of so many characters."""
    return "x" * size


@task
def multiply(value: int, by: int) -> int:
    """A product."""
    return value * by


@task
def add_up(values: list[int]) -> int:
    """A sum."""
    return sum(values)


@task
def tell(value: Any) -> Any:
    """What it is given, and notes that."""
    told.append(value)
    return value


@task(max_retries=3)
def flaky(failures: int) -> str:
    """Fails so often."""
    attempt = current.get().attempt
    if attempt <= failures:
        raise Retry("not yet", delay=60)
    return f"attempt {attempt}"


@task(unique=True)
def single(value: int) -> int:
    """One of a kind."""
    return value


@task
def pause(value: int, seconds: float) -> int:
    """Takes some time."""
    time.sleep(seconds)
    return value


@task
def note(values: list[int], key: str) -> int:
    """Leaves a trace with the sum of what it got."""
    ledger(f"{key}: {len(values)} results, {sum(values)}")
    return sum(values)


@task
def wait_for(key: str) -> str:
    """Waits for another task, as nobody should."""
    return str(MessageLog.objects.get(pk=key).wait(20).result())
