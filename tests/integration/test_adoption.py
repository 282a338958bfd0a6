# SPDX-License-Identifier: Apache-2.0
"""The connection is lost under a running task: its message comes again, to the same process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.integration.test_service import run
from tests.integration.test_takeover import messages
from tests.processes import carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devtools.servers import RabbitMQ
    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]


@pytest.fixture(scope="module")
def broker_url(private_broker: RabbitMQ) -> str:
    """These tests cut connections."""
    return private_broker.url


@pytest.mark.once
@pytest.mark.parametrize("how", ["running", "in custody"])
def test_a_task_whose_connection_was_lost_while_it_ran_is_executed_once(
    how: str,
    start_service: StartService,
    private_broker: RabbitMQ,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    custody = carrot(ack_deadline=0.4) if how == "in custody" else {}
    service = start_service(CARROT_TEST_CONCURRENCY="2", **custody)
    row = publish_message(tasks.wait_for_file, str(tmp_path / "file"), 120)
    running = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    wait_until(running.exists)
    if how == "in custody":
        wait_until(lambda: messages(private_broker) == 0, every=0.5)
    for _ in range(2):
        private_broker.ctl("close_all_connections", "--global", "spring cleaning")
        # The other thread works: the messages have come again by now.
        assert run(publish_message(tasks.echo)).attempts == 1
    assert messages(private_broker) == (0 if how == "in custody" else 1)
    (tmp_path / "file").touch()
    done = run(row)

    assert (done.status, done.attempts, done.crashes) == (MessageLog.COMPLETED, 1, 0)
    assert ledger() == ["saw the file"]
    wait_until(lambda: messages(private_broker) == 0, every=0.5)
    assert service.stop() == 0
    assert ledger() == ["saw the file"]
