# SPDX-License-Identifier: Apache-2.0
"""Finds out that somebody wants a running task to end, and tells the task.

One question for all tasks of this process, once a second, in the transaction of whatever else the
writer writes then; and none while no task has run for a second. Until a task has ended each answer
names it, and so what it has swallowed is raised again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import outcomes
from carrot_twisted.service.operations import CancelLook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from carrot_twisted.running import CancelRequest
    from carrot_twisted.service.dispatcher import Dispatcher
    from carrot_twisted.service.log_writer import LogWriter

_log = make_logger()


class Cancelling:
    """Asks for the tasks of some dispatchers. In the reactor, but for ``_answered``.

    Args:
        dispatchers: whose tasks are cancelled.
        writer: the way to the database.
        worker: name of this process's.
        reactor: Twisted's reactor.
    """

    def __init__(
        self, *, dispatchers: Sequence[Dispatcher], writer: LogWriter, worker: str, reactor: Any
    ) -> None:
        self._dispatchers = dispatchers
        self._writer = writer
        self._worker = worker
        self._reactor = reactor
        self._asks = False

    def look(self) -> None:
        """Ask, unless the last question is not answered yet."""
        if not self._asks:
            self._asks = True
            self._writer.submit(CancelLook(worker=self._worker, answer=self._answered))

    def _answered(self, wishes: Sequence[tuple[UUID, int, CancelRequest]]) -> None:
        """On the writer's thread."""
        self._asks = False
        if wishes:
            self._reactor.callFromThread(self._cancel, wishes)

    def _cancel(self, wishes: Sequence[tuple[UUID, int, CancelRequest]]) -> None:
        for key, token, request in wishes:
            if any(dispatcher.cancel(key, token, request) for dispatcher in self._dispatchers):
                _log.info(
                    "Task {uuid} is to end: {text}",
                    uuid=key,
                    text=outcomes.one_line(request.text, 200),
                )
