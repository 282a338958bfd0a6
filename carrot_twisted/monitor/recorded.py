# SPDX-License-Identifier: Apache-2.0
"""What pages and API do to queues, workers and many tasks, and the record of it.

What the database alone does stands in one transaction with its record, each chunk of many rows with
its part of it. Of what goes on at a broker, or in transactions of its own, the record comes first:
killed in between, it says that somebody began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import router, transaction

from carrot_twisted import housekeeping
from carrot_twisted.models import OperatorAction

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.message_log_set import MessageLogQuerySet


def on_rows(
    do: Callable[[MessageLogQuerySet], int],
    rows: MessageLogQuerySet,
    *,
    user: object,
    action: str,
    target: str,
    record: int | None = None,
) -> tuple[int, int | None]:
    """Do something to rows, a chunk of many, and note it, in one transaction.

    Args:
        do: what is done; it returns to how many.
        rows: to these.
        user: of the request.
        action: a word.
        target: which rows these are, all of the many, for people.
        record: of the OperatorAction that tells of the chunks before.

    Returns:
        To how many it was done, and the record; None: there was nothing to note yet.
    """
    with transaction.atomic(using=rows.db):
        count = do(rows)
        if record is not None:
            OperatorAction.add(record, count)
        elif count:
            record = OperatorAction.note(user, action, target, count).pk
    return count, record


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


def purge_queue(user: object, name: str | None) -> int:
    """``housekeeping.purge_queue``, which says what it takes, returns and raises."""
    action = OperatorAction.note(user, "purge", name or "all queues", 0)
    deleted = housekeeping.purge_queue(name)
    OperatorAction.add(action.pk, deleted)
    return deleted


def ring_again(user: object) -> int:
    """``housekeeping.requeue_all``, which says what it returns and raises."""
    action = OperatorAction.note(user, "ring again", "all tasks that wait", 0)
    count = housekeeping.requeue_all()
    OperatorAction.add(action.pk, count)
    return count


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
