# SPDX-License-Identifier: Apache-2.0
"""Messages of one queue whose rows are not there: they are looked up again, for some seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carrot_twisted import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.service.job import Job
    from carrot_twisted.service.prefetch import Pace

#: Seconds after which a message whose row is missing is looked up again; then it is dead. The row
#: of another publisher may come late: django-carrot publishes before the commit.
DELAYS = (0.1, 0.3, 1.0, 2.0, 3.0, 4.0)
#: Our own publishers send after the commit. Their message without a row is that of a deleted row.
OWN_DELAYS = (0.1,)
#: So many messages may wait for their rows at once; further ones are taken for dead.
MOST = 200


class MissingRows:
    """Has jobs wait for their rows: they must not keep others from running. In the reactor.

    Args:
        pace: of the queue.
        look: called with a job when its row is to be looked up again.
        reactor: Twisted's reactor.
    """

    def __init__(self, pace: Pace, look: Callable[[Job], None], reactor: Any) -> None:
        self._pace = pace
        self._look = look
        self._reactor = reactor
        self.count = 0
        """Jobs that wait."""

    def wait(self, job: Job) -> bool:
        """Let a job wait whose row was not found; False: it has waited enough, or too many do."""
        own = job.deliveries[0].properties.app_id == wire.APP_ID
        delays = OWN_DELAYS if own else DELAYS
        if job.tries >= len(delays) or self.count >= MOST:
            # Not while it is looked up: that is a moment, and it may wait once more.
            self._pace.missing = self.count
            return False
        self.wait_for(delays[job.tries], job)
        job.tries += 1
        self._pace.missing = max(self._pace.missing, self.count)
        return True

    def wait_for(self, seconds: float, job: Job) -> None:
        """Let a job wait, for whatever reason."""
        self.count += 1
        self._reactor.callLater(seconds, self._again, job)

    def measure(self) -> None:
        """Others have ended: if none waits any more, no room is needed for them."""
        if not self.count:
            self._pace.missing = 0

    def _again(self, job: Job) -> None:
        self.count -= 1
        self._look(job)


def reason(barred: Sequence[str]) -> str:
    """Why a message without a row is dead.

    Args:
        barred: queues whose rows were not looked at.
    """
    text = "no MessageLog has this message_id"
    if barred:
        text += f", or it is of a queue whose messages are signed: {', '.join(barred)}"
    return text
