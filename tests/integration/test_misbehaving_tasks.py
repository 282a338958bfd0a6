# SPDX-License-Identifier: Apache-2.0
"""Tasks that misbehave, in a running service: they cost themselves, and nobody else."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import finished, run
from tests.processes import carrot, constants, wait_until
from tests.project import misbehaving, tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]

RECYCLED = 75


def effects(count: int, pause: float = 0.0) -> list[MessageLog]:
    """Publish so many tasks, each of which leaves its number in the ledger."""
    return publish_many(
        [create_message(tasks.effect, task_args=[str(n), pause]) for n in range(count)]
    )


def stuck_after(seconds: float) -> dict[str, str]:
    """The environment of a service that gives up threads so soon."""
    return constants(
        {"service.time_keeper.STUCK_AFTER": seconds, "service.time_keeper.REPEAT": seconds / 4}
    )


def numbers(ledger: Ledger) -> Counter[str]:
    return Counter(line for line in ledger() if line.isdigit())


def worker_threads() -> list[str]:
    """Of queue ``default``."""
    names = (run(publish_message(misbehaving.thread_names)).output or "").split()
    return [name for name in names if name.startswith("default-")]


def each_once(count: int) -> Counter[str]:
    return Counter({str(n): 1 for n in range(count)})


@pytest.mark.once
def test_a_task_that_runs_too_long_fails_and_leaves_its_thread_to_the_next(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service(
        "--concurrency=2",
        **carrot(time_limit=0.4),
        **constants({"service.time_keeper.REPEAT": 0.2, "service.process_end.LAST_MOMENT": 0.5}),
    )
    threads = worker_threads()
    cases = [
        misbehaving.loop,
        misbehaving.loop_that_goes_on,
        misbehaving.swallow_once,
        misbehaving.sleep_in_a_loop,
        misbehaving.await_for_ever,
        misbehaving.loop_without_awaiting,
        misbehaving.await_synchronous_loop,
    ]
    rows = publish_many([create_message(case) for case in cases])
    tidy = publish_message(misbehaving.tidy_up)
    unlimited = publish_message(misbehaving.unlimited, 0.6)
    default = publish_message(tasks.effect, "late", 0.6)
    for case, row in zip(cases, finished(rows), strict=True):
        assert (row.status, row.attempts) == (MessageLog.FAILED, 1), row.task
        assert row.exception == "time limit of 0.3 s exceeded", (row.task, row.traceback)
        assert "TimeLimitExceeded: time limit of 0.3 s exceeded" in (row.traceback or "")
        assert f"in {case.__name__}\n" in (row.traceback or "")
        assert row.run_time is not None
        assert row.run_time.total_seconds() > 0.29
    done = run(tidy)
    assert (done.status, done.output) == (
        MessageLog.COMPLETED,
        "tidied up: time limit of 0.3 s exceeded",
    )
    assert run(unlimited).output == "took its time"
    assert run(default).exception == "time limit of 0.4 s exceeded"
    assert sorted(ledger()) == ["cancelled", "swallowed"]
    # The same threads, and none beside them.
    assert worker_threads() == threads == ["default-1", "default-2"]
    assert "stuck" not in service.log
    # Threads that a task leaves behind do not hold up the end, either.
    assert run(publish_message(misbehaving.leave_threads)).status == MessageLog.COMPLETED
    assert service.stop(20) == 0


@pytest.mark.once
def test_a_stuck_thread_is_replaced_and_what_it_does_in_the_end_counts_no_more(
    start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    service = start_service("--queue=default", "--concurrency=2", **stuck_after(0.4))
    lock = publish_message(misbehaving.wait_for_lock)
    pipe = publish_message(misbehaving.read_pipe, str(tmp_path / "pipe"))
    for row, place in zip(finished([lock, pipe]), ("wait_for_lock", "open"), strict=True):
        assert row.status == MessageLog.FAILED
        text = row.exception or ""
        assert text.startswith("time limit of 0.3 s exceeded; the thread is stuck in "), text
        assert f"stuck in {place} (" in text
        assert "Where the thread is stuck" in (row.traceback or "")
        assert f"in {row.task.rpartition('.')[2]}\n" in (row.traceback or "")
        assert "execution.py" not in (row.traceback or "")
        assert f"is stuck in task {row.task} ({row.pk})" in service.log
    # As many tasks at once as before.
    waiting = [publish_message(tasks.wait_for_file, str(tmp_path / "go")) for _ in range(2)]
    running = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    wait_until(lambda: running.count() == 2)
    (tmp_path / "go").touch()
    finished(waiting)
    assert worker_threads() == [f"default-{n}" for n in range(1, 5)]

    os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
    wait_until(lambda: "woke up" in ledger())
    wait_until(lambda: len(worker_threads()) == 3)
    after = run(pipe)
    assert (after.status, after.output, after.attempts) == (MessageLog.FAILED, None, 1)
    # The thread that waits for the lock holds nothing up.
    assert service.stop() == 0
    assert not Worker.objects.exists()


@pytest.mark.once
def test_with_too_many_stuck_threads_a_fresh_process_takes_over(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service(CARROT_TEST_CONCURRENCY="5", **stuck_after(0.3))
    rows = [publish_message(misbehaving.wait_for_lock) for _ in range(5)]
    service.wait_for("5 of its threads are stuck")
    rest = effects(20)
    assert service.ends() == RECYCLED
    assert {row.status for row in finished(rows)} == {MessageLog.FAILED}
    start_service()
    assert {row.status for row in finished(rest)} == {MessageLog.COMPLETED}
    assert numbers(ledger) == each_once(20)


@pytest.mark.once
def test_a_service_that_has_run_enough_tasks_ends_without_loss(
    start_service: StartService, ledger: Ledger
) -> None:
    rows = effects(60, 0.02)
    service = start_service("--max-tasks=30")
    assert service.ends() == RECYCLED
    assert "--max-tasks=30" in service.log
    assert not Worker.objects.exists()
    last = start_service()
    done = finished(rows)
    assert {(row.status, row.attempts, row.crashes) for row in done} == {
        (MessageLog.COMPLETED, 1, 0)
    }
    assert numbers(ledger) == each_once(60)
    assert len({row.worker for row in done}) == 2
    assert last.stop() == 0


@pytest.mark.once
def test_a_service_that_uses_too_much_memory_ends_without_loss(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service("--max-memory=250")
    hog = publish_message(misbehaving.hog, 250)
    rows = effects(40, 0.02)
    assert service.ends() == RECYCLED
    assert "--max-memory=250" in service.log
    start_service("--max-memory=250")
    assert {row.status for row in finished([hog, *rows])} == {MessageLog.COMPLETED}
    assert numbers(ledger) == each_once(40)


@pytest.mark.once
def test_floods_of_lines_and_enormous_results_are_cut_and_take_no_memory(
    start_service: StartService,
) -> None:
    start_service()
    before = int(run(publish_message(misbehaving.peak)).output or "")
    flood = run(publish_message(misbehaving.flood, 20_000))
    lines = (flood.log or "").splitlines()
    assert flood.status == MessageLog.COMPLETED
    assert lines[0].endswith("INFO:: line 0")
    assert lines[-1].endswith("INFO:: line 19999")
    (cut,) = [line for line in lines if line.startswith("… (cut: ")]
    assert cut.startswith(f"… (cut: {20_000 - len(lines) + 1} lines, ")
    after = int(run(publish_message(misbehaving.peak)).output or "")
    assert after < before + 10_000

    large = run(publish_message(misbehaving.large_result, 100))
    assert large.status == MessageLog.COMPLETED
    assert large.output is not None
    assert len(large.output) < 66_000
    assert large.output.endswith("(cut: 104792064 of 104857600 characters)")


def test_a_connection_that_a_task_leaves_in_disorder_is_not_the_next_tasks(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service("--concurrency=1")
    keys: list[str] = []
    for spoil in (
        create_message(misbehaving.close_connection, task_args=[False]),
        create_message(misbehaving.close_connection, task_args=[True]),
        create_message(misbehaving.raw_begin),
        create_message(misbehaving.autocommit_off),
        create_message(tasks.leak_transaction),
    ):
        key = f"after {len(keys)}"
        spoiled, writing = publish_many(
            [spoil, create_message(tasks.publish_another, task_args=[key])]
        )
        done = finished([spoiled, writing])
        assert done[1].status == MessageLog.COMPLETED
        # Its row was committed: the test sees it, and it runs.
        run(MessageLog.objects.get(pk=done[1].output or ""))
        keys.append(key)
    assert ledger() == keys
    assert service.stop() == 0


@pytest.mark.once
def test_a_task_that_stops_the_interpreter_delays_the_others_and_is_reported(
    start_service: StartService, broker_url: str, ledger: Ledger
) -> None:
    port = urlsplit(broker_url).port or 5672
    service = start_service(
        **constants({"service.reactor_watch.SILENCE": 0.5, "service.reactor_watch.INTERVAL": 0.5})
    )
    rows = effects(50, 0.01)
    hog = publish_message(misbehaving.hold_gil, 2500, port)
    service.wait_for("The reactor was silent for")
    done = finished([hog, *rows])
    assert {(row.status, row.attempts) for row in done} == {(MessageLog.COMPLETED, 1)}
    assert numbers(ledger) == each_once(50)
    assert [line for line in ledger() if not line.isdigit()] == ["holds", "held"]
    # The stacks, written while nothing else could be.
    assert "Timeout (0:00:01)!" in service.log
    assert "in hold_gil" in service.log.partition("The reactor was silent")[0]
    assert "Lost the connection" in service.log
    assert service.stop() == 0
