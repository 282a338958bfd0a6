# SPDX-License-Identifier: Apache-2.0
"""What the worker threads, and the coroutines, of a queue are doing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from carrot_twisted.service.pool import Slot


@dataclass(frozen=True, kw_only=True)
class ThreadReport:
    """What one worker thread is doing, or one coroutine."""

    name: str
    task: str | None
    """Dotted path; None while it is idle, or a consumer's hooks read a message."""
    uuid: UUID | None
    """Of the task's row."""
    seconds: float
    """For how long it has been at that; 0 while it is idle."""
    stuck: bool
    """Its task has ended for everybody else: it went on after its time limit. Or it is a coroutine
    that holds up its event loop."""
    coroutine: bool = False

    @classmethod
    def of(
        cls,
        slot: Slot[Any],
        job: object,
        *,
        task: str | None,
        uuid: UUID | None = None,
        coroutine: bool = False,
    ) -> ThreadReport:
        """Of one thread, or coroutine.

        Args:
            slot: of the thread.
            job: that was read from the slot; None: it is idle.
            task: of the job.
            uuid: of the job's row.
            coroutine: it is one.
        """
        return cls(
            name=slot.name,
            task=task,
            uuid=uuid,
            seconds=max(0.0, time.monotonic() - slot.since) if job is not None else 0.0,
            stuck=slot.stuck,
            coroutine=coroutine,
        )
