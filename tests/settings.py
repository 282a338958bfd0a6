# SPDX-License-Identifier: Apache-2.0
"""The tests' Django project. CARROT_TEST_QUEUE_TYPE chooses the type of its queues.

CARROT_TEST_SETTINGS, as JSON, is merged into CARROT; ``tests.processes.carrot`` makes it.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import unquote, urlsplit

import django

from carrot_twisted import processes

if "CARROT_TEST_ELSEWHERE" in os.environ:
    # As if each process were on a machine of its own: only leases tell who lives.
    processes.machine = lambda: ""  # type: ignore[assignment]

SECRET_KEY = "tests only"
SECRET_KEY_FALLBACKS = os.environ.get("CARROT_TEST_FALLBACK", "").split()
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "carrot_twisted",
    "tests.project",
]
if django.VERSION < (6, 0):
    # It has no django.tasks of its own.
    INSTALLED_APPS.append("django_tasks")
TASKS = {
    "default": {
        "BACKEND": "carrot_twisted.backends.CarrotBackend",
        "QUEUES": ["default", "other"],
    }
}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = os.environ.get("CARROT_TEST_URLCONF", "tests.project.urls")
ALLOWED_HOSTS = ["127.0.0.1"]
# pytest-django's live server asks for it.
STATIC_URL = "static/"


def database(url: str) -> dict[str, Any]:
    """A DATABASES entry for ``sqlite:///path`` or ``postgres://user:password@host:port/name``."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parts.path,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": float(os.environ.get("CARROT_TEST_SQLITE_TIMEOUT", "20")),
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
_broker = os.environ.get("CARROT_BROKER_URL", "amqp://guest:guest@localhost:5672/")
#: Further keys of the broker's dictionary, as JSON.
_options = os.environ.get("CARROT_TEST_BROKER")
QUEUE_TYPE = os.environ.get("CARROT_TEST_QUEUE_TYPE", "classic")
CARROT = {
    "default_broker": {"url": _broker, **json.loads(_options)} if _options else _broker,
    "queues": [
        {
            "name": "default",
            "concurrency": int(os.environ.get("CARROT_TEST_CONCURRENCY", "4")),
            "queue_arguments": {"x-queue-type": QUEUE_TYPE},
            "durable": "CARROT_TEST_DURABLE" not in os.environ,
            "consumer_class": os.environ.get(
                "CARROT_TEST_CONSUMER", "carrot_twisted.consumer.Consumer"
            ),
        },
        {"name": "other", "concurrency": 1, "queue_arguments": {"x-queue-type": QUEUE_TYPE}},
    ],
    "task_modules": [
        "tests.project.tasks",
        "tests.project.misbehaving",
        "tests.project.coroutines",
    ],
    **json.loads(os.environ.get("CARROT_TEST_SETTINGS", "{}")),
}
