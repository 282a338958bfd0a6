# SPDX-License-Identifier: Apache-2.0
"""``async def`` tasks in a running service: many at a time, off the worker threads."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import finished, run
from tests.processes import carrot, constants, wait_until
from tests.project import coroutines, tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]


@pytest.mark.once
def test_five_hundred_that_wait_run_at_once_beside_one_thread(start_service: StartService) -> None:
    queue = {"name": "default", "concurrency": 1, "async_concurrency": 500}
    service = start_service("--queue=default", **carrot(queues=[queue], shutdown_timeout=1))
    rows = publish_many([create_message(coroutines.sleep, task_args=[1]) for _ in range(500)])
    done = finished(rows)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert max(int(row.output or "") for row in done) > 400
    assert run(publish_message(tasks.effect, "thread", 0.0)).output == "did thread"
    # What does not end in time when a service stops runs again elsewhere.
    long = publish_message(coroutines.sleep, 60)
    begun = MessageLog.objects.filter(pk=long.pk, attempts=1)
    wait_until(begun.filter(status=MessageLog.IN_PROGRESS).exists)
    assert service.stop(20) == 0
    assert begun.get().status == MessageLog.PUBLISHED


def test_the_orm_twisted_and_contexts_are_each_tasks_own(start_service: StartService) -> None:
    service = start_service("--queue=default")
    count = 5
    rows = publish_many(
        [create_message(coroutines.everything, task_args=[str(n), count]) for n in range(count)]
    )
    failing = publish_message(coroutines.fail, "on purpose")
    told = []
    for n, row in enumerate(finished(rows)):
        assert row.status == MessageLog.COMPLETED, row.traceback
        said = ast.literal_eval((row.output or "").replace("true", "True"))
        told.append(said.pop("connection"))
        assert said == {
            "before": "nothing",
            "after": str(n),
            "same": True,
            "rows": count,
            "twisted": ["late", "invalid literal for int() with base 10: 'no number'"],
        }
        lines = (row.log or "").splitlines()
        assert [line.partition(":: ")[2] for line in lines] == [
            f"begins {n}",
            *[f"in the thread of {n}"] * 2,
        ]
    # Each had a connection of its own while all were under way.
    assert len(set(told)) == count
    failed = run(failing)
    assert (failed.status, failed.exception) == (MessageLog.FAILED, "on purpose")
    assert "in fail\n" in (failed.traceback or "")
    assert "about to fail" in (failed.log or "")
    assert service.stop(20) == 0


@pytest.mark.once
def test_a_blocked_loop_is_told_and_another_one_goes_on(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service(
        "--queue=default",
        **carrot(lease=4.0),
        **constants(
            {
                "service.event_loop.BLOCKED_AFTER": 0.5,
                "service.event_loop.INTERVAL": 0.2,
                "service.time_keeper.STUCK_AFTER": 1.5,
                "service.time_keeper.REPEAT": 0.2,
            }
        ),
    )
    swallowing = publish_message(coroutines.swallows)
    never = run(publish_message(coroutines.never_awaits))
    assert (never.status, never.exception) == (MessageLog.FAILED, "time limit of 0.3 s exceeded")
    text = run(swallowing).exception or ""
    assert text.startswith("time limit of 0.3 s exceeded; the coroutine is stuck in sleep (")
    assert f"is stuck in task {swallowing.task} ({swallowing.pk})" in service.log
    blocker = publish_message(coroutines.block, str(tmp_path / "go"))
    service.wait_for(f"Task tests.project.coroutines.block ({blocker.pk}) holds up all coroutines")
    assert "time.sleep(0.01)" in service.log
    assert int(run(publish_message(coroutines.sleep, 0)).output or "") == 1

    def shown() -> list[bool]:
        return [
            one["stuck"]
            for worker in Worker.objects.all()
            for one in worker.state["running"]
            if one["uuid"] == str(blocker.pk) and one["coroutine"]
        ]

    wait_until(lambda: shown() == [True])
    (tmp_path / "go").touch()
    assert run(blocker).output == "was in the way"
    assert service.stop(20) == 0
