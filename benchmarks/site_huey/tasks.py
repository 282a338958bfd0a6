# SPDX-License-Identifier: Apache-2.0
"""huey's tasks, and how it publishes them."""

from __future__ import annotations

import time
from typing import Any

from huey import signals
from huey.contrib.djhuey import HUEY, db_task, signal

from benchmarks.redis import FIRST_START
from benchmarks.settings import QUEUE
from benchmarks.work import TASKS

# As those that use the database, like the tasks of all others: old connections are closed.
tasks = {name: db_task(name=name)(function) for name, function in TASKS.items()}
_started: list[float] = []


@signal(signals.SIGNAL_EXECUTING)  # type: ignore[untyped-decorator]
def note_first_start(*_: Any) -> None:
    """Note when the first task begins, which a result does not tell; do nothing afterwards.

    As in the other projects, somebody listens to the signals of each task.
    """
    if not _started:
        _started.append(time.time())
        HUEY.storage.conn.set(FIRST_START.format(QUEUE), _started[0], nx=True)


def publish(name: str) -> None:
    """As a view would."""
    tasks[name]()
