# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with Dramatiq: with a row for each task, and as safe as it can be."""

from __future__ import annotations

import os

from benchmarks.settings import BROKER, CONCURRENCY, DATABASES, LOGGING

__all__ = ["DATABASES", "LOGGING"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django_dramatiq", "benchmarks.site_dramatiq"]
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
    # Confirmed by the broker, which is not its default.
    "OPTIONS": {"url": BROKER, "confirm_delivery": True},
    # What its manual has, without the server for metrics.
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
        # The row.
        "django_dramatiq.middleware.AdminMiddleware",
    ],
}
# As with Celery: 125 for each thread; its own is 2. Dramatiq has no setting for it.
os.environ["dramatiq_queue_prefetch"] = str(125 * CONCURRENCY)  # noqa: SIM112 - its name
