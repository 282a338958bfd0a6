# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with Celery as it comes: where it is, and that results have rows."""

from __future__ import annotations

from benchmarks.settings import BROKER, DATABASES, QUEUE

__all__ = ["DATABASES"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django_celery_results"]

CELERY_BROKER_URL = BROKER
CELERY_TASK_DEFAULT_QUEUE = QUEUE
CELERY_RESULT_BACKEND = "django-db"
