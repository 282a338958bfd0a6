# SPDX-License-Identifier: Apache-2.0
"""Rows of messages with callbacks, and their archive: beside the callbacks, never in their way."""

from __future__ import annotations

import json
import time
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from carrot_twisted.models import MessageLog
from tests.integration.test_callbacks import (
    ARCHIVE,
    OBEY,
    QUEUE,
    launch,
    no_queues,
    send,
    start,
)
from tests.integration.test_database_outages import TABLE, Limited, limited, no_connections
from tests.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Broker
    from tests.integration.test_callbacks import Ledger, StartService

__all__ = ["launch", "limited", "no_queues", "start"]

pytestmark = pytest.mark.only("postgres")

OPTIONS = (OBEY, f"--queue-name={QUEUE}")
TASK = "tests.project.callbacks.obey"
NOWHERE = "postgres://nobody:nothing@127.0.0.1:1/nowhere"


def rows() -> list[tuple[str, str, str | None]]:
    fields = ("status", "content", "exception")
    assert set(MessageLog.objects.values_list("task", "queue")) <= {(TASK, QUEUE)}
    return sorted(MessageLog.objects.values_list(*fields))


def test_by_default_those_have_a_row_that_did_not_succeed_and_a_stop_writes_the_last(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start()
    send(broker, "fine", "nack once", "drop")
    send(broker, "{no JSON", content_type="application/json")
    wait_until(lambda: broker.depth(ARCHIVE, 0) == 1 and "end nack once" in ledger())
    assert service.stop() == 0
    dropped, (status, content, exception) = rows()
    assert dropped == ("FAILED", "drop", "Drop: not wanted")
    assert (status, content) == ("FAILED", "{no JSON")
    assert (exception or "").startswith("UnreadableBody: the body is no JSON")


def test_with_log_all_each_has_one_when_it_has_come_to_its_end(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start(*OPTIONS, "--log=all")
    send(broker, "fine", "nack once", headers={"n": 1}, message_id="7")
    wait_until(lambda: "end nack once" in ledger())
    send(broker, "halt 0", "next")
    assert service.ends() == 0
    # The last one was not its callback's any more.
    assert rows() == [("COMPLETED", text, None) for text in ("fine", "halt 0", "nack once")]
    row = MessageLog.objects.get(content="fine")
    assert json.loads(row.task_args) == {"message_id": "7", "headers": {"n": 1}}
    assert (row.exchange, row.routing_key, row.attempts) == ("", QUEUE, 1)
    assert row.start_time
    assert row.completion_time
    assert row.publish_time <= row.start_time <= row.completion_time


def test_one_that_ends_its_consumer_has_a_row_that_says_why_and_the_end_waits_for_it(
    start: StartService, broker: Broker
) -> None:
    service = start()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {TABLE}")
        send(broker, "fail")
        service.wait_for("its consumer ends")
        wait_until(lambda: broker.depth(QUEUE) == 1)
        # Nothing else is left to be done there.
        time.sleep(0.3)
    assert service.ends() == 13
    assert rows() == [("FAILED", "fail", "ValueError: fail")]
    row = MessageLog.objects.get()
    assert "in _obey" in (row.traceback or "")
    assert row.worker
    assert broker.depth(QUEUE) == 1


def test_without_the_database_callbacks_go_on_and_rows_wait(
    start: StartService, broker: Broker, ledger: Ledger, limited: Limited
) -> None:
    no_connections(limited)
    service = start(*OPTIONS, "--on-error=archive", CARROT_DATABASE_URL=limited.url)
    send(broker, "fail 1")
    service.wait_for("The database is away, rows of messages wait for it")
    send(broker, "fail 2", "fine")
    wait_until(lambda: broker.depth(ARCHIVE) == 2 and "end fine" in ledger())
    assert rows() == []
    limited.alter("CONNECTION LIMIT -1")
    wait_until(lambda: len(rows()) == 2)
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 0


def test_a_database_that_never_comes_back_costs_the_row_and_holds_up_no_stop(
    start: StartService, broker: Broker
) -> None:
    service = start(*OPTIONS, "--on-error=archive", CARROT_DATABASE_URL=NOWHERE)
    send(broker, "fail")
    service.wait_for("The database is away, rows of messages wait for it")
    assert service.stop(10) == 0
    assert "1 records are not written" in service.log
    assert broker.depth(ARCHIVE) == 1


@pytest.mark.parametrize("log", ["none", "failures"])
def test_a_database_is_asked_for_rows_only(
    start: StartService, broker: Broker, ledger: Ledger, log: str
) -> None:
    service = start(*OPTIONS, "--on-error=archive", f"--log={log}", CARROT_DATABASE_URL=NOWHERE)
    send(broker, "fine", *(["fail"] if log == "none" else []), "last")
    wait_until(lambda: "end last" in ledger())
    assert service.stop(10) == 0
    assert "database" not in service.log


def test_its_archive_is_listed_shown_replayed_and_purged(
    start: StartService, broker: Broker, ledger: Ledger, settings: Any, tmp_path: Path
) -> None:
    def archive(action: str, *options: str) -> str:
        out = StringIO()
        call_command("carrot_archive", action, f"--queue={QUEUE}", *options, stdout=out)
        return out.getvalue()

    start(*OPTIONS, "--on-error=archive")
    send(broker, "mend", "permanent", message_id="7")
    wait_until(lambda: broker.depth(ARCHIVE) == 2)
    assert "ValueError: mend; its callback has failed  (id 7)" in archive("list")
    shown = archive("show", "--exception=permanent")
    assert "reason: PermanentFailure: permanent; no other time can help" in shown
    assert "body, 9 bytes:\n    permanent\n" in shown
    (tmp_path / "ledger.go").touch()
    assert f"1 of 2 messages put back to {QUEUE}" in archive("replay", "--exception=mend")
    wait_until(lambda: "end mend" in ledger())
    assert "1 of 1 messages deleted" in archive("delete", "--yes")
    assert broker.depth(ARCHIVE) == 0
