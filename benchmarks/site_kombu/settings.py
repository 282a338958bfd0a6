# SPDX-License-Identifier: Apache-2.0
"""Settings of that project, tuned for speed."""

from __future__ import annotations

from benchmarks.settings import BROKER, DATABASES, QUEUE

__all__ = ["DATABASES"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS: list[str] = []

CELERY_BROKER_URL = BROKER
# A worker always consumes tasks, too: these have a queue of their own, which stays empty.
CELERY_TASK_DEFAULT_QUEUE = f"{QUEUE}.tasks"
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_BROKER_HEARTBEAT = 0
