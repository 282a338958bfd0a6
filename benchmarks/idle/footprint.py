# SPDX-License-Identifier: Apache-2.0
"""Memory and CPU time of a process and its children, read from /proc."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import family


def precise_cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, to the microsecond; of threads that live."""
    total = 0
    for member in family(pid):
        for file in Path(f"/proc/{member}/task").glob("*/schedstat"):
            with suppress(OSError):
                total += int(file.read_text().split()[0])
    return total / 1e9


@dataclass(frozen=True, kw_only=True)
class Memory:
    """In MB of 1024 * 1024 bytes, of all processes together."""

    rss: float
    """With what they share with others."""
    pss: float
    """Of that only their share."""
    threads: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Of a process and its children."""
        found = {"Rss": 0, "Pss": 0}
        threads = 0
        for member in family(pid):
            with suppress(OSError):
                for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    if name in found:
                        found[name] += int(rest.split()[0])
                threads += len(list(Path(f"/proc/{member}/task").iterdir()))
        return cls(rss=found["Rss"] / 1024, pss=found["Pss"] / 1024, threads=threads)
