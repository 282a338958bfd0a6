# SPDX-License-Identifier: Apache-2.0
"""Threads for the synchronous code of ``async def`` tasks: one for each task that has any.

Django's asynchronous ORM runs its queries in a thread, and wants the same one each time: database
connections, and with them transactions, belong to threads. asgiref would start a thread for each
task, or one for all; here a task borrows one when it first needs it, as long as it runs, and gives
it back with clean connections. So connections are reused as those of worker threads are.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Callable

#: Threads that are kept, with their connections, while no task uses them.
MAX_IDLE = 10


class _Thread:
    """Does one call after another. A daemon: a stuck call does not hold up the process's end."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._loop, name=name, daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        self._calls.put(None)

    def _loop(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            # Not kept until the next call comes.
            del item, future, call
        connections.close_all()


class TaskThreads:
    """The threads of one process, lent and returned. From any thread.

    Args:
        clean: leaves the thread that calls it no connection that the next task must not have.
    """

    def __init__(self, clean: Callable[[], None]) -> None:
        self.clean = clean
        self._idle: list[_Thread] = []
        self._started = 0
        self._stopped = False

    def take(self) -> _Thread:
        """One that is free, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            self._started += 1
            return _Thread(f"carrot-async-{self._started}")

    def give_back(self, thread: _Thread) -> None:
        """It is clean, and free."""
        if self._stopped or len(self._idle) >= MAX_IDLE:
            thread.stop()
        else:
            self._idle.append(thread)

    def run(self, function: Callable[[], None]) -> None:
        """Call a function in one of them; nobody waits for it."""
        own = OwnThread(self)
        own.submit(function)
        own.end()

    def stop(self) -> None:
        """Let those end that are free, and the others when they are."""
        self._stopped = True
        while self._idle:
            self._idle.pop().stop()


class OwnThread(Executor):
    """The thread of one task, from the first call on."""

    def __init__(self, threads: TaskThreads) -> None:
        self._threads = threads
        self._thread: _Thread | None = None
        self.last: Future[Any] | None = None
        """Of the last call; None: there was none, or its thread was left."""
        self._ended = False
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Have the synchronous code of this context, and of contexts copied from it, run here."""
        # As an executor of one thread, which is what asgiref makes itself where it finds none.
        context = ThreadSensitiveContext()
        known: Any = SyncToAsync.context_to_thread_executor
        known[context] = self
        SyncToAsync.thread_sensitive_context.set(context)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it there.

        Raises:
            RuntimeError: the task has ended.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError(
                    "The task has ended that has started this coroutine: it may call no "
                    "synchronous code, such as a query of Django's, any more. Await it in the task."
                )
            if self._thread is None:
                self._thread = self._threads.take()
            self.last = self._thread.submit(partial(fn, *args, **kwargs))
            return self.last

    def leave(self) -> None:
        """Its thread does not come back from a call: the next one goes to another thread."""
        with self._lock:
            thread, self._thread, self.last = self._thread, None, None
        if thread is not None:
            thread.submit(partial(self._clean, thread))

    def end(self) -> Future[None] | None:
        """Call nothing any more; fires when the connections are clean. None: there was no call."""
        with self._lock:
            self._ended = True
            thread, self._thread = self._thread, None
        return None if thread is None else thread.submit(partial(self._clean, thread))

    def _clean(self, thread: _Thread) -> None:
        try:
            self._threads.clean()
        finally:
            self._threads.give_back(thread)


class CleaningExecutor(ThreadPoolExecutor):
    """The loop's own threads, for ``asyncio.to_thread`` and the like: clean after each call."""

    def __init__(self, clean: Callable[[], None]) -> None:
        super().__init__(thread_name_prefix="carrot-async-call")
        self._clean = clean

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it in one of the threads."""
        return super().submit(self._cleanly, partial(fn, *args, **kwargs))

    def _cleanly(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            self._clean()
