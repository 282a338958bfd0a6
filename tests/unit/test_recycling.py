# SPDX-License-Identifier: Apache-2.0
"""When a process has had its day."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.task import Clock

from carrot_twisted import processes
from carrot_twisted.service.recycling import INTERVAL, MAX_STUCK, Recycling


class Process:
    """Two queues, and what the process is told."""

    def __init__(self, **limits: int | None) -> None:
        self.clock = Clock()
        self.reasons: list[str] = []
        self.queues: list[Any] = [self._queue() for _ in range(2)]
        self.recycling = Recycling(
            dispatchers=cast("Any", self.queues),
            reactor=self.clock,
            on_due=self.reasons.append,
            **{"max_tasks": None, "max_memory": None, **limits},
        )

    def _queue(self) -> Any:
        threads = [SimpleNamespace(stuck=False) for _ in range(8)]
        return SimpleNamespace(
            finished=0,
            all=threads,
            threads=lambda: threads,
            on_finished=lambda: None,
            on_stuck=lambda: None,
        )

    def finish(self, queue: int, count: int) -> None:
        self.queues[queue].finished += count
        self.queues[queue].on_finished()

    def get_stuck(self, queue: int, thread: int) -> None:
        self.queues[queue].all[thread].stuck = True
        self.queues[queue].on_stuck()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How much is in use; the test changes it."""
    used = [100.0]
    monkeypatch.setattr(processes, "memory", lambda: used[0])
    return used


def test_without_limits_nothing_is_looked_at(memory: list[float]) -> None:
    process = Process()
    process.recycling.start()
    process.finish(0, 10**9)
    memory[0] = 1e9
    assert process.clock.getDelayedCalls() == []
    assert (process.recycling.refusal(), process.reasons) == (None, [])


def test_tasks_of_all_queues_count_and_it_is_told_once() -> None:
    process = Process(max_tasks=10)
    process.finish(0, 5)
    process.finish(1, 4)
    assert process.reasons == []
    process.finish(1, 3)
    process.finish(0, 1)
    assert process.reasons == ["it has run 12 tasks (--max-tasks=10)"]


def test_memory_is_looked_at_from_time_to_time(memory: list[float]) -> None:
    process = Process(max_memory=200)
    process.recycling.start()
    process.clock.advance(INTERVAL)
    memory[0] = 200.0
    process.clock.advance(INTERVAL)
    assert process.reasons == []
    memory[0] = 201.4
    process.clock.advance(INTERVAL)
    assert process.reasons == ["it uses 201 MB of memory (--max-memory=200)"]
    assert process.clock.getDelayedCalls() == []


def test_a_limit_below_what_the_service_takes_itself_is_refused(memory: list[float]) -> None:
    assert Process(max_memory=100).recycling.refusal() is None
    refusal = Process(max_memory=99).recycling.refusal()
    assert refusal is not None
    assert "takes 100 MB before its first task" in refusal


def test_some_stuck_threads_are_borne_and_more_are_not() -> None:
    process = Process()
    for number in range(MAX_STUCK):
        process.get_stuck(number % 2, number)
    assert process.reasons == []
    # One has ended after all.
    process.queues[0].all[0].stuck = False
    process.get_stuck(0, 6)
    assert process.reasons == []
    process.get_stuck(1, 7)
    assert process.reasons == ["5 of its threads are stuck in tasks"]


def test_a_process_that_ends_anyway_is_not_told_to(memory: list[float]) -> None:
    process = Process(max_tasks=1, max_memory=50)
    process.recycling.start()
    process.recycling.stop()
    process.finish(0, 1)
    process.clock.advance(10)
    assert process.reasons == []
