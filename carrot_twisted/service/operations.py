# SPDX-License-Identifier: Apache-2.0
"""What the log writer can be asked for: one value for each kind of operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.records import Finished

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from twisted.internet.defer import Deferred

    from carrot_twisted.admission import Request
    from carrot_twisted.admission_decision import Candidate
    from carrot_twisted.models import MessageLog
    from carrot_twisted.outbox import Post
    from carrot_twisted.outcomes import Verdict
    from carrot_twisted.records import Claimed
    from carrot_twisted.running import CancelRequest


@dataclass(slots=True, kw_only=True)
class Claim:
    """Ask for rows.

    ``answer`` is called on the writer's thread, after the commit; of rows that are under limits in
    a further call, after a second commit.
    """

    ids: list[UUID]
    token: int
    alone: bool
    answer: Callable[[dict[UUID, Claimed | Verdict]], None]
    barred: Sequence[str] = ()
    placeless: frozenset[UUID] = frozenset()
    """Those for which there is no thread, probably under limits: these wait in the table."""


@dataclass(slots=True, kw_only=True)
class Finish:
    """Write the end of a run. ``written`` is called in the reactor, once for a whole batch."""

    finished: Finished
    job: Any
    written: Callable[[list[Any]], None]
    freed: tuple[str, str] | None = None
    """The limit that it had a slot of, and the queue whose thread it had."""


@dataclass(slots=True, kw_only=True)
class Admit:
    """Let tasks start that are under limits: see ``admission``."""

    request: Request
    claims: Sequence[tuple[Claim, Sequence[Candidate]]] = ()
    """Who has asked for which rows."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """How many threads have become free for others, by queue."""
    done: Callable[[float | None], None] = lambda _: None
    """Called on the writer's thread, after the commit, with seconds until the next look."""
    tried: bool = False
    """It may have been committed."""


@dataclass(slots=True, kw_only=True)
class Confirmed:
    """Note that the broker holds these messages."""

    posts: list[Post]


@dataclass(slots=True, kw_only=True)
class Entry:
    """Add a row that has come to its end."""

    row: Callable[[], MessageLog]
    """Makes it, on the writer's thread; the same row each time."""
    done: Callable[[str | None], None]
    """Called on the writer's thread: when it is committed, or with the reason why it never is. What
    is said first counts."""


@dataclass(slots=True, kw_only=True)
class Lines:
    """Write what a run has told so far, while it goes on."""

    uuid: UUID
    token: int
    text: Callable[[], str]
    """Its log, as it is when the batch is written. Called on the writer's thread."""
    progress: str | None
    """How far it has come, as JSON."""
    done: Callable[[bool], None]
    """Called on the writer's thread: whether it is written. If not, the run has ended, or somebody
    has locked its row."""


@dataclass(slots=True, kw_only=True)
class CancelLook:
    """Ask which of a worker's tasks somebody wants to end."""

    worker: str
    answer: Callable[[Sequence[tuple[UUID, int, CancelRequest]]], None]
    """Called on the writer's thread, after the commit."""


@dataclass(slots=True, kw_only=True)
class Call:
    """Run ``function`` on the writer's thread. See ``LogWriter.call``."""

    function: Callable[[], Any]
    result: Deferred[Any]
    if_any: Callable[[], bool] | None = None
    is_atomic: bool = True


Operation = Claim | Finish | Admit | Confirmed | Entry | Lines | CancelLook | Call


def without_texts(operation: Finish, error: Exception) -> Finish:
    """The same end, with nothing in it that a database could refuse."""
    result = operation.finished.result
    note = f"The result could not be stored: {type(error).__name__}"
    return Finish(
        finished=Finished(
            uuid=operation.finished.uuid,
            token=operation.finished.token,
            result=Result(
                kind=result.kind,
                output=note if result.kind is Kind.COMPLETED else None,
                exception=note if result.kind is not Kind.COMPLETED else None,
                started=result.started,
                log=None,
                ended=result.ended,
                delay=result.delay,
            ),
            flow=operation.finished.flow,
        ),
        job=operation.job,
        written=operation.written,
        freed=operation.freed,
    )
