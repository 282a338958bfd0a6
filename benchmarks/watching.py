# SPDX-License-Identifier: Apache-2.0
"""Looks at a service, again and again, until something has come true."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.failure import BenchmarkFailed
from benchmarks.processes import CpuTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from devtools.process import Process


def watch(
    service: Process,
    ended: Callable[[], bool],
    log_tail: Callable[[], str],
    *,
    look: Callable[[], object] = lambda: None,
    seconds: float = 0.05,
) -> CpuTimes:
    """Return the service's CPU time as it was seen.

    Args:
        service: it must not end.
        ended: whether it has come true.
        log_tail: what to say of a service that has ended.
        look: at more than its CPU time.
        seconds: between two looks.

    Raises:
        BenchmarkFailed: the service ended by itself.
    """
    times = CpuTimes(service.pid)
    while not ended():
        if not service.running:
            raise BenchmarkFailed(f"the service ended by itself. {log_tail()}")
        times.look()
        look()
        time.sleep(seconds)
    return times
