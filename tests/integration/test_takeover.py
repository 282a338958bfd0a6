# SPDX-License-Identifier: Apache-2.0
"""Who runs a task when its worker, or its connection, is lost: taken over, fenced off, adopted.

A service in a process namespace of its own cannot see the pids of others, nor they its: for them it
is on another machine, and only its lease says whether it lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import publish_message
from devtools.process import children_of
from tests.conftest import missing
from tests.integration.test_service import run
from tests.processes import ServiceProcess, carrot, constants, spawn, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from devtools.servers import RabbitMQ
    from tests.conftest import Broker
    from tests.processes import Launch

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

#: Seconds. The reaper looks often, too.
QUICK = {
    **carrot(lease=2),
    **constants({"service.relay.INTERVAL": 0.5, "service.relay.REAP_INTERVAL": 0.5}),
}
IN_PROGRESS = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)


@pytest.fixture(scope="module")
def broker_url(private_broker: RabbitMQ) -> str:
    """Some of these tests cut connections."""
    return private_broker.url


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Making a process namespace needs root, and a container may forbid it even then."""
    program = shutil.which("unshare")
    command = [program or "unshare", "--pid", "--fork", "--mount-proc", "true"]
    if program is None or subprocess.run(command, check=False, capture_output=True).returncode:
        missing("process namespaces cannot be made here: that needs root, and unshare")


@pytest.fixture
def launch(namespaces: None) -> Launch:
    """Every service is on a machine of its own."""
    return partial(spawn, inside=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])


def inner_pid(service: ServiceProcess) -> int:
    """Of the service itself, as seen from here; the process that was started is ``unshare``."""
    (pid,) = children_of(service.process.pid)
    return pid


def messages(broker: RabbitMQ) -> int:
    """All messages of queue default, also unacknowledged ones."""
    lines = broker.ctl("list_queues", "-p", broker.name, "name", "messages").splitlines()
    # A broker that is busy may leave a queue out of its list: not known is not empty.
    found = (int(line.split()[1]) for line in lines if line.split()[:1] == ["default"])
    return next(found, -1)


def row_of(log: MessageLog) -> MessageLog:
    return MessageLog.objects.get(pk=log.pk)


def holder(log: MessageLog, services: Sequence[ServiceProcess]) -> list[ServiceProcess]:
    """The services, with the one first that runs the task."""
    wait_until(IN_PROGRESS.exists)
    worker = row_of(log).worker
    return sorted(services, key=lambda service: worker not in service.log)


def test_another_machine_takes_over_when_the_lease_has_ended(
    start_service: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    services = [start_service(**QUICK), start_service(**QUICK)]
    row = publish_message(tasks.wait_for_file, str(tmp_path / "file"), 60)
    first, second = holder(row, services)
    worker = row_of(row).worker
    os.kill(inner_pid(first), signal.SIGKILL)
    first.process.wait(10)
    # The broker delivers the message again at once; the lease says that the row is in good hands.
    wait_until(lambda: row_of(row).worker != worker, 20)
    (tmp_path / "file").touch()
    done = run(row)
    assert (done.attempts, done.crashes) == (2, 1)
    assert ledger() == ["saw the file"]
    os.kill(inner_pid(second), signal.SIGTERM)
    assert second.ends() == 0
    assert broker.depth("default") == 0
    assert not Worker.objects.exists()


def test_a_worker_that_stood_still_beyond_its_lease_writes_nothing_and_works_on(
    start_service: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    services = [start_service(**QUICK), start_service(**QUICK)]
    row = publish_message(tasks.wait_for_file, str(tmp_path / "file"), 60)
    first, second = holder(row, services)
    worker = row_of(row).worker
    os.kill(inner_pid(first), signal.SIGSTOP)
    wait_until(lambda: row_of(row).worker != worker, 30)
    assert not Worker.objects.filter(name=worker).exists()
    (tmp_path / "file").touch()
    done = run(row)
    os.kill(inner_pid(first), signal.SIGCONT)

    # It was about to see the file, too, and its result comes too late.
    first.wait_for("1 of 1 ended tasks had been taken over")
    assert Counter(ledger()) == {"saw the file": 2}
    after = row_of(row)
    assert (after.attempts, after.crashes) == (2, 1)
    assert (after.worker, after.completion_time) == (done.worker, done.completion_time)
    # It is known again, by its name, and works.
    wait_until(lambda: Worker.objects.filter(name=worker).exists())
    os.kill(inner_pid(second), signal.SIGTERM)
    assert second.ends() == 0
    assert run(publish_message(tasks.echo)).worker == worker
    os.kill(inner_pid(first), signal.SIGTERM)
    assert first.ends() == 0
    assert broker.depth("default") == 0
    assert not Worker.objects.exists()


def test_a_row_in_custody_is_rung_again_when_its_worker_dies_later(
    start_service: StartService,
    broker: Broker,
    private_broker: RabbitMQ,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    """A second message of the row is acknowledged by another machine while the first runs."""
    first = start_service("--no-scheduler", **{**QUICK, **carrot(lease=2, ack_deadline=0.4)})
    row = publish_message(tasks.wait_for_file, str(tmp_path / "file"), 60)
    wait_until(IN_PROGRESS.exists)
    worker = row_of(row).worker
    second = start_service("--no-scheduler", **QUICK)
    broker.send("default", b"{}", message_id=str(row.pk), headers={"type": row.task})
    # Both messages are gone; nobody but the database knows of the task.
    wait_until(lambda: messages(private_broker) == 0, every=0.5)
    assert row_of(row).worker == worker
    os.kill(inner_pid(first), signal.SIGKILL)
    second.wait_for("1 tasks of workers that died are published again")
    (tmp_path / "file").touch()
    done = run(row)
    assert (done.attempts, done.crashes) == (2, 1)
    assert ledger() == ["saw the file"]
    os.kill(inner_pid(second), signal.SIGTERM)
    assert second.ends() == 0
    assert broker.depth("default") == 0
