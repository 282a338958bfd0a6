# SPDX-License-Identifier: Apache-2.0
"""Has the broker keep copies of one queue's failed messages: again and again until it does.

Such a copy goes to a retry queue or to the archive. Only when the broker has confirmed it may the
message itself be acknowledged.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import failpoints
from carrot_twisted.outage import Outage
from carrot_twisted.service import copying

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.outbox import Post
    from carrot_twisted.retry import Decision
    from carrot_twisted.service.message_job import Job

    Send = Callable[[Post, Callable[[str | None], None]], None]
    """Sends a message; its second argument is told when the broker has it, or why not."""

_log = make_logger()

#: Seconds until a copy is tried again that the broker did not take.
COPY_RETRY = 5.0
#: Seconds that the broker gets, when the service stops, to confirm copies. In an alarm it does not.
LAST_COPIES = 3.0


class MessageCopies:
    """Those that are on their way. In the reactor.

    Args:
        queue: whose messages they are.
        jobs: under way; a message that is given back meanwhile is none of them any more.
        send: the way to the broker.
        copied: takes a job whose copy the broker has.
        give_back: takes a job that is not to be copied any more, if it is still under way.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        queue: HandlerQueue,
        jobs: Container[Job],
        send: Send,
        copied: Callable[[Job], None],
        give_back: Callable[[Job], None],
        reactor: Any,
    ) -> None:
        self._queue = queue
        self._jobs = jobs
        self._send = send
        self._done = copied
        self._give_back = give_back
        self._reactor = reactor
        self._host = socket.gethostname()
        self._trouble = Outage(reactor.seconds)
        #: Those that the broker has not confirmed yet.
        self._under_way: dict[Job, None] = {}
        #: Those that it did not take, with the timers of the next try.
        self._refused: dict[Job, Any] = {}
        self._stopping = False
        #: The timer that ends the waiting for the broker, in a stop.
        self._last: Any = None

    def copy(self, job: Job, decision: Decision) -> None:
        """Have the broker keep a copy of a failed message, as it was decided."""
        self._refused.pop(job, None)
        if job not in self._jobs:
            return
        if self._stopping or not job.delivery.settler.is_open:
            # The broker delivers it again: the handler may run once more, and nothing is lost.
            self._give_back(job)
            return
        assert job.failure is not None
        post = copying.copy_of(
            job.delivery,
            queue=self._queue,
            decision=decision,
            failure=job.failure,
            now=datetime.now(UTC).isoformat(timespec="milliseconds"),
            host=self._host,
        )

        def settled(error: str | None) -> None:
            self._under_way.pop(job, None)
            if error is None:
                self._copied(job)
            else:
                self._tell_trouble(post.routing_key, error)
                again = 0.0 if self._stopping else COPY_RETRY
                self._refused[job] = self._reactor.callLater(again, self.copy, job, decision)

        self._under_way[job] = None
        self._send(post, settled)

    def stop(self) -> None:
        """Try no copy again, and wait for LAST_COPIES seconds for those that are under way."""
        self._stopping = True
        refused, self._refused = self._refused, {}
        for job, timer in refused.items():
            timer.cancel()
            self._give_back(job)
        self._last = self._reactor.callLater(LAST_COPIES, self._give_back_all)

    def end(self) -> None:
        """Wait no longer."""
        if self._last is not None and self._last.active():
            self._last.cancel()

    def _give_back_all(self) -> None:
        for job in self._under_way:
            self._give_back(job)

    def _copied(self, job: Job) -> None:
        failpoints.reached("copy_before_ack")
        after = self._trouble.over()
        if after:
            _log.info("Copies of failed messages are taken{after}", after=after)
        if job in self._jobs:
            self._done(job)

    def _tell_trouble(self, target: str, error: str) -> None:
        told = self._trouble.failed(error)
        if told is not None:
            _log.error(
                "A message of queue {queue} cannot be put into {target}: {reason}. It stays "
                "unacknowledged, and is tried again",
                queue=self._queue.name,
                target=target,
                reason=told,
            )
