# SPDX-License-Identifier: Apache-2.0
"""Settings of the example: a database, a broker, one queue."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

# Good enough for an example on one machine; a real project keeps its key to itself.
SECRET_KEY = os.environ.get("SECRET_KEY", "example-only")
TIME_ZONE = "UTC"
USE_TZ = True

INSTALLED_APPS = [
    "carrot_twisted",
    "library_index",
    # The monitor, which the service serves with --web, has users.
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("EXAMPLE_DATABASE", BASE_DIR / "db.sqlite3"),
        "OPTIONS": {
            # WAL lets readers go on while somebody writes. FULL waits for the disk at each
            # commit: a task that was published or finished stays so after a power cut.
            # NORMAL is faster, and may forget the last few commits.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
            # A transaction asks for SQLite's one write lock when it begins, and waits for it.
            # Without this, one that reads first can fail later with "database is locked".
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
        # Let each thread keep its connection from task to task.
        "CONN_MAX_AGE": None,
    }
}

CARROT = {
    "default_broker": os.environ.get("CARROT_BROKER_URL", "amqp://guest:guest@localhost:5672/"),
    "queues": [{"name": "default", "concurrency": 4}],
    "task_modules": ["library_index.tasks"],
}

# The source tree to index: the standard library of the Python that runs this, if not told
# otherwise. The service and the command read the same setting, and tasks stay inside it.
SOURCE_ROOT = Path(os.environ.get("EXAMPLE_SOURCE_ROOT", sysconfig.get_path("stdlib")))
