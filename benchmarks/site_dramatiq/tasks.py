# SPDX-License-Identifier: Apache-2.0
"""Dramatiq's actors, and how it publishes."""

from __future__ import annotations

import dramatiq

from benchmarks.settings import QUEUE
from benchmarks.work import TASKS

actors = {
    name: dramatiq.actor(function, actor_name=name, queue_name=QUEUE)
    for name, function in TASKS.items()
}


def publish(name: str) -> None:
    """As a view would."""
    actors[name].send()
