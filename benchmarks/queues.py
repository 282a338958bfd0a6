# SPDX-License-Identifier: Apache-2.0
"""Where tasks and messages wait: what the measures ask of a broker, whichever it is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from benchmarks import processes
from benchmarks.failure import BenchmarkFailed

if TYPE_CHECKING:
    from typing import Self

SECONDS_TO_SETTLE = 10.0


class Queues(ABC):
    """A running broker, in which each system has a queue of its own.

    Args:
        url: where it is.
        pid: its process, where that can be seen.
    """

    def __init__(self, url: str, pid: int | None) -> None:
        self.url = url
        self._pid = pid

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Leave it."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Return the version, and what decides about durability."""

    @abstractmethod
    def delete(self, queue: str) -> None:
        """Delete a queue with all that the systems have beside it."""

    @abstractmethod
    def _waiting(self, queue: str) -> int:
        """Return how many messages wait."""

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that the server has used so far, where it can be seen."""
        return processes.tree_cpu_seconds(self._pid) if self._pid else None

    def expect(self, queue: str, messages: int) -> None:
        """Return when that many messages wait; raise if that does not come true."""
        deadline = time.monotonic() + SECONDS_TO_SETTLE
        while (found := self._waiting(queue)) != messages:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(
                    f"{found:,} messages wait in the queue where {messages:,} should"
                )
            time.sleep(0.05)
