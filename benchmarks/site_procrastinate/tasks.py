# SPDX-License-Identifier: Apache-2.0
"""The tasks of procrastinate, and how it publishes them."""

from __future__ import annotations

from procrastinate.contrib.django import app

from benchmarks.work import TASKS

tasks = {name: app.task(function, name=name) for name, function in TASKS.items()}


def publish(name: str) -> None:
    """As a view would."""
    tasks[name].defer()


def publish_all(name: str, count: int) -> None:
    """Many of the same, in one statement."""
    tasks[name].batch_defer(*({} for _ in range(count)))
