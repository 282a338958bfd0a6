# SPDX-License-Identifier: Apache-2.0
"""A task's call that another thread may end: by an exception raised in the midst of it.

CPython can raise an exception in another thread (``PyThreadState_SetAsyncExc``): it appears
there at some later bytecode, wherever the thread is by then. So it must be impossible that it
appears in code that is not the task's. Two rules see to that:

- A thread closes its ``Interruptible`` when the task has ended: from then on nothing is raised
  there, and what is pending is cleared. This closing can be hit itself, hence it is done in three
  layers. Two hits at most can come while it goes on: one that was pending already, and one that
  was raised before the exception object of the first existed.
- While the exception object of the last raise lives, nothing is raised again: the task, or the
  closing, is dealing with it. It dies where a task has swallowed it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import sys
import threading
import time
import traceback
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from asgiref.sync import async_to_sync

from carrot_twisted.exceptions import TimeLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from carrot_twisted.task_logging import Transcript

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
#: ctypes knows no NULL for an object: the same function, declared to take a plain pointer.
_clear_async_exc = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


class Keeper(Protocol):
    """Knows the calls that are under way, and interrupts those that take too long."""

    def begin(self, call: TimedCall) -> None:
        """A call begins. In its thread."""

    def end(self, call: TimedCall) -> None:
        """It has ended. In its thread."""


class Abandoned(BaseException):
    """The end of this call comes too late: its thread was given up, and its row is written."""


class Interruptible:
    """Code that runs in the thread that makes this object: ``with`` it three times, then open."""

    __slots__ = ("_raising", "ident", "is_open")

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.is_open = False
        """Whether an exception may be raised there now."""
        self._raising = False

    def throw(self, kind: type[BaseException]) -> None:
        """Raise in that thread, if it is open. From another thread; only one ever does."""
        # First the flag, then the look; `close` does it the other way round. So either the look
        # finds it closed, or the closing waits for the raise.
        self._raising = True
        if self.is_open:
            _set_async_exc(self.ident, kind)
        self._raising = False

    def close(self) -> None:
        """Nothing will be raised any more once this has come to its end."""
        self.is_open = False
        while self._raising:
            time.sleep(0)
        _clear_async_exc(self.ident, None)

    def __enter__(self) -> None:
        """Nothing yet: opened inside of three ``with``, it cannot be hit outside of them."""

    def __exit__(self, *_: object) -> None:
        self.close()


class _Coroutine:
    """An ``async def`` task: it runs in an event loop in a thread of its own (asgiref's)."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.target = Interruptible()
        self.asked = False
        self.heard = False
        """Whether its loop was free to cancel it."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    def cancel(self) -> None:
        """Let its loop cancel it. From any thread."""
        self.asked = True
        # A loop that has just ended is closed.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self.heard = True
        if self._task is not None:
            self._task.cancel()


class TimedCall:
    """The call of one task, or message handler, that has a time limit.

    Args:
        run: of which row, or message; not used here.
        seconds: the limit.
        transcript: takes what a task logs.
        keeper: told of begin and end; it calls ``interrupt`` and ``abandon``.
    """

    def __init__(self, run: Any, seconds: float, transcript: Transcript, keeper: Keeper) -> None:
        self.run = run
        self.seconds = seconds
        self.transcript = transcript
        self.started = time.time()
        self.began = time.monotonic()
        self.due = self.began + seconds
        """When to look at it next; the keeper's."""
        self.interrupted_at: float | None = None
        """The keeper's."""
        self._keeper = keeper
        self._thread = Interruptible()
        self._coroutine: _Coroutine | None = None
        self._over = False
        self._thrown: Callable[[], BaseException | None] | None = None
        #: Taken by whoever decides about the end: the thread that has ended, or the keeper.
        self._end = threading.Lock()

    @property
    def text(self) -> str:
        """What the row says."""
        return f"time limit of {self.seconds:g} s exceeded"

    @property
    def ident(self) -> int:
        """Of the worker thread."""
        return self._thread.ident

    # in the worker thread

    def call(self, task: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the task; if it is a coroutine, return what that returns in the end.

        Raises:
            TimeLimitExceeded: it took too long.
            Abandoned: it took so much too long that somebody else has told its end.
        """
        thread = self._thread
        self._keeper.begin(self)
        try:
            with thread, thread, thread:
                thread.is_open = True
                value = task(*args, **kwargs)
                if inspect.iscoroutine(value):
                    value = async_to_sync(self._awaited)(value)
                return value
        finally:
            self._keeper.end(self)
            self._over = True
            if self._coroutine is not None and self._coroutine.target.is_open:
                # Interrupted while its loop was being started: nobody waits for it any more.
                self._coroutine.cancel()
            if not self._end.acquire(blocking=False):
                raise Abandoned

    async def _awaited(self, value: Awaitable[Any]) -> Any:
        """Await the task's coroutine, in its loop; cancelled at the limit."""
        coroutine = _Coroutine(value)
        target = coroutine.target
        self._coroutine = coroutine
        try:
            with target, target, target:
                target.is_open = True
                if self._over:
                    raise asyncio.CancelledError
                return await value
        except asyncio.CancelledError as error:
            if not (coroutine.asked or self._over):
                raise
            raise TimeLimitExceeded(self.text).with_traceback(error.__traceback__) from None

    # for the keeper

    def interrupt(self) -> None:
        """Raise, or cancel the coroutine; again where that was swallowed."""
        thrown = self._thrown and self._thrown()
        if thrown is not None:
            return
        coroutine = self._coroutine
        if coroutine is None or not coroutine.target.is_open:
            # Also for the thread that runs synchronous code for a coroutine that was cancelled.
            self._thread.throw(self._exception())
        elif not coroutine.asked:
            coroutine.cancel()
        elif not coroutine.heard:
            # It never awaits: its loop has no say.
            coroutine.target.throw(self._exception())

    def abandon(self) -> bool:
        """Give the thread up: what the call returns or raises counts no more.

        Returns:
            False if the call has just ended.
        """
        return self._end.acquire(blocking=False)

    def stack(self) -> traceback.StackSummary:
        """Where the task is now, the innermost frame last."""
        coroutine = self._coroutine
        running = self._thread
        if coroutine is not None and coroutine.target.is_open:
            running = coroutine.target
        frame = sys._current_frames().get(running.ident)
        stack = traceback.extract_stack(frame) if frame is not None else []
        ours = [number for number, one in enumerate(stack) if one.filename == __file__]
        if not ours and coroutine is not None:
            return traceback.StackSummary.extract(_suspended(coroutine.value))
        return traceback.StackSummary.from_list(stack[ours[-1] + 1 :] if ours else stack)

    def _exception(self) -> type[TimeLimitExceeded]:
        """CPython takes a class only, and calls it without arguments, there and then."""

        def init(error: TimeLimitExceeded, *_: object) -> None:
            BaseException.__init__(error, self.text)
            self._thrown = weakref.ref(error)

        names = {"__init__": init, "__module__": TimeLimitExceeded.__module__}
        return type(TimeLimitExceeded.__name__, (TimeLimitExceeded,), names)


def _suspended(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Frames of a coroutine that waits, the outermost first."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = coroutine.cr_await
