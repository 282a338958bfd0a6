# SPDX-License-Identifier: Apache-2.0
"""Many tasks at once: which rows are meant, and that each chunk is a transaction of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import transaction

from carrot_twisted import housekeeping, outbox, records
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Verdict
from carrot_twisted.records import Claimant

if TYPE_CHECKING:
    from tests.unit.conftest import RecordingPublisher

pytestmark = pytest.mark.django_db(transaction=True)

ALL = ("PUBLISHED", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED")
ME = Claimant(worker="me", lease=10, max_crashes=5, alone=False, judges=False)


def make(*statuses: str, **fields: Any) -> list[MessageLog]:
    """A row of each of these states."""
    return [
        MessageLog.objects.create(task="app.work", queue="default", status=status, **fields)
        for status in statuses
    ]


def counted(**fields: Any) -> dict[str, int]:
    """How many rows there are of each state."""
    found = [*MessageLog.objects.filter(**fields).values_list("status", flat=True)]
    return {status: found.count(status) for status in sorted(set(found))}


@pytest.fixture
def steps() -> list[int]:
    """What progress was told."""
    return []


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "CHUNK", 2)
    monkeypatch.setattr(housekeeping, "REQUEUE_CHUNK", 2)


class TestCancel:
    @pytest.mark.parametrize("status", ALL)
    def test_what_waits_is_cancelled_and_what_runs_is_asked(self, status: str) -> None:
        (row,) = make(status, token=5)
        # Loaded before it has changed: the row says what is true.
        row.status = "PUBLISHED"
        assert row.cancel("ann", "no\0 more") is (status in MessageLog.UNFINISHED)
        if status in MessageLog.UNFINISHED:
            waits = status == "PUBLISHED"
            assert (row.status, row.token) == (("CANCELLED", None) if waits else (status, 5))
            assert row.completion_time is not None or not waits
        row.refresh_from_db()
        asked = row.cancel_asked
        if status in MessageLog.FINAL:
            assert (row.status, row.token, asked) == (status, 5, None)
        else:
            assert asked is not None
            assert asked.text == "cancelled by ann: no\\x00 more"
            assert asked.moment is not None

    def test_its_message_starts_nothing(self) -> None:
        (row,) = make("PUBLISHED", token=5)
        assert row.cancel()
        assert records.claim([row.pk], 7, ME, "default") == {row.pk: Verdict.FINAL}
        assert outbox.take_unsent(["default"], 10, "default") == []

    def test_what_has_been_claimed_meanwhile_is_asked_to_end(self) -> None:
        (row,) = make("PUBLISHED")
        records.claim([row.pk], 7, ME, "default")
        assert row.cancel(cooperative=True)
        assert (row.status, row.token) == ("IN_PROGRESS", 7)
        ((key, token, request),) = records.cancel_requests(ME.worker, "default")
        assert (key, token, request.cooperative) == (row.pk, 7, True)
        # A second wish replaces the first.
        assert row.cancel("ann")
        ((_, _, request),) = records.cancel_requests(ME.worker, "default")
        assert (request.by, request.cooperative) == ("ann", False)
        assert records.cancel_requests("another", "default") == []

    def test_many_in_chunks(self, steps: list[int]) -> None:
        make(*ALL, *["PUBLISHED"] * 4)
        other = make("PUBLISHED", priority=9)
        rows = MessageLog.objects.filter(priority=0)
        assert housekeeping.cancel_tasks(rows, steps.append, by="ann") == 6
        assert steps == [2, 4, 5, 6]
        assert counted(priority=0)["CANCELLED"] == 6
        assert counted(cancel_request__by="ann") == {"CANCELLED": 5, "IN_PROGRESS": 1}
        assert other[0].cancel()


class TestDelete:
    def test_only_what_has_ended_goes(self, steps: list[int]) -> None:
        make(*ALL, *["COMPLETED"] * 2)
        make("FAILED", priority=9)
        rows = MessageLog.objects.filter(priority=0).order_by("-publish_time")
        assert housekeeping.delete_tasks(rows, steps.append) == 5
        assert steps == [2, 4, 5]
        assert counted() == {"FAILED": 1, "IN_PROGRESS": 1, "PUBLISHED": 1}

    def test_nothing_to_do(self, steps: list[int]) -> None:
        make("PUBLISHED")
        assert housekeeping.delete_tasks(MessageLog.objects.all(), steps.append) == 0
        assert steps == []


class TestRequeue:
    def test_what_has_ended_is_published_again(
        self, handed_over: RecordingPublisher, steps: list[int]
    ) -> None:
        rows = make("FAILED", "COMPLETED", "CANCELLED", "IN_PROGRESS", task_args="[1]")
        done = housekeeping.requeue_tasks(MessageLog.objects.all(), steps.append)
        assert (done.count, done.refused, steps) == (3, {}, [2, 3])
        assert counted() == {"IN_PROGRESS": 1, "PUBLISHED": 3}
        again = MessageLog.objects.filter(status="PUBLISHED")
        assert {row.retry_of for row in again} == {row.pk for row in rows[:3]}
        assert {(row.task, row.task_args, row.queue) for row in again} == {
            ("app.work", "[1]", "default")
        }
        assert set(handed_over.rows) == set(again)

    def test_what_cannot_be_stays_and_is_told(self, handed_over: RecordingPublisher) -> None:
        (gone,) = make("FAILED", task_args="5")
        (message,) = make("FAILED", task_args='{"exchange": ""}')
        make("FAILED")
        done = housekeeping.requeue_tasks(MessageLog.objects.all())
        assert done.count == 1
        assert sorted(done.refused.values()) == [1, 1]
        assert any("This row is no task" in reason for reason in done.refused)
        assert {gone, message} == set(MessageLog.objects.filter(status="FAILED"))

    def test_what_fails_again_meanwhile_is_left_alone(
        self, handed_over: RecordingPublisher
    ) -> None:
        """Else it would never end."""
        make(*["FAILED"] * 4)

        def fail(_: int) -> None:
            MessageLog.objects.filter(status="PUBLISHED").update(status="FAILED")

        assert housekeeping.requeue_tasks(MessageLog.objects.all(), fail).count == 4

    def test_each_chunk_stands_when_a_later_one_fails(
        self, handed_over: RecordingPublisher
    ) -> None:
        make(*["FAILED"] * 4)

        def interrupt(total: int) -> None:
            assert not transaction.get_connection().in_atomic_block
            if total == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            housekeeping.requeue_tasks(MessageLog.objects.all(), interrupt)
        assert counted() == {"FAILED": 2, "PUBLISHED": 2}
        assert len(handed_over.rows) == 2
