# SPDX-License-Identifier: Apache-2.0
"""Broker and database go away while tasks run: a delay, never a loss, never a failure."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from django.db import connections

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import finished, run
from tests.processes import wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from devtools.servers import PostgreSQL, RabbitMQ
    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]


@pytest.mark.defect(10)
def test_a_broker_killed_under_load_loses_nothing_and_runs_nothing_twice(
    private_broker: RabbitMQ, start_service: StartService, ledger: Ledger
) -> None:
    service = start_service(CARROT_BROKER_URL=private_broker.url)
    private_broker.sync()
    rows = publish_many(
        [create_message(tasks.effect, task_args=[str(n), 0.02]) for n in range(300)]
    )
    wait_until(lambda: len(ledger()) > 50)
    private_broker.kill()
    service.wait_for("Lost the connection")
    meanwhile = [publish_message(tasks.effect, f"late {n}") for n in range(5)]
    private_broker.start()
    done = finished([*rows, *meanwhile], 90)

    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert {row.attempts for row in done} == {1}
    assert Counter(ledger()) == Counter(
        [*(str(n) for n in range(300)), *(f"late {n}" for n in range(5))]
    )
    assert service.stop() == 0


@pytest.mark.only("postgres")
@pytest.mark.defect(11)
def test_a_database_restart_under_load_fails_no_task(
    request: pytest.FixtureRequest, start_service: StartService, ledger: Ledger
) -> None:
    postgres: PostgreSQL = request.getfixturevalue("postgres")
    service = start_service()
    rows = publish_many(
        [create_message(tasks.effect, task_args=[str(n), 0.02]) for n in range(300)]
        + [create_message(tasks.database_threads) for _ in range(50)]
    )
    wait_until(lambda: len(ledger()) > 50)
    connections.close_all()
    postgres.stop("immediate")
    service.wait_for("The database is away")
    stopped_at = len(ledger())
    # What was running is done; nothing new starts without its claim.
    with pytest.raises(AssertionError):
        wait_until(lambda: len(ledger()) > stopped_at + 40, 2.0)
    postgres.start()
    service.wait_for("The database is back")
    done = finished(rows, 60)

    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert Counter(ledger()) == Counter(str(n) for n in range(300))
    assert service.stop() == 0
    assert "Traceback" not in service.log


@pytest.mark.only("sqlite")
@pytest.mark.defect(13)
def test_a_database_lock_held_by_another_process_fails_no_task(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        own = connections["default"]
        with own.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            held.set()
            release.wait(30)
            cursor.execute("ROLLBACK")
        own.close()

    rows = publish_many(
        [create_message(tasks.effect, task_args=[str(n), 0.02]) for n in range(100)]
    )
    wait_until(lambda: len(ledger()) > 10)
    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    with pytest.raises(AssertionError):
        wait_until(lambda: False, 3.0)
    release.set()
    holder.join()
    done = finished(rows, 60)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert Counter(ledger()) == Counter(str(n) for n in range(100))
    assert service.stop() == 0


def test_two_services_share_the_work_and_each_task_runs_once(
    start_service: StartService, ledger: Ledger
) -> None:
    services = [start_service(), start_service()]
    rows = publish_many(
        [create_message(tasks.effect, task_args=[str(n), 0.01]) for n in range(400)]
    )
    done = finished(rows, 60)
    assert Counter(ledger()) == Counter(str(n) for n in range(400))
    assert len({row.worker for row in done}) == 2
    services[0].kill()
    assert run(publish_message(tasks.effect, "after")).status == MessageLog.COMPLETED
    assert services[1].stop() == 0
