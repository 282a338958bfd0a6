# SPDX-License-Identifier: Apache-2.0
"""The event loop of ``async def`` tasks: asyncio's, in a thread of its own, one per process.

It starts with the first such task. A coroutine that does not give the loop back, because it waits
or calculates without ``await``, holds up all others. That is noticed: the log says where it is, and
another loop, in another thread, takes what comes from then on. The others in the blocked loop go on
when they can.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import traceback
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from twisted.internet.task import LoopingCall
from txaio.tx import make_logger

from carrot_twisted import running
from carrot_twisted.own_thread import CleaningExecutor, TaskThreads
from carrot_twisted.service.bridge import driven
from carrot_twisted.service.chore import Chore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = make_logger()

#: Seconds between looks whether the loop still turns.
INTERVAL = 1.0
#: Seconds that one step of a coroutine may take before its loop counts as blocked.
BLOCKED_AFTER = 5.0
#: Seconds that cancelled coroutines get to end when the service has stopped.
LAST_STEPS = 1.0


class _Loop:
    """One asyncio loop in its thread."""

    def __init__(self, name: str, reactor: Any, clean: Callable[[], None]) -> None:
        self._reactor = reactor
        self.asyncio = asyncio.new_event_loop()
        self.asyncio.set_task_factory(self._make_task)
        self.asyncio.set_default_executor(CleaningExecutor(clean))
        #: Of each asyncio task its context, which knows the run.
        self._contexts: WeakKeyDictionary[asyncio.Task[Any], Context] = WeakKeyDictionary()
        #: When the loop was asked for a sign of life that it has not given yet.
        self.asked: float | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        context = options.get("context") or contextvars.copy_context()
        options["context"] = context
        task = asyncio.Task(driven(coroutine, self._reactor), loop=loop, **options)
        self._contexts[task] = context
        return task

    def _run(self) -> None:
        asyncio.set_event_loop(self.asyncio)
        while not self._stopped:
            try:
                self.asyncio.run_forever()
            except BaseException:
                # SystemExit of a coroutine that a task has started beside itself.
                _log.failure("A coroutine has tried to end its event loop")
        self.asyncio.close()

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        self.asyncio.call_soon_threadsafe(function, *args)

    def ask(self) -> None:
        """Ask for a sign of life."""
        self.asked = time.monotonic()
        self.call(self._answer)

    def _answer(self) -> None:
        self.asked = None

    @property
    def has_tasks(self) -> bool:
        """From any thread."""
        tasks = [reference() for reference in self._contexts.keyrefs()]
        return any(task is not None and not task.done() for task in tasks)

    def blocker(self) -> tuple[Any, str]:
        """The run that holds it up, if that is known, and the stack of its thread."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        text = "".join(traceback.format_stack(frame)) if frame is not None else ""
        task = asyncio.current_task(self.asyncio)
        context = None if task is None else self._contexts.get(task)
        return (None if context is None else context.get(running.current)), text

    def stop(self) -> None:
        """Cancel what is left, and end. Does not wait."""
        if not self._stopped:
            self.call(self._end)

    def _end(self) -> None:
        left = [task for task in asyncio.all_tasks(self.asyncio) if not task.done()]
        for task in left:
            task.cancel()
        # In the next turns, or when the time is over.
        ending = self.asyncio.create_task(self._wait(left))
        ending.add_done_callback(lambda _: self._halt())

    async def _wait(self, tasks: list[asyncio.Task[Any]]) -> None:
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_STEPS)

    def _halt(self) -> None:
        self._stopped = True
        self.asyncio.stop()


class EventLoop:
    """The loop that takes coroutines now, and those before it that were blocked.

    In the reactor, but for ``call``.

    Args:
        reactor: Twisted's reactor.
        clean: leaves a thread no connection that the next task must not have.
    """

    def __init__(self, reactor: Any, clean: Callable[[], None]) -> None:
        self.threads = TaskThreads(clean)
        """For the synchronous code of coroutines."""
        self._reactor = reactor
        self._clean = clean
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._blocked: list[_Loop] = []
        self._started = 0
        self._stopped = False
        chore = Chore("The worker looks after its event loop", reactor.seconds)
        self._watch = LoopingCall(chore.attempt, self._look)
        self._watch.clock = reactor
        self.on_blocked: list[Callable[[Any], None]] = []
        """Called with the run that has blocked a loop, or None."""

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in the loop, which is started if need be. From any thread."""
        with self._lock:
            if self._loop is None:
                self._loop = self._start()
            loop = self._loop
        loop.call(function, *args)

    def _start(self) -> _Loop:
        self._started += 1
        if self._started == 1:
            self._reactor.callFromThread(self._begin_watch)
        return _Loop(f"carrot-async-loop-{self._started}", self._reactor, self._clean)

    def _begin_watch(self) -> None:
        if not self._stopped:
            self._watch.start(INTERVAL, now=False)

    def _look(self) -> None:
        for one in [one for one in self._blocked if not one.has_tasks]:
            self._blocked.remove(one)
            one.stop()
        loop = self._loop
        if loop is None:
            return
        if loop.asked is None:
            if loop.has_tasks:
                loop.ask()
        elif time.monotonic() - loop.asked > BLOCKED_AFTER:
            self._replace(loop)

    def _replace(self, loop: _Loop) -> None:
        run, stack = loop.blocker()
        _log.error(
            "Task {task} ({uuid}) holds up all coroutines of its event loop for more than "
            "{seconds:g} s: it waits, or calculates, without await. Another loop takes those that "
            "come. It is here:\n{stack}",
            task="?" if run is None else run.task,
            uuid="?" if run is None else run.uuid,
            seconds=BLOCKED_AFTER,
            stack=stack,
        )
        with self._lock:
            self._blocked.append(loop)
            self._loop = None
        for tell in self.on_blocked:
            tell(run)

    def stop(self) -> None:
        """Let all end. Nothing more is called."""
        self._stopped = True
        if self._watch.running:
            self._watch.stop()
        with self._lock:
            loops = [*self._blocked, *([self._loop] if self._loop is not None else [])]
        for loop in loops:
            loop.stop()
        self.threads.stop()


def start_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """In a loop: have it run a coroutine, in a new context: nothing leaks from task to task."""
    return asyncio.get_running_loop().create_task(coroutine, context=Context())
