# SPDX-License-Identifier: Apache-2.0
"""What a service tells of itself in its worker's row: which process it is, and what it does."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from carrot_twisted import __version__, outcomes, processes
from carrot_twisted.models import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.service.working import Working

#: Coroutines that are told with a heartbeat, those that run for longest.
MAX_COROUTINES = 50
#: Characters that are told of a problem.
MAX_PROBLEM = 500


def this_worker(queues: Sequence[QueueSettings], threads: int) -> Worker:
    """This process, unsaved, under a name that no other ever has.

    Args:
        queues: those that it consumes from.
        threads: how many tasks it can run at once.
    """
    pid = os.getpid()
    host = socket.gethostname()
    return Worker(
        name=f"{host[:70]}-{pid}-{secrets.token_hex(3)}",
        host=host[:200],
        pid=pid,
        machine=processes.machine(),
        process_start=processes.start_of(pid),
        version=__version__,
        queues="\n".join(queue.name for queue in queues),
        threads=threads,
    )


def state_of(
    dispatchers: Sequence[Working], problems: Sequence[str], quiet: bool
) -> dict[str, Any]:
    """What ``manage.py carrot_status`` tells of this worker.

    Args:
        dispatchers: who runs something.
        problems: what keeps it from working, for people.
        quiet: operators want it to take nothing more.
    """
    busy = [
        report
        for dispatcher in dispatchers
        for report in dispatcher.threads()
        if report.task is not None
    ]
    coroutines = [report for report in busy if report.coroutine]
    # Not thousands, with each heartbeat: those that somebody may look for.
    told = sorted(coroutines, key=lambda one: (one.stuck, one.seconds))[-MAX_COROUTINES:]
    threads = [report for report in busy if not report.coroutine]
    return {
        "running": [
            {
                "thread": one.name,
                "task": one.task,
                "uuid": str(one.uuid or ""),
                "seconds": round(one.seconds, 1),
                "stuck": one.stuck,
                "coroutine": one.coroutine,
            }
            for one in [*threads, *reversed(told)]
        ],
        "coroutines": len(coroutines),
        # As the database takes it: for a text that it refuses the lease would be lost.
        "problems": [outcomes.stored(text, MAX_PROBLEM) for text in problems],
        "quiet": quiet,
    }
