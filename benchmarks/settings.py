# SPDX-License-Identifier: Apache-2.0
"""What the Django settings of all sites share, read from the environment.

The benchmark starts each site's processes with these variables; see `systems.py`. One of the sites
runs with an old Python: nothing here is newer than 3.7.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote, urlsplit

BROKER = os.environ.get("BENCHMARK_BROKER", "amqp://guest:guest@localhost:5672/%2F")
QUEUE = os.environ.get("BENCHMARK_QUEUE", "benchmark")
CONCURRENCY = int(os.environ.get("BENCHMARK_CONCURRENCY", "4"))


def database(url: str) -> dict[str, Any]:
    """Return an entry of DATABASES for postgres://user:password@host:port/name or sqlite:///path.

    The same for all systems, and durable: a committed row survives a power cut on both databases.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(parts.path),
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
                "transaction_mode": "IMMEDIATE",
                "timeout": 60,
            },
        }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "CONN_MAX_AGE": None,
    }


# For those who leave the log to Django: what tasks write is kept where the measure asks for it.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stream": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stream"], "level": os.environ.get("BENCHMARK_LOG_LEVEL", "WARNING")},
}
DATABASES = {"default": database(os.environ.get("BENCHMARK_DATABASE", "sqlite:////dev/null"))}
