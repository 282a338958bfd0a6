# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with procrastinate: all as it comes. PostgreSQL is its queue."""

from __future__ import annotations

from benchmarks.settings import DATABASES, LOGGING

__all__ = ["DATABASES", "LOGGING"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["procrastinate.contrib.django", "benchmarks.site_procrastinate"]
