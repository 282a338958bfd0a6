# SPDX-License-Identifier: Apache-2.0
"""Tasks with ``@task``, for the tests."""

from __future__ import annotations

from carrot_twisted import running, task
from tests.project import tasks


@task(queue="other", priority=2, expires=3600, retention=60)
def optioned(key: str = "") -> str:
    """A task whose decorator says much."""
    return tasks.effect(key)


@task(unique="{key}")
def one_at_a_time(key: str, file: str = "") -> str:
    """One of each key waits or runs."""
    if file:
        tasks.wait_for_file(file, 60)
    return tasks.effect(key)


@task(unique="{key}", unique_until="start", on_duplicate="raise")
def one_waiting(key: str) -> str:
    """One of each key waits."""
    return tasks.effect(key)


@task(max_retries=2, retry_on={ConnectionError: 0.4}, retry_jitter=0)
def flaky(key: str, failures: int) -> str:
    """Fail so often, then leave a trace; each attempt leaves one, too."""
    run = running.current.get()
    assert run is not None
    tasks.ledger(f"attempt {run.attempt} at {key}")
    if run.retries < failures:
        raise ConnectionError(f"failure {run.retries + 1}")
    return tasks.effect(key)


@task(max_retries=1, retry_on={ConnectionError: 0.1})
def traced() -> str:
    """Fail at first; then tell the trace that this is part of."""
    run = running.current.get()
    assert run is not None
    if not run.retries:
        raise ConnectionError
    return tasks.trace()


@task(ignore_result=True)
def quiet(key: str) -> str:
    """Nobody wants to know what it returns."""
    return tasks.effect(key)
