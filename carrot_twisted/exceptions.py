# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, said to the one who raises or meets it.

One root: ``CarrotError``; only ``TimeLimitExceeded`` and ``TaskCancelled`` stand beside it, and say
why.
"""

from __future__ import annotations


class CarrotError(Exception):
    """Root of all exceptions of this package. Do not raise directly."""


class CarrotConfigException(CarrotError):
    """The ``CARROT`` setting, or a queue name that it should hold, is wrong.

    The text names the setting and the remedy; ``manage.py check`` tells all of them at once.
    The name is django-carrot's.
    """


class InvalidMessage(CarrotError, ValueError):
    """These arguments, this priority or this task cannot be published. No row was written."""


class DuplicateTask(CarrotError):
    """A task of this unique key is there already, and ``on_duplicate`` says that this is an error.

    Args:
        key: the unique key.
        existing: primary key of the row that holds it.
    """

    def __init__(self, key: str, existing: object) -> None:
        super().__init__(key, existing)
        self.key = key
        self.existing = existing

    def __str__(self) -> str:
        return f"There is a task of the unique key {self.key!r} already: {self.existing}."


class Retry(CarrotError):
    """Raise it in a task that is to be tried again later.

    It counts as one of the task's retries (``max_retries``, 3 if nothing is said); after the last
    one the task is FAILED, with this reason.

    Args:
        reason: for people; without one, that of the exception it was raised ``from``.
        delay: seconds until the next attempt; by default the task's backoff.

    Raises:
        ValueError: ``delay`` is no number of seconds, 0 or more.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason)
        value: object = delay
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if delay is not None and not (is_number and 0 <= delay <= 3e9):
            raise ValueError(
                f"delay is a number of seconds from 0 on, a hundred years at most, not {delay!r}"
            )
        self.reason = reason
        self.delay = None if delay is None else float(delay)

    def __str__(self) -> str:
        cause = "" if self.__cause__ is None else str(self.__cause__)
        return self.reason or cause or "the task asks for another attempt"


class WorkerLost(CarrotError):
    """Never raised: in a result it tells that a worker ended, or was killed, in the task."""


class TaskExpired(CarrotError):
    """Never raised: in a result it tells that the task has not started in time (``expires``)."""


class NoResult(CarrotError):
    """A task, or a flow, has no result to hand over. Its subclasses say why."""


class NotFinished(NoResult, TimeoutError):
    """It has not come to its end yet, or not in the time that somebody has waited."""


class HasFailed(NoResult):
    """It is FAILED. The text is what it has raised.

    Args:
        text: for people.
        exception_class: dotted path of the class of what it has raised, if that is known.
        traceback: of that.
    """

    def __init__(self, text: str, exception_class: str = "", traceback: str = "") -> None:
        super().__init__(text, exception_class, traceback)
        self.exception_class = exception_class
        self.traceback = traceback

    def __str__(self) -> str:
        return str(self.args[0])


class WasCancelled(NoResult):
    """It is CANCELLED: by somebody, or because it has not started in time."""


class UnknownResult(NoResult):
    """It is COMPLETED, and what it has returned was not kept as a value.

    It was nothing that JSON can tell exactly, or longer than ``CARROT["max_result_size"]``: the row
    has it as a text for people, in ``output``. Or an earlier version has written the row.
    """


class CannotWait(CarrotError):
    """Waiting here would never end, or hold up what is waited for. The text says why."""


class BrokerError(CarrotError):
    """The broker could not be reached, did not answer, or refused what was asked of it.

    Raised only where a call waits for the broker. ``publish_message`` does not: its row is kept.
    """


class UnknownWorker(CarrotError):
    """There is no worker of this name: it has ended, or there never was one."""


class PoisonMessage(CarrotError):
    """A delivery that no retry can help: its body, header or task makes no sense.

    Its row becomes FAILED with this text; where there is no row, the message goes to the
    queue's dead-letter queue.
    """


class PermanentFailure(CarrotError):
    """Raise it in a message handler when no retry can help: the message goes to the archive.

    For a body that makes no sense, for example. The name is celery-message-consumer's. In a task
    it means the same: the task is FAILED, and not tried again, whatever ``retry_on`` says.
    """

    @property
    def message(self) -> str:
        """What it was raised with."""
        return str(self.args[0]) if self.args else ""


class InvalidResult(PermanentFailure):
    """What a task of django.tasks, or of a flow, has returned cannot be kept: it is FAILED.

    It is no JSON value, or takes more than ``CARROT["max_result_size"]`` characters. In a flow also
    what JSON would change, as a tuple.
    """


class UnreadableBody(PermanentFailure):
    """A message's body is not what its content type says, or of a type that is not accepted.

    The message goes to the archive.
    """


class InvalidQueueRegistration(CarrotError):
    """A message handler was registered with arguments that cannot work. Nothing was registered."""


class NoExchange(CarrotError):
    """A message handler names an exchange that is not in ``CARROT["handlers"]["exchanges"]``."""


class InvalidCallback(CarrotError, ValueError):
    """A callback, its queues or its bindings cannot work. Nothing was consumed."""


class Nack(CarrotError):
    """Raise it in a callback that cannot do with the message now: it goes back to its queue.

    The broker delivers it again, at once or to another consumer; one that had come back before is
    kept for a second first.
    """


class Drop(CarrotError):
    """Raise it in a callback that does not want the message.

    The broker dead-letters it, if the queue says where to, or throws it away.
    """


class HaltConsumer(CarrotError):
    """Raise it in a callback to consume nothing more. Its message counts as done with.

    Args:
        exit_code: exit status of a ``twistd carrot`` that ends by this, 0 to 255.
        reason: for the log.
        requeue: the message is not done with: it goes back to its queue.

    Raises:
        ValueError: ``exit_code`` is none.
    """

    def __init__(
        self, exit_code: int = 0, reason: str | None = None, requeue: bool = False
    ) -> None:
        super().__init__(exit_code, reason, requeue)
        if exit_code not in range(256):
            raise ValueError(f"exit_code is a whole number from 0 to 255, not {exit_code!r}")
        self.exit_code = exit_code
        self.reason = reason
        self.requeue = requeue

    def __str__(self) -> str:
        return self.reason or f"the callback wants no more messages (exit code {self.exit_code})"


class PublishException(BrokerError):
    """A message was not published, or it is not certain that it was. The text names the remedy."""


class PublishReturned(PublishException):
    """The broker has not taken the message: it can go nowhere, or it was refused."""


class PublishTimeout(PublishException):
    """The broker did not confirm the message in time. It may have it all the same."""


class TaskCancelled(BaseException):
    """Raised in a task that somebody has cancelled while it ran; its row becomes CANCELLED.

    A task may raise it itself, when ``is_cancelled()`` says so. Not an ``Exception``: an ``except
    Exception`` in the task does not swallow it. A task may catch it to tidy up, and should raise it
    again: one that returns instead is COMPLETED. ``async def`` tasks meet
    ``asyncio.CancelledError`` where they await.
    """


class TimeLimitExceeded(BaseException):
    """Raised in a task that has run longer than its limit; its row becomes FAILED.

    Not an ``Exception``: an ``except Exception`` in the task, as around each item of a loop, does
    not swallow it. A task may catch it to tidy up; it has some seconds for that, then its thread
    counts as stuck. One that catches it and returns is COMPLETED with what it returns.
    """
