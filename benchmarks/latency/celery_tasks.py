# SPDX-License-Identifier: Apache-2.0
"""Makes the task known to Celery, in worker and publisher."""

from __future__ import annotations

from benchmarks.latency.tasks import stamp
from benchmarks.site_celery.app import app

task = app.task(name=f"{__name__}.stamp")(stamp)
