# SPDX-License-Identifier: Apache-2.0
"""Calls a message's handler, inside a worker thread, and makes a value of whatever happens.

As with tasks, nothing that a handler does gets out: ``SystemExit``, ``KeyboardInterrupt`` and
``MemoryError`` are its failure, and a Django connection that it leaves in a transaction is dropped.
"""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any

from django.db import reset_queries

from carrot_twisted import execution, outcomes
from carrot_twisted.exceptions import PermanentFailure
from carrot_twisted.retry import Failure, Fault

if TYPE_CHECKING:
    from collections.abc import Callable

#: Characters that are kept of an exception's text and of its traceback, in a message's headers.
MAX_EXCEPTION = 500
MAX_TRACEBACK = 4000


def handle(call: Callable[[], Any]) -> Failure | None:
    """Call a handler, to the end if it is a coroutine. Never raises.

    Returns:
        What went wrong; None if nothing did.
    """
    execution.clean_connections()
    try:
        # A new context, not a copy: no language, time zone or variable leaks to the next message.
        Context().run(lambda: execution.awaited(call()))
    except BaseException as error:
        return _failure(error)
    finally:
        execution.clean_connections()
        reset_queries()
    return None


def _failure(error: BaseException) -> Failure:
    fault = Fault.HANDLER
    if isinstance(error, PermanentFailure):
        fault = Fault.PERMANENT
    elif execution.blames_database(error):
        fault = Fault.DATABASE
    text = outcomes.exception_text(error, MAX_EXCEPTION)
    return Failure(
        fault=fault,
        exception=outcomes.one_line(f"{type(error).__name__}: {text}", MAX_EXCEPTION),
        traceback=execution.traceback_text(error, MAX_TRACEBACK),
    )
