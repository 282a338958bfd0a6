# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with Celery: as safe as carrot-twisted, and else tuned for speed."""

from __future__ import annotations

from benchmarks.settings import BROKER, DATABASES, QUEUE

__all__ = ["DATABASES"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django_celery_results"]

# The same promises as carrot-twisted's: persistent messages (Celery's default), confirmed by the
# broker, acknowledged after the work, each with a row that tells the result.
CELERY_BROKER_URL = BROKER
CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}
CELERY_TASK_DEFAULT_QUEUE = QUEUE
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_IGNORE_RESULT = False
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True

# Tuned. No row when a task starts: that would be one more commit for each task.
CELERY_TASK_TRACK_STARTED = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 125
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_BROKER_HEARTBEAT = 0
KEEPS_CONNECTIONS = True
