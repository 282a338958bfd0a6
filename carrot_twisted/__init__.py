# SPDX-License-Identifier: Apache-2.0
"""Task queue and message consumer for Django on RabbitMQ, run by Twisted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carrot_twisted.messaging import consume, publish, twisted_consume, twisted_publish
    from carrot_twisted.reactor_call import in_reactor
    from carrot_twisted.running import is_cancelled, progress
    from carrot_twisted.task_limits import Concurrency, Rate
    from carrot_twisted.tasks import task

__all__ = [
    "Concurrency",
    "Rate",
    "consume",
    "in_reactor",
    "is_cancelled",
    "progress",
    "publish",
    "task",
    "twisted_consume",
    "twisted_publish",
]

__version__ = "0.1.0"

#: The broker where no setting names one: a RabbitMQ on this machine, as it is after installing.
DEFAULT_BROKER = "amqp://guest:guest@localhost:5672/"


_MODULES = {
    "Concurrency": "task_limits",
    "Rate": "task_limits",
    "in_reactor": "reactor_call",
    "is_cancelled": "running",
    "progress": "running",
    "task": "tasks",
}


def __getattr__(name: str) -> Any:
    """What projects use most; its module is loaded when it is asked for."""
    if name in __all__:
        module = _MODULES.get(name, "messaging")
        return getattr(import_module(f"carrot_twisted.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
