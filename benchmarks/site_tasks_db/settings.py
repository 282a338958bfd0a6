# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with django-tasks-db: all as it comes. The database is its queue."""

from __future__ import annotations

from benchmarks.settings import DATABASES, LOGGING

__all__ = ["DATABASES", "LOGGING"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django_tasks", "django_tasks_db", "benchmarks.site_tasks_db"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
