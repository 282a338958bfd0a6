# SPDX-License-Identifier: Apache-2.0
"""The life of a message whose callback is called: that of a handler's, but for what failing means.

The callback says by an exception what becomes of its message (``callbacks.decide``). One that ends
the consumer is the last that runs: its thread begins nothing more, even before the reactor knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txaio.tx import make_logger

from carrot_twisted import callbacks
from carrot_twisted.exceptions import HaltConsumer
from carrot_twisted.retry import Action
from carrot_twisted.service.message_dispatcher import MAX_TOLD, MessageDispatcher

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from carrot_twisted.callbacks import CallbackQueue
    from carrot_twisted.retry import Decision, Failure
    from carrot_twisted.service.message_copies import Send
    from carrot_twisted.service.message_dispatcher import Note
    from carrot_twisted.service.message_job import Job

_log = make_logger()


class CallbackDispatcher(MessageDispatcher):
    """Has a callback called with one queue's messages.

    Args:
        queue: with its callback.
        gate: lets so many callbacks run at once, of all queues together.
        send: the way to the broker, for copies.
        note: called, when a message has come to its end here, with what became of it.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        *,
        queue: CallbackQueue,
        gate: threading.Semaphore,
        send: Send,
        note: Note,
        reactor: Any,
    ) -> None:
        super().__init__(
            queue=queue,
            concurrency=queue.concurrency,
            send=send,
            note=note,
            losses=None,
            reactor=reactor,
        )
        self._callback_queue = queue
        self._gate = gate
        self._halted = False
        self.on_halted: Callable[[BaseException], None] = lambda _error: None
        """Called in the reactor, before the message is settled that ends the consumer."""

    def _work(self, job: Job) -> None:
        """On a worker thread."""
        with self._gate:
            if self._halted:
                self._reactor.callFromThread(self._give_back, job)
                return
            super()._work(job)
            if job.decision is not None and job.decision.halt:
                self._halted = True

    def _decision(self, job: Job) -> Decision:
        return callbacks.decide(
            job.failure,
            redelivered=job.delivery.redelivered,
            waits=job.waits,
            queue=self._callback_queue,
        )

    def _settle(self, job: Job, decision: Decision) -> None:
        if decision.halt:
            assert job.failure is not None
            assert job.failure.error is not None
            # First: what is given back now must not be delivered here again.
            self.on_halted(job.failure.error)
        match decision.action:
            case Action.REQUEUE if decision.delay and not self._stopping:
                del self._jobs[job]
                timer = self._reactor.callLater(decision.delay, self._requeue, job)
                self._resting[job] = timer
            case Action.REQUEUE:
                del self._jobs[job]
                job.delivery.requeue()
                failure = self._failure(job)
                if failure is not None:
                    # It may come again, but has ended its consumer.
                    self._note_settled(job, failure)
            case Action.REJECT:
                del self._jobs[job]
                job.delivery.reject()
                self._note_settled(job, self._failure(job))
            case _:
                super()._settle(job, decision)

    def _failure(self, job: Job) -> Failure | None:
        return callbacks.failure_of(job.failure)

    def _requeue(self, job: Job) -> None:
        """It has rested, and may come again."""
        del self._resting[job]
        job.delivery.requeue()

    def _tell(self, job: Job, failure: Failure, decision: Decision) -> None:
        if isinstance(failure.error, HaltConsumer):
            _log.info(
                "Callback {callback} ends the consumer of queue {queue}: {reason}",
                callback=self._queue.handler,
                queue=self._callback_queue.label,
                reason=failure.error,
            )
        elif decision.halt:
            _log.error(
                "Callback {callback} failed on a message of queue {queue}, and its consumer "
                "ends. The message and those that wait here go back to the queue:\n{traceback}",
                callback=self._queue.handler,
                queue=self._callback_queue.label,
                traceback=failure.traceback,
            )
        else:
            tell = _log.info if decision.action is Action.REQUEUE else _log.warn
            tell(
                "Callback {callback} on a message of queue {queue}: {error}; {what}",
                callback=self._queue.handler,
                queue=self._callback_queue.label,
                error=failure.exception[:MAX_TOLD],
                what=self._what(decision),
            )

    def _what(self, decision: Decision) -> str:
        match decision.action:
            case Action.WAIT:
                return f"the database was in its way, it runs again in {decision.delay:g} s"
            case Action.ARCHIVE:
                return f"it goes to {self._queue.layout.archive}, {decision.reason}"
            case Action.REJECT:
                return "the broker dead-letters it, or throws it away"
        return "it goes back to the queue"
