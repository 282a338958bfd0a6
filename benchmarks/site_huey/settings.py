# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with huey: on Redis, as most of its users have it, with every result."""

from __future__ import annotations

from benchmarks.settings import BROKER, CONCURRENCY, DATABASES, LOGGING, QUEUE

__all__ = ["DATABASES", "LOGGING"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["huey.contrib.djhuey", "benchmarks.site_huey"]
HUEY = {
    "huey_class": "huey.RedisHuey",
    "name": QUEUE,
    # Each worker waits in a blocking read (BRPOP), its default: a task that comes is begun at once,
    # and no delay between two looks has a part in it.
    "connection": {"url": BROKER},
    # Our tasks return nothing, and that is a result, too.
    "store_none": True,
    "consumer": {"workers": CONCURRENCY, "worker_type": "thread"},
}
