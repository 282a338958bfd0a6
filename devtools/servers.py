# SPDX-License-Identifier: Apache-2.0
"""The private servers of this repository: what tests, benchmark and example import.

with temporary_folder() as folder, RabbitMQ(folder / "rabbitmq") as broker:
    use(broker.url)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from devtools.folders import temporary_folder
from devtools.pgbouncer import PgBouncer
from devtools.postgresql import PostgreSQL, find_programs
from devtools.process import ServerError
from devtools.rabbitmq import RabbitMQ, find_scripts
from devtools.redis import Redis, find_redis

__all__ = [
    "PgBouncer",
    "PostgreSQL",
    "RabbitMQ",
    "Redis",
    "ServerError",
    "find_missing",
    "temporary_folder",
]


#: Debian packages, and a program of each: one reads the package's units, one publishes messages as
#: programs do that know nothing of Python, one is the browser that looks at the monitor, one stands
#: between services and PostgreSQL.
TOOLS = {
    "systemd": "systemd-analyze",
    "amqp-tools": "amqp-publish",
    "chromium": "chromium",
    "pgbouncer": "pgbouncer",
}
#: Where Debian has programs for administrators, off the PATH of other users.
ADMINISTRATION = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"


def find_missing(
    *, rabbitmq: bool = True, postgresql: bool = True, redis: bool = False, tools: bool = False
) -> list[str]:
    """Return the Debian packages that are needed and not installed.

    Args:
        rabbitmq: a broker is.
        postgresql: a database is.
        redis: a peer's broker is.
        tools: programs that only tests run are.
    """
    missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{sys.version_info.major}.{sys.version_info.minor}-venv")
    if rabbitmq and find_scripts() is None:
        missing.append("rabbitmq-server")
    if postgresql and find_programs() is None:
        missing.append("postgresql")
    if redis and find_redis() is None:
        missing.append("redis-server")
    if tools:
        missing += [
            package
            for package, program in TOOLS.items()
            if not shutil.which(program, path=ADMINISTRATION)
        ]
    return missing
