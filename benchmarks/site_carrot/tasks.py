# SPDX-License-Identifier: Apache-2.0
"""How carrot-twisted publishes a task."""

from __future__ import annotations

from benchmarks.settings import QUEUE
from benchmarks.work import TASKS
from carrot_twisted.utilities import publish_message


def publish(name: str) -> None:
    """As a view would."""
    publish_message(TASKS[name], queue=QUEUE)
