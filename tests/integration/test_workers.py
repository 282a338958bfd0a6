# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot --workers=2`` as a process with its workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.processes import wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from tests.integration.test_service import StartService
    from tests.processes import ServiceProcess

pytestmark = pytest.mark.once


def children(service: ServiceProcess) -> list[int]:
    """The processes that it has started."""
    text = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def consuming(service: ServiceProcess, count: int) -> None:
    """Wait until so many workers have begun to consume."""
    wait_until(lambda: service.log.count("Consuming queue default") >= count)


def test_workers_share_the_work_come_back_when_killed_and_end_with_one_signal(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service("--workers=2", "--concurrency=1", wait=False)
    consuming(service, 2)
    first, second = children(service)
    go = tmp_path / "go"
    logs = [publish_message(tasks.wait_for_file, str(go)) for _ in range(2)]
    running = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    # One thread each: both of them run one.
    wait_until(lambda: running.values("worker").distinct().count() == 2)
    os.kill(first, signal.SIGKILL)
    service.wait_for("has ended with signal 9. It is started again in 1 s")
    consuming(service, 3)
    assert second in children(service)
    go.touch()
    wait_until(lambda: all(_completed(log) for log in logs))
    workers = children(service)
    assert len(workers) == 2
    assert service.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "[worker 2] [carrot_twisted" in service.log


def test_workers_end_with_the_process_that_watches_over_them(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service("--workers=2", "--concurrency=1", wait=False)
    consuming(service, 2)
    workers = children(service)
    go = tmp_path / "go"
    log = publish_message(tasks.wait_for_file, str(go))
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.IN_PROGRESS).exists())
    service.kill()
    # A running task may end.
    go.touch()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert _completed(log)


def test_a_supervisor_that_signals_every_process_has_running_tasks_end(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service("--workers=2", "--concurrency=1", wait=False)
    consuming(service, 2)
    go = tmp_path / "go"
    log = publish_message(tasks.wait_for_file, str(go))
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.IN_PROGRESS).exists())
    for pid in (*children(service), service.process.pid):
        os.kill(pid, signal.SIGTERM)
    # Each worker has had it twice by then.
    wait_until(lambda: service.log.count("Stopping on request") >= 3)
    go.touch()
    assert service.ends() == 0
    assert _completed(log)
    assert log.attempts == 1


def test_a_second_signal_to_them_all_ends_them_at_once(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service("--workers=2", "--concurrency=1", wait=False)
    consuming(service, 2)
    log = publish_message(tasks.wait_for_file, str(tmp_path / "never"))
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.IN_PROGRESS).exists())
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("Stopping on request")
    service.process.send_signal(signal.SIGTERM)
    assert service.ends() == 0
    log.refresh_from_db()
    assert log.status == MessageLog.PUBLISHED


def test_a_wrong_configuration_is_told_and_ends_them_all(start_service: StartService) -> None:
    service = start_service("--workers=2", "--queue=unheard", wait=False)
    assert service.ends() == 78
    assert "unheard" in service.log


def _completed(log: MessageLog) -> bool:
    log.refresh_from_db()
    return log.status == MessageLog.COMPLETED
