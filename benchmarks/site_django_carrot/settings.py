# SPDX-License-Identifier: Apache-2.0
"""Settings of the project with django-carrot: nothing but what is needed, all else as it comes."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from benchmarks.settings import BROKER, CONCURRENCY, DATABASES, LOGGING, QUEUE

__all__ = ["DATABASES", "LOGGING"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["carrot", "benchmarks.site_django_carrot"]

_broker = urlsplit(BROKER)
# It reads URLs by hand, and not all of them.
HOST = {
    "host": _broker.hostname,
    "port": _broker.port or 5672,
    "name": _broker.path.lstrip("/") or "%2f",
    "username": unquote(_broker.username or "guest"),
    "password": unquote(_broker.password or "guest"),
    "secure": False,
}
CARROT = {
    "default_broker": HOST,
    "queues": [{"name": QUEUE, "host": HOST, "concurrency": CONCURRENCY}],
    "task_modules": ["benchmarks.work"],
}
