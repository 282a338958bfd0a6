# SPDX-License-Identifier: Apache-2.0
"""Worker threads: what each does is told, and one that is stuck is replaced."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.service.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

Job = SimpleQueue[str]


class Jobs:
    """A pool whose jobs run until the test lets them end."""

    def __init__(self, size: int) -> None:
        self.begun: SimpleQueue[Job] = SimpleQueue()
        self.pool: WorkerPool[Job] = WorkerPool("mail", size, self.work)

    def work(self, job: Job) -> None:
        self.begun.put(job)
        if job.get(timeout=30) == "raise":
            raise SystemExit

    def put(self) -> Job:
        job: Job = SimpleQueue()
        self.pool.put(job)
        return job

    def wait_for(self, condition: Callable[[], object]) -> None:
        wait = threading.Event()
        for _ in range(3000):
            if condition():
                return
            wait.wait(0.01)
        pytest.fail("not in time")

    @property
    def doing(self) -> dict[str, Job | None]:
        return {slot.name: slot.job for slot in self.pool.slots}


def test_each_thread_tells_what_it_does_and_since_when() -> None:
    jobs = Jobs(2)
    jobs.pool.start()
    assert jobs.doing == {"mail-1": None, "mail-2": None}
    job = jobs.put()
    assert jobs.begun.get(timeout=30) is job
    assert sorted(jobs.doing.values(), key=str) == sorted([job, None], key=str)
    (busy,) = (slot for slot in jobs.pool.slots if slot.job is not None)
    assert busy.since > 0
    job.put("end")
    jobs.wait_for(lambda: not any(jobs.doing.values()))
    jobs.pool.stop()
    jobs.wait_for(lambda: not jobs.pool.slots)


def test_a_stuck_thread_is_replaced_and_ends_with_its_job() -> None:
    jobs = Jobs(1)
    jobs.pool.start()
    stuck = jobs.put()
    jobs.begun.get(timeout=30)
    (slot,) = jobs.pool.slots
    first = threading.Event()
    assert jobs.pool.replace(slot.ident, first.set) == "mail-1"
    assert first.wait(30)
    after = jobs.put()
    assert jobs.begun.get(timeout=30) is after
    assert jobs.doing == {"mail-1": stuck, "mail-2": after}
    assert [slot.stuck for slot in jobs.pool.slots] == [True, False]
    stuck.put("end")
    jobs.wait_for(lambda: jobs.doing == {"mail-2": after})
    after.put("end")
    jobs.pool.stop()
    jobs.wait_for(lambda: not jobs.pool.slots)


def test_no_error_ends_a_thread() -> None:
    jobs = Jobs(1)
    jobs.pool.start()
    (slot,) = jobs.pool.slots
    for _ in range(2):
        job = jobs.put()
        jobs.begun.get(timeout=30)
        job.put("raise")
    jobs.wait_for(lambda: slot.ident and slot.job is None)

    def fail() -> None:
        raise ValueError

    jobs.pool.replace(slot.ident, fail)
    jobs.put().put("end")
    jobs.begun.get(timeout=30)
    jobs.pool.stop()
