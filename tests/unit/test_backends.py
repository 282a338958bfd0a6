# SPDX-License-Identifier: Apache-2.0
"""Tasks of django.tasks on our backend: what is published, run and told of them, without a broker.

The behaviour is that of Django's own backends where these have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from django.core.checks import run_checks
from django.db import transaction
from django.utils import timezone

from carrot_twisted import conf, execution, records
from carrot_twisted.backends import CarrotBackend, InvalidArguments, queue_priority
from carrot_twisted.checks import check_carrot
from carrot_twisted.exceptions import PoisonMessage, TaskCancelled, TaskExpired, WorkerLost
from carrot_twisted.execution import Limits, Run
from carrot_twisted.interruption import TimedCall
from carrot_twisted.models import Attempt, MessageLog
from carrot_twisted.monitor import redaction, registered_tasks
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.standard_tasks import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from carrot_twisted.task_attempt import TaskAttempt
from carrot_twisted.task_logging import Transcript
from carrot_twisted.utilities import create_scheduled_task, publish_message
from tests.project import standard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.conftest import RecordingPublisher

ME = Claimant(worker="me", lease=30.0, max_crashes=5, alone=True, judges=True)
LIMITS = Limits(result=10_000, log=10_000, worker="me")
READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
BACKEND = "carrot_twisted.backends.CarrotBackend"

pytestmark = pytest.mark.django_db


def start(key: str) -> Run:
    """Claim a task, as a service does."""
    (claimed,) = records.claim([UUID(key)], 1, ME, "default").values()
    assert isinstance(claimed, Claimed)
    fields = {one.name: getattr(claimed, one.name) for one in dataclasses.fields(claimed)}
    body = json.dumps({"args": json.loads(claimed.task_args)}).encode()
    return Run(**fields, header=claimed.task, body=body)


def run(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a task to the end of one attempt, and make it due again."""
    # The test's own transaction shall stay.
    monkeypatch.setattr(execution, "clean_connections", lambda: None)
    one = start(key)
    result = execution.execute(one, LIMITS)
    assert result is not None
    records.finish([Finished(uuid=one.uuid, token=one.token, result=result)], 0.0, "default")
    MessageLog.objects.filter(pk=key, status="PUBLISHED").update(run_after=None)


@pytest.fixture
def signals() -> Iterator[list[tuple[str, Any, str, str]]]:
    """The signals that were sent: which, from whom, of what, and its state."""
    sent: list[tuple[str, Any, str, str]] = []
    names = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}

    def note(signal: Any, sender: Any, task_result: Any, **_: Any) -> None:
        sent.append((names[signal], sender, task_result.id, task_result.status))
        if names[signal] != "enqueued":
            # Nothing that a receiver does in a service counts.
            raise SystemExit(3)

    for signal in names:
        signal.connect(note)
    yield sent
    for signal in names:
        signal.disconnect(note)


# enqueue


def test_it_can_do_all_that_there_is() -> None:
    backend = task_backends["default"]
    assert isinstance(backend, CarrotBackend)
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_get_result
    assert backend.supports_priority


