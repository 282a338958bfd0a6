# SPDX-License-Identifier: Apache-2.0
"""Lets a test shorten what takes the service long: see ``tests.processes.constants``."""

from __future__ import annotations

import json
import os
from importlib import import_module

from django.apps import AppConfig


class TestsConfig(AppConfig):
    """The tests' own app."""

    name = "tests.project"

    def ready(self) -> None:
        """Imported for such services only: a process that publishes has no reactor."""
        for path, value in json.loads(os.environ.get("CARROT_TEST_CONSTANTS", "{}")).items():
            name, _, constant = path.rpartition(".")
            module = import_module(f"carrot_twisted.{name}")
            assert hasattr(module, constant), f"{name} has no {constant}"
            setattr(module, constant, value)
