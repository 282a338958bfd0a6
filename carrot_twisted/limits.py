# SPDX-License-Identifier: Apache-2.0
"""How long one attempt at a task may run: ``@time_limit`` above the task's function.

docs/misbehaving-tasks.md says what the limit covers, and where Python cannot keep it.
"""

from __future__ import annotations

from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Task = TypeVar("Task", bound="Callable[..., Any]")

#: Of a task's function. ``functools.wraps`` hands it on to decorators above.
ATTRIBUTE = "carrot_time_limit"


def time_limit(seconds: float | None) -> Callable[[Task], Task]:
    """Limit the run time of a task, whatever ``CARROT["time_limit"]`` says.

    When an attempt has run so long, ``TimeLimitExceeded`` is raised in it, and its row is FAILED.
    The time that it waits in its queue does not count.

    Args:
        seconds: more than 0; None: this task has no limit.

    Raises:
        ValueError: it is neither.
    """
    if not is_limit(seconds):
        raise ValueError(f"time_limit takes a number of seconds above 0, or None, not {seconds!r}")

    def mark(task: Task) -> Task:
        setattr(task, ATTRIBUTE, seconds)
        return task

    return mark


def is_limit(value: object) -> bool:
    """Whether a value can be a limit: a number above 0 that threads can wait for, or None."""
    if value is None:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= TIMEOUT_MAX  # type: ignore[operator]


def limit_of(task: object, default: float | None) -> float | None:
    """The limit of a task's function; None if it has none."""
    limit: float | None = getattr(task, ATTRIBUTE, default)
    return limit
