# SPDX-License-Identifier: Apache-2.0
"""Worker threads: what each does is told, and one that is stuck is replaced."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.service import pool as module
from carrot_twisted.service.pool import DaemonThreadPool, WorkerPool
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

Job = SimpleQueue[str]


class Jobs:
    """A pool whose jobs run until the test lets them end."""

    def __init__(self, size: int) -> None:
        self.begun: SimpleQueue[Job] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.reactor = Reactor()
        self.pool: WorkerPool[Job] = WorkerPool("mail", size, self.work, self.reactor)

    def work(self, job: Job) -> None:
        self.threads.append(threading.current_thread())
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
            self.reactor.advance(0)
            if condition():
                return
            wait.wait(0.01)
        pytest.fail("not in time")

    def run(self) -> threading.Thread:
        """A job, from its begin to its end; returns the thread that did it."""
        job = self.put()
        assert self.begun.get(timeout=30) is job
        job.put("end")
        return self.threads[-1]

    def stop(self) -> None:
        """Each thread ends, and nothing else is left either."""
        self.pool.stop()
        self.wait_for(lambda: not self.pool.slots)
        self.wait_for(lambda: not any(thread.is_alive() for thread in self.threads))
        assert self.reactor.getDelayedCalls() == []

    @property
    def doing(self) -> dict[str, Job | None]:
        return {slot.name: slot.job for slot in self.pool.slots}


def test_what_its_threads_have_begun_is_counted_also_when_they_are_gone() -> None:
    jobs = Jobs(2)
    jobs.pool.start()
    for _ in range(3):
        jobs.run()
    assert jobs.pool.begun == 3
    jobs.stop()
    assert jobs.pool.begun == 3


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
    jobs.stop()


def test_a_thread_bears_its_name_and_does_not_hold_up_the_end_of_the_process() -> None:
    jobs = Jobs(1)
    jobs.pool.start()
    thread = jobs.run()
    assert (thread.name, thread.daemon) == ("mail-1", True)
    jobs.stop()


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
    jobs.wait_for(lambda: not jobs.threads[0].is_alive())
    assert jobs.threads[1].name == "mail-2"
    after.put("end")
    jobs.stop()


def test_a_stop_does_not_wait_for_a_stuck_thread() -> None:
    jobs = Jobs(1)
    jobs.pool.start()
    stuck = jobs.put()
    jobs.begun.get(timeout=30)
    jobs.pool.replace(jobs.pool.slots[0].ident, lambda: None)
    jobs.run()
    jobs.pool.stop()
    jobs.wait_for(lambda: jobs.doing == {"mail-1": stuck})
    stuck.put("end")
    jobs.stop()


def test_one_that_has_just_ended_its_job_as_it_is_given_up_ends_with_the_pool() -> None:
    jobs = Jobs(1)
    jobs.pool.start()
    jobs.wait_for(lambda: jobs.pool.slots[0].ident)
    jobs.pool.replace(jobs.pool.slots[0].ident, lambda: None)
    jobs.stop()


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
    jobs.run()
    jobs.stop()


def test_a_thread_that_an_error_has_ended_all_the_same_gets_a_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = Jobs(1)
    told: list[str] = []

    def no_memory(text: str, *_: object, **values: object) -> None:
        if not told:
            told.append("not this one")
            raise MemoryError
        told.append(text.format(**values))

    monkeypatch.setattr(module._log, "failure", no_memory)
    jobs.pool.start()
    job = jobs.put()
    jobs.begun.get(timeout=30)
    job.put("raise")
    jobs.wait_for(lambda: not jobs.pool.slots)
    assert told[1:] == ["Worker thread mail-1 is lost"]
    jobs.reactor.advance(module.RESTART)
    assert jobs.run().name == "mail-2"
    jobs.stop()


def test_where_there_are_no_more_threads_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = Jobs(1)
    told: list[str] = []
    monkeypatch.setattr(module._log, "failure", lambda text, **_: told.append(text))
    jobs.pool.start()
    stuck = jobs.put()
    jobs.begun.get(timeout=30)

    def none_left(*_: object, **__: object) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    first = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(DaemonThreadPool, "threadFactory", none_left)
        assert jobs.pool.replace(jobs.pool.slots[0].ident, first.set) == "mail-1"
    assert len(told) == 1
    assert not first.is_set()
    jobs.reactor.advance(module.RESTART)
    assert first.wait(30)
    assert jobs.run().name == "mail-3"
    stuck.put("end")
    jobs.stop()