def test_what_is_enqueued_is_a_row_and_a_result_that_is_ready(
    signals: list[Any], django_capture_on_commit_callbacks: Any, handed_over: RecordingPublisher
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        result = standard.add.enqueue(1, other=2)
        assert handed_over.rows == []
    (row,) = MessageLog.objects.all()
    assert [one.pk for one in handed_over.rows] == [row.pk]
    assert (row.task, row.queue, row.priority) == ("tests.project.standard.add", "default", 0)
    assert (row.positionals, row.keywords) == ((1,), {"other": 2})
    assert (result.id, result.status, result.backend) == (str(row.pk), READY, "default")
    assert (result.args, result.kwargs, result.task) == ([1], {"other": 2}, standard.add)
    assert result.enqueued_at == row.publish_time
    times = (result.started_at, result.finished_at, result.last_attempted_at)
    assert (times, result.attempts, result.errors) == ((None, None, None), 0, [])
    assert signals == [("enqueued", CarrotBackend, result.id, READY)]
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value


@pytest.mark.django_db(transaction=True)
def test_what_is_rolled_back_was_never_enqueued(handed_over: RecordingPublisher) -> None:
    class Undo(Exception):
        pass

    with contextlib.suppress(Undo), transaction.atomic():
        result = standard.add.enqueue(1)
        raise Undo
    assert handed_over.rows == []
    with pytest.raises(TaskResultDoesNotExist):
        standard.add.get_result(result.id)


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_fails_undoes_the_transaction_but_not_what_is_committed() -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no")

    task_enqueued.connect(refuse)
    try:
        with pytest.raises(RuntimeError), transaction.atomic():
            standard.add.enqueue(1)
        assert not MessageLog.objects.exists()
        result = standard.add.enqueue(2)
        assert MessageLog.objects.get().positionals == (2,)
        assert result.status == READY
    finally:
        task_enqueued.disconnect(refuse)


@pytest.mark.django_db(transaction=True)
def test_coroutines_enqueue_and_ask_too() -> None:
    async def flow() -> tuple[Any, Any]:
        result = await standard.tell.aenqueue({"a": [None]})
        await result.arefresh()
        return result, await standard.tell.aget_result(result.id)

    enqueued, asked = asyncio.run(flow())
    assert enqueued == asked
    assert asked.args == [{"a": [None]}]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((1, 2), "a tuple as a list"),
        ({1: 2}, "arrive changed"),
        (float("nan"), "cannot be sent as JSON"),
        (timezone.now(), "cannot be sent as JSON"),
        (b"bytes", "cannot be sent as JSON"),
        ("x" * 2_000_000, "max_message_size"),
    ],
)
def test_what_json_would_change_is_refused(value: Any, said: str, signals: list[Any]) -> None:
    for args, kwargs in (((value,), {}), ((), {"value": value})):
        with pytest.raises(InvalidArguments, match=said) as caught:
            standard.tell.enqueue(*args, **kwargs)
        assert isinstance(caught.value, TypeError), "as with Django's own backends"
    assert not MessageLog.objects.exists()
    assert signals == []


def test_a_time_must_be_aware_and_is_kept(settings: Any) -> None:
    for wrong in (datetime(2027, 1, 1), timedelta(hours=1), 60):
        with pytest.raises(InvalidTask, match="aware datetime"):
            standard.add.using(run_after=wrong)  # type: ignore[arg-type]
    when = timezone.now() + timedelta(days=400)
    result = standard.add.using(run_after=when).enqueue(1)
    assert MessageLog.objects.get().run_after == when
    assert result.task.run_after == when
    # A retry changes the row's.
    MessageLog.objects.update(run_after=timezone.now())
    assert standard.add.get_result(result.id).task.run_after == when
    past = datetime(2020, 1, 1, tzinfo=UTC)
    at_once = standard.add.using(run_after=past).enqueue(1)
    assert MessageLog.objects.get(pk=at_once.id).run_after is None
    assert at_once.task.run_after == past


def test_a_task_that_no_worker_would_find_is_refused() -> None:
    task: Any = standard.add
    hidden = dataclasses.replace(task, func=standard.undecorated)
    with pytest.raises(InvalidTask, match=r"could not find the task .*\.undecorated"):
        hidden.enqueue()
    assert not MessageLog.objects.exists()


def test_queues_are_those_of_both_settings(settings: Any) -> None:
    with pytest.raises(InvalidTask, match="'third' is not valid"):
        standard.add.using(queue_name="third")
    settings.TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": []}}
    third = standard.add.using(queue_name="third")
    with pytest.raises(InvalidTask, match=r"queue called third.*Known queues: default, other"):
        third.enqueue(1)
    assert standard.add.using(queue_name="other").enqueue(1).task.queue_name == "other"


