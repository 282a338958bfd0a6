# SPDX-License-Identifier: Apache-2.0
"""Publishes in each way: alone, in a transaction, many at once; or tasks that hold on."""

from __future__ import annotations

import sys

import django

django.setup()

from django.db import transaction  # noqa: E402

from carrot_twisted.utilities import create_message, publish_many, publish_message  # noqa: E402

name, kind = sys.argv[1:]
HOLD, FAIL, TRACE = (f"depot.tasks.{function}" for function in ("hold", "fail", "trace"))
if kind == "hold":
    keys = [f"{name}-{number}" for number in range(4)]
    publish_many(create_message(HOLD, queue="rolling", task_args=[key]) for key in keys)
else:
    publish_message(TRACE, f"{name}-alone", queue="rolling")
    publish_message(FAIL, f"{name}-failing", queue="rolling", priority=3)
    with transaction.atomic():
        publish_message(TRACE, key=f"{name}-together", queue="rolling")
    keys = [f"{name}-{number}" for number in range(20)]
    publish_many(create_message(TRACE, queue="rolling", task_args=[key]) for key in keys)
