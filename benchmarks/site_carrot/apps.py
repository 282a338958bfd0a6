# SPDX-License-Identifier: Apache-2.0
"""Somebody listens to the signals of each task, as a project with metrics or tracing does."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig


def receive(**_: Any) -> None:
    """Do nothing: what is measured is that it is called."""


class ReceiversConfig(AppConfig):
    """Connects the receivers."""

    name = "benchmarks.site_carrot"

    def ready(self) -> None:
        from carrot_twisted import signals

        signals.task_started.connect(receive, dispatch_uid="benchmark-started")
        signals.task_finished.connect(receive, dispatch_uid="benchmark-finished")
