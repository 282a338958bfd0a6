# SPDX-License-Identifier: Apache-2.0
"""Paused queues, and workers that are to be quiet or to stop: running services obey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted import housekeeping, publisher
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import publish_message
from tests.processes import carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Broker
    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]

pytestmark = pytest.mark.only("postgres")
#: A heartbeat each half a second.
QUICK = carrot(lease=2)
#: All that is waiting for a thread is held by the service.
FULL = {"CARROT_TEST_CONCURRENCY": "1"}


def status(row: MessageLog) -> str:
    row.refresh_from_db()
    return row.status


def ended(row: MessageLog) -> bool:
    return status(row) == MessageLog.COMPLETED


def state() -> dict[str, Any]:
    """Of the one worker."""
    return dict(Worker.objects.values_list("state", flat=True).get())


def test_nothing_is_taken_off_a_paused_queue_and_what_runs_ends(
    start_service: StartService, broker: Broker, tmp_path: Path
) -> None:
    service = start_service(**QUICK, **FULL)
    go = tmp_path / "go"
    running = publish_message(tasks.wait_for_file, str(go), seconds=60)
    wait_until(lambda: status(running) == MessageLog.IN_PROGRESS)
    waiting = [publish_message(tasks.echo, n) for n in range(20)]
    assert publisher.flush(10)

    housekeeping.pause_queue("default", by="ada", reason="a test")
    # Also what the service held already, delivered or claimed, waits at the broker again.
    wait_until(lambda: broker.depth("default") == len(waiting), what="all given back")
    later = publish_message(tasks.echo, "published while it is paused")
    other = publish_message(tasks.echo, queue="other")
    wait_until(lambda: ended(other), what="another queue goes on")
    go.touch()
    wait_until(lambda: ended(running), what="what runs ends")
    assert {(status(one), one.attempts) for one in (*waiting, later)} == {("PUBLISHED", 0)}
    assert state()["problems"] == []

    # A service that starts now is ready, and takes nothing.
    assert service.stop() == 0
    assert broker.depth("default") == len(waiting) + 1
    service = start_service(wait=False, **QUICK, **FULL)
    service.wait_for("Queue default is paused, as operators want")
    service.wait_for("Consuming queue other")
    wait_until(lambda: state().get("problems") == [], what="no problem is told")
    assert broker.depth("default") == len(waiting) + 1
    housekeeping.resume_queue("default")
    wait_until(lambda: all(ended(one) for one in (*waiting, later)), what="all run")
    assert {one.attempts for one in waiting} == {1}
    assert service.stop() == 0


def test_a_cancelled_task_is_acknowledged_and_never_runs(
    start_service: StartService, broker: Broker, ledger: Callable[[], list[str]]
) -> None:
    rows = [publish_message(tasks.effect, str(n)) for n in range(3)]
    assert publisher.flush(10)
    assert rows[0].cancel()
    assert housekeeping.cancel_tasks(MessageLog.objects.filter(pk=rows[1].pk)) == 1
    service = start_service()
    wait_until(lambda: ended(rows[2]))
    wait_until(lambda: broker.depth("default") == 0)
    assert service.stop() == 0
    # Nothing went back to the queue, either.
    assert broker.depth("default") == 0 == broker.depth("default.dead")
    assert ledger() == ["2"]
    assert [(status(row), row.attempts) for row in rows[:2]] == [("CANCELLED", 0)] * 2


def test_a_quiet_worker_takes_nothing_more_and_one_that_is_to_stop_ends_as_by_sigterm(
    start_service: StartService, broker: Broker, tmp_path: Path
) -> None:
    service = start_service(**QUICK, **FULL)
    go = tmp_path / "go"
    running = publish_message(tasks.wait_for_file, str(go), seconds=60)
    wait_until(lambda: status(running) == MessageLog.IN_PROGRESS)
    name = Worker.objects.get().name
    housekeeping.quiet_worker(name)
    wait_until(lambda: state().get("quiet"), what="it says so")
    left = publish_message(tasks.echo, queue="other")
    waiting = publish_message(tasks.echo)
    wait_until(lambda: broker.depth("other") == 1 == broker.depth("default"))
    go.touch()
    wait_until(lambda: ended(running), what="what runs ends")
    assert (status(left), status(waiting)) == (MessageLog.PUBLISHED, MessageLog.PUBLISHED)

    housekeeping.unquiet_worker(name)
    wait_until(lambda: ended(left) and ended(waiting))
    wait_until(lambda: not state()["quiet"], what="it says so")

    go.unlink()
    last = publish_message(tasks.wait_for_file, str(go), seconds=60)
    wait_until(lambda: status(last) == MessageLog.IN_PROGRESS)
    housekeeping.stop_worker(name)
    service.wait_for("Stopping; 1 tasks are still running")
    go.touch()
    assert service.ends() == 0
    assert ended(last)
    assert not Worker.objects.exists()
