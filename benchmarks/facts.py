# SPDX-License-Identifier: Apache-2.0
"""The machine and the versions: numbers without them say nothing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers import PEERS
from carrot_twisted import __version__
from devtools.environment import peer_version

PACKAGES = (
    *("Django", "psycopg", "Twisted", "pika", "txaio"),
    *("celery", "kombu", "amqp", "django-celery-results"),
)


def gather() -> dict[str, str]:
    """Return what is known of this machine and its packages."""
    versions = [f"carrot-twisted {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]
    for peer in PEERS:
        apart = {name: peer_version(peer.name, name) for name in peer.told}
        versions += [f"{name} {found}" for name, found in apart.items() if found]
    return {
        "machine": f"{_cores()} cores, {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "packages": ", ".join(versions),
    }


def load() -> dict[str, str]:
    """Return how busy the machine is now, at the end of a run."""
    return {"load of the machine in the end": ", ".join(f"{one:.1f}" for one in os.getloadavg())}


def _cores() -> int:
    """Those that this program may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
