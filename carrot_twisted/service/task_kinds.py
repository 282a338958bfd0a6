# SPDX-License-Identifier: Apache-2.0
"""Which tasks of a queue are coroutines: known of those that have come here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import iscoroutinefunction

from carrot_twisted import task_paths

if TYPE_CHECKING:
    from collections.abc import Callable


class TaskKinds(dict[str, bool]):
    """By their path: whether they are coroutines. From any thread.

    Args:
        on_coroutine: called when another one of them is found.
    """

    def __init__(self, on_coroutine: Callable[[], None]) -> None:
        super().__init__()
        self._on_coroutine = on_coroutine

    def of_loaded(self, path: str) -> bool:
        """Whether a new task is a coroutine; False, and still new, if its module is not loaded."""
        return self._learn(path, task_paths.loaded_task(path))

    def of_imported(self, path: str) -> bool:
        """Whether a new task is a coroutine; its module is imported for it.

        False, too, if there is none: its run will say why.
        """
        try:
            task = task_paths.resolve_task(path)
        except Exception:
            return False
        return self._learn(path, task)

    def _learn(self, path: str, task: object) -> bool:
        if task is None:
            return False
        call = getattr(task, "__call__", None)  # noqa: B004
        is_coroutine = iscoroutinefunction(task) or iscoroutinefunction(call)
        self[path] = is_coroutine
        if is_coroutine:
            self._on_coroutine()
        return is_coroutine
