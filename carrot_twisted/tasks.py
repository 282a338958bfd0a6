# SPDX-License-Identifier: Apache-2.0
"""``@task``: how a function is published, tried again and kept, said once, where it stands.

The function stays what it is, and django-carrot's ways to publish it stay, too. See docs/tasks.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from carrot_twisted import limits, task_options
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.objects import Message
from carrot_twisted.signature import Signature
from carrot_twisted.task_options import Declared, PublishOptions, TaskOptions
from carrot_twisted.task_paths import is_path, resolve_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from carrot_twisted.models import MessageLog
    from carrot_twisted.task_limits import Concurrency, Rate
    from carrot_twisted.task_options import Moment, RetryOn, Unique

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Task(Protocol[P, R_co]):
    """A task with a decorator: the function, with one thing more that it can do."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function, here and now."""

    def options(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_after: Moment | None = None,
        expires: Moment | None = None,
        on_duplicate: str | None = None,
        retention: timedelta | float | None = None,
    ) -> Publishing[P]:
        """How to publish it this time; ``.publish(...)`` of what this returns does it.

        Args:
            queue: name of a configured queue.
            priority: 0 to 255.
            run_after: not to start before: an aware datetime, or a time from now on (seconds or a
                timedelta), to the second.
            expires: an aware datetime, or the time that it may wait from when it may start. A task
                that has not started by then never does: it is CANCELLED.
            on_duplicate: "return" or "raise", see ``task``.
            retention: how long its row is kept after its end.

        What is None is as the decorator says.

        Raises:
            InvalidMessage: a value makes no sense.
        """


class Publishing(Generic[P]):
    """A task, and how to publish it. Its arguments are the task's, all of them."""

    __slots__ = ("_options", "_path")

    def __init__(self, path: str, options: PublishOptions) -> None:
        self._path = path
        self._options = options

    def publish(self, *args: P.args, **kwargs: P.kwargs) -> MessageLog:
        """Publish the task: see ``publish_message`` for what that promises.

        Returns:
            The MessageLog. Of a unique task that waits already: that one, ``duplicate`` is True.

        Raises:
            DuplicateTask: the same, with ``on_duplicate="raise"``.
            InvalidMessage, CarrotConfigException: see ``create_message``.
        """
        return self.message(*args, **kwargs).publish()

    def message(self, *args: P.args, **kwargs: P.kwargs) -> Message:
        """A checked message that is not published yet, for ``publish_many``.

        Raises:
            InvalidMessage, CarrotConfigException: see ``create_message``.
        """
        # A worker looks for it there.
        resolve_task(self._path)
        return Message(self._path, task_args=args, task_kwargs=kwargs, options=self._options)

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """A call in a flow, for ``flows.chain`` and ``flows.group``: a result may come first.

        Args:
            args: positional arguments, without the result of the step before.
            kwargs: keyword arguments.

        Raises:
            InvalidMessage, CarrotConfigException: see ``create_message``.
        """
        return Signature(self._path, args, kwargs, self._options)


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    queue: str | None = None,
    priority: int | None = None,
    max_retries: int | None = None,
    retry_on: RetryOn | None = None,
    retry_backoff: float | None = None,
    retry_backoff_max: float | None = None,
    retry_jitter: float | None = None,
    time_limit: float | None = None,
    expires: timedelta | float | None = None,
    unique: Unique | None = None,
    unique_until: str | None = None,
    concurrency: Concurrency | None = None,
    rate: Rate | None = None,
    on_duplicate: str | None = None,
    retention: timedelta | float | None = None,
    ignore_result: bool | None = None,
    cooperative_cancel: bool | None = None,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Any = None, /, *, time_limit: float | None = None, **options: Any) -> Any:
    """Decorate a function that is published as a task. It can be called as before.

    Put it nearest to the function. Its module must be one of ``CARROT["task_modules"]``. What is
    left out is as ``CARROT["task_defaults"]`` says, or else as follows.

    Args:
        function: the task.
        queue: name of a configured queue; "default".
        priority: 0 to 255; 0.
        max_retries: how often it is tried again after it has raised, then it is FAILED. With this
            alone, any ``Exception`` is a reason.
        retry_on: exception classes that are a reason to try again, three times at most if
            ``max_retries`` says nothing; or a dictionary from these to the seconds until the first
            retry. ``raise Retry(delay=...)`` is one in any case, ``PermanentFailure`` in none.
        retry_backoff: seconds until the first retry, each further one takes twice as long; 5.
        retry_backoff_max: seconds that it takes at most; 600.
        retry_jitter: up to this share of each delay is left out, at random; 0.25.
        time_limit: seconds that one attempt may run, as ``limits.time_limit``.
        expires: seconds that it may wait for its first start, from when it may start; then it is
            CANCELLED. No limit.
        unique: only one with the same key waits or runs at a time. True: the same arguments; a text
            such as "customer {customer_id}", with its parameters; or a function of its arguments
            that returns the key.
        unique_until: the key is free again at the "start", or the "end"; "end".
        concurrency: so many runs at once at most, over all services, of those with the same key;
            see ``task_limits.Concurrency``.
        rate: so many starts in a period at most; see ``task_limits.Rate``.
        on_duplicate: what comes of publishing another one: "return", the one that is there; or
            "raise", ``DuplicateTask``. "return".
        retention: seconds that its rows are kept after their end; as ``CARROT["retention"]`` says.
        ignore_result: what it returns is not kept; False.
        cooperative_cancel: who cancels it while it runs does not interrupt it: ``is_cancelled()``
            tells, and the task ends by itself; False.

    Raises:
        InvalidMessage: a value makes no sense, or no worker could find the function.
        ValueError: ``time_limit`` is no limit.
    """
    said = TaskOptions(**options)

    def decorate(function: Any) -> Any:
        path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
        if not callable(function) or not is_path(path):
            raise InvalidMessage(
                f"@task cannot decorate {function!r}: a worker finds a task by its path, so define "
                "it as a function at the top of a module."
            )
        if time_limit is not None:
            limits.time_limit(time_limit)(function)
        task_options.declare(Declared(path=path, function=function, options=said))
        setattr(function, task_options.ATTRIBUTE, said)

        def options(**given: Any) -> Publishing[Any]:
            return Publishing(path, PublishOptions(**given))

        function.options = options
        return function

    return decorate if function is None else decorate(function)
