# SPDX-License-Identifier: Apache-2.0
"""Its settings: as many queues as the environment says."""

from __future__ import annotations

import os

from benchmarks.settings import BROKER, CONCURRENCY, DATABASES, QUEUE

__all__ = ["DATABASES"]

SECRET_KEY = "benchmark"  # noqa: S105 - signs nothing
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["carrot_twisted", "benchmarks.site_growth"]
#: The first one has the site's own name.
QUEUES = [
    QUEUE if number == 0 else f"{QUEUE}.{number}"
    for number in range(int(os.environ.get("BENCHMARK_QUEUES", "1")))
]
CARROT = {
    "default_broker": BROKER,
    "queues": [{"name": name, "concurrency": CONCURRENCY} for name in QUEUES],
    "task_modules": ["benchmarks.work"],
}
