# SPDX-License-Identifier: Apache-2.0
"""How Celery publishes a task."""

from __future__ import annotations

from benchmarks.site_celery.app import tasks


def publish(name: str) -> None:
    """As a view would."""
    tasks[name].delay()
