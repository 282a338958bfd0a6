# SPDX-License-Identifier: Apache-2.0
"""What the command line says of a service of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What the command line says."""

    queues: tuple[str, ...] = ()
    """Consume from these only; empty: from all consumable ones."""
    concurrency: int | None = None
    """Instead of each queue's own."""
    shutdown_timeout: float | None = None
    """Instead of the setting."""
    scheduler: bool = True
    """Publish scheduled tasks, too."""
    consumer_class: str | None = None
    """Dotted path; instead of each queue's own."""
    consumer_name: str | None = None
    """Name of the consumer objects; by default ``<queue>-consumer``."""
    logger: logging.Logger | None = None
    """Of the consumer objects; by default the logger ``carrot``."""
    max_tasks: int | None = None
    """Ask for a fresh process after so many tasks."""
    max_memory: int | None = None
    """Ask for one when more MB than that are in use."""
