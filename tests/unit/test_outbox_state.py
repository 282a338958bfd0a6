# SPDX-License-Identifier: Apache-2.0
"""How many messages should have been sent and were not, and for how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from carrot_twisted import outbox
from carrot_twisted.due import GRACE, due_in
from carrot_twisted.message_log_set import OVERDUE
from carrot_twisted.models import MessageLog

pytestmark = pytest.mark.django_db


def row(seconds: float, **fields: Any) -> MessageLog:
    """A row that was published so long ago, and not confirmed."""
    then = Now() - timedelta(seconds=seconds)
    return MessageLog.objects.create(
        **{"task": "app.work", "queue": "default", "publish_time": then, "relay_at": then, **fields}
    )


def state() -> Any:
    return {
        queue: (unsent.count, unsent.seconds)
        for queue, unsent in MessageLog.objects.outbox_state().items()
    }


def test_of_an_empty_outbox_there_is_nothing_to_tell() -> None:
    row(900, confirmed_at=Now())
    row(900, status="IN_PROGRESS")
    row(900, status="FAILED")
    assert state() == {}


def test_what_was_published_a_moment_ago_is_not_late() -> None:
    row(GRACE + OVERDUE - 2)
    assert state() == {}


def test_each_queue_has_its_number_and_the_age_of_its_oldest() -> None:
    for seconds in (20, 600, 300):
        row(seconds)
    row(40, queue="other")
    assert state() == {
        "default": (3, pytest.approx(600, abs=5)),
        "other": (1, pytest.approx(40, abs=5)),
    }


def test_a_retry_that_waits_for_its_time_is_not_late_and_then_is_as_late_as_that() -> None:
    row(9000, start_time=Now(), relay_at=due_in(60))
    assert state() == {}
    row(9000, start_time=Now() - timedelta(seconds=120), relay_at=Now() - timedelta(seconds=50))
    assert state() == {"default": (1, pytest.approx(50, abs=5))}


def test_what_the_broker_refuses_counts_while_it_waits_for_the_next_attempt() -> None:
    log = row(500)
    outbox.note_refused({str(log.pk): "unroutable"}, "default")
    again = row(9000, start_time=Now() - timedelta(seconds=100), queue="other")
    outbox.note_refused({str(again.pk): "unroutable"}, "default")
    assert state() == {
        "default": (1, pytest.approx(500, abs=5)),
        "other": (1, pytest.approx(100, abs=5)),
    }
    MessageLog.objects.update(confirmed_at=Now(), publish_error="")
    assert state() == {}


def test_many_rows_are_one_query_on_their_index(django_assert_num_queries: Any) -> None:
    late = Now() - timedelta(seconds=60)
    MessageLog.objects.bulk_create(
        MessageLog.new(task="app.work", queue="default", relay_at=late, publish_time=late)
        for _ in range(3000)
    )
    MessageLog.objects.bulk_create(
        MessageLog.new(task="app.work", queue="default", status="COMPLETED") for _ in range(3000)
    )
    with django_assert_num_queries(1) as queries:
        assert state() == {"default": (3000, pytest.approx(60, abs=20))}
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {queries.captured_queries[0]['sql']}")
        plan = str(cursor.fetchall())
    assert "carrot_unsent" in plan, plan
