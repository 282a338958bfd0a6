# SPDX-License-Identifier: Apache-2.0
"""A coroutine task's call: asyncio cancels it when it is to end.

One that never awaits does not hear of that. In its loop's thread an exception is raised then, as in
a worker thread: but only while this very coroutine takes a step, never in its neighbours.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from carrot_twisted.interruption import Abandoned, Call, Interruptible, suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence

    from carrot_twisted.interruption import Keeper
    from carrot_twisted.task_logging import Transcript


class CoroutineCall(Call):
    """The call of one ``async def`` task, in an event loop that it shares with others.

    It is made in that loop, by the asyncio task that calls it. Arguments are ``Call``'s.
    """

    what = "Coroutine"

    def __init__(
        self, run: Any, seconds: float | None, transcript: Transcript, keeper: Keeper | None
    ) -> None:
        super().__init__(run, seconds, transcript, keeper)
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._target = Interruptible()
        self._coroutine: Any = None
        #: Whether its loop was free to cancel it.
        self._heard = False

    async def call(
        self, task: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Await the task; returns what it returns.

        Raises:
            TimeLimitExceeded: it took too long.
            Abandoned: it took so much too long that somebody else has told its end.
        """
        self._begin()
        try:
            self._coroutine = task(*args, **kwargs)
            return await _step_by_step(self._coroutine, self._target)
        except asyncio.CancelledError as error:
            if self._why is None:
                raise
            raise self._why.with_traceback(error.__traceback__) from None
        finally:
            self._over = True
            if not self._finish():
                raise Abandoned

    def _raise(self, kind: type[BaseException], text: str) -> None:
        """In the reactor. Cancels once only: who tidies up shall come to the end of that."""
        if self._thrown and self._thrown() is not None:
            return
        if self._why is None:
            self._why = kind(text)
            # A loop that has just ended is closed.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel)
        elif not self._heard:
            self._target.throw(self._exception(kind, text))

    def _cancel(self) -> None:
        self._heard = True
        if not self._over and self._task is not None:
            self._task.cancel()

    def stack(self) -> traceback.StackSummary:
        """Where the task is now, the innermost frame last."""
        if not self._target.is_open:
            return traceback.StackSummary.extract(suspended(self._coroutine))
        # It is what keeps its loop busy.
        frame = sys._current_frames().get(self._target.ident)
        stack = traceback.extract_stack(frame) if frame is not None else []
        ours = [number for number, one in enumerate(stack) if one.filename == __file__]
        return traceback.StackSummary.from_list(stack[ours[-1] + 1 :] if ours else stack)


@types.coroutine
def _step_by_step(
    coroutine: Coroutine[Any, Any, Any], target: Interruptible
) -> Generator[Any, Any, Any]:
    """Await a coroutine; ``target`` is open during its steps and at no other time."""
    step: Callable[[Any], Any] = coroutine.send
    given: Any = None
    while True:
        try:
            with target, target, target:
                target.is_open = True
                awaited = step(given)
        except StopIteration as end:
            return end.value
        step, given = coroutine.send, None
        try:
            given = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step, given = coroutine.throw, error
