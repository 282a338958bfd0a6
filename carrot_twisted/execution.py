# SPDX-License-Identifier: Apache-2.0
"""Runs one task, in a worker thread or as a coroutine, and makes a ``Result`` of what happens.

Nothing that a task does gets out of ``execute`` and ``execute_coroutine``: ``SystemExit``,
``KeyboardInterrupt`` and ``MemoryError`` are that task's failure, and a Django connection that it
leaves in a transaction is dropped, so that the next task on this thread gets a clean one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections
from django.db.backends.signals import connection_created

from carrot_twisted import (
    conf,
    failpoints,
    objects,
    outcomes,
    running,
    signals,
    task_logging,
    wire,
)
from carrot_twisted.coroutine_call import CoroutineCall
from carrot_twisted.exceptions import (
    InvalidMessage,
    InvalidResult,
    PoisonMessage,
    Retry,
    TaskCancelled,
    TimeLimitExceeded,
)
from carrot_twisted.interruption import Abandoned, TimedCall
from carrot_twisted.limits import limit_of
from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.records import Claimed
from carrot_twisted.task_options import ATTRIBUTE, NOTHING_SAID, first_said
from carrot_twisted.task_paths import standard_task

if TYPE_CHECKING:
    from django.dispatch import Signal

    from carrot_twisted.interruption import Call as RunningCall
    from carrot_twisted.interruption import Keeper
    from carrot_twisted.own_thread import OwnThread
    from carrot_twisted.running import CancelRequest, Progress
    from carrot_twisted.task_attempt import TaskAttempt
    from carrot_twisted.task_options import TaskOptions


@dataclass(slots=True, kw_only=True)
class Run(Claimed):
    """One attempt at one row: what the claim returned, and the message that rang for it."""

    header: str | None
    """Dotted path that the message names; it must be the row's."""
    body: bytes
    headers: Mapping[str, Any] | None = None
    """Of the message."""
    transcript: task_logging.Transcript | None = None
    """What it logs, once it has begun."""
    call: RunningCall | None = None
    """Of the task, while it runs."""
    cancel: CancelRequest | None = None
    """Somebody asks that it be cancelled."""
    progress: Progress | None = None
    """What it has told last."""
    told: Progress | None = None
    """Of that, what the row has."""
    options: TaskOptions = NOTHING_SAID
    """Those of its decorator, once it has begun."""
    standard: TaskAttempt | None = None
    """Of a task of django.tasks, once it has begun."""

    @classmethod
    def of(
        cls,
        claimed: Claimed,
        *,
        header: str | None,
        body: bytes,
        headers: Mapping[str, Any] | None = None,
    ) -> Run:
        """What is run of a claimed row, and of the message that rang for it."""
        return cls(
            uuid=claimed.uuid,
            token=claimed.token,
            task=claimed.task,
            task_args=claimed.task_args,
            content=claimed.content,
            queue=claimed.queue,
            attempt=claimed.attempt,
            retries=claimed.retries,
            django_task=claimed.django_task,
            flow=claimed.flow,
            slot_key=claimed.slot_key,
            published=claimed.published,
            header=header,
            headers=headers,
            body=body,
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a run's texts is kept, in characters, and how long a task may run."""

    result: int
    log: int
    seconds: float | None = None
    """For a task that has no limit of its own."""
    keeper: Keeper | None = None
    """Keeps the limits of time; without one there are none."""
    worker: str = ""
    """Name of this worker, as its rows have it."""


_logger = logging.getLogger("carrot_twisted.execution")

FailureCallback = Callable[[Run, BaseException], None]
Call = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""A function, its positional and its keyword arguments."""

Ending = tuple[Kind, Any, BaseException | None, float]
"""What came of a run: what it has returned or raised, and seconds until the next attempt."""

#: Seconds that the synchronous code of a coroutine that was cancelled gets to end.
LAST_CALL = 1.0


def execute(
    run: Run,
    limits: Limits,
    on_failure: FailureCallback | None = None,
    prepare: Callable[[Run], Call] | None = None,
    *,
    own_connections: bool = True,
) -> Result | None:
    """Run the task and tell what came of it. Nothing that the task does raises here.

    Args:
        run: the claimed row.
        limits: how much text to keep.
        on_failure: called in the task's context when it failed, for the consumer's callbacks.
        prepare: says what to call, or raises; by default it is the row's task.
        own_connections: this thread's connections serve tasks alone, and are cleaned for them.

    Returns:
        None if this thread was given up meanwhile: ``give_up`` has told the run's end.
    """
    run.transcript = transcript = task_logging.Transcript(limits.log)
    started = time.time()
    try:
        # A new context, not a copy: no language, time zone or variable leaks from task to task.
        ending = Context().run(
            _call, run, transcript, limits, on_failure, prepare or from_message, own_connections
        )
    except Abandoned:
        return None
    result = _result(run, transcript, limits, started, ending)
    _tell(signals.task_finished, run, result=result)
    failpoints.reached("after_run_before_finish")
    return result


async def execute_coroutine(
    run: Run, limits: Limits, thread: OwnThread, on_failure: FailureCallback | None = None
) -> Result | None:
    """``execute`` for an ``async def`` task, in an event loop and a context of its own.

    Args:
        run: the claimed row.
        limits: how much text to keep.
        thread: for the synchronous code of the task, of hooks and of receivers of signals.
        on_failure: as in ``execute``.
    """
    run.transcript = transcript = task_logging.Transcript(limits.log)
    started = time.time()
    task_logging.current.set(transcript)
    running.current.set(run)
    thread.enter()
    try:
        ending = await _await(run, transcript, limits, thread, on_failure)
        result = _result(run, transcript, limits, started, ending)
        await _leave_stuck(thread)
        if signals.task_finished.has_listeners(run.task):
            await sync_to_async(_tell)(signals.task_finished, run, result=result)
    except Abandoned:
        return None
    finally:
        clean = thread.end()
    if clean is not None:
        # Or else what it has locked there might be in the way of its own end.
        await asyncio.wait([asyncio.wrap_future(clean)], timeout=LAST_CALL)
    failpoints.reached("after_run_before_finish")
    return result


async def _await(
    run: Run,
    transcript: task_logging.Transcript,
    limits: Limits,
    thread: OwnThread,
    on_failure: FailureCallback | None,
) -> Ending:
    options: TaskOptions = NOTHING_SAID
    try:
        _check_cancelled(run)
        task, args, kwargs = from_message(run)
        options = run.options = getattr(task, ATTRIBUTE, NOTHING_SAID)
        if signals.task_started.has_listeners(run.task):
            await sync_to_async(_tell)(signals.task_started, run)
        if standard_task(run.task) is not None:
            args = await sync_to_async(_begin_standard)(task, run, limits, args, kwargs)
        call = CoroutineCall(run, limit_of(task, limits.seconds), transcript, limits.keeper)
        run.call = call
        value = _kept(run, options, await call.call(task, args, kwargs))
    except Abandoned:
        raise
    except BaseException as error:
        run.call = None
        ending = _failed(run, error, options)
        listens = on_failure is not None or run.standard is not None
        if ending[0] is Kind.FAILED and listens:
            await _leave_stuck(thread)
            await sync_to_async(_call_back)(run, error, on_failure)
        return ending
    run.call = None
    if run.standard is not None:
        await sync_to_async(run.standard.succeeded)()
    return Kind.COMPLETED, value, None, 0.0


async def _leave_stuck(thread: OwnThread) -> None:
    """A coroutine that was cancelled may leave synchronous code behind that goes on in its thread.

    What is told of its end must not wait for that.
    """
    last = thread.last
    if last is None or last.done():
        return
    await asyncio.wait([asyncio.wrap_future(last)], timeout=LAST_CALL)
    if not last.done():
        thread.leave()


def _result(
    run: Run,
    transcript: task_logging.Transcript,
    limits: Limits,
    started: float,
    ending: Ending,
) -> Result:
    kind, value, error, delay = ending
    ended = time.time()
    log = transcript.text(limits.log)
    progress = progress_of(run)
    if error is None:
        output = outcomes.output_text(value, limits.result)
        return Result(
            kind=kind,
            progress=progress,
            output=output,
            returned=_returned(run, value, output, limits),
            log=log,
            started=started,
            ended=ended,
        )
    return Result(
        kind=kind,
        progress=progress,
        exception=outcomes.exception_text(error, limits.result),
        traceback=traceback_text(error, limits.result),
        exception_class=outcomes.exception_class(error),
        log=log,
        started=started,
        ended=ended,
        delay=delay,
    )


def _returned(run: Run, value: Any, output: str | None, limits: Limits) -> str | None:
    if run.standard is not None:
        # It is JSON already.
        return None if output is None else outcomes.IS_JSON
    return outcomes.returned_text(value, output, limits.result)


def give_up(
    call: RunningCall, run: Run, limits: Limits, on_failure: FailureCallback | None
) -> Result:
    """Tell the end of a run whose own thread is stuck in its task.

    Args:
        call: the task's, given up.
        run: the claimed row.
        limits: how much text to keep.
        on_failure: as in ``execute``.
    """
    stack = call.stack()
    place = stack[-1] if stack else None
    where = f"{place.name} ({place.filename}, line {place.lineno}): {place.line}" if place else "?"
    what = call.what.lower()
    error = TimeLimitExceeded(f"{call.text}; the {what} is stuck in {where}")
    Context().run(_tell_failure, run, call.transcript, error, on_failure)
    text = "".join([f"Where the {what} is stuck (most recent call last):\n", *stack.format()])
    result = Result(
        kind=Kind.FAILED,
        progress=progress_of(run),
        exception=outcomes.exception_text(error, limits.result),
        traceback=outcomes.stored(text[-limits.result :], limits.result),
        exception_class=outcomes.exception_class(error),
        log=call.transcript.text(limits.log),
        started=call.started,
        ended=time.time(),
    )
    _tell(signals.task_finished, run, result=result)
    return result


def _tell(signal: Signal, run: Run, **facts: Any) -> None:
    """Send a signal; nothing that a receiver does stops a task."""
    # Not has_listeners: that goes through all receivers, under a lock, as the sending does again.
    if signal.receivers:
        try:
            signal.send_robust(sender=run.task, run=run, **facts)
        except BaseException:
            # send_robust catches exceptions, but not SystemExit and its like.
            _logger.exception("A receiver of a signal of %s ended itself", run.task)


def _call(
    run: Run,
    transcript: task_logging.Transcript,
    limits: Limits,
    on_failure: FailureCallback | None,
    prepare: Callable[[Run], Call],
    own_connections: bool,
) -> Ending:
    task_logging.current.set(transcript)
    running.current.set(run)
    if own_connections:
        clean_connections()
    options: TaskOptions = NOTHING_SAID
    try:
        _check_cancelled(run)
        task, args, kwargs = prepare(run)
        options = run.options = getattr(task, ATTRIBUTE, NOTHING_SAID)
        _tell(signals.task_started, run)
        if standard_task(run.task) is not None:
            args = _begin_standard(task, run, limits, args, kwargs)
        call = TimedCall(run, limit_of(task, limits.seconds), transcript, limits.keeper)
        run.call = call
        value = _kept(run, options, call.call(task, args, kwargs))
    except Abandoned:
        raise
    except BaseException as error:
        ending = _failed(run, error, options)
        if ending[0] is Kind.FAILED:
            _call_back(run, error, on_failure)
        return ending
    else:
        if run.standard is not None:
            run.standard.succeeded()
        return Kind.COMPLETED, value, None, 0.0
    finally:
        run.call = None
        if own_connections:
            clean_connections()


def _failed(run: Run, error: BaseException, options: TaskOptions) -> Ending:
    """What comes of a task that has raised."""
    if isinstance(error, TaskCancelled):
        return Kind.CANCELLED, None, error, 0.0
    # What asks for another attempt itself knows how long it is to wait.
    asks = isinstance(error, TimeLimitExceeded | Retry)
    if not asks and blames_database(error):
        return Kind.RELEASED, None, error, outcomes.release_delay(run.attempt)
    delay = _with_defaults(options).retry_delay(error, run.retries)
    if delay is not None:
        # Who cancels a task does not want it again.
        return (Kind.RETRY if run.cancel is None else Kind.CANCELLED), None, error, delay
    return Kind.FAILED, None, error, 0.0


def progress_of(run: Run) -> str | None:
    """What the task has told last, for its row."""
    return None if run.progress is None else run.progress.column


def _check_cancelled(run: Run) -> None:
    """It may have been cancelled while it waited here for its turn."""
    if run.cancel is not None:
        raise TaskCancelled(run.cancel.text)


def _with_defaults(options: TaskOptions) -> TaskOptions:
    if options is NOTHING_SAID:
        return options
    return first_said(options, conf.current().task_defaults)


def _ignores_result(options: TaskOptions) -> bool | None:
    # Without putting all of them together: this is asked after every run.
    if options.ignore_result is None and options is not NOTHING_SAID:
        return conf.current().task_defaults.ignore_result
    return options.ignore_result


def _begin_standard(
    task: Callable[..., Any],
    run: Run,
    limits: Limits,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Sequence[Any]:
    """A task of django.tasks begins: how it is told, and what its function is called with."""
    found = standard_task(run.task)
    if found.func is not task:
        return args
    # Not at the top: in other projects there may be no django.tasks.
    from carrot_twisted.task_attempt import TaskAttempt

    run.standard = TaskAttempt(found, run, limits, args, kwargs)
    return run.standard.begin(args)


def _kept(run: Run, options: TaskOptions, value: Any) -> Any:
    """What is kept of a value that a task has returned."""
    if _ignores_result(options):
        value = None
    if run.standard is not None:
        return run.standard.returned(value)
    if run.flow is not None:
        _check_exact(value)
    return value


def _check_exact(value: Any) -> None:
    """Who comes next in a flow gets this value, or none.

    Raises:
        InvalidResult: it is none that can be handed over.
    """
    limit = conf.current().max_result_size
    try:
        size = len(wire.exact_json(value, "result"))
    except InvalidMessage as error:
        raise InvalidResult(str(error)) from None
    if size > limit:
        raise InvalidResult(
            f"The result takes {size} characters as JSON; at most {limit} are kept "
            "(CARROT['max_result_size']). Store the data and return its key."
        )


def is_cooperative(run: Run) -> bool:
    """Whether the task of a run says that who cancels it does not interrupt it."""
    return bool(_with_defaults(run.options).cooperative_cancel)


def _tell_failure(
    run: Run,
    transcript: task_logging.Transcript,
    error: BaseException,
    on_failure: FailureCallback | None,
) -> None:
    task_logging.current.set(transcript)
    running.current.set(run)
    clean_connections()
    try:
        _call_back(run, error, on_failure)
    finally:
        clean_connections()


def _call_back(run: Run, error: BaseException, on_failure: FailureCallback | None) -> None:
    if run.standard is not None:
        run.standard.failed(error)
    if on_failure is not None:
        try:
            on_failure(run, error)
        except BaseException:
            _logger.exception("The failure callbacks of %s failed", run.task)


def blames_database(error: BaseException) -> bool:
    try:
        return outcomes.blames_database(error)
    except BaseException:
        # An exception class of the project's may raise from its own attributes.
        return False


def awaited(value: Any) -> Any:
    """The value; if it is a coroutine, what it returns in the end."""
    return async_to_sync(_awaited)(value) if inspect.iscoroutine(value) else value


async def _awaited(value: Any) -> Any:
    return await value


def from_message(run: Run) -> Call:
    """The function and its arguments: the row's. The message only has to agree on the task.

    Raises:
        PoisonMessage: it names another task or none, its body is not ours, the task is unknown.
    """
    if run.header is None:
        raise PoisonMessage(
            f"The message has no header {wire.TYPE_HEADER!r} that names a task: it was not "
            "published by this project's publish_message."
        )
    if run.header != run.task:
        raise PoisonMessage(
            f"The message names task {run.header!r}, its row {run.task!r}. Nothing was run."
        )
    _check_body(run)
    return from_row(run)


def _check_body(run: Run) -> None:
    """A body that the row's own message cannot have is not ours.

    One of the largest that a broker takes can be read, but may keep Python's lock for a minute and
    need gigabytes.

    Raises:
        PoisonMessage: it is no body of a message, or too large for one.
    """
    own = wire.body(run.task_args, run.content)
    if run.body == own:
        return
    # Other publishers may write each character as an escape of six.
    largest = max(conf.current().max_message_size, 6 * len(own))
    if len(run.body) > largest:
        raise PoisonMessage(
            f"The message body has {len(run.body)} bytes, and the message of this row {len(own)}: "
            "it was not published by this project's publish_message."
        )
    wire.arguments(run.body)


def from_row(run: Run) -> Call:
    """The function and its arguments, as the row has them.

    Raises:
        PoisonMessage: the task is unknown.
    """
    try:
        task = objects.resolve_task(run.task)
    except (ImportError, AttributeError) as error:
        raise PoisonMessage(
            f"Unknown task: {error}. Is the service running the code that published it?"
        ) from error
    args, kwargs = wire.row_arguments(run.task_args, run.content)
    return task, args, kwargs


def traceback_text(error: BaseException, limit: int) -> str:
    """The end of an exception's traceback, as every database takes it."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as again:
        text = f"{type(error).__name__}: no traceback ({type(again).__name__} while formatting it)"
    # The end of a traceback says most.
    return outcomes.stored(text[-limit:], limit)


def clean_connections() -> None:
    """Leave this thread no connection that is closed, too old, or in somebody's transaction.

    ``close_old_connections`` alone does not heal a leaked ``atomic()``, a raw BEGIN or autocommit
    switched off: the thread would fail, or never commit, from then on. The queries that Django
    keeps with ``DEBUG`` are forgotten.
    """
    if not getattr(_thread, "may_be_connected", True):
        # Django looks up each alias in a storage that knows of coroutines, which is slow.
        return
    # Before the look: a connection that is made meanwhile counts.
    _thread.may_be_connected = False
    for connection in connections.all(initialized_only=True):
        connection.queries_log.clear()
        try:
            if connection.connection is None and not connection.in_atomic_block:
                continue
            _thread.may_be_connected = True
            if _in_transaction(connection):
                _drop(connection)
            else:
                connection.close_if_unusable_or_obsolete()
        except Exception:
            _drop(connection)


def _note_connected(**_: Any) -> None:
    _thread.may_be_connected = True


#: Whether this thread may have a connection to look at; not known until it was looked once.
_thread = threading.local()
# Django sends this in the thread that connects, each time.
connection_created.connect(_note_connected, dispatch_uid="carrot_twisted.execution")


def in_transaction(alias: str) -> bool:
    """Whether this thread has a transaction open in that database."""
    connection = connections[alias]
    return connection.in_atomic_block or (
        connection.connection is not None and _in_transaction(connection)
    )


def _in_transaction(connection: Any) -> bool:
    if (
        connection.in_atomic_block
        or connection.closed_in_transaction
        or not connection.get_autocommit()
    ):
        return True
    raw = connection.connection
    if connection.vendor == "sqlite":
        return bool(raw.in_transaction)
    if connection.vendor == "postgresql":
        # 0 is IDLE in libpq; psycopg 3 and psycopg2 tell it at different places.
        info = raw.info
        return int(info.transaction_status) != 0
    return False


def _drop(connection: Any) -> None:
    alias = connection.alias
    raw = connection.connection
    # Not connection.close(): inside a leaked atomic() that keeps the wrapper broken on purpose.
    del connections[alias]
    if raw is not None:
        # It is being thrown away; whether it still can be closed does not matter.
        with contextlib.suppress(Exception):
            raw.close()
