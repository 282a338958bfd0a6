# SPDX-License-Identifier: Apache-2.0
"""CPU time of processes, read from /proc. Where there is none (not Linux), nothing is told."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
LISTENING = "0A"
# What listens for one of the servers. A proxy in between would tell its own CPU time.
SERVERS = ("postgres", "beam.smp", "redis-server")


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process and of its children that have ended."""
    fields = _stat(pid)
    return _seconds(fields) if fields else None


def tree_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of all that descend from it, ended or not."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            seconds[int(folder.name)] = _seconds(fields)
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    total, family = 0.0, [pid]
    while family:
        member = family.pop()
        total += seconds.get(member, 0.0)
        family += children.get(member, [])
    return total


class Family:
    """A process and all that descend from it, for looks in quick succession.

    Who belongs to it is looked up with every few looks only, and not among all processes of the
    machine: those looks are the benchmark's own work, and take the processor from what it measures.
    """

    LOOKS = 5

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members = [pid]
        self._looks = 0

    def cpu_seconds(self) -> float | None:
        """Return their CPU time so far, or None where it cannot be seen."""
        if self._looks % self.LOOKS == 0:
            self._members = list(family(self._pid))
        self._looks += 1
        known = [fields for fields in map(_stat, self._members) if fields]
        return sum(map(_seconds, known)) if known else None


class CpuTimes:
    """The CPU time of a process and all that descend from it, at each moment of a look."""

    def __init__(self, pid: int) -> None:
        self._family = Family(pid)
        self._samples: list[tuple[float, float]] = []

    def look(self) -> None:
        """Note it now."""
        seconds = self._family.cpu_seconds()
        if seconds is not None:
            self._samples.append((time.time(), seconds))

    def until(self, moment: float) -> float | None:
        """Return it as it was then; None: it could not be seen."""
        return interpolate(self._samples, moment) if self._samples else None

    def between(self, begin: float, end: float) -> float | None:
        """Return what was used between two moments; None: it could not be seen."""
        if not self._samples:
            return None
        return interpolate(self._samples, end) - interpolate(self._samples, begin)


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it. Each of its threads may have started others."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            for child in children.read_text().split():
                yield from family(int(child))


def find_server(host: str | None, port: int) -> int | None:
    """Return the process that listens on a port of this machine, if it is one of the servers."""
    if host not in ("127.0.0.1", "localhost", "::1"):
        return None
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    owners = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has ended, or is another user's
            if os.readlink(descriptor) in sockets:
                owners.append(int(descriptor.parts[2]))
    for pid in sorted(owners):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in SERVERS:
                return pid
    return None


def _listening(port: int) -> list[str]:
    inodes = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.append(fields[9])
    return inodes


def _stat(pid: int) -> list[str] | None:
    """Return the fields behind the name, which may hold anything: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def _seconds(fields: list[str]) -> float:
    """User and system time, of the process and of its ended children."""
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS_PER_SECOND


def interpolate(samples: list[tuple[float, float]], moment: float) -> float:
    """Return the value at a moment between samples of (moment, value)."""
    before = samples[0]
    for after in samples:
        if after[0] >= moment:
            span = after[0] - before[0]
            share = (moment - before[0]) / span if span > 0 else 0.0
            return before[1] + share * (after[1] - before[1])
        before = after
    return before[1]
