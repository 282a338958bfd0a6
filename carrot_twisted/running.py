# SPDX-License-Identifier: Apache-2.0
"""What a task can ask, and tell, of the run that it is: known by a context variable."""

from __future__ import annotations

import json
import math
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from carrot_twisted import outcomes
from carrot_twisted.kinds import is_number

#: Characters that are kept of who asks that a task be cancelled, and of why.
MAX_BY, MAX_REASON = 150, 1000
#: Characters that are kept of a progress's text.
MAX_TEXT = 200
#: The largest number of a progress.
MAX_DONE = 10**15

#: The run of this thread, or of this coroutine; see ``execution.Run``.
current: ContextVar[Any] = ContextVar("carrot_run", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Somebody asks that a task be cancelled. It stands in the task's row.

    Args:
        by: who, for people.
        reason: why, for people.
        cooperative: the task is told, and not interrupted.
        at: when, as text (ISO 8601).
    """

    by: str = ""
    reason: str = ""
    cooperative: bool = False
    at: str = ""

    @classmethod
    def of(cls, value: Any) -> CancelRequest | None:
        """That of a row's column; None: nobody asks."""
        if value is None:
            return None
        known = value if isinstance(value, dict) else {}
        return cls(
            by=str(known.get("by") or ""),
            reason=str(known.get("reason") or ""),
            cooperative=bool(known.get("cooperative")),
            at=str(known.get("at") or ""),
        )

    @property
    def column(self) -> dict[str, Any]:
        """For the row, as every database takes it."""
        return {
            "by": outcomes.stored(self.by[:MAX_BY], MAX_BY),
            "reason": outcomes.stored(self.reason[:MAX_REASON], MAX_REASON),
            "cooperative": self.cooperative,
            "at": self.at,
        }

    @property
    def moment(self) -> datetime | None:
        """When; None: that cannot be read."""
        try:
            when = datetime.fromisoformat(self.at)
        except ValueError:
            return None
        return when if when.tzinfo is not None else None

    @property
    def text(self) -> str:
        """What the row of a task says that was ended for it."""
        by = f" by {self.by}" if self.by else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"cancelled{by}{reason}"


def is_cancelled() -> bool:
    """Whether somebody has asked that the task which calls this be cancelled.

    It costs next to nothing: a loop may ask with each turn. Services learn of such a wish about a
    second after it was made. A task that ends for it raises ``TaskCancelled``; one that returns is
    COMPLETED. Where no task runs: False.
    """
    run = current.get()
    return run is not None and run.cancel is not None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come, as it says itself.

    Args:
        done: how much.
        total: of how much; None: nobody knows.
        text: at what it is, for people.
    """

    done: float
    total: float | None = None
    text: str = ""

    @classmethod
    def of(cls, value: Any) -> Progress | None:
        """That of a row's column; None: the task did not say."""
        if not isinstance(value, dict) or not is_number(value.get("done")):
            return None
        total = value.get("total")
        return cls(value["done"], total if is_number(total) else None, str(value.get("text") or ""))

    @property
    def percent(self) -> int | None:
        """From 0 to 100; None: nobody knows."""
        if not self.total:
            return None
        return max(0, min(100, math.floor(100 * self.done / self.total)))

    @property
    def column(self) -> str:
        """For the row, as JSON."""
        text = outcomes.stored(self.text[:MAX_TEXT], MAX_TEXT)
        return json.dumps({"done": self.done, "total": self.total, "text": text})


def progress(done: float, total: float | None = None, text: str = "") -> None:
    """Tell how far the task that calls this has come.

    It costs next to nothing and waits for nobody: a loop may tell with each turn. What was told
    last is written to the task's row once a second, and at its end. Where no task runs: nothing
    happens.

    Args:
        done: how much, 0 or more.
        total: of how much; None, or 0: that is not known.
        text: at what it is, for people; 200 characters are kept.

    Raises:
        ValueError: ``done`` or ``total`` is no such number.
    """
    for name, value in (("done", done), ("total", 0 if total is None else total)):
        if not (is_number(value) and 0 <= value <= MAX_DONE):
            raise ValueError(f"{name} is a number from 0 to {MAX_DONE:.0e}, not {value!r:.100}")
    run = current.get()
    if run is not None:
        run.progress = Progress(done, total, str(text))
