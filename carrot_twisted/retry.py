# SPDX-License-Identifier: Apache-2.0
"""What becomes of a message after its handler has ended: pure decisions, and the numbers in them.

No reactor, no channel, no clock. ``decide`` says what is to be done about a message, whoever
called the handler; whoever holds the delivery does it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from carrot_twisted import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Backoff = Callable[[int], float]
    """From the retries so far to the seconds until the next one."""

#: Seconds until the first retry, the second and so on; the last one for all that follow.
DELAYS = (0.2, 1.0, 60.0, 1800.0)
#: Milliseconds of the longest delay: 2 ** 32 - 1, the largest time to live that RabbitMQ takes.
LONGEST = 4_294_967_295
#: So many retries have a queue that is made for exactly their delay; see ``own_steps``.
MAX_OWN = 16
#: Milliseconds of all other retry queues: each delay is rounded up to the next one.
LADDER = (
    *(
        int(first * 10**power)
        for power in range(2, 10)
        for first in (1, 1.5, 2, 3, 4, 6, 8)
        if first * 10**power < LONGEST
    ),
    LONGEST,
)


class Fault(Enum):
    """Who is to blame for a call that raised."""

    HANDLER = "the handler: it may succeed another time"
    PERMANENT = "the message: no other time can help"
    DATABASE = "the database: the attempt does not count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A call that raised."""

    fault: Fault
    exception: str
    """Type and text, on one line."""
    traceback: str
    """Its end, which says most."""
    error: BaseException | None = field(default=None, compare=False, repr=False)
    """What was raised, for those who know more of it."""


class Action(Enum):
    """What is to be done about a message."""

    ACK = "done with"
    WAIT = "keep it unacknowledged, call the handler again after a while"
    RETRY = "put a copy into a retry queue, then acknowledge"
    ARCHIVE = "put a copy into the archive, then acknowledge"
    REQUEUE = "give it back to its queue, at once or after a while"
    REJECT = "the broker dead-letters it, or throws it away"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An action, with what belongs to it."""

    action: Action
    delay: float = 0.0
    """Seconds, for WAIT, RETRY and REQUEUE."""
    reason: str = ""
    """For people: why it is archived."""
    halt: bool = False
    """Nothing more is to be consumed."""


#: About a message whose handler has returned: nearly all of them.
DONE = Decision(action=Action.ACK)


def default_backoff(retries: int) -> float:
    """Seconds until the next retry: 0.2, 1, 60 and then always 1800."""
    return DELAYS[min(retries, len(DELAYS) - 1)]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How failures of one queue's handler are dealt with."""

    max_retries: int
    header: str
    """Of the message: its retries so far."""
    backoff: Backoff = default_backoff

    def retries(self, headers: Mapping[str, Any] | None) -> int:
        """How often a message has been retried; 0 if its header makes no sense."""
        value = (headers or {}).get(self.header)
        if value is None:
            return 0
        try:
            count = int(value)
        except (TypeError, ValueError, OverflowError):
            return 0
        return max(0, count)


def decide(failure: Failure | None, *, retries: int, waits: int, policy: Policy) -> Decision:
    """What is to be done about a message whose handler has ended.

    Args:
        failure: of this call; None: it has returned.
        retries: of the message, before this call.
        waits: how often it was kept waiting for the database, before this call.
        policy: of its queue.
    """
    if failure is None:
        return DONE
    if failure.fault is Fault.DATABASE:
        return Decision(action=Action.WAIT, delay=outcomes.release_delay(waits + 1))
    if failure.fault is Fault.PERMANENT:
        return Decision(action=Action.ARCHIVE, reason="no retry can help")
    if retries >= policy.max_retries:
        return Decision(action=Action.ARCHIVE, reason=f"it has failed {retries + 1} times")
    return Decision(action=Action.RETRY, delay=backoff_of(policy, retries))


def backoff_of(policy: Policy, retries: int) -> float:
    """Seconds until the next retry; the default's where the project's function makes no sense."""
    try:
        delay = float(policy.backoff(retries))
    except BaseException:
        # Nothing that a project's function does may cost the message, or the service.
        delay = math.nan
    return default_backoff(retries) if math.isnan(delay) else max(0.0, delay)


def own_steps(policy: Policy) -> tuple[int, ...]:
    """Milliseconds of the retry queues that are made for exactly this policy's delays.

    Messages of one retry queue have the same delay, so that none waits behind another one. A
    function that answers differently each time would need ever more queues: it has none of its
    own, and its delays are rounded up to LADDER.
    """
    numbers = range(min(policy.max_retries, MAX_OWN))
    first = [backoff_of(policy, number) for number in numbers]
    second = [backoff_of(policy, number) for number in numbers]
    if first != second:
        return ()
    return tuple(sorted({_milliseconds(delay) for delay in first}))


def step_of(delay: float, own: Collection[int]) -> int:
    """Milliseconds of the retry queue for a delay, which is never shorter than that.

    Args:
        delay: seconds, 0 or more.
        own: what ``own_steps`` says.
    """
    milliseconds = _milliseconds(delay)
    if milliseconds in own:
        return milliseconds
    return LADDER[bisect_left(LADDER, milliseconds)]


def _milliseconds(delay: float) -> int:
    # 0.2 * 1000 may be a little more than 200.
    return LONGEST if delay * 1000 >= LONGEST else math.ceil(round(delay * 1000, 3))
