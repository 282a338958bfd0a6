# SPDX-License-Identifier: Apache-2.0
"""Which process is which: tells a living worker on this machine from a dead one at once.

Only where /proc shows it (Linux); elsewhere the lease alone decides, some seconds later.
"""

from __future__ import annotations

import os
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
