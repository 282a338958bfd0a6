# SPDX-License-Identifier: Apache-2.0
"""Rows of handled messages: who gets one, what it says, and that nothing takes it for a task."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pika
import pytest
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import conf, handlers, housekeeping, outbox, records, showing
from carrot_twisted.exceptions import InvalidMessage, InvalidQueueRegistration
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Verdict
from carrot_twisted.retry import Failure, Fault
from carrot_twisted.service import journal
from carrot_twisted.service.delivery import Delivery
from carrot_twisted.service.journal import Handled, Journal
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.service.operations import Entry

NOW = 1_700_000_000.0
FAILURE = Failure(fault=Fault.HANDLER, exception="ValueError: no", traceback="Traceback…")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "_registry", {})


def handler(body: Any) -> None:
    """Gets a message."""


def queue_of(**arguments: Any) -> HandlerQueue:
    handlers.message_handler("mail", **arguments)(handler)
    return handlers.queues(conf.current())[0]


def handled(
    queue: HandlerQueue,
    body: bytes = b"body",
    failure: Failure | None = FAILURE,
    key: str = "mail",
    **properties: Any,
) -> Handled:
    delivery = Delivery(
        None,  # type: ignore[arg-type]
        *(1, pika.BasicProperties(**properties), body, "", key),
    )
    return Handled(
        queue=queue, delivery=delivery, failure=failure, arrived=NOW, started=NOW + 1, ended=NOW + 2
    )


class Desk:
    """A journal whose writer keeps the entries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Reactor()
        self.entries: list[Entry] = []
        writer: Any = SimpleNamespace(submit=self.entries.append, clock_offset=10.0)
        self.journal = Journal(writer, "me", 100, self.clock)
        self.told: list[str] = []
        monkeypatch.setattr(
            journal._log, "error", lambda text, **values: self.told.append(text.format(**values))
        )


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


@pytest.mark.parametrize(
    ("setting", "own", "rows"),
    [
        (None, None, ["FAILED"]),
        ("all", None, ["FAILED", "COMPLETED"]),
        ("none", None, []),
        ("none", "all", ["FAILED", "COMPLETED"]),
        ("all", "none", []),
    ],
)
def test_settings_and_handler_say_which_messages_get_a_row(
    desk: Desk, settings: Any, setting: str | None, own: str | None, rows: list[str]
) -> None:
    if setting is not None:
        settings.CARROT = {"handlers": {"log": setting}}
    queue = queue_of(log=own)
    desk.journal.note(handled(queue))
    desk.journal.note(handled(queue, failure=None))
    assert [entry.row().status for entry in desk.entries] == rows


def test_what_log_is_none_of_the_words_is_refused(settings: Any) -> None:
    with pytest.raises(InvalidQueueRegistration, match="log is one of all, failures, none"):
        queue_of(log="some")
    settings.CARROT = {"handlers": {"log": ["all"]}}
    (problem,) = conf.problems()
    assert "one of all, failures, none" in problem.hint


def test_a_row_tells_of_the_message_and_of_its_end(desk: Desk) -> None:
    headers = {
        "x-retry-count": 2,
        "x-carrot-exchange": "shop",
        "x-carrot-routing-key": "order.paid",
        "x-carrot-traceback": "Traceback of the last time",
        "n": {"deep": b"\xff"},
    }
    given: dict[str, Any] = {"message_id": "7", "priority": 3, "headers": headers}
    desk.journal.note(handled(queue_of(), '{"n": "ü"}'.encode(), **given))
    (entry,) = desk.entries
    row = entry.row()
    assert entry.row() is row
    assert (row.status, row.exception, row.traceback) == ("FAILED", "ValueError: no", "Traceback…")
    assert row.task == "tests.unit.test_journal.handler"
    assert (row.queue, row.exchange, row.routing_key) == ("mail", "shop", "order.paid")
    assert (row.content, row.attempts, row.priority, row.worker) == ('{"n": "ü"}', 3, 3, "me")
    # On the database's clock.
    times = (row.publish_time, row.start_time, row.failure_time, row.completion_time)
    at = [datetime.fromtimestamp(NOW + n, UTC) for n in (10, 11, 12)]
    assert times == (*at, None)
    about = json.loads(row.task_args)
    assert about["message_id"] == "7"
    assert about["headers"]["n"] == {"deep": "b'\\xff'"}
    assert "x-carrot-traceback" not in about["headers"]


def test_of_one_that_was_handled_the_row_is_completed(desk: Desk, settings: Any) -> None:
    desk.journal.note(handled(queue_of(log="all"), failure=None))
    row = desk.entries[0].row()
    assert (row.status, row.exception, row.failure_time) == ("COMPLETED", None, None)
    assert row.completion_time == datetime.fromtimestamp(NOW + 12, UTC)


@pytest.mark.parametrize(
    ("body", "encoding", "shown"),
    [
        (b"\x00\xff", None, "\\x00\\xff"),
        ("ü".encode("latin-1"), "latin-1", "ü"),
        ("ü".encode(), "gzip", "ü"),
        ("ü".encode(), "no such", "ü"),
        (b"x" * 100, None, "x" * 100),
        (b"x" * 101, None, "x" * 100 + "… (cut: it has 101 bytes)"),
        ("€".encode() * 200, None, "€" * 100 + "… (cut: it has 600 bytes)"),
    ],
)
def test_a_body_is_shown_as_people_read_it(body: bytes, encoding: str | None, shown: str) -> None:
    assert showing.readable(body, encoding, 100) == shown


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize("headers", [{"x": "y" * 20_000}, {"x": {b"\xff": 1}}, {"x": DEEP}])
def test_headers_that_cannot_be_kept_are_left_out(headers: dict[str, Any]) -> None:
    row = journal.row_of(handled(queue_of(), message_id="7", headers=headers), "me", 100, 0.0)
    about = json.loads(row.task_args)
    assert about["message_id"] == "7"
    assert about["headers"].startswith("they are too long")


