# SPDX-License-Identifier: Apache-2.0
"""Tasks under limits, as their rows and the writer's statements show them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from carrot_twisted import admission, limit_state, outbox, records, status, task_options
from carrot_twisted.admission import Admitted, Request
from carrot_twisted.admission_decision import Candidate
from carrot_twisted.identities import new_token
from carrot_twisted.models import LimitState, MessageLog
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimed, Finished
from carrot_twisted.utilities import publish_many, publish_message
from tests.project import limited, tasks
from tests.unit.test_records import ALONE, DONE, ME, worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tests.unit.conftest import RecordingPublisher

pytestmark = pytest.mark.django_db
SLOT = "slot tests.project.limited.alone"


@pytest.fixture(autouse=True)
def _nothing_is_sent(handed_over: RecordingPublisher) -> None:
    """What is published stays in the table."""


def published(count: int, task: Any = limited.alone, **given: Any) -> list[UUID]:
    logs = publish_many(task.options(**given).message(f"{n}") for n in range(count))
    return [log.pk for log in logs]


def deliver(keys: Sequence[UUID], places: Any = None, claimant: Any = ME) -> Admitted:
    """Their messages are here."""
    asked = records.claim(keys, new_token(), claimant, "default")
    rows = [one for one in asked.values() if isinstance(one, Candidate)]
    assert len(rows) == len(keys)
    return admission.admit(Request(token=new_token(), rows=rows), "me", places or {}, "default")


def freed(places: Any = None, name: str = SLOT) -> Admitted:
    """A run of this limit has ended."""
    request = Request(token=new_token(), freed={name: 1})
    return admission.admit(request, "me", {"default": 1} if places is None else places, "default")


def look(places: Any = None) -> Admitted:
    request = Request(token=new_token(), due=True)
    return admission.admit(request, "me", {"default": 9} if places is None else places, "default")


def end(run: Claimed, result: Result = DONE) -> None:
    records.finish([Finished(uuid=run.uuid, token=run.token, result=result)], 0.0, "default")


def only(admitted: Admitted) -> Claimed:
    (run,) = admitted.runs.values()
    return run


def waiting() -> list[UUID]:
    rows = MessageLog.objects.filter(status="PUBLISHED", waits_for__isnull=False)
    return list(rows.order_by("pk").values_list("pk", flat=True))


def look_at(name: str = SLOT) -> Any:
    return LimitState.objects.get(pk=name).look_at


def test_a_row_that_may_not_start_waits_without_a_message() -> None:
    first, second = published(2)
    admitted = deliver([first, second])
    assert only(admitted).uuid == first
    assert admitted.waiting == {second} == {*waiting()}
    row = MessageLog.objects.get(pk=second)
    assert (row.status, row.attempts, row.limited_by) == (
        *("PUBLISHED", 0),
        "a slot of tests.project.limited.alone",
    )
    assert not MessageLog.objects.unsent().filter(pk=second).exists()
    MessageLog.objects.update(confirmed_at=Now() - timedelta(hours=1))
    # Nothing rings for it: an empty queue is what is to be expected.
    assert outbox.ring_again("default", 60, "default") == 0
    assert outbox.queue_lost("default", "default") == 0
    assert outbox.ring_for_all(["default"], "default") == 0
    assert waiting() == [second]


@pytest.mark.parametrize("kind", [Kind.COMPLETED, Kind.FAILED, Kind.CANCELLED, Kind.RETRY])
def test_whatever_ends_a_run_the_next_one_starts_where_that_was(kind: Kind) -> None:
    first, second, third = published(3)
    run = only(deliver([first, second, third]))
    end(run, replace(DONE, kind=kind, delay=60.0))
    assert only(freed()).uuid == second
    assert waiting() == [third]
    assert freed().runs == {}, "the slot is given back once"


def test_nobody_waits_any_more_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_options, "_with_two", set())
    run = only(deliver(published(2)))
    assert look_at() is not None
    end(run)
    run = only(freed())
    assert look_at() is None
    end(run)
    with CaptureQueriesContext(connection) as queries:
        assert freed().runs == {}
    assert len(queries) == 1, "the limit is locked"


def test_a_released_row_gives_its_slot_back_and_comes_by_its_message() -> None:
    run = only(deliver(published(1)))
    end(run, Result(kind=Kind.RELEASED))
    row = MessageLog.objects.get()
    assert (row.status, row.waits_for, row.attempts) == ("PUBLISHED", None, 0)
    assert only(deliver([row.pk])).uuid == row.pk


def test_rows_of_lost_workers_give_their_slots_back_and_limits_are_looked_at() -> None:
    first, second = published(2)
    deliver([first, second])
    worker("me", silent=100)
    worker("other")
    MessageLog.objects.filter(pk=first).update(worker="gone")
    assert look().runs == {}, "its time has not come"
    other = replace(ME, worker="other")
    assert records.reap(other, "default") == 1
    run = only(look())
    assert run.uuid == second
    end(run)
    assert only(deliver([first])).attempt == 2


def test_a_row_that_was_deleted_while_it_ran_is_missed_in_the_end() -> None:
    first, second = published(2)
    deliver([first, second])
    MessageLog.objects.filter(pk=first).delete()
    assert look().runs == {}
    LimitState.objects.update(look_at=Now() - timedelta(seconds=1))
    assert only(look()).uuid == second


def test_those_for_later_or_cancelled_or_expired_do_not_start() -> None:
    keys = published(1) + published(1, expires=60) + published(2)
    run = only(deliver(keys))
    MessageLog.objects.filter(pk=keys[1]).update(expires_at=Now() - timedelta(seconds=1))
    assert MessageLog.objects.get(pk=keys[2]).cancel()
    end(run)
    assert only(freed()).uuid == keys[3]
    MessageLog.objects.cancel_expired(9)
    row = MessageLog.objects.get(pk=keys[1])
    assert (row.status, row.limited_by) == ("CANCELLED", None)
    (later,) = published(1, run_after=60)
    verdicts = records.claim([later], new_token(), ME, "default")
    assert verdicts[later] is Verdict.EARLY


def test_a_suspect_under_a_limit_runs_alone() -> None:
    (key,) = published(1)
    MessageLog.objects.update(crashes=3)
    assert records.claim([key], new_token(), ME, "default")[key] is Verdict.SUSPECT
    run = only(deliver([key], claimant=ALONE))
    (other,) = published(1)
    deliver([other])
    MessageLog.objects.filter(pk=other).update(crashes=3)
    end(run)
    assert freed().runs == {}
    row = MessageLog.objects.get(pk=other)
    assert (row.waits_for, row.confirmed_at) == (None, None), "it gets a message"


def test_where_nothing_may_run_here_the_next_one_gets_a_message_and_keeps_its_slot() -> None:
    first, second = published(2)
    run = only(deliver([first, second]))
    end(run)
    admitted = freed(places={})
    assert (admitted.runs, admitted.has_rung) == ({}, True)
    assert [row.pk for row in outbox.take_unsent(["default"], 9, "default")] == [second]
    (late,) = published(1)
    assert deliver([late]).runs == {}
    assert only(deliver([second])).uuid == second


def test_an_answer_that_was_lost_is_found_again() -> None:
    keys = published(2)
    asked = records.claim(keys, new_token(), ME, "default")
    rows = [one for one in asked.values() if isinstance(one, Candidate)]
    request = Request(token=new_token(), rows=rows)
    first = admission.admit(request, "me", {}, "default")
    again = admission.admit(request, "me", {}, "default", again=True)
    assert again.runs.keys() == first.runs.keys() == {keys[0]}
    assert again.waiting == {keys[1]}


def test_a_rate_lets_the_next_start_when_the_first_is_old_enough() -> None:
    keys = published(7, limited.ask)
    logs = MessageLog.objects.filter(pk__in=keys)
    logs.update(rate_key="rate tests.project.limited.ask a")
    admitted = deliver(keys)
    assert len(admitted.runs) == 5
    assert admitted.next_look is not None
    assert 0.9 < admitted.next_look < 1.1
    admission.advance(1.1, "default")
    LimitState.objects.update(look_at=Now())
    assert len(look().runs) == 2
    assert look_at("rate tests.project.limited.ask a") is None


def test_requeue_takes_the_limits_along() -> None:
    log = publish_message(limited.sync, 7)
    assert (log.slot_key, log.rate_key) == ("slot shop 7", "rate shop")
    log.status = "COMPLETED"
    log.save()
    again = log.requeue()
    assert (again.slot_key, again.rate_key) == ("slot shop 7", "rate shop")
    assert len(deliver([again.pk]).runs) == 1


def test_many_that_wait_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row more than may start, by an index; and the same statements."""
    monkeypatch.setattr(task_options, "_with_two", set())
    run = only(deliver(published(1)))
    MessageLog.objects.bulk_create(
        MessageLog(
            task=run.task, queue="default", slot_key=SLOT, waits_for=SLOT, confirmed_at=Now()
        )
        for _ in range(300)
    )
    LimitState.objects.update(look_at=Now() + timedelta(seconds=9))
    end(run)
    with CaptureQueriesContext(connection) as queries:
        run = only(freed())
    sql = [one["sql"] for one in queries]
    assert len(sql) == 5, sql
    (read,) = [one for one in sql if "ORDER BY priority" in one]
    assert "LIMIT 2" in read
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {read}")
        plan = [line[-1] for line in cursor.fetchall()]
    assert any("carrot_limited" in line for line in plan), plan
    assert not any("TEMP B-TREE" in line for line in plan), plan


def test_they_are_counted_apart_and_have_not_waited_for_a_worker() -> None:
    deliver(published(3))
    MessageLog.objects.update(publish_time=Now() - timedelta(hours=1))
    (default, *_) = status.read("default").queues
    assert (default.waiting, default.limited, default.running) == (2, 2, 1)
    assert default.oldest is None
    depth = MessageLog.objects.depths()["default"]
    assert (depth.waiting, depth.limited, depth.oldest) == (2, 2, None)
    publish_message(tasks.noop)
    (default, *_) = status.read("default").queues
    assert (default.waiting, default.limited) == (3, 2)
    assert default.oldest is not None
    assert default.oldest < 60


def test_limits_that_nobody_uses_are_deleted() -> None:
    run = only(deliver(published(2)))
    LimitState.objects.update(used_at=Now() - limit_state.KEPT - timedelta(hours=1))
    assert limit_state.delete_idle(9, "default") == 0, "somebody waits"
    end(run)
    end(only(freed()))
    LimitState.objects.update(used_at=Now() - limit_state.KEPT - timedelta(hours=1))
    assert limit_state.delete_idle(9, "default") == 1
