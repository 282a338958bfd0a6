# SPDX-License-Identifier: Apache-2.0
"""Uses a library in a thread of its own, as if it were here.

Playwright's synchronous interface keeps an event loop in the thread that uses it. Django then
takes that thread for an asynchronous one: it refuses queries, and keeps connections elsewhere. So
the browser is driven from another thread; ``Elsewhere`` stands here for each of its objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_SIMPLE = (str, bytes, int, float, bool, type(None))


class Elsewhere:
    """An object that lives in another thread: what is asked of it is done there.

    Args:
        thread: an executor with one thread.
        target: the object.
    """

    def __init__(self, thread: ThreadPoolExecutor, target: Any) -> None:
        self._thread = thread
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return self._do(lambda: getattr(self._target, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [_here(value) for value in args]
        named = {key: _here(value) for key, value in kwargs.items()}
        return self._do(lambda: self._target(*given, **named))

    def __enter__(self) -> Any:
        return self._do(self._target.__enter__)

    def __exit__(self, *error: Any) -> Any:
        return self._do(lambda: self._target.__exit__(*error))

    def _do(self, what: Any) -> Any:
        return self._wrapped(self._thread.submit(what).result())

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, _SIMPLE):
            return result
        if isinstance(result, list):
            return [self._wrapped(one) for one in result]
        if isinstance(result, dict):
            return {key: self._wrapped(one) for key, one in result.items()}
        return Elsewhere(self._thread, result)


def _here(value: Any) -> Any:
    return value._target if isinstance(value, Elsewhere) else value
