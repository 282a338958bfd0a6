# SPDX-License-Identifier: Apache-2.0
"""The chaos run's Django project. All but what is set here is the product's default."""

from __future__ import annotations

import os

from tests import settings as base

SECRET_KEY = base.SECRET_KEY
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django.contrib.contenttypes", "carrot_twisted", "tests.chaos"]
DATABASES = base.DATABASES
CARROT = {
    "default_broker": base.CARROT["default_broker"],
    "queues": [
        {"name": "default", "concurrency": 4},
        {"name": "other", "concurrency": 2},
    ],
    "task_modules": ["tests.chaos.tasks"],
    "lease": float(os.environ.get("CHAOS_LEASE", "10")),
}
