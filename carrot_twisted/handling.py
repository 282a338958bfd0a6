# SPDX-License-Identifier: Apache-2.0
"""Calls a message's handler, inside a worker thread, and makes a value of whatever happens.

As with tasks, nothing that a handler does gets out: ``SystemExit``, ``KeyboardInterrupt`` and
``MemoryError`` are its failure, and a Django connection that it leaves in a transaction is dropped.
"""

from __future__ import annotations

import math
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

from carrot_twisted import execution, outcomes
from carrot_twisted.exceptions import PermanentFailure, TimeLimitExceeded
from carrot_twisted.interruption import Abandoned
from carrot_twisted.retry import Failure, Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.interruption import TimedCall

#: Characters that are kept of an exception's text and of its traceback, in a message's headers.
MAX_EXCEPTION = 500
MAX_TRACEBACK = 4000
#: Seconds for which a thread's connections need no second look: only time makes them too old.
CLEAN_FOR = 1.0
#: When a call has left its thread's connections clean, on the monotonic clock.
_left = threading.local()


def handle(
    call: Callable[[], Any], timed: TimedCall | None = None, context: Context | None = None
) -> Failure | None:
    """Call a handler, to the end if it is a coroutine. Nothing that it does raises here.

    Args:
        call: of the handler.
        timed: keeps its time limit; None: it has none.
        context: to call it in, of this message alone; None: an empty one.

    Returns:
        What went wrong; None if nothing did.

    Raises:
        Abandoned: this thread was given up meanwhile; ``give_up`` has told what went wrong.
    """
    if time.monotonic() - getattr(_left, "clean", -math.inf) > CLEAN_FOR:
        execution.clean_connections()
    _left.clean = -math.inf
    try:
        # A new context, not a copy: no language, time zone or variable leaks to the next message.
        context = Context() if context is None else context
        if timed is not None:
            context.run(timed.call, call, (), {})
        elif (value := context.run(call)) is not None:
            context.run(execution.awaited, value)
    except Abandoned:
        raise
    except BaseException as error:
        return _failure(error)
    finally:
        execution.clean_connections()
    # Nothing of the project's runs in this thread until the next call. (After a failure, its
    # backoff function may.)
    _left.clean = time.monotonic()
    return None


def give_up(call: TimedCall) -> Failure:
    """What went wrong with a handler that does not end, although its time is over."""
    stack = call.stack()
    place = stack[-1] if stack else None
    where = f"{place.name} ({place.filename}, line {place.lineno}): {place.line}" if place else "?"
    text = f"TimeLimitExceeded: {call.text}; the thread is stuck in {where}"
    told = "".join(["Where the thread is stuck (most recent call last):\n", *stack.format()])
    return Failure(
        fault=Fault.HANDLER,
        exception=outcomes.one_line(text, MAX_EXCEPTION),
        traceback=outcomes.stored(told[-MAX_TRACEBACK:], MAX_TRACEBACK),
    )


def _failure(error: BaseException) -> Failure:
    fault = Fault.HANDLER
    if isinstance(error, PermanentFailure):
        fault = Fault.PERMANENT
    elif not isinstance(error, TimeLimitExceeded) and execution.blames_database(error):
        fault = Fault.DATABASE
    text = outcomes.exception_line(error, MAX_EXCEPTION)
    return Failure(
        fault=fault,
        exception=outcomes.one_line(f"{type(error).__name__}: {text}", MAX_EXCEPTION),
        traceback=execution.traceback_text(error, MAX_TRACEBACK),
        error=error,
    )