# priorities


def queue_with(**arguments: Any) -> conf.QueueSettings:
    base = conf.current().queue("default")
    return dataclasses.replace(base, queue_arguments=arguments)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"x-max-priority": 10}, [0, 4, 5, 5, 10]),
        ({"x-max-priority": 255}, [0, 126, 127, 128, 255]),
        ({"x-queue-type": "quorum"}, [0, 3, 4, 5, 31]),
        ({}, [0, 126, 0, 128, 255]),
    ],
)
def test_priorities_keep_their_order_in_every_queue(
    arguments: dict[str, Any], numbers: list[int]
) -> None:
    queue = queue_with(**arguments)
    assert [queue_priority(one, queue) for one in (-100, -1, 0, 1, 100)] == numbers
    if arguments:
        row = [queue_priority(one, queue) for one in range(-100, 101)]
        assert row == sorted(row)


def test_a_result_has_the_priority_that_was_said() -> None:
    for priority in (-100, -7, 0, 1, 100):
        result = standard.add.using(priority=priority).enqueue(1)
        assert standard.add.get_result(result.id).task.priority == priority
    for wrong in (-101, 101, 0.5):
        with pytest.raises(InvalidTask, match="whole number"):
            standard.add.using(priority=wrong)  # type: ignore[arg-type]


# What comes of it


def test_a_result_tells_how_it_went(monkeypatch: pytest.MonkeyPatch, signals: list[Any]) -> None:
    result = standard.add.enqueue(20, other=22)
    run(result.id, monkeypatch)
    result.refresh()
    assert (result.status, result.return_value) == (SUCCESSFUL, 42)
    assert (result.worker_ids, result.attempts, result.errors) == (["me"], 1, [])
    assert result.started_at == result.last_attempted_at
    assert result.enqueued_at
    assert result.started_at
    assert result.finished_at
    assert result.started_at <= result.finished_at
    log = MessageLog.objects.get().log
    assert log
    assert "adding 20" in log, "also of modules that no setting names"
    assert signals == [
        ("enqueued", CarrotBackend, result.id, READY),
        ("started", CarrotBackend, result.id, RUNNING),
        ("finished", CarrotBackend, result.id, SUCCESSFUL),
    ]


