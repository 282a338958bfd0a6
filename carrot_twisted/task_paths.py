# SPDX-License-Identifier: Apache-2.0
"""From a dotted path to the function that it names."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_resolved: dict[str, Callable[..., Any]] = {}


def is_path(text: str) -> bool:
    """Whether a text has the form ``module.function``."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def loaded_task(path: str) -> Any:
    """What a dotted path names, if its module is imported already; else None. Imports nothing."""
    module_name, _, name = path.rpartition(".")
    module = sys.modules.get(module_name)
    # Not getattr: a module may import others for it.
    return None if module is None else vars(module).get(name)


def is_resolved(path: str) -> bool:
    """Whether this process has found a function under the path."""
    return path in _resolved


def resolve_task(path: str) -> Callable[..., Any]:
    """The function that a dotted path names. Imported once, then looked up.

    Raises:
        ImportError: no such module.
        AttributeError: the module has no such function, or it is not callable.
    """
    try:
        return _resolved[path]
    except KeyError:
        pass
    if not is_path(path):
        raise ImportError(f"Unable to find the module: {path!r} is not of the form module.function")
    module_name, _, name = path.rpartition(".")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ImportError(f"Unable to find the module: {module_name} ({error})") from error
    task = getattr(module, name, None)
    if not callable(task):
        raise AttributeError(f"Unable to find a function called {name} in the module {module_name}")
    _resolved[path] = task
    return task  # type: ignore[no-any-return]
