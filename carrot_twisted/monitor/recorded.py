# SPDX-License-Identifier: Apache-2.0
"""Things that are done to many tasks in one request, and recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from carrot_twisted.models import OperatorAction

if TYPE_CHECKING:
    from carrot_twisted.housekeeping import Progress
    from carrot_twisted.message_log import MessageLogQuerySet


class ManyDeed(Protocol):
    """Of ``housekeeping``: ``cancel_tasks``, ``requeue_tasks``, ``delete_tasks``."""

    def __call__(self, rows: MessageLogQuerySet, progress: Progress | None = None) -> Any: ...


def recorded(
    do: ManyDeed, rows: MessageLogQuerySet, *, user: object, action: str, target: str
) -> int:
    """Do it, and note who did it to how many; returns how many.

    Each chunk is committed: what was done is noted, also where the rest fails.

    Args:
        do: what is done.
        rows: to these.
        user: of the request.
        action: a word.
        target: which rows these are, for people.
    """
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done = count

    try:
        do(rows, progress)
    finally:
        if done:
            OperatorAction.note(user, action, target, done)
    return done