texts = st.text(st.characters(), max_size=20)


@pytest.mark.django_db
@given(
    body=st.binary(max_size=500),
    key=texts,
    encoding=st.sampled_from([None, "utf-7", "utf-16", "idna", "base64", "a\x00b"]),
    headers=st.dictionaries(texts, st.none() | st.binary(max_size=9) | st.floats() | texts),
    retries=st.integers() | texts,
)
def test_whatever_a_message_holds_the_database_takes_its_row(
    body: bytes, key: str, encoding: str | None, headers: dict[str, Any], retries: Any
) -> None:
    handlers._registry.clear()
    one = handled(
        queue_of(),
        body,
        key=key,
        content_encoding=encoding,
        headers={**headers, "x-retry-count": retries},
    )
    row = journal.row_of(one, "me", 100, 0.0)
    with transaction.atomic():
        records.add([row], "default")
        stored = MessageLog.objects.get(pk=row.pk)
        assert (stored.content, stored.task_args) == (row.content, row.task_args)
        assert not stored.is_task
        transaction.set_rollback(True)


class TestWithoutTheDatabase:
    def test_rows_wait_up_to_a_bound_and_the_rest_is_left_out_and_counted(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "MAX_WAITING", 3 * (journal.ROW_SIZE + 4))
        queue = queue_of()
        for _ in range(5):
            desk.journal.note(handled(queue))
        assert len(desk.entries) == 3
        assert not desk.told
        desk.clock.advance(journal.TELL_INTERVAL)
        assert desk.told == [
            "2 handled messages have no row in the MessageLog: too many wait for the database. "
            "The messages themselves are settled"
        ]
        desk.entries[0].done(None)
        desk.journal.note(handled(queue))
        assert len(desk.entries) == 4

    def test_one_that_is_larger_than_the_bound_is_kept_if_nothing_else_waits(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "MAX_WAITING", 10)
        queue = queue_of()
        for _ in range(2):
            desk.journal.note(handled(queue))
        assert len(desk.entries) == 1

    def test_what_is_said_of_a_row_first_counts(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error that ends a batch is told to all of it, also to what had been committed."""
        monkeypatch.setattr(journal, "MAX_WAITING", journal.ROW_SIZE + 4)
        queue = queue_of()
        desk.journal.note(handled(queue))
        desk.entries[0].done(None)
        desk.entries[0].done("broken")
        desk.clock.advance(0)
        for _ in range(2):
            desk.journal.note(handled(queue))
        assert len(desk.entries) == 2
        desk.journal.stop()
        assert [line.partition("MessageLog: ")[2][:8] for line in desk.told] == ["too many"]

    def test_what_the_database_refuses_is_told_at_the_end_at_the_latest(self, desk: Desk) -> None:
        desk.journal.note(handled(queue_of()))
        desk.entries[0].done("value too long")
        desk.clock.advance(0)
        assert not desk.told
        desk.journal.stop()
        assert desk.told[0].startswith("1 handled messages have no row in the MessageLog: value")
        assert not desk.clock.getDelayedCalls()
        desk.journal.stop()
        assert len(desk.told) == 1


@pytest.mark.django_db(transaction=True)
class TestARowIsNoTask:
    @pytest.fixture(params=["mail", "default"])
    def row(self, request: pytest.FixtureRequest) -> MessageLog:
        """Also one whose queue is one of tasks by now, and whose body looks like arguments."""
        row = journal.row_of(handled(queue_of(), b"{}"), "me", 100, 0.0)
        row.queue = request.param
        records.add([row], "default")
        return row

    def test_it_is_not_claimed(self, row: MessageLog) -> None:
        me = records.Claimant(worker="me", lease=10, max_crashes=5, alone=True, judges=True)
        with transaction.atomic():
            verdicts = records.claim([row.pk], 1, me, "default")
        assert verdicts == {row.pk: Verdict.FINAL}

    def test_it_is_neither_rung_for_nor_relayed(self, row: MessageLog) -> None:
        MessageLog.objects.update(relay_at=datetime.fromtimestamp(0, UTC))
        with transaction.atomic():
            assert outbox.take_unsent(["mail", "default"], 10, "default") == []
        assert outbox.queue_lost("default", "default") == 0
        assert outbox.ring_again("default", 0, "default") == 0
        assert housekeeping.requeue_all() == 0
        assert not MessageLog.objects.overdue().exists()

    def test_it_cannot_be_requeued(self, row: MessageLog) -> None:
        with pytest.raises(InvalidMessage, match=r"no task.*carrot_archive replay"):
            MessageLog.objects.get(pk=row.pk).requeue()
        assert MessageLog.objects.get().pk == row.pk

    def test_made_one_by_force_it_runs_nothing(self, row: MessageLog) -> None:
        with pytest.raises(InvalidMessage, match="a JSON list"):
            _ = row.positionals

    def test_it_is_written_once_however_often(self, row: MessageLog) -> None:
        row.content = "another time"
        records.add([row], "default")
        assert MessageLog.objects.get().content == "{}"
