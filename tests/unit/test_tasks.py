# SPDX-License-Identifier: Apache-2.0
"""Tasks with options in the database: times, unique keys, retries, retention; on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.core.checks import run_checks
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from carrot_twisted import helper_tasks, housekeeping, outbox, records, schedules, task_options
from carrot_twisted.due import GRACE
from carrot_twisted.exceptions import CarrotConfigException, DuplicateTask, InvalidMessage
from carrot_twisted.message_log_set import EXPIRED, MessageLogQuerySet
from carrot_twisted.models import Attempt, MessageLog, ScheduledTask
from carrot_twisted.outcomes import Kind, Result, Verdict
from carrot_twisted.records import Claimed
from carrot_twisted.utilities import (
    create_message,
    create_scheduled_task,
    publish_many,
    publish_message,
)
from tests.project import optioned, tasks
from tests.unit.test_records import ALONE, ME, claim_one, finish_one, running, state, worker

if TYPE_CHECKING:
    from uuid import UUID

    from tests.unit.conftest import RecordingPublisher

pytestmark = pytest.mark.django_db

FAR = datetime(2099, 1, 1, 12, tzinfo=UTC)
FAILED = Result(
    kind=Kind.RETRY,
    exception="no",
    traceback="Trace",
    log="a line",
    started=1.0,
    ended=2.0,
    delay=60,
)
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _queues(settings: Any) -> None:
    settings.CARROT = {"queues": [{"name": "default"}, {"name": "other"}]}


def seconds_from_now(when: datetime | None) -> float:
    assert when is not None
    return (when - timezone.now()).total_seconds()


def move_to_past(pk: UUID, *names: str) -> None:
    MessageLog.objects.filter(pk=pk).update(**dict.fromkeys(names, Now() - SECOND))


# Ways to publish.


def test_every_way_to_publish_heeds_the_decorator() -> None:
    schedule = create_scheduled_task(optioned.optioned, {"days": 1}, key="s")
    rows = [
        publish_message(optioned.optioned, "a"),
        publish_message("tests.project.optioned.optioned", "b"),
        create_message(optioned.optioned, task_args=["c"]).publish(),
        *publish_many(
            [create_message(optioned.optioned), optioned.optioned.options().message("d")]
        ),
        optioned.optioned.options().publish(key="e"),
        schedule.publish(),
    ]
    for row in rows:
        row.refresh_from_db()
        assert (row.queue, row.routing_key) == ("other", "other")
        assert (row.retention, row.unique_key, row.run_after) == (60, None, None)
        assert seconds_from_now(row.expires_at) == pytest.approx(3600, abs=20)
    assert [row.priority for row in rows] == [2] * 6 + [0], "a schedule has a priority of its own"
    assert rows[5].keywords == {"key": "e"}


def test_what_is_said_at_publishing_goes_before(handed_over: RecordingPublisher) -> None:
    row = publish_message(optioned.optioned, "a", queue="default", priority=0)
    assert (row.queue, row.priority) == ("default", 0)
    row = optioned.optioned.options(
        queue="default", priority=9, expires=FAR, retention=0.5
    ).publish()
    assert (row.queue, row.priority, row.expires_at, row.retention) == ("default", 9, FAR, 1)
    assert len(handed_over.rows) == 0, "in the test's own transaction"


def test_the_settings_say_the_rest(settings: Any) -> None:
    settings.CARROT = {"task_defaults": {"priority": 7, "retention": 30, "expires": 60}}
    row = publish_message(optioned.one_at_a_time, "a")
    assert (row.priority, row.retention) == (7, 30)
    row = publish_message(tasks.noop)
    assert (row.priority, row.retention, row.expires_at) == (0, None, None), "no decorator"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"retries": 3}, "unknown key 'retries'"),
        ({"expires": -1}, "expires is -1"),
        (3, "dictiona"),
    ],
)
def test_wrong_defaults_are_told(settings: Any, value: Any, told: str) -> None:
    settings.CARROT = {"task_defaults": value}
    with pytest.raises(CarrotConfigException, match=told):
        publish_message(tasks.noop)


def test_a_queue_that_is_not_there_is_told_by_check_and_at_publishing(settings: Any) -> None:
    settings.CARROT = {"task_modules": ["tests.project.optioned"]}
    found = [m for m in run_checks() if m.id == "carrot_twisted.E016"]
    assert [m.msg for m in found if "optioned" in m.msg] == [
        "@task of tests.project.optioned.optioned names the queue 'other', which is not in "
        "CARROT['queues']."
    ]
    with pytest.raises(CarrotConfigException, match="queue called other"):
        publish_message(optioned.optioned)


def test_a_task_without_options_costs_no_statement_more(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        publish_message(optioned.quiet, "a")
    with django_assert_num_queries(1):
        publish_message(tasks.noop)


# Times.


@pytest.mark.parametrize("given", [FAR, 10**9, timedelta(days=365)])
def test_a_task_for_later_waits_in_the_outbox_until_its_second(given: Any) -> None:
    row = optioned.quiet.options(run_after=given).publish("a")
    row.refresh_from_db()
    assert row.run_after is not None
    expected = given if given is FAR else None
    if expected is None:
        seconds = given.total_seconds() if isinstance(given, timedelta) else given
        assert seconds_from_now(row.run_after) == pytest.approx(seconds, abs=20)
    else:
        assert row.run_after == expected
    assert row.relay_at == row.run_after - timedelta(seconds=GRACE)
    assert row.due_later == row.run_after
    assert not outbox.take_unsent(["default"], 10, "default")
    assert not MessageLog.objects.overdue().exists()
    assert MessageLog.objects.outbox_state() == {}
    depth = MessageLog.objects.depths()["default"]
    assert (depth.waiting, depth.oldest) == (1, None), "it has not waited yet"


def test_none_of_those_that_ring_again_rings_for_it() -> None:
    row = optioned.quiet.options(run_after=3600).publish("a")
    before = state(row.pk)
    assert outbox.queue_lost("default", "default") == 0
    assert outbox.ring_again("default", 0, "default") == 0
    assert housekeeping.requeue_all() == 0
    assert state(row.pk) == before


@pytest.mark.django_db(transaction=True)
def test_only_tasks_that_are_due_are_handed_over(handed_over: RecordingPublisher) -> None:
    quiet = optioned.quiet
    later, past, now = publish_many(
        [
            quiet.options(run_after=60).message("later"),
            quiet.options(run_after=datetime(2020, 1, 1, tzinfo=UTC)).message("past"),
            create_message(quiet, task_args=["now"]),
        ]
    )
    assert handed_over.rows == [past, now]
    assert (later.positionals, past.run_after) == (("later",), None)


def test_a_message_that_comes_early_starts_nothing_and_its_row_is_sent_again_in_time() -> None:
    row = optioned.quiet.options(run_after=3600).publish("a")
    MessageLog.objects.update(confirmed_at=Now(), relay_at=Now(), token=5)
    assert claim_one(row.pk) is Verdict.EARLY
    row.refresh_from_db()
    assert (row.status, row.attempts, row.confirmed_at, row.token) == ("PUBLISHED", 0, None, None)
    assert row.run_after is not None
    assert row.relay_at == row.run_after - timedelta(seconds=GRACE)


def test_when_its_time_has_come_it_is_sent_and_runs_and_has_not_waited() -> None:
    row = optioned.quiet.options(run_after=3600).publish("a")
    MessageLog.objects.update(publish_time=Now() - timedelta(days=400))
    move_to_past(row.pk, "run_after")
    MessageLog.objects.update(relay_at=Now() - timedelta(seconds=GRACE + 1))
    (taken,) = outbox.take_unsent(["default"], 10, "default")
    assert taken.pk == row.pk
    claimed = claim_one(row.pk)
    assert isinstance(claimed, Claimed)
    assert timezone.now().timestamp() - claimed.published < 30
    row.refresh_from_db()
    assert row.queue_wait is not None
    assert row.queue_wait < timedelta(seconds=30)


def test_it_can_be_run_now_cancelled_or_published_anew() -> None:
    row = optioned.quiet.options(run_after=FAR).publish("a")
    assert row.run_now()
    assert not row.run_now(), "it waits for no time any more"
    assert isinstance(claim_one(row.pk), Claimed)
    other = optioned.quiet.options(run_after=FAR, expires=60).publish("b")
    again = other.requeue()
    assert (again.run_after, again.expires_at) == (None, None)
    other = optioned.quiet.options(run_after=FAR).publish("c")
    assert other.cancel()
    assert claim_one(other.pk) is Verdict.FINAL


def test_one_whose_time_comes_while_that_is_asked_is_looked_up_again() -> None:
    pk = optioned.quiet.options(run_after=5).publish("a").pk
    move_to_past(pk, "run_after")
    assert records._judge_times([pk], ME, "default") == {pk: Verdict.MISSING}
    assert state(pk)["status"] == "PUBLISHED"


# Expiry.


def test_a_task_that_has_not_started_in_time_never_does() -> None:
    row = optioned.quiet.options(expires=60).publish("a")
    move_to_past(row.pk, "expires_at")
    assert claim_one(row.pk) is Verdict.FINAL
    row.refresh_from_db()
    assert (row.status, row.exception, row.attempts) == ("CANCELLED", EXPIRED, 0)
    assert row.completion_time is not None


def test_also_where_somebody_has_locked_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = optioned.quiet.options(expires=60).publish("a")
    move_to_past(row.pk, "expires_at")
    monkeypatch.setattr(MessageLogQuerySet, "cancel_expired", lambda *_: 0)
    assert claim_one(row.pk) is Verdict.FINAL, "its message is done with, a reaper will cancel it"


def test_also_when_its_message_never_comes() -> None:
    late = optioned.quiet.options(expires=60).publish("a")
    kept = [
        optioned.quiet.options(expires=60).publish("in time").pk,
        optioned.quiet.options(expires=60).publish("started").pk,
        publish_message(tasks.noop).pk,
    ]
    move_to_past(late.pk, "expires_at")
    move_to_past(kept[1], "expires_at")
    MessageLog.objects.filter(pk=kept[1]).update(attempts=1)
    assert MessageLog.objects.cancel_expired(10) == 1
    assert MessageLog.objects.cancel_expired(10) == 0
    assert state(late.pk)["exception"] == EXPIRED
    assert {state(pk)["status"] for pk in kept} == {"PUBLISHED"}


def test_one_that_has_started_in_time_is_brought_to_its_end() -> None:
    row = optioned.quiet.options(expires=60).publish("a")
    claim_one(row.pk, token=1)
    finish_one(row.pk, 1, FAILED)
    move_to_past(row.pk, "expires_at", "run_after")
    assert isinstance(claim_one(row.pk), Claimed)


def test_the_time_to_expiry_begins_when_it_may_start() -> None:
    row = optioned.quiet.options(run_after=FAR, expires=60).publish("a")
    assert row.expires_at == FAR + timedelta(seconds=60)


# Retries.


def retried(**fields: Any) -> UUID:
    """A row whose first attempt has failed."""
    pk = running("me", token=7, **fields)
    assert finish_one(pk, 7, FAILED) == 1
    return pk


def test_a_retry_goes_back_to_the_outbox_and_waits_there() -> None:
    pk = retried()
    got = state(pk)
    assert (got["status"], got["retries"], got["attempts"]) == ("PUBLISHED", 1, 1)
    assert (got["exception"], got["log"], got["token"], got["confirmed_at"]) == (
        *("no", "a line"),
        *(None, None),
    )
    assert seconds_from_now(got["run_after"]) == pytest.approx(60, abs=20)
    assert claim_one(pk) is Verdict.EARLY, "its old message, delivered again"
    (attempt,) = Attempt.objects.filter(message=pk)
    assert (attempt.number, attempt.outcome, attempt.exception) == (1, Attempt.RETRIED, "no")


def test_it_is_counted_once_however_often_that_is_written() -> None:
    pk = retried()
    before = state(pk)
    assert finish_one(pk, 7, FAILED) == 0
    assert state(pk) == before
    assert Attempt.objects.count() == 1


def test_the_next_attempt_knows_how_many_there_were() -> None:
    pk = retried(retries=1)
    move_to_past(pk, "run_after")
    claimed = claim_one(pk)
    assert isinstance(claimed, Claimed)
    assert (claimed.attempt, claimed.retries) == (2, 2)


def test_a_worker_that_is_lost_in_a_retry_loses_no_count() -> None:
    worker("gone", silent=100, machine="elsewhere")
    worker("me")
    pk = running("gone", retries=1, run_after=Now() - SECOND)
    claimed = claim_one(pk)
    assert isinstance(claimed, Claimed)
    assert (claimed.retries, state(pk)["crashes"]) == (1, 1)


# Unique keys.


def test_a_duplicate_is_the_task_that_is_there() -> None:
    first = publish_message(optioned.one_at_a_time, "a")
    assert first.unique_key == "tests.project.optioned.one_at_a_time a"
    assert not first.duplicate
    second = publish_message(optioned.one_at_a_time, "a", file="another")
    assert (second.pk, second.duplicate) == (first.pk, True)
    assert not publish_message(optioned.one_at_a_time, "b").duplicate
    assert MessageLog.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_also_among_many(handed_over: RecordingPublisher) -> None:
    there = publish_message(optioned.one_at_a_time, "b")
    handed_over.rows.clear()
    logs = publish_many(create_message(optioned.one_at_a_time, task_args=[k]) for k in "abac")
    assert [log.duplicate for log in logs] == [False, True, True, False]
    assert (logs[1].pk, logs[2].pk) == (there.pk, logs[0].pk)
    assert MessageLog.objects.count() == 3
    assert {row.pk for row in handed_over.rows} == {logs[0].pk, logs[3].pk}


def test_until_its_end_means_until_its_end() -> None:
    first = publish_message(optioned.one_at_a_time, "a")
    claim_one(first.pk, token=3)
    assert publish_message(optioned.one_at_a_time, "a").pk == first.pk
    finish_one(first.pk, 3, FAILED)
    assert publish_message(optioned.one_at_a_time, "a").pk == first.pk, "while it waits for a retry"
    move_to_past(first.pk, "run_after")
    claim_one(first.pk, token=4)
    finish_one(first.pk, 4, Result(kind=Kind.COMPLETED, started=1.0, ended=2.0))
    assert publish_message(optioned.one_at_a_time, "a").pk != first.pk


def test_until_its_start_means_until_its_first_start() -> None:
    first = publish_message(optioned.one_waiting, "a")
    with pytest.raises(DuplicateTask, match=str(first.pk)) as caught:
        publish_message(optioned.one_waiting, "a")
    assert caught.value.existing == first.pk
    claim_one(first.pk, token=3)
    second = publish_message(optioned.one_waiting, "a")
    assert second.pk != first.pk
    # Neither a retry nor a release takes the key from the other one.
    finish_one(first.pk, 3, FAILED)
    move_to_past(first.pk, "run_after")
    claim_one(first.pk, token=4)
    assert finish_one(first.pk, 4, Result(kind=Kind.RELEASED)) == 1
    claim_one(second.pk, token=5)
    third = publish_message(optioned.one_waiting, "a")
    assert finish_one(second.pk, 5, Result(kind=Kind.RELEASED)) == 1, "it had not begun"
    assert {state(row.pk)["status"] for row in (first, second, third)} == {"PUBLISHED"}


def test_where_duplicates_are_errors_nothing_of_many_is_published() -> None:
    publish_message(optioned.one_waiting, "a")
    messages = [create_message(optioned.one_waiting, task_args=[k]) for k in "ba"]
    with pytest.raises(DuplicateTask):
        publish_many([create_message(tasks.noop), *messages])
    assert MessageLog.objects.count() == 1
    log = optioned.one_waiting.options(on_duplicate="return").publish("a")
    assert log.duplicate


def test_a_cancelled_task_sets_its_key_free_and_requeueing_takes_it_again() -> None:
    first = publish_message(optioned.one_at_a_time, "a")
    first.cancel()
    again = first.requeue()
    assert publish_message(optioned.one_at_a_time, "a").pk == again.pk
    # Also of one that holds it itself.
    assert again.requeue().unique_key == first.unique_key
    assert MessageLog.objects.count() == 1


def test_it_is_not_requeued_beside_another_one() -> None:
    first = publish_message(optioned.one_at_a_time, "a")
    first.cancel()
    holder = publish_message(optioned.one_at_a_time, "a")
    with pytest.raises(DuplicateTask):
        first.requeue()
    requeued = housekeeping.requeue_tasks(MessageLog.objects.all())
    assert (requeued.count, requeued.refused) == (0, {housekeeping.HELD: 1})
    assert {*MessageLog.objects.values_list("pk", flat=True)} == {first.pk, holder.pk}
    holder.cancel()
    assert housekeeping.requeue_tasks(MessageLog.objects.all()).count == 1, "one of the two"
    assert MessageLog.objects.unfinished().count() == 1
    assert MessageLog.objects.count() == 2


def test_a_schedule_names_the_task_that_is_there() -> None:
    schedule = create_scheduled_task(optioned.one_at_a_time, {"seconds": 5}, key="a")
    ScheduledTask.objects.update(next_run_time=Now() - SECOND)
    there = publish_message(optioned.one_at_a_time, key="a")
    schedules.publish_due("default", {"pk": schedule.pk})
    schedule.refresh_from_db()
    assert schedule.last_log == there.pk
    assert schedule.publish().pk == there.pk
    assert MessageLog.objects.count() == 1


def test_the_database_itself_refuses_a_second_holder() -> None:
    first = publish_message(optioned.one_at_a_time, "a")
    fields = {"task": "t", "queue": "default", "unique_key": first.unique_key}
    with pytest.raises(IntegrityError), transaction.atomic():
        MessageLog.objects.create(unique_until=task_options.END, **fields)
    MessageLog.objects.create(status="COMPLETED", unique_until=task_options.END, **fields)


def test_arguments_that_do_not_fit_are_told_before_a_row_is_there() -> None:
    with pytest.raises(InvalidMessage, match="does not take these arguments"):
        publish_message(optioned.one_at_a_time)  # type: ignore[call-overload]
    assert not MessageLog.objects.exists()


# Retention.


def ended(status: str, days: float, **fields: Any) -> UUID:
    names = {"COMPLETED": "completion_time", "FAILED": "failure_time"}
    fields = {"publish_time": Now() - timedelta(days=500), **fields}
    pk: UUID = MessageLog.objects.create(
        task="t",
        queue="default",
        status=status,
        **{names.get(status, "completion_time"): Now() - timedelta(days=days)},
        **fields,
    ).pk
    return pk


def test_a_task_may_say_how_long_its_rows_are_kept(settings: Any) -> None:
    day, year = 86_400, 365 * 86_400
    kept = {
        ended("COMPLETED", 100, retention=year),
        ended("FAILED", 0.9, retention=day),
        ended("CANCELLED", 0.9, retention=day),
        ended("FAILED", 400),
        ended("CANCELLED", 1),
        ended("COMPLETED", 1),
    }
    for status in MessageLog.FINAL:
        ended(status, 1.1, retention=day)
        ended(status, 400, retention=year)
    ended("COMPLETED", 4)
    ended("CANCELLED", 4)
    deleted = helper_tasks.cleanup()
    assert deleted == {"COMPLETED": 1, "CANCELLED": 1, helper_tasks.OWN: 6}
    assert {*MessageLog.objects.values_list("pk", flat=True)} == kept
    settings.CARROT = {"retention": None}
    MessageLog.objects.update(retention=1)
    assert helper_tasks.cleanup() == {}
    assert MessageLog.objects.count() == len(kept)


def test_rows_that_are_kept_longer_do_not_stand_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_tasks, "CHUNK", 2)
    kept = [ended("COMPLETED", 100 - n, retention=10**9) for n in range(5)]
    for n in range(5):
        ended("COMPLETED", 50 - n)
    assert helper_tasks.cleanup()["COMPLETED"] == 5
    assert {*MessageLog.objects.values_list("pk", flat=True)} == {*kept}


@pytest.mark.only("postgres")
@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (
            "SELECT uuid FROM {} "
            "WHERE status = 'PUBLISHED' AND attempts = 0 AND expires_at <= now()",
            "carrot_expiring",
        ),
        (
            "SELECT uuid FROM {} WHERE retention = 5 AND status IN ('COMPLETED', 'FAILED', "
            "'CANCELLED') AND COALESCE(completion_time, failure_time, publish_time) < now()",
            "carrot_retained",
        ),
    ],
)
def test_what_is_looked_for_again_and_again_is_found_by_an_index(sql: str, index: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        cursor.execute("EXPLAIN " + sql.format(MessageLog._meta.db_table))
        assert index in "\n".join(row[0] for row in cursor.fetchall())


def test_a_suspect_with_a_time_is_still_one() -> None:
    pk = optioned.quiet.options(run_after=5).publish("a").pk
    MessageLog.objects.update(crashes=records.SUSPECT_CRASHES)
    move_to_past(pk, "run_after")
    assert claim_one(pk) is Verdict.SUSPECT
    assert isinstance(claim_one(pk, claimant=ALONE), Claimed)
    assert ME.max_crashes > records.SUSPECT_CRASHES
