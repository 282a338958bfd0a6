# SPDX-License-Identifier: Apache-2.0
"""Captures the log lines of a task: those of logger ``carrot`` and of the task modules' loggers.

Each run has a ``Transcript`` in a context variable, so lines never mix: not between threads, not
between tasks, and coroutines and threads started with a copied context belong to their task.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from carrot_twisted import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable

#: django-carrot's format; its monitor reads the level between the time and the "::".
LOGGING_FORMAT = "%(threadName)-10s %(asctime)-10s %(levelname)s:: %(message)s"
#: The logger of django-carrot, for tasks anywhere.
LOGGER = "carrot"


class Transcript:
    """The lines of one run, bounded: a flood of lines must not fill memory or the database.

    Half of the room is for the first lines; the other half for the last ones, which tell how it
    ended.

    It may be read while others write: each step of both is one that Python does not interrupt, so
    what is read is whole, and may only be a line behind.

    Args:
        limit: characters, line ends included.
    """

    __slots__ = ("_first", "_half", "_last", "_left", "_lost", "_lost_size", "written")

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._first: list[str] = []
        #: Room for lines: of the first half, and then of the last one.
        self._left = limit - self._half
        self._last: deque[str] | None = None
        self._lost = 0
        self._lost_size = 0
        self.written = 0
        """How many of the lines are in the row already; see ``live_logs``."""

    def add(self, line: str) -> None:
        """Take a line; one that fits nowhere is cut to half of the room."""
        size = len(line) + 1
        if self._last is None:
            if size <= self._left:
                self._left -= size
                self._first.append(line)
                return
            # A line that does not fit ends the first half. All may yet fit.
            self._last = deque()
            self._left += self._half
        if size > self._left and size > self._half:
            line = outcomes.stored(line, self._half)
            size = len(line) + 1
        self._last.append(line)
        self._left -= size
        while self._left < 0 and len(self._last) > 1:
            lost = len(self._last.popleft()) + 1
            self._left += lost
            self._lost += 1
            self._lost_size += lost

    @property
    def count(self) -> int:
        """How many lines were taken so far. From any thread."""
        return len(self._first) + self._lost + len(self._last or ())

    @property
    def lines(self) -> list[str]:
        """The lines so far, but for those that were lost. From any thread."""
        return [*self._first, *list(self._last or ())]

    def text(self, limit: int) -> str:
        """All lines, fit for the database; says how many are missing, and where.

        From any thread.
        """
        lines = self._first
        if self._last is not None:
            # Of the deque a copy: it must not change while it is gone through.
            last = list(self._last)
            cut = f"… (cut: {self._lost} lines, {self._lost_size} characters)"
            lines = [*lines, *([cut] if self._lost else ()), *last]
        return outcomes.stored("\n".join(lines), limit + 200)


current: ContextVar[Transcript | None] = ContextVar("carrot_transcript", default=None)


class CaptureHandler(logging.Handler):
    """Writes a record into the transcript of the task that logs it, if any."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter(LOGGING_FORMAT))

    def handle(self, record: logging.LogRecord) -> bool:
        # Without logging's lock: a transcript belongs to one run, and 16 threads in a queue for
        # one lock cost more than the formatting.
        transcript = current.get()
        if transcript is not None:
            try:
                transcript.add(self.format(record))
            except Exception:
                self.handleError(record)
        return True


_handler = CaptureHandler()


def capture(names: set[str]) -> None:
    """Capture the loggers of these names, and ``carrot``, from level DEBUG.

    A logger whose level the project has set keeps it. What a logger writes elsewhere is not
    changed, apart from records that only its missing level held back.
    """
    for name in sorted({LOGGER, *names}):
        logger = logging.getLogger(name)
        if _handler in _handlers_above(logger):
            continue
        logger.addHandler(_handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.DEBUG)


def _handlers_above(logger: logging.Logger | None) -> list[logging.Handler]:
    """Handlers that already get this logger's records: a second capture would double lines."""
    found: list[logging.Handler] = []
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found


class ListHandler(logging.Handler):
    """Keeps what one thread logs, as django-carrot's does; for a project's own ways to run a task.

    Args:
        thread_name: of the thread; other threads' records are not kept, whatever their names
            begin with.
        level: records below it are not kept.
    """

    def __init__(self, thread_name: str, level: int) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter(LOGGING_FORMAT))
        self.thread_name = thread_name
        self.output: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record, formatted, if the thread has logged it."""
        if record.threadName == self.thread_name:
            self.output.append(self.format(record))

    def parse_output(self) -> str:
        """All lines as one text."""
        return "\n".join(self.output)


class LoggingTask:
    """A function, and what it logs while it runs, as in django-carrot.

    Args:
        task: the function.
        logger: whose records are kept, from its effective level.
        thread_name: of the thread that is going to call ``run``; "" for the present one.
        args: of the function.
        kwargs: of the function.
    """

    def __init__(
        self,
        task: Callable[..., Any],
        logger: logging.Logger,
        thread_name: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.task = task
        self.logger = logger
        self.thread_name = thread_name or threading.current_thread().name
        self.args = args
        self.kwargs = kwargs
        self.stream_handler = ListHandler(self.thread_name, logger.getEffectiveLevel())

    def run(self) -> Any:
        """Call the function; returns what it returns and raises what it raises."""
        self.logger.addHandler(self.stream_handler)
        try:
            return self.task(*self.args, **self.kwargs)
        finally:
            self.logger.removeHandler(self.stream_handler)

    def get_logs(self) -> str:
        """What was logged meanwhile, a line each."""
        return self.stream_handler.parse_output()
