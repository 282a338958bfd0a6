# SPDX-License-Identifier: Apache-2.0
"""What pages and API do to queues, workers and many tasks, and the record of it.

What the database alone does stands in one transaction with its record. Of what cannot be undone, at
a broker, the record comes first: killed in between, it says that somebody began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from django.db import router, transaction

from carrot_twisted import housekeeping
from carrot_twisted.models import OperatorAction

if TYPE_CHECKING:
    from collections.abc import Callable

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


def pause_queue(user: object, name: str, reason: str) -> None:
    """``housekeeping.pause_queue``, which says what it raises."""
    with _together():
        housekeeping.pause_queue(name, by=str(user), reason=reason)
        OperatorAction.note(user, "pause", name)


def resume_queue(user: object, name: str) -> None:
    """``housekeeping.resume_queue``, which says what it raises."""
    with _together():
        if housekeeping.resume_queue(name):
            OperatorAction.note(user, "resume", name)


def purge_queue(user: object, name: str) -> int:
    """``housekeeping.purge_queue``, which says what it returns and raises."""
    action = OperatorAction.note(user, "purge", name, 0)
    deleted = housekeeping.purge_queue(name)
    OperatorAction.add(action.pk, deleted)
    return deleted


def tell_worker(user: object, word: str, tell: Callable[[str], None], name: str) -> None:
    """Tell a worker something.

    Args:
        user: of the request.
        word: what it is told.
        tell: ``housekeeping.quiet_worker``, for example, which says what it raises.
        name: of the worker.
    """
    with _together():
        tell(name)
        OperatorAction.note(user, word, name)


def _together() -> Any:
    return transaction.atomic(using=router.db_for_write(OperatorAction))
