# SPDX-License-Identifier: Apache-2.0
"""The tests' Django project. Its database is chosen by CARROT_TEST_DATABASE."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote, urlsplit

SECRET_KEY = "tests only"
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django.contrib.contenttypes", "carrot_twisted", "tests.project"]


def database(url: str) -> dict[str, Any]:
    """A DATABASES entry for ``sqlite:///path`` or ``postgres://user:password@host:port/name``."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parts.path,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
            "TEST": {"NAME": parts.path},
        }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname,
        "PORT": parts.port,
    }


_url = os.environ.get("CARROT_DATABASE_URL", "")
DATABASES = {
    "default": database(_url)
    if _url
    else {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
}
CARROT = {
    "default_broker": os.environ.get("CARROT_BROKER_URL", "amqp://guest:guest@localhost:5672/"),
    "queues": [
        {
            "name": "default",
            "concurrency": int(os.environ.get("CARROT_TEST_CONCURRENCY", "4")),
            "consumer_class": os.environ.get(
                "CARROT_TEST_CONSUMER", "carrot_twisted.consumer.Consumer"
            ),
        },
        {"name": "other", "concurrency": 1},
    ],
    "task_modules": ["tests.project.tasks"],
    "lease": float(os.environ.get("CARROT_TEST_LEASE", "10")),
    "ack_deadline": float(os.environ.get("CARROT_TEST_ACK_DEADLINE", "600")),
}
