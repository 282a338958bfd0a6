# SPDX-License-Identifier: Apache-2.0
"""Servers come from the environment, as everywhere."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

SECRET_KEY = "tests only"
USE_TZ = True
INSTALLED_APPS = ["carrot_twisted"]
_url = urlsplit(os.environ["ROLLING_DATABASE"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.path.lstrip("/"),
        "USER": unquote(_url.username or ""),
        "PASSWORD": unquote(_url.password or ""),
        "HOST": _url.hostname,
        "PORT": _url.port,
        "CONN_MAX_AGE": 600,
    }
}
CARROT = {
    "default_broker": os.environ["ROLLING_BROKER"],
    "queues": [{"name": "rolling"}],
    "task_modules": ["depot.tasks"],
    # Each verifies what the other one has signed.
    "signing": True,
}
