# SPDX-License-Identifier: Apache-2.0
"""Rows in a process that asks nothing else of the database. Its writer's loop runs in the test."""

from __future__ import annotations

from typing import Any

import pytest

from carrot_twisted import callbacks, records
from carrot_twisted.models import MessageLog
from carrot_twisted.service import journal, row_writer
from carrot_twisted.service.row_writer import RowWriter
from tests.unit.test_journal import handled
from tests.unit.test_log_writer import Failing, Reactor

pytestmark = pytest.mark.django_db(transaction=True)


class Desk:
    """Such a process, whose log is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reactor = Reactor()
        self.rows = RowWriter("default", "me", 100, self.reactor)
        (self.queue,) = callbacks.queues_of(print, queues={"mine": {}})
        self.told: list[str] = []
        for log, level in ((journal._log, "error"), (row_writer._log, "failure")):
            monkeypatch.setattr(
                log, level, lambda text, **values: self.told.append(text.format(**values))
            )

    def note(self, body: bytes) -> None:
        self.rows.note(handled(self.queue, body))

    def work(self) -> None:
        """Let the writer do all that was submitted, then the reactor."""
        self.rows._writer._inbox.put(None)
        self.rows._writer._loop()
        self.reactor.run()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


def contents() -> list[Any]:
    return list(MessageLog.objects.values_list("task", "queue", "content", "worker"))


def test_a_row_says_which_callback_and_process_it_was(desk: Desk) -> None:
    desk.note(b"a")
    desk.work()
    assert contents() == [("builtins.print", "mine", "a", "me")]
    assert (desk.rows.problem, desk.rows.silence, desk.told) == (None, 0.0, [])


def test_an_error_that_is_no_databases_costs_rows_and_ends_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "add", Failing(records.add, ValueError("no text")))
    desk.note(b"a")
    desk.work()
    desk.note(b"b")
    desk.work()
    assert [content for _, _, content, _ in contents()] == ["b"]
    desk.rows._journal.stop()
    assert desk.told == [
        "Rows of messages met an error that is no database's",
        "1 handled messages have no row in the MessageLog: no text. The messages themselves are "
        "settled",
    ]
