# SPDX-License-Identifier: Apache-2.0
"""From a dotted path to the function that it names.

What stands there may also be a ``Task``, which the decorator of django.tasks makes of a function.
That is not imported here, for there may be none: who has a ``Task`` has imported it.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")


class StandardTask(Protocol[P]):
    """What is used here of a ``Task`` of django.tasks."""

    @property
    def func(self) -> Callable[..., Any]:
        """The function that was decorated."""

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Publish it. Tells a type checker which arguments the task takes."""


#: Where the class ``Task`` may be: in Django since 6.0, and in the package django-tasks.
_STANDARD = ("django.tasks.base", "django_tasks.base")

_resolved: dict[str, Callable[..., Any]] = {}
#: Those of them that are a ``Task`` of django.tasks.
_standard: dict[str, Any] = {}


def is_path(text: str) -> bool:
    """Whether a text has the form ``module.function``."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def loaded_task(path: str) -> Any:
    """The function of a dotted path, if its module is imported already; else None."""
    module_name, _, name = path.rpartition(".")
    module = sys.modules.get(module_name)
    # Not getattr: a module may import others for it.
    return None if module is None else function_of(vars(module).get(name))


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
    found = getattr(module, name, None)
    task = function_of(found)
    if not callable(task):
        raise AttributeError(f"Unable to find a function called {name} in the module {module_name}")
    if task is not found:
        _standard[path] = found
    _resolved[path] = task
    return task  # type: ignore[no-any-return]


def standard_task(path: str) -> Any:
    """The ``Task`` of django.tasks that ``resolve_task`` has found there; None: it is none."""
    return _standard.get(path)


def is_standard(value: Any) -> bool:
    """Whether it is a ``Task`` of django.tasks."""
    modules = (sys.modules.get(name) for name in _STANDARD)
    return any(module is not None and isinstance(value, module.Task) for module in modules)


def function_of(value: Any) -> Any:
    """The function of a ``Task`` of django.tasks; anything else is what it is."""
    return value.func if is_standard(value) else value


def signature_of(value: Any) -> inspect.Signature:
    """The arguments that a task is published with: without the context that Django hands some.

    Args:
        value: the function, or the ``Task`` of django.tasks.

    Raises:
        TypeError, ValueError: it has no signature.
    """
    signature = inspect.signature(function_of(value))
    return without_context(signature) if is_standard(value) and value.takes_context else signature


def without_context(signature: inspect.Signature) -> inspect.Signature:
    """A signature without its first parameter."""
    return signature.replace(parameters=[*signature.parameters.values()][1:])
