# SPDX-License-Identifier: Apache-2.0
"""Flows: what follows what, with which results, and what comes of failures. In memory."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F, Q
from django.test.utils import CaptureQueriesContext

from carrot_twisted import conf, flow_plan, flow_settling, flow_steps, housekeeping, records
from carrot_twisted.exceptions import (
    HasFailed,
    InvalidMessage,
    NotFinished,
    UnknownResult,
    WasCancelled,
)
from carrot_twisted.flows import Flow, chain, group, signature
from carrot_twisted.identities import new_token
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.testing import in_memory
from carrot_twisted.utilities import create_message
from tests.project import flowing, standard
from tests.project.tasks import echo, noop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from carrot_twisted.testing import InMemory

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_told() -> Iterator[None]:
    """What tasks have told of themselves, and what they are to do."""
    flowing.told.clear()
    flowing.broken.clear()
    yield
    flowing.told.clear()
    flowing.broken.clear()


def numbers(count: int, **options: Any) -> Any:
    """A group whose tasks return 0, 1, 2 …"""
    return group(
        [flowing.give.options().message(n) for n in range(count)], then=flowing.add_up, **options
    )


def statuses(flow: Flow) -> list[str]:
    return [row.status for row in flow.logs]


def reloaded(flow: Flow) -> Flow:
    return Flow.objects.get(pk=flow.pk)


def test_a_chain_hands_each_result_on(carrot: InMemory) -> None:
    flow = chain(
        create_message(flowing.give, task_args=[2]),
        flowing.multiply.options().signature(by=5),
        signature(flowing.multiply, 3),
        flowing.tell,
    ).publish()
    assert (flow.status, statuses(flow)) == ("RUNNING", ["PUBLISHED"])
    carrot.run_pending()
    flow.refresh_from_db()
    assert (flow.status, flow.step, flow.error) == ("COMPLETED", 3, "")
    assert flow.finished_at is not None
    assert flow.result() == 30
    assert flowing.told == [30]
    assert [row.result() for row in flow.logs] == [2, 10, 30, 30]
    assert [row.flow_step for row in flow.logs] == [0, 1, 2, 3]


def test_a_flow_takes_plain_functions_and_djangos_tasks_with_their_arguments(
    carrot: InMemory,
) -> None:
    flow = chain(
        signature(flowing.give, 1), signature(standard.add, other=2), signature(echo, "more")
    ).publish()
    carrot.run_pending()
    assert reloaded(flow).result() == {"args": [3, "more"], "kwargs": {}}
    for wrong in (signature(standard.add, 2, other=3), signature(noop)):
        with pytest.raises(InvalidMessage, match="does not take the result of the step before"):
            chain(signature(flowing.give, 1), wrong).publish()


def test_what_runs_after_a_group_gets_all_results_in_their_order(carrot: InMemory) -> None:
    flow = numbers(5).publish()
    assert len(carrot.run_pending()) == 6
    assert reloaded(flow).result() == 10
    (last,) = flow.logs.filter(flow_step=1)
    assert last.positionals == ([0, 1, 2, 3, 4],)
    assert reloaded(flow).results(0) == [0, 1, 2, 3, 4]


def test_groups_and_chains_go_together(carrot: InMemory) -> None:
    flow = chain(
        flowing.give.options().message(7),
        group([signature(flowing.multiply, by=2), flowing.give.options().message("alone")]),
        group([flowing.tell, flowing.tell]),
    ).publish()
    carrot.run_pending()
    assert flowing.told == [[14, "alone"], [14, "alone"]]
    assert reloaded(flow).result() == [[14, "alone"], [14, "alone"]]


@pytest.mark.parametrize("value", [None, "", "5", 5, 1.5, True, [], [1, "a", None], {"a": [False]}])
@pytest.mark.parametrize("text", ['"', "=", "null", "\x00", "\ud800", "é'{}"])
def test_a_result_comes_as_it_was_returned(carrot: InMemory, value: Any, text: str) -> None:
    both = [value, text]
    flow = group(
        [flowing.give.options().message(one) for one in (value, text, both)], then=flowing.tell
    ).publish()
    carrot.run_pending()
    assert reloaded(flow).status == "COMPLETED"
    assert flowing.told == [[value, text, both]]
    assert [type(one) for one in flowing.told[0]] == [type(value), str, list]
    assert [row.result() for row in flow.logs.filter(flow_step=0)] == [value, text, both]


def test_a_group_of_none_goes_on_with_an_empty_list(carrot: InMemory) -> None:
    flow = numbers(0).publish()
    carrot.run_pending()
    assert reloaded(flow).result() == 0
    assert group([]).publish().status == "COMPLETED"


def test_all_of_a_flow_is_published_or_nothing(carrot: InMemory) -> None:
    class Undo(Exception):
        pass

    def undone() -> None:
        with transaction.atomic():
            numbers(3).publish()
            assert MessageLog.objects.count() == 3
            raise Undo

    with pytest.raises(Undo):
        undone()
    assert (MessageLog.objects.count(), Flow.objects.count()) == (0, 0)


def test_many_tasks_are_published_by_a_few_kinds_of_statements(carrot: InMemory) -> None:
    messages = [create_message(flowing.give, task_args=[n]) for n in range(1000)]
    with CaptureQueriesContext(connection) as seen:
        flow = group(messages, then=flowing.add_up).publish()
    # SQLite counts each execution of a prepared statement as one.
    assert len({query["sql"].partition(" VALUES ")[0] for query in seen}) <= 6
    assert flow.logs.count() == 1000


WRONG = {
    "nothing": lambda: chain(),
    "a group in a group": lambda: group([group([flowing.tell])]),  # type: ignore[list-item]
    "a chain in a group": lambda: group(
        [chain(flowing.tell, flowing.tell)]  # type: ignore[list-item]
    ),
    "no such policy": lambda: group([], on_failure="hope"),
    "a number": lambda: chain(5),  # type: ignore[arg-type]
    "a unique task": lambda: chain(flowing.tell, flowing.single),
    "a unique message": lambda: chain(flowing.single.options().message(1)),
    "no arguments for the first": lambda: chain(flowing.tell, flowing.tell).publish(),
    "arguments beside a result": lambda: chain(
        flowing.give.options().message(1), signature(flowing.give, 2)
    ).publish(),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_refused_before_anything_is_written(make: Any) -> None:
    with pytest.raises(InvalidMessage):
        make()
    assert not MessageLog.objects.exists()
    assert not Flow.objects.exists()


def test_a_flow_is_published_once(carrot: InMemory) -> None:
    flow = numbers(2)
    flow.publish()
    with pytest.raises(InvalidMessage, match="already"):
        flow.publish()


def test_after_a_failure_the_flow_has_failed_and_the_others_run_on(carrot: InMemory) -> None:
    flowing.broken.add(1)
    flow = numbers(4).publish()
    carrot.run_pending(check=False)
    flow.refresh_from_db()
    assert statuses(flow) == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    bad = flow.logs[1]
    assert flow.error == f"Task tests.project.flowing.give ({bad.pk}) is FAILED: 1 is broken"
    with pytest.raises(HasFailed, match="1 is broken"):
        flow.result()
    with pytest.raises(HasFailed) as told:
        bad.result()
    assert told.value.exception_class == "builtins.ValueError"
    assert "ValueError: 1 is broken" in told.value.traceback


def test_what_has_failed_is_run_again_and_the_flow_goes_on(carrot: InMemory) -> None:
    flowing.broken.update({1, 2})
    flow = numbers(4).publish()
    carrot.run_pending(check=False)
    flowing.broken.clear()
    again = flow.logs[1].requeue()
    assert (again.flow, again.flow_step, again.flow_position) == (flow.pk, 0, 1)
    carrot.run_pending()
    assert reloaded(flow).status == "FAILED", "2 is broken still"
    done = housekeeping.requeue_tasks(flow.logs.filter(status="FAILED").order_by())
    assert done.count == 1
    assert (reloaded(flow).status, reloaded(flow).error) == ("RUNNING", "")
    carrot.run_pending()
    assert reloaded(flow).result() == 6
    assert flow.logs.filter(flow_step=1).count() == 1


def test_what_is_run_again_when_the_flow_has_gone_on_runs_by_itself(carrot: InMemory) -> None:
    flow = numbers(2).publish()
    carrot.run_pending()
    again = flow.logs[0].requeue()
    assert (again.flow, again.flow_step, again.flow_position) == (None, None, None)
    carrot.run_pending()
    assert MessageLog.objects.filter(task="tests.project.flowing.add_up").count() == 1


def test_by_cancel_what_waits_is_cancelled_with_the_first_failure(carrot: InMemory) -> None:
    flow = numbers(4, on_failure="cancel").publish()
    # In the order in which they run.
    order = list(flow.logs.order_by("pk").values_list("flow_position", flat=True))
    flowing.broken.add(order[1])
    carrot.run_pending(check=False)
    found = dict(flow.logs.values_list("flow_position", "status"))
    assert [found[n] for n in order] == ["COMPLETED", "FAILED", "CANCELLED", "CANCELLED"]
    flow_settling.sweep("default")
    assert (reloaded(flow).status, reloaded(flow).to_cancel) == ("FAILED", False)
    # One after the other: none that waits again is cancelled for those that are so still.
    flowing.broken.clear()
    for row in flow.logs.exclude(status="COMPLETED"):
        row.requeue()
        flow_settling.sweep("default")
    carrot.run_pending()
    assert reloaded(flow).result() == 6


def test_by_continue_the_last_one_gets_what_came_of_each(carrot: InMemory) -> None:
    flowing.broken.add(1)
    flow = group(
        [flowing.give.options().message(n) for n in (0, 1, 2, 3)],
        then=flowing.tell,
        on_failure="continue",
    ).publish()
    rows = list(flow.logs)
    rows[2].cancel()
    rows[3].delete()
    carrot.run_pending(check=False)
    assert reloaded(flow).status == "COMPLETED"
    assert flowing.told == [
        [
            {"status": "COMPLETED", "result": 0, "error": None, "error_class": None},
            {
                "status": "FAILED",
                "result": None,
                "error": "1 is broken",
                "error_class": "builtins.ValueError",
            },
            {"status": "CANCELLED", "result": None, "error": "CANCELLED", "error_class": None},
            {"status": "DELETED", "result": None, "error": None, "error_class": None},
        ]
    ]


def test_retries_are_no_failures(carrot: InMemory) -> None:
    flow = chain(flowing.flaky.options().message(2), flowing.tell).publish()
    carrot.run_pending()
    assert reloaded(flow).status == "RUNNING"
    carrot.advance(hours=1)
    carrot.run_pending()
    carrot.advance(hours=1)
    carrot.run_pending()
    assert flowing.told == ["attempt 3"]
    assert reloaded(flow).status == "COMPLETED"


@pytest.mark.parametrize("how", ["cancel", "many", "expire"])
def test_who_cancels_a_task_fails_its_flow(carrot: InMemory, how: str) -> None:
    options: dict[str, Any] = {"expires": 60} if how == "expire" else {}
    flow = group(
        [flowing.give.options(**options).message(n) for n in (0, 1)], then=flowing.tell
    ).publish()
    first = flow.logs[0]
    if how == "cancel":
        assert first.cancel("Ada")
    elif how == "many":
        assert housekeeping.cancel_tasks(MessageLog.objects.filter(pk=first.pk)) == 1
    else:
        MessageLog.objects.filter(pk=first.pk).update(expires_at=F("publish_time"))
        assert MessageLog.objects.all().cancel_expired(10) == 1
    flow.refresh_from_db()
    assert flow.status == "FAILED"
    assert flow.error.startswith(f"Task tests.project.flowing.give ({first.pk}) is CANCELLED")
    first.refresh_from_db()
    with pytest.raises(WasCancelled):
        first.result()
    first.requeue()
    carrot.run_pending()
    assert reloaded(flow).status == "COMPLETED"


def test_who_cancels_a_flow_cancels_what_waits_and_nothing_more_begins(carrot: InMemory) -> None:
    flow = numbers(3).publish()
    (running,) = claimed([flow.logs[0].pk])
    assert flow.cancel("Ada", "not needed")
    assert not flow.cancel()
    assert (flow.status, flow.error) == ("CANCELLED", "cancelled by Ada: not needed")
    assert statuses(flow) == ["IN_PROGRESS", "CANCELLED", "CANCELLED"]
    asked = flow.logs[0].cancel_asked
    assert asked is not None
    assert asked.by == "Ada"
    finish([running], 1)
    assert reloaded(flow).status == "CANCELLED"
    assert flow.logs.count() == 3
    with pytest.raises(WasCancelled, match="by Ada"):
        flow.result()
    assert flow.logs[1].requeue().flow is None, "it runs by itself"


def test_a_result_that_json_would_change_fails_the_task(carrot: InMemory) -> None:
    flow = chain(flowing.give_tuple.options().message(), flowing.tell).publish()
    (row,) = carrot.run_pending(check=False)
    assert row.status == "FAILED"
    assert row.exception_class == "carrot_twisted.exceptions.InvalidResult"
    assert "a tuple as a list" in str(row.exception)
    assert reloaded(flow).status == "FAILED"


def test_a_result_that_is_too_large_fails_the_task(carrot: InMemory) -> None:
    size = conf.current().max_result_size
    flow = chain(flowing.give_text.options().message(size), flowing.tell).publish()
    (row,) = carrot.run_pending(check=False)
    assert f"takes {size + 2} characters" in str(row.exception)
    assert reloaded(flow).status == "FAILED"


def test_results_that_are_too_large_together_fail_the_flow(carrot: InMemory, settings: Any) -> None:
    settings.CARROT = {**settings.CARROT, "max_message_size": 1000}
    flow = group(
        [flowing.give_text.options().message(400) for _ in range(3)], then=flowing.tell
    ).publish()
    carrot.run_pending()
    flow.refresh_from_db()
    assert flow.status == "FAILED"
    assert "take 1216 bytes as JSON, 1212 of them the result of the step before" in flow.error
    assert "at most 1000 (CARROT['max_message_size'])" in flow.error
    assert flow.logs.count() == 3
    settings.CARROT = {**settings.CARROT, "max_message_size": 100}
    assert not flow.resume()
    assert "The results of 3 tasks take 1200 characters; at most 100 bytes" in flow.error
    # Somebody mends the settings.
    settings.CARROT = {**settings.CARROT, "max_message_size": 10_000}
    assert flow.resume()
    carrot.run_pending()
    assert reloaded(flow).status == "COMPLETED"


def test_a_queue_that_has_left_the_settings_fails_the_flow(carrot: InMemory, settings: Any) -> None:
    flow = chain(
        flowing.give.options().message(1), flowing.tell.options(queue="other").signature()
    ).publish()
    queues = [one for one in settings.CARROT["queues"] if one["name"] != "other"]
    settings.CARROT = {**settings.CARROT, "queues": queues}
    carrot.run_pending()
    assert reloaded(flow).error.startswith("Step 2 could not begin: CarrotConfigException: ")


def test_what_nobody_wants_is_not_read(carrot: InMemory, settings: Any) -> None:
    settings.CARROT = {**settings.CARROT, "max_message_size": 1000}
    flow = chain(
        group([flowing.give_text.options().message(900) for _ in range(9)]),
        flowing.give.options().message("all are there"),
    ).publish()
    carrot.run_pending()
    assert reloaded(flow).result() == "all are there"


def test_options_of_later_steps_are_kept(carrot: InMemory) -> None:
    options = {"queue": "other", "priority": 3, "retention": 60, "expires": timedelta(hours=1)}
    later = flowing.tell.options(run_after=30, **options).signature()  # type: ignore[arg-type]
    flow = chain(flowing.give.options().message(1), later).publish()
    carrot.run_pending()
    row = flow.logs[1]
    assert (row.queue, row.priority, row.retention, row.status) == ("other", 3, 60, "PUBLISHED")
    assert row.run_after is not None
    assert row.expires_at is not None
    assert (row.run_after - row.publish_time).total_seconds() == 30
    assert row.expires_at - row.run_after == timedelta(hours=1)
    carrot.advance(minutes=1)
    carrot.run_pending()
    assert reloaded(flow).status == "COMPLETED"


def test_tasks_run_at_once_where_that_is_wanted() -> None:
    with in_memory(eager=True):
        flow = chain(numbers(3), flowing.tell).publish()
    assert reloaded(flow).status == "COMPLETED"
    assert flowing.told == [3]


def test_a_flow_that_has_not_ended_has_no_result(carrot: InMemory) -> None:
    flow = numbers(1).publish()
    with pytest.raises(NotFinished):
        flow.result()
    with pytest.raises(NotFinished, match="1 of 1 tasks have not completed"):
        flow.results(0)
    with pytest.raises(NotFinished, match="Step 2"):
        flow.results(1)
    with pytest.raises(NotFinished):
        flow.logs[0].result()
    MessageLog.objects.update(status="COMPLETED", output="a text for people")
    with pytest.raises(UnknownResult, match="a text for people"):
        flow.logs[0].result()
    flow.logs[0].delete()
    with pytest.raises(UnknownResult, match="1 of 1 tasks are gone"):
        flow.results(0)


# What is written, and when


def claimed(keys: Sequence[Any]) -> list[Claimed]:
    """Rows in progress."""
    claimant = Claimant(worker="test", lease=60, max_crashes=5, alone=True, judges=False)
    got = records.claim(list(keys), new_token(), claimant, "default")
    return [one for one in got.values() if isinstance(one, Claimed)]


def finish(runs: Sequence[Claimed], value: int, *, kind: Kind = Kind.COMPLETED) -> int:
    """As the LogWriter does with a batch; how many rows that changed."""
    result = Result(kind=kind, output=str(value), returned="=")
    ends = [Finished(uuid=run.uuid, token=run.token, result=result, flow=run.flow) for run in runs]
    with transaction.atomic():
        changed = records.finish(ends, 0.0, "default")
        records.settle_flows(ends, "default")
    return changed


def test_a_batch_that_is_repeated_publishes_the_next_step_once(carrot: InMemory) -> None:
    flow = numbers(3).publish()
    runs = claimed([row.pk for row in flow.logs])
    assert finish(runs, 5) == 3
    assert finish(runs, 5) == 0
    assert [row.flow_step for row in flow.logs] == [0, 0, 0, 1]


def test_a_batch_costs_three_statements_for_all_its_flows_and_none_without(
    carrot: InMemory,
) -> None:
    flows = [numbers(50).publish() for _ in range(20)]
    runs = claimed([row.pk for flow in flows for row in flow.logs[:25]])
    done = Result(kind=Kind.COMPLETED)
    ends = [Finished(uuid=run.uuid, token=run.token, result=done, flow=run.flow) for run in runs]
    with CaptureQueriesContext(connection) as seen:
        records.settle_flows(ends, "default")
    assert len(seen) == 3
    plain = [Finished(uuid=run.uuid, token=run.token, result=done) for run in runs]
    with CaptureQueriesContext(connection) as seen:
        records.settle_flows(plain, "default")
    assert len(seen) == 0


def test_what_the_database_refuses_fails_the_flow_and_not_the_batch(
    carrot: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = numbers(1).publish()
    other = numbers(1).publish()

    def refuse(*_: Any) -> None:
        raise IntegrityError("a trigger of the project's says no")

    runs = claimed([flow.logs[0].pk])
    with monkeypatch.context() as patch:
        patch.setattr(flow_steps, "begin", refuse)
        finish(runs, 1)
    assert reloaded(flow).error == (
        "Step 2 could not begin: IntegrityError: a trigger of the project's says no"
    )
    finish(claimed([other.logs[0].pk]), 1)
    assert other.logs.count() == 2


@pytest.mark.parametrize("damage", [{"shape": []}, {"shape": {"a": 1}}, {"step": 9}, {"plan": ""}])
def test_a_row_that_cannot_be_read_fails_its_flow_and_no_other(
    carrot: InMemory, damage: dict[str, Any]
) -> None:
    flow, other = numbers(1).publish(), numbers(1).publish()
    Flow.objects.filter(pk=flow.pk).update(**damage)
    runs = claimed([one.logs[0].pk for one in (flow, other)])
    if "step" in damage:
        MessageLog.objects.filter(flow=flow.pk).update(flow_step=9)
    assert finish(runs, 1) == 2
    assert reloaded(flow).status == "FAILED"
    assert reloaded(flow).error
    assert other.logs.filter(flow_step=1).count() == 1


def test_a_worker_that_is_lost_too_often_fails_the_flow(carrot: InMemory) -> None:
    flow = numbers(2).publish()
    claimed([flow.logs[0].pk])
    MessageLog.objects.filter(status="IN_PROGRESS").update(worker="dead", crashes=4)
    claimant = Claimant(worker="me", lease=60, max_crashes=5, alone=True, judges=True)
    from carrot_twisted.models import Worker

    Worker.objects.create(name="me", pid=1)
    assert records.reap(claimant, "default") == 1
    assert reloaded(flow).error.endswith("is FAILED: worker lost 5 times")


def test_a_sweep_finds_what_was_changed_past_this_package(carrot: InMemory) -> None:
    flow, gone, waiting = (numbers(2).publish() for _ in range(3))
    flow.logs.order_by().update(status="COMPLETED")
    gone.logs[0].delete()
    gone.logs.order_by().update(status="COMPLETED")
    assert flow_settling.sweep("default") == 0, "somebody may be at it"
    Flow.objects.update(changed_at=F("changed_at") - timedelta(seconds=flow_settling.AGE + 1))
    assert flow_settling.sweep("default") == 2
    assert flow.logs.filter(flow_step=1).count() == 1
    assert statuses(waiting) == ["PUBLISHED", "PUBLISHED"]
    assert reloaded(gone).error == "Rows of 1 of its tasks were deleted."
    with CaptureQueriesContext(connection) as seen:
        assert flow_settling.sweep("default") == 0
    assert len(seen) == 1


def test_rows_of_a_flow_that_runs_are_kept(carrot: InMemory) -> None:
    from carrot_twisted.flow import delete_orphans
    from carrot_twisted.helper_tasks import cleanup

    flow = chain(flowing.give.options(retention=1).message(1), flowing.tell).publish()
    carrot.run_pending()
    plain = flowing.give.options(retention=1).publish(5)
    carrot.run_pending()
    Flow.objects.update(status="RUNNING")
    ancient = F("publish_time") - timedelta(days=30)
    MessageLog.objects.update(completion_time=ancient)
    cleanup()
    assert not MessageLog.objects.filter(pk=plain.pk).exists()
    assert housekeeping.delete_tasks(flow.logs.order_by()) == 0
    assert flow.logs.count() == 2
    Flow.objects.update(status="COMPLETED")
    assert delete_orphans(10, "default") == 0
    cleanup()
    assert not MessageLog.objects.filter(~Q(flow=None)).exists()
    assert delete_orphans(10, "default") == 1


def test_how_far_each_step_is(carrot: InMemory) -> None:
    flow = chain(numbers(4), group([flowing.tell, flowing.tell])).publish()
    finish(claimed([flow.logs[0].pk]), 1)
    claimed([flow.logs[1].pk])
    flow.logs[2].cancel()
    first, middle, last = flow.progress()
    assert (first.waiting, first.running, first.completed, first.failed) == (1, 1, 1, 1)
    assert (first.done, first.percent, first.only) == (2, 50, None)
    assert (middle.done, middle.only, last.step.size) == (0, None, 2)
    with CaptureQueriesContext(connection) as seen:
        flow.progress()
    assert len(seen) == 2


def test_a_plan_is_kept_exactly() -> None:
    member = flow_plan.Member(
        task="a.b", args='[1, "é"]', kwargs='{"c": 1}', queue="q", takes_result=True, expires=5.0
    )
    assert flow_plan.members_of(flow_plan.plan_text([[], [member]]), 1) == [member]
    assert member.arguments('{"x": 1}') == '[{"x": 1}, 1, "é"]'
