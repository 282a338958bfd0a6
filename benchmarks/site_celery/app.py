# SPDX-License-Identifier: Apache-2.0
"""The Celery application and its tasks."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals
from django.conf import settings

from benchmarks.work import TASKS

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site_celery.settings")

app = Celery("benchmarks")
app.config_from_object("django.conf:settings", namespace="CELERY")
if getattr(settings, "KEEPS_CONNECTIONS", False):
    # Celery closes the database connection before and after each task, whatever CONN_MAX_AGE says,
    # unless this is set. It is read under this very name, which a namespace cannot give.
    app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000

tasks = {name: app.task(name=name)(function) for name, function in TASKS.items()}


def receive(**_: Any) -> None:
    """Do nothing: what is measured is that it is called."""


# As in the other project, somebody listens to the signals of each task.
signals.task_prerun.connect(receive, weak=False)
signals.task_postrun.connect(receive, weak=False)
