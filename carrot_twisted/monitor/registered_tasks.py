# SPDX-License-Identifier: Apache-2.0
"""The functions that may be scheduled: those of ``CARROT["task_modules"]``, and no others.

Whoever may edit schedules must not be able to run just any function that can be imported.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from carrot_twisted import conf
from carrot_twisted.task_paths import function_of, resolve_task, signature_of, standard_task

if TYPE_CHECKING:
    import inspect
    from collections.abc import Mapping, Sequence

_logger = logging.getLogger("carrot_twisted.monitor")


def functions() -> dict[str, list[str]]:
    """Names of the functions that are written in each module; none of one that cannot be imported.

    ``manage.py check`` tells of those.
    """
    found: dict[str, list[str]] = {}
    for name in conf.current().task_modules:
        try:
            module = import_module(name)
        except (Exception, SystemExit) as error:
            _logger.warning("The module %s of CARROT['task_modules'] fails: %s", name, error)
            continue
        found[name] = sorted(
            key
            for key, value in vars(module).items()
            if not key.startswith("_") and _is_task(function_of(value), name)
        )
    return found


def _is_task(value: Any, module: str) -> bool:
    is_function = callable(value) and not isinstance(value, type)
    return is_function and getattr(value, "__module__", None) == module


def is_registered(path: str) -> bool:
    """Whether the function's module is one of the settings'."""
    return path.rpartition(".")[0] in conf.current().registered_modules


def call_of(path: str) -> str:
    """How the function is called, such as ``report(to, copies=1)``; "" if that is not known."""
    signature = _signature(path)
    return "" if signature is None else f"{path.rpartition('.')[2]}{signature}"


def mismatch(path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why the function does not take these arguments.

    Returns:
        The field of a ScheduledTask that is wrong, and what is; None: they fit, or it is not known.
    """
    signature = _signature(path)
    if signature is None:
        return None
    try:
        signature.bind_partial(*args)
    except TypeError as error:
        return "task_args", str(error)
    try:
        signature.bind_partial(*args, **kwargs)
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return "content", str(error)
    return None


def _signature(path: str) -> inspect.Signature | None:
    if not is_registered(path):
        return None
    try:
        function = resolve_task(path)
        return signature_of(standard_task(path) or function)
    except (Exception, SystemExit):
        # A module that fails at its import, or something that has no signature.
        return None
