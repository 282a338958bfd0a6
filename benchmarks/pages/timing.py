# SPDX-License-Identifier: Apache-2.0
"""What was measured of one page. Standard library only: Flower's environment has nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Requests before the first one that counts.
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of a page's requests."""

    system: str
    page: str
    wall: float
    """The median."""
    slowest: float
    cpu: float
    """Of the process that answers, the median."""
    server_cpu: float | None
    """Of the database's process, on average; None: it has none, or it cannot be seen."""
    queries: int | None
    """None: there is no database."""
    target: float | None
    """Milliseconds that were promised."""


def timed(
    ask: Callable[[], object],
    requests: int,
    server_cpu: Callable[[], float | None],
    warm_up: int = WARM_UP,
) -> tuple[float, float, float, float | None]:
    """Ask again and again: median and longest wall time, CPU time, CPU time of the server."""
    for _ in range(warm_up):
        ask()
    before = server_cpu()
    walls, cpus = [], []
    for _ in range(requests):
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        walls.append((time.perf_counter() - wall) * 1000)
        cpus.append((time.process_time() - cpu) * 1000)
    after = server_cpu()
    server = None if before is None or after is None else (after - before) * 1000 / requests
    return median(walls), max(walls), median(cpus), server
