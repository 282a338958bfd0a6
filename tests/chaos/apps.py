# SPDX-License-Identifier: Apache-2.0
"""What is changed in a service of the chaos run before it starts."""

from __future__ import annotations

import os

from django.apps import AppConfig

from carrot_twisted import processes
from tests.chaos import sabotage


class ChaosConfig(AppConfig):
    """Django's hook."""

    name = "tests.chaos"
    label = "chaos"

    def ready(self) -> None:
        """Services of different places believe to be on different machines.

        On one machine a worker sees by the other's pid whether it lives. Here only the lease tells
        them, as in a cluster; a service and the one that replaces it see each other's pids.
        """
        if place := os.environ.get("CHAOS_PLACE"):
            processes.machine = lambda: f"machine {place}"  # type: ignore[assignment]
        if how := os.environ.get("CHAOS_SABOTAGE"):
            sabotage.KINDS[how]()
