# SPDX-License-Identifier: Apache-2.0
"""Runs a project's code beside the caller, who waits for a while only.

The scheduler has to import tasks and to ask ``when``. Such code may never end, and may spoil the
database connection of its thread: so it gets a thread and connections of its own.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Callable


class Errand:
    """One call, in a thread of its own that keeps no process from ending."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._start = time.monotonic()
        threading.Thread(target=self._run, name="carrot-aside", daemon=True).start()

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; whether it has ended."""
        return self._done.wait(timeout)

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._start

    def result(self) -> Any:
        """What the function returned, or raises what it raised. Only when it has ended."""
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            # The end of that thread, not of this one.
            raise RuntimeError(f"{type(self._error).__name__}: {self._error}") from self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()
            self._done.set()
