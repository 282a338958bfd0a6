# SPDX-License-Identifier: Apache-2.0
"""How django-carrot publishes a task."""

from __future__ import annotations

from carrot.utilities import publish_message

from benchmarks.settings import QUEUE
from benchmarks.work import TASKS


def publish(name: str) -> None:
    """As a view would."""
    publish_message(TASKS[name], queue=QUEUE)
