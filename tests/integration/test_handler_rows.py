# SPDX-License-Identifier: Apache-2.0
"""Rows of handled messages, in a running service: beside the messages, never in their way."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings as django_settings
from django.db import connection

from carrot_twisted.models import MessageLog
from tests.integration.test_database_outages import Limited, no_connections
from tests.integration.test_handlers import SETTINGS, archive, delete_queues, queue, send
from tests.processes import ServiceProcess, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devtools.servers import PostgreSQL
    from tests.conftest import Broker

StartService = Callable[..., ServiceProcess]


@pytest.fixture
def start(start_service: StartService, broker_url: str) -> Iterator[StartService]:
    """Start a service with some of the tests' handlers."""
    delete_queues(broker_url)

    def started(*names: str, log: str = "failures", **environment: str) -> ServiceProcess:
        handlers = {**SETTINGS, "max_retries": 1, "log": log}
        service = start_service(
            "--no-scheduler",
            *(f"--queue={queue(name)}" for name in names),
            wait=False,
            **{
                "CARROT_TEST_HANDLERS": "1",
                "CARROT_TEST_SETTINGS": json.dumps({"handlers": handlers}),
                **environment,
            },
        )
        for name in names:
            service.wait_for(f"Consuming queue handled.{name} ")
        return service

    yield started
    delete_queues(broker_url)


def rows() -> list[tuple[Any, ...]]:
    fields = ("status", "task", "queue", "content", "exception", "attempts")
    return sorted(MessageLog.objects.values_list(*fields))


def row(status: str, name: str, content: Any, exception: str | None, attempts: int = 1) -> Any:
    task = f"tests.project.handlers.{name}"
    return (status, task, queue(name), json.dumps(content), exception, attempts)


def test_each_message_has_a_row_at_its_end(start: StartService, broker: Broker) -> None:
    service = start("ok", "fail", "refuse", log="all")
    send(broker, "ok", {"n": 1})
    send(broker, "fail", 2)
    send(broker, "refuse", 3)
    wait_until(lambda: len(rows()) == 3)
    assert rows() == [
        row("COMPLETED", "ok", {"n": 1}, None),
        row("FAILED", "fail", 2, "ValueError: no good: 2", 2),
        row("FAILED", "refuse", 3, "PermanentFailure: never"),
    ]
    failed = MessageLog.objects.get(queue=queue("refuse"))
    assert 'raise PermanentFailure("never")' in (failed.traceback or "")
    assert service.stop() == 0


def test_by_default_only_what_is_archived_has_one_and_a_stop_writes_it(
    start: StartService, broker: Broker
) -> None:
    service = start("ok", "fail", "refuse")
    for number in range(20):
        send(broker, "ok", number)
        send(broker, "refuse", number)
    wait_until(lambda: broker.depth(archive("refuse")) == 20)
    assert service.stop() == 0
    assert {one[:2] for one in rows()} == {("FAILED", "tests.project.handlers.refuse")}
    assert len(rows()) == 20


@pytest.mark.only("sqlite")
def test_while_the_database_is_away_a_message_is_settled_and_its_row_waits(
    start: StartService, broker: Broker, tmp_path: Path
) -> None:
    service = start("wait", log="all", CARROT_TEST_SQLITE_TIMEOUT="0.1")
    send(broker, "wait", "fail", headers={"x-retry-count": 1})
    wait_until(lambda: (tmp_path / "ledger").exists())
    locked = sqlite3.connect(django_settings.DATABASES["default"]["NAME"], isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    service.wait_for("The database is away")
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: broker.depth(archive("wait")) == 1)
    assert rows() == []
    locked.execute("ROLLBACK")
    locked.close()
    wait_until(lambda: len(rows()) == 1)
    assert rows() == [row("FAILED", "wait", "fail", "ValueError: as told", 2)]
    assert service.stop() == 0
    assert broker.depth(queue("wait")) == 0


@pytest.mark.only("postgres")
def test_a_database_that_never_comes_back_costs_the_row_and_not_the_message(
    start: StartService, postgres: PostgreSQL, broker: Broker, tmp_path: Path
) -> None:
    user = Limited(postgres)
    service = start("wait", log="all", CARROT_DATABASE_URL=user.url)
    send(broker, "wait", "fail", headers={"x-retry-count": 1})
    wait_until(lambda: (tmp_path / "ledger").exists())
    no_connections(user)
    service.wait_for("The database is away")
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: broker.depth(archive("wait")) == 1)
    assert service.stop() == 0
    assert "1 records are not written" in service.log
    assert broker.depth(queue("wait")) == 0
    user.alter("CONNECTION LIMIT -1")


@pytest.mark.only("sqlite")
def test_rows_that_the_database_refuses_are_told_and_cost_nothing_else(
    start: StartService, broker: Broker
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER strict BEFORE INSERT ON carrot_twisted_messagelog "
            "WHEN NEW.content <> '1' BEGIN SELECT RAISE(ABORT, 'only ones'); END"
        )
        try:
            service = start("refuse")
            for number in range(3):
                send(broker, "refuse", number)
            wait_until(lambda: broker.depth(archive("refuse")) == 3)
            assert service.stop() == 0
        finally:
            cursor.execute("DROP TRIGGER strict")
    assert [one[3] for one in rows()] == ["1"]
    assert "2 handled messages have no row in the MessageLog: only ones" in service.log
    assert broker.depth(queue("refuse")) == 0
