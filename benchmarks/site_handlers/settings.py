# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with a handler: nothing but what is needed, all else as it comes."""

from __future__ import annotations

from benchmarks.settings import BROKER, DATABASES

__all__ = ["DATABASES"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["carrot_twisted", "benchmarks.site_handlers"]
CARROT = {"default_broker": BROKER, "queues": []}
