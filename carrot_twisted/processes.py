# SPDX-License-Identifier: Apache-2.0
"""Which process is which, and how large this one is.

A living worker on this machine is told from a dead one at once, but only where /proc shows it
(Linux); elsewhere the lease alone decides, some seconds later.
"""

from __future__ import annotations

import os
import resource
import sys
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
#: Position of the start time among the fields of /proc/<pid>/stat that follow the command's name.
_START_TIME = 19


@cache
def machine() -> str:
    """This boot of this machine and its process namespace; "" where that is not known.

    Two processes with the same answer can see each other's pids.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """When process ``pid`` was started, in the kernel's ticks; "" if there is no such process."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; only its parent has not noticed.
    return "" if fields[0] in "ZX" else fields[_START_TIME]


def memory() -> float:
    """How much memory this process has in use (resident), in MB of 1024 * 1024 bytes.

    Where there is no ``/proc`` it is the most that it ever had.
    """
    try:
        pages = int((_PROC / "self/statm").read_text().split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # macOS counts bytes, the others kilobytes.
        return most / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize() / (1024 * 1024)
