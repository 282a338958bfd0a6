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

from carrot_twisted.exceptions import TaskCancelled, TimeLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from carrot_twisted.task_logging import Transcript

_python_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_python_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)


class _Nothing(BaseException):
    """Raised only to be caught at once, see below."""


def _set_async_exc(ident: int, kind: type[BaseException]) -> None:
    """Raise in that thread, and have all others run on as if nothing were pending.

    Up to 3.12, CPython has one flag for all threads: something is pending for one of them. While it
    is up, Python code is slower, by up to 40 %; with 3.11, functions that are traced or profiled
    hang in every thread. An exception that appears takes it down, so one is raised here as well.
    The other one is in C code, or waits for its turn: it puts the flag up itself when it goes on.
    """
    with suppress(_Nothing):
        # Nothing that could be traced between these two.
        _python_set_async_exc(ident, kind)
        _python_set_async_exc(threading.get_ident(), _Nothing)
        while True:
            # It has come with the end of that call. If not, it comes here.
            pass


def _clear_async_exc() -> None:
    """Forget what is pending for this thread.

    NULL in place of an exception would do that, too, and put the flag up for ever.
    """
    _set_async_exc(threading.get_ident(), _Nothing)


class Keeper(Protocol):
    """Knows the calls that are under way, and interrupts those that take too long."""

    def begin(self, call: Call) -> None:
        """A call begins. In its thread."""

    def end(self, call: Call) -> None:
        """It has ended. In its thread."""


class Abandoned(BaseException):
    """The end of this call comes too late: its thread was given up, and its row is written."""


class Interruptible:
    """Code that runs in the thread that makes this object: ``with`` it three times, then open."""

    __slots__ = ("_hit", "_raising", "ident", "is_open")

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.is_open = False
        """Whether an exception may be raised there now."""
        self._raising = False
        self._hit = False

    def throw(self, kind: type[BaseException]) -> None:
        """Raise in that thread, if it is open. From another thread; only one ever does."""
        # First the flag, then the look; `close` does it the other way round. So either the look
        # finds it closed, or the closing waits for the raise.
        self._raising = True
        if self.is_open:
            self._hit = True
            _set_async_exc(self.ident, kind)
        self._raising = False

    def close(self) -> None:
        """Nothing will be raised any more once this has come to its end."""
        self.is_open = False
        while self._raising:
            time.sleep(0)
        if self._hit:
            _clear_async_exc()

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


class Call:
    """The call of one task, or message handler, that somebody else may end.

    Args:
        run: of which row, or message; not used here.
        seconds: the time limit; None: it has none.
        transcript: takes what a task logs.
        keeper: told of begin and end where there is a limit; it calls ``interrupt``, ``abandon``.
    """

    what = "Thread"
    """What is stuck if it does not end, for people."""

    # Defaults of the class, for nearly no call ever changes them.
    interrupted_at: float | None = None
    """The keeper's."""
    _over = False
    #: Why it was ended.
    _why: BaseException | None = None
    #: The exception object that was raised last, while it lives.
    _thrown: Callable[[], BaseException | None] | None = None

    def __init__(
        self, run: Any, seconds: float | None, transcript: Transcript, keeper: Keeper | None
    ) -> None:
        self.run = run
        self.seconds = None if keeper is None else seconds
        self.transcript = transcript
        self._keeper = keeper
        if self.seconds is not None:
            self.started = time.time()
            self.began = time.monotonic()
            self.due = self.began + self.seconds
            """When to look at it next; the keeper's."""
            #: Taken by whoever decides about the end: the call that has ended, or the keeper.
            self._end = threading.Lock()

    @property
    def text(self) -> str:
        """What the row says where it took too long."""
        return f"time limit of {self.seconds:g} s exceeded"

    def interrupt(self) -> None:
        """Its time is over: raise, or cancel the coroutine; again where that was swallowed."""
        self._raise(TimeLimitExceeded, self.text)

    def cancel(self, text: str) -> None:
        """Somebody wants it to end: as ``interrupt``, and as often as this is called."""
        self._raise(TaskCancelled, text)

    def abandon(self) -> bool:
        """Give it up: what the call returns or raises counts no more.

        Returns:
            False if the call has just ended.
        """
        return self._end.acquire(blocking=False)

    def stack(self) -> traceback.StackSummary:
        """Where the task is now, the innermost frame last."""
        raise NotImplementedError

    def _raise(self, kind: type[BaseException], text: str) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        if self.seconds is not None and self._keeper is not None:
            self._keeper.begin(self)

    def _finish(self) -> bool:
        """It has ended; False if it was given up before."""
        if self.seconds is None or self._keeper is None:
            return True
        self._keeper.end(self)
        return self._end.acquire(blocking=False)

    def _exception(self, kind: type[BaseException], text: str) -> type[BaseException]:
        """CPython takes a class only, and calls it without arguments, there and then."""

        def init(error: BaseException, *_: object) -> None:
            BaseException.__init__(error, text)
            self._thrown = weakref.ref(error)

        return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})


class TimedCall(Call):
    """A call in a worker thread. Arguments are ``Call``'s."""

    _coroutine: _Coroutine | None = None

    def __init__(
        self, run: Any, seconds: float | None, transcript: Transcript, keeper: Keeper | None
    ) -> None:
        super().__init__(run, seconds, transcript, keeper)
        self._thread = Interruptible()

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
        self._begin()
        try:
            with thread, thread, thread:
                thread.is_open = True
                value = task(*args, **kwargs)
                if inspect.iscoroutine(value):
                    value = async_to_sync(self._awaited)(value)
                return value
        finally:
            self._over = True
            finished = self._finish()
            if self._coroutine is not None and self._coroutine.target.is_open:
                # Interrupted while its loop was being started: nobody waits for it any more.
                self._coroutine.cancel()
            if not finished:
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
            if self._why is None:
                raise
            raise self._why.with_traceback(error.__traceback__) from None

    # for those who end it

    def _raise(self, kind: type[BaseException], text: str) -> None:
        """In the reactor: only one thread ever raises."""
        thrown = self._thrown and self._thrown()
        if thrown is not None:
            return
        self._why = kind(text)
        coroutine = self._coroutine
        if coroutine is None or not coroutine.target.is_open:
            # Also for the thread that runs synchronous code for a coroutine that was cancelled.
            self._thread.throw(self._exception(kind, text))
        elif not coroutine.asked:
            coroutine.cancel()
        elif not coroutine.heard:
            # It never awaits: its loop has no say.
            coroutine.target.throw(self._exception(kind, text))

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
            return traceback.StackSummary.extract(suspended(coroutine.value))
        return traceback.StackSummary.from_list(stack[ours[-1] + 1 :] if ours else stack)


def suspended(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Frames of a coroutine that waits, the outermost first."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = coroutine.cr_await
