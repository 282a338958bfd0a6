# SPDX-License-Identifier: Apache-2.0
"""The private servers of this repository: what tests, benchmark and example import.

with temporary_folder() as folder, RabbitMQ(folder / "rabbitmq") as broker:
    use(broker.url)
"""

from __future__ import annotations

import importlib.util
import shutil
import sys

from devtools.folders import temporary_folder
from devtools.postgresql import PostgreSQL, find_programs
from devtools.process import ServerError
from devtools.rabbitmq import RabbitMQ, find_scripts

__all__ = ["PostgreSQL", "RabbitMQ", "ServerError", "find_missing", "temporary_folder"]

#: What tests use of each package of the distribution.
PROGRAMS = {"systemd": "systemd-analyze", "chromium": "chromium"}


def find_missing(
    *, rabbitmq: bool = True, postgresql: bool = True, tests: bool = False
) -> list[str]:
    """Return the Debian packages that are needed and not installed.

    Args:
        rabbitmq: the server is needed.
        postgresql: the server is needed.
        tests: what only tests use, too: programs by their packages.
    """
    missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{sys.version_info.major}.{sys.version_info.minor}-venv")
    if rabbitmq and find_scripts() is None:
        missing.append("rabbitmq-server")
    if postgresql and find_programs() is None:
        missing.append("postgresql")
    if tests:
        missing += [package for package, name in PROGRAMS.items() if shutil.which(name) is None]
    return missing