def test_a_failure_has_its_class_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, signals: list[Any]
) -> None:
    result = standard.fail.enqueue("no such luck: really")
    run(result.id, monkeypatch)
    result.refresh()
    assert (result.status, result.is_finished) == (FAILED, True)
    (error,) = result.errors
    assert error.exception_class is ValueError
    assert error.traceback.startswith("Traceback (most recent call last):")
    assert error.traceback.endswith("ValueError: no such luck: really\n")
    assert result.finished_at
    assert signals[-1] == ("finished", CarrotBackend, result.id, FAILED)
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tuple", [1, "two", {"3": [1.5]}]),
        ("text", "a\0b é \ud800"),
        ("none", None),
        ("nan", "not JSON compliant"),
        ("object", "Unsupported type"),
        ("long", "max_result_size"),
    ],
)
def test_a_value_comes_back_as_json_has_it_or_the_task_has_failed(
    kind: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = standard.strange.enqueue(kind)
    run(result.id, monkeypatch)
    result.refresh()
    if kind in ("tuple", "text", "none"):
        assert result.return_value == expected
    else:
        (error,) = result.errors
        assert error.exception_class_path == "carrot_twisted.exceptions.InvalidResult"
        assert expected in error.traceback


def test_a_coroutine_runs_with_its_own_queue_and_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    result = standard.tell.enqueue("5")
    run(result.id, monkeypatch)
    result = standard.tell.get_result(result.id)
    assert result.task == standard.tell
    value: Any = result.return_value
    assert value == "5"


def test_retries_are_attempts_that_the_context_counts(
    monkeypatch: pytest.MonkeyPatch, signals: list[Any]
) -> None:
    """With our decorator below Django's. The key does not count the context as an argument."""
    result = standard.third_time.enqueue("Ann")
    assert standard.third_time.enqueue("Ann").id == result.id, "it is unique"
    states = []
    for _ in range(3):
        run(result.id, monkeypatch)
        result.refresh()
        states.append((result.status, result.attempts, len(result.errors)))
    assert states == [(READY, 1, 1), (READY, 2, 2), (SUCCESSFUL, 3, 2)]
    assert result.return_value == [result.id, 3, "RUNNING", ["Ann"], 3]
    assert result.worker_ids == ["me"] * 3
    assert [e.exception_class for e in result.errors] == [LookupError] * 2
    assert "LookupError: Ann 1" in result.errors[0].traceback
    assert result.started_at
    assert result.last_attempted_at
    assert result.started_at < result.last_attempted_at
    assert [name for name, *_ in signals] == ["enqueued", *["started"] * 3, "finished"]


def test_what_all_tasks_leave_open_counts_for_these_too(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CARROT = {**settings.CARROT, "task_defaults": {"max_retries": 1, "retention": 60}}
    result = standard.fail.enqueue("again")
    assert MessageLog.objects.get().retention == 60
    run(result.id, monkeypatch)
    result.refresh()
    assert result.status == READY
    run(result.id, monkeypatch)
    result.refresh()
    assert (result.status, len(result.errors)) == (FAILED, 2)


def test_a_stuck_task_has_failed(signals: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is told from another thread."""
    monkeypatch.setattr(execution, "clean_connections", lambda: None)
    result = standard.add.enqueue(1)
    one = start(result.id)
    one.standard = TaskAttempt(standard.add, one, LIMITS, [1], {})
    keeper: Any = object()
    call = TimedCall(one, 1.0, Transcript(100), keeper)
    execution.give_up(call, one, LIMITS, None)
    assert signals[-1] == ("finished", CarrotBackend, result.id, FAILED)


def test_other_ends_are_failures_that_say_what_they_are() -> None:
    cancelled, expired, lost = (standard.add.enqueue(n) for n in range(3))
    MessageLog.objects.get(pk=cancelled.id).cancel()
    late = timezone.now() - timedelta(seconds=1)
    MessageLog.objects.filter(pk=expired.id).update(expires_at=late)
    MessageLog.objects.filter(pk=expired.id).cancel_expired(1)
    start(lost.id)
    MessageLog.objects.filter(pk=lost.id).update(crashes=4)
    records.claim([UUID(lost.id)], 2, ME, "default")
    for result, kind in ((cancelled, TaskCancelled), (expired, TaskExpired), (lost, WorkerLost)):
        result.refresh()
        assert result.status == FAILED
        assert [error.exception_class for error in result.errors] == [kind]
        assert result.finished_at


def test_a_lost_worker_is_an_error_and_the_task_goes_on() -> None:
    result = standard.add.enqueue(1)
    start(result.id)
    records.claim([UUID(result.id)], 2, ME, "default")
    assert Attempt.objects.get().outcome == Attempt.LOST
    result.refresh()
    assert (result.status, result.attempts) == (RUNNING, 2)
    assert [error.exception_class for error in result.errors] == [WorkerLost]


# get_result


def test_there_are_results_of_django_tasks_only() -> None:
    other = publish_message("tests.project.tasks.noop")
    for wrong in ("123", str(uuid4()), "", None, 5, str(other.pk)):
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(wrong)  # type: ignore[arg-type]


def test_a_task_that_was_published_in_another_way_has_one_too() -> None:
    row = publish_message(standard.tell, 1, priority=9)
    result = standard.tell.get_result(str(row.pk))
    assert (result.task.priority, result.task.queue_name) == (-7, "other")
    schedule = create_scheduled_task(standard.add, "30 2 * * *", one=1)
    assert schedule.task == "tests.project.standard.add"


def test_the_result_of_a_task_that_was_removed_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    result = standard.add.enqueue(1)
    run(result.id, monkeypatch)
    MessageLog.objects.update(task="tests.project.gone.add")
    found = task_backends["default"].get_result(result.id)
    assert (found.return_value, found.task.module_path) == (1, "tests.project.gone.add")
    found.refresh()
    with pytest.raises(ImportError, match=r"no task tests\.project\.gone\.add"):
        found.task.call(1)


def test_a_task_that_was_removed_before_it_ran_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = standard.add.enqueue(1)
    MessageLog.objects.update(task="tests.project.standard.removed")
    run(result.id, monkeypatch)
    found = task_backends["default"].get_result(result.id)
    (error,) = found.errors
    assert error.exception_class is PoisonMessage
    assert "Unable to find a function called removed" in error.traceback


def test_a_result_can_be_read_whose_queue_has_left_the_settings(settings: Any) -> None:
    result = standard.tell.enqueue(1)
    settings.TASKS = {"default": {"BACKEND": BACKEND}}
    assert task_backends["default"].get_result(result.id).task.queue_name == "other"


def test_a_result_belongs_to_the_backend_that_it_was_enqueued_with(settings: Any) -> None:
    settings.TASKS = {**settings.TASKS, "second": {"BACKEND": BACKEND}}
    result = standard.add.using(backend="second").enqueue(1)
    found = task_backends["default"].get_result(result.id)
    assert (found.backend, found.task.backend) == ("second", "second")
    settings.TASKS = {"default": settings.TASKS["default"]}
    found = task_backends["default"].get_result(result.id)
    assert (found.backend, found.task.backend) == ("default", "default"), "that one is gone"


def test_what_is_requeued_keeps_what_was_said_of_it() -> None:
    result = standard.add.using(priority=50).enqueue(1)
    again = MessageLog.objects.get(pk=result.id).requeue()
    assert standard.add.get_result(str(again.pk)).task.priority == 50


def test_the_monitor_shows_their_arguments_without_the_context(settings: Any) -> None:
    name = "tests.project.standard"
    settings.CARROT = {**settings.CARROT, "task_modules": [name]}
    assert {"add", "third_time"} <= set(registered_tasks.functions()[name])
    assert registered_tasks.call_of(f"{name}.third_time").startswith("third_time(name: ")
    assert registered_tasks.mismatch(f"{name}.third_time", ["Ada"], {}) is None
    standard.third_time.enqueue("Ada")
    assert redaction.shown_arguments(MessageLog.objects.get()) == '"Ada"'


# checks


def test_the_settings_are_checked(settings: Any) -> None:
    assert [m.id for m in run_checks() if "TASKS" in m.msg] == []
    settings.TASKS = {
        "default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"], "OPTIONS": {"x": 1}}
    }
    settings.INSTALLED_APPS = [a for a in settings.INSTALLED_APPS if a != "carrot_twisted"]
    found = {m.id: m.msg for m in task_backends["default"].check()}
    assert sorted(found) == [f"carrot_twisted.E02{n}" for n in range(3)]
    assert "'mail'" in found["carrot_twisted.E022"]
    settings.CARROT = {"task_modules": ["tests.project.standard"]}
    wrong = [m.msg for m in check_carrot() if m.id == "carrot_twisted.E016"]
    assert "@task of tests.project.standard.tell names the queue 'other'" in " ".join(wrong)
    settings.CARROT = {"queues": 5}
    assert "carrot_twisted.E022" not in {m.id for m in task_backends["default"].check()}


def test_where_there_is_no_django_tasks_the_error_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "carrot_twisted.standard_tasks"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setitem(sys.modules, "django_tasks", None)
    with pytest.raises(ImportError, match=r"pip install 'carrot-twisted\[tasks\]'"):
        __import__(name)
