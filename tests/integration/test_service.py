# SPDX-License-Identifier: Apache-2.0
"""Tasks through a running service: real broker, real database, ``twistd`` as a process."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from carrot_twisted import publisher
from carrot_twisted.models import Attempt, MessageLog, Worker
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.processes import ServiceProcess, constants, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import RabbitMQ
    from tests.conftest import Broker

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]


def finished(rows: Iterable[MessageLog], seconds: float = 30.0) -> list[MessageLog]:
    """Wait until all these rows are final; returns them as they are then, in order."""
    keys = [row.pk for row in rows]
    query = MessageLog.objects.filter(pk__in=keys)
    left = list(keys)

    def none_is_left() -> bool:
        # A few at a time: asking for thousands again and again would take the machine from those
        # who work on them.
        while some := left[:20]:
            final = MessageLog.objects.filter(pk__in=some, status__in=MessageLog.FINAL)
            if final.count() < len(some):
                return False
            del left[:20]
        return True

    try:
        wait_until(none_is_left, seconds)
    except AssertionError:
        pytest.fail(f"not final: {list(query.exclude(status__in=MessageLog.FINAL).values())}")
    by_key = query.in_bulk()
    return [by_key[key] for key in keys]


def run(row: MessageLog) -> MessageLog:
    """Wait for one row."""
    return finished([row])[0]


@pytest.mark.defect(1)
def test_a_task_published_before_any_worker_ever_ran_is_run(
    start_service: StartService, broker: Broker
) -> None:
    row = publish_message(tasks.echo, 1, "two", three=[3, None])
    assert publisher.flush(10)
    assert broker.depth("default") == 1

    service = start_service()
    done = run(row)

    assert done.status == MessageLog.COMPLETED
    assert json.loads(done.output or "") == {"args": [1, "two"], "kwargs": {"three": [3, None]}}
    assert done.attempts == 1
    assert done.worker
    assert done.worker in service.log
    assert done.start_time
    assert done.completion_time
    assert done.publish_time <= done.start_time <= done.completion_time
    assert done.run_time is not None
    assert timedelta() <= done.run_time < timedelta(seconds=5)
    assert done.queue_wait is not None
    assert done.queue_wait > timedelta()
    assert service.stop() == 0
    assert not Worker.objects.exists()


def test_what_a_task_logs_and_raises_is_kept(start_service: StartService) -> None:
    start_service()
    logs = [publish_message(tasks.log_lines, f"task {n}") for n in range(8)]
    failing = publish_message(tasks.fail, "as expected")

    for number, row in enumerate(finished(logs)):
        lines = (row.log or "").splitlines()
        assert [line.rpartition("::")[2].strip() for line in lines] == [
            f"debug of task {number}",
            f"info of task {number}",
            f"module line of task {number}",
        ]
        assert " DEBUG::" in lines[0]
    failed = run(failing)
    assert failed.status == MessageLog.FAILED
    assert failed.exception == "as expected"
    assert "in fail\n    raise ValueError(text)" in (failed.traceback or "")
    assert "about to fail" in (failed.log or "")
    assert failed.failure_time is not None
    assert failed.completion_time is None


@pytest.mark.defect(12)
def test_nothing_that_a_task_does_stops_the_service(start_service: StartService) -> None:
    service = start_service("--concurrency=1")
    leaving = publish_message(tasks.leave, 3)
    leaking = publish_message(tasks.leak_transaction)
    after = publish_message(tasks.echo)

    assert run(leaving).status == MessageLog.FAILED
    assert run(leaving).exception == "3"
    assert "SystemExit" in (run(leaving).traceback or "")
    assert run(leaking).status == MessageLog.COMPLETED
    assert run(after).status == MessageLog.COMPLETED
    assert service.stop() == 0


def test_tasks_publish_tasks_ask_the_reactor_and_may_be_coroutines(
    start_service: StartService, ledger: Ledger
) -> None:
    start_service()
    publishing = publish_message(tasks.publish_another, "second")
    asking = publish_message(tasks.ask_reactor)
    awaiting = publish_message(tasks.coroutine, 41)

    second = run(publishing).output
    assert second is not None
    assert run(MessageLog.objects.get(pk=second)).output == "did second"
    assert ledger() == ["second"]
    assert run(asking).output == "in the reactor: True"
    assert run(awaiting).output == "41"


@pytest.mark.defect(5)
def test_a_rolled_back_transaction_publishes_nothing(
    start_service: StartService, ledger: Ledger
) -> None:
    start_service()
    with transaction.atomic():
        publish_message(tasks.effect, "never")
        transaction.set_rollback(True)
    with transaction.atomic():
        kept = publish_message(tasks.effect, "kept")
        with transaction.atomic():
            publish_message(tasks.effect, "inner")
            transaction.set_rollback(True)
    run(kept)
    assert MessageLog.objects.count() == 1
    assert ledger() == ["kept"]


@pytest.mark.defect(5)
def test_a_task_whose_transaction_commits_seconds_later_runs_then(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start_service()
    with transaction.atomic():
        late = publish_message(tasks.effect, "late")
        with pytest.raises(AssertionError):
            # It is sent after the commit, so a longer time would tell no more.
            wait_until(ledger, 1.0)
    assert run(late).status == MessageLog.COMPLETED
    assert ledger() == ["late"]

    # A django-carrot publisher sends before it commits: the row may come seconds later. The service
    # looks for it again and again, soon after this time, too.
    row = create_message(tasks.effect, task_args=["later"]).row
    broker.send(
        "default",
        b'{"args": ["later"]}',
        message_id=str(row.pk),
        headers={"type": row.task},
        type="django-carrot message",
    )
    with pytest.raises(AssertionError):
        wait_until(lambda: len(ledger()) > 1, 6.0)
    # In between, others are not held up.
    quick = publish_message(tasks.effect, "quick")
    assert run(quick).queue_wait < timedelta(seconds=2)  # type: ignore[operator]
    row.confirmed_at = row.publish_time = quick.publish_time
    row.save(force_insert=True)
    assert run(row).status == MessageLog.COMPLETED
    assert ledger() == ["late", "quick", "later"]
    assert service.stop() == 0


@pytest.mark.defect(4, 28)
def test_foreign_broken_and_hostile_messages_are_kept_and_hold_up_nobody(
    start_service: StartService, broker: Broker, tmp_path: Path
) -> None:
    # Their rows might yet be committed: that is waited for, and not the matter here.
    service = start_service(**constants({"service.missing_rows.DELAYS": [0.1, 0.3]}))
    marker = tmp_path / "marker"
    foreign: dict[str, tuple[bytes, dict[str, Any]]] = {
        "no properties": (b"hello", {}),
        "no UUID": (b"{}", {"message_id": "42", "headers": {"type": "tests.project.tasks.noop"}}),
        "not our id": (b"{}", {"message_id": str(uuid4()), "headers": {"type": "os.system"}}),
        "binary": (b"\x00\xff\xfe", {"message_id": str(uuid4()), "app_id": "carrot-twisted"}),
        "attack": (
            json.dumps({"args": [f"touch {marker}"]}).encode(),
            {"message_id": "x" * 200, "headers": {"type": "os.system"}},
        ),
    }
    for body, properties in foreign.values():
        broker.send("default", body, **properties)
    good = publish_message(tasks.echo)
    assert run(good).queue_wait < timedelta(seconds=3)  # type: ignore[operator]

    wait_until(lambda: broker.depth("default.dead") == len(foreign), 20)
    kept = [broker.get("default.dead") for _ in foreign]
    assert sorted(body for _, body in kept) == sorted(body for body, _ in foreign.values())
    for properties, _body in kept:
        assert properties.headers["x-carrot-queue"] == "default"
        assert "message_id" in properties.headers["x-carrot-reason"]
    assert not marker.exists()
    assert service.stop() == 0
    assert broker.depth("default") == 0


@pytest.mark.defect(12, 28)
def test_messages_that_contradict_their_row_fail_it_with_the_reason(
    start_service: StartService, broker: Broker, tmp_path: Path
) -> None:
    start_service()
    path = "tests.project.tasks.echo"
    cases = {
        "os.system": (b"{}", {"type": "os.system"}),
        "no header": (b"{}", None),
        "not JSON": (b"\xff", {"type": path}),
        "JSON object": (b"[1]", {"type": path}),
    }
    for expected, (body, headers) in cases.items():
        row = create_message(path).row
        row.save(force_insert=True)
        broker.send("default", body, message_id=str(row.pk), headers=headers)
        failed = run(row)
        assert failed.status == MessageLog.FAILED
        assert expected in (failed.exception or "")
    unknown = create_message(path).row
    unknown.task = "tests.project.tasks.gone"
    unknown.save(force_insert=True)
    broker.send("default", b"{}", message_id=str(unknown.pk), headers={"type": unknown.task})
    assert "Unknown task" in (run(unknown).exception or "")

    forged = create_message(path, task_args=["the row's"]).row
    forged.save(force_insert=True)
    for _ in range(3):
        broker.send(
            "default",
            b'{"args": ["the message\'s"]}',
            message_id=str(forged.pk),
            headers={"type": path},
        )
    done = run(forged)
    assert json.loads(done.output or "")["args"] == ["the row's"]
    assert done.attempts == 1


@pytest.mark.defect(3)
def test_kill_9_in_the_middle_of_200_tasks_loses_none(
    start_service: StartService, ledger: Ledger
) -> None:
    rows = publish_many(
        [create_message(tasks.effect, task_args=[str(n), 0.02]) for n in range(200)]
    )
    assert publisher.flush(10)
    service = start_service()
    for killed_after in (30, 100):
        wait_until(lambda after=killed_after: len(ledger()) >= after)  # type: ignore[misc]
        service.kill()
        service = start_service()
    done = finished(rows, 60)

    assert {row.status for row in done} == {MessageLog.COMPLETED}
    effects = Counter(ledger())
    assert set(effects) == {str(n) for n in range(200)}
    # A task runs again only where a worker was lost under it.
    for number, row in enumerate(done):
        assert effects[str(number)] <= row.attempts
        assert row.attempts <= 1 + row.crashes
    assert sum(row.crashes for row in done) <= 2 * 4 + 2 * 40
    assert service.stop() == 0
    assert not Worker.objects.exists()


def test_a_task_that_kills_its_worker_fails_after_some_workers(
    start_service: StartService,
) -> None:
    deadly = publish_message(tasks.die)
    harmless = publish_message(tasks.echo)
    for _ in range(5):
        service = start_service(wait=False)
        service.ends(60)
        assert service.process.returncode == -signal.SIGKILL
    start_service()
    done = run(deadly)
    assert done.status == MessageLog.FAILED
    assert done.exception == "worker lost 5 times"
    assert done.crashes == 5
    # The fifth is the one that the row tells of.
    lost = Attempt.objects.filter(message=deadly.pk).order_by("number")
    assert list(lost.values_list("number", "outcome")) == [(n, "LOST") for n in (1, 2, 3, 4)]
    assert len({one.worker for one in lost}) == 4
    assert run(harmless).status == MessageLog.COMPLETED


def test_a_message_that_arrives_twice_runs_once(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    row = publish_message(tasks.effect, "once", 0.5)
    assert publisher.flush(10)
    properties, body = broker.get("default")
    for _ in range(3):
        broker.channel.basic_publish("", "default", body, properties)
    service = start_service()
    run(row)
    broker.channel.basic_publish("", "default", body, properties)
    # What was published before it has been settled by then; a stop would return it.
    run(publish_message(tasks.echo))
    assert service.stop() == 0
    assert ledger() == ["once"]
    assert broker.depth("default") == 0
    assert broker.depth("default.dead") == 0


def test_a_message_that_comes_by_two_queues_of_one_service_runs_once(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """As a fanout exchange would bring it."""
    service = start_service()
    service.wait_for("Consuming queue other")
    row = create_message(tasks.effect, task_args=["once", 1.0]).row
    row.save(force_insert=True)
    MessageLog.objects.filter(pk=row.pk).update(confirmed_at=timezone.now())
    message = {"headers": {"type": row.task}, "message_id": str(row.pk)}
    broker.send("default", b"{}", **message)
    wait_until(lambda: MessageLog.objects.filter(pk=row.pk, status="IN_PROGRESS").exists())
    broker.send("other", b"{}", **message)
    done = run(row)
    assert service.stop() == 0
    assert (ledger(), done.attempts, done.crashes) == (["once"], 1, 0)
    assert broker.depth("default") == broker.depth("other") == 0


def test_a_queue_that_is_deleted_under_load_loses_no_task(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start_service(CARROT_TEST_CONCURRENCY="2")
    rows = publish_many(
        [create_message(tasks.effect, task_args=[str(n), 0.02]) for n in range(100)]
    )
    wait_until(lambda: len(ledger()) > 10)
    broker.channel.queue_delete("default")
    service.wait_for("cancelled the consumer")
    done = finished(rows)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert Counter(ledger()) == Counter({str(n): 1 for n in range(100)})


@pytest.mark.once
def test_a_queue_that_is_deleted_while_no_service_runs_loses_no_task(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """Not by the look for messages that never came, which takes a minute and a half."""
    rows = publish_many([create_message(tasks.effect, task_args=[str(n)]) for n in range(20)])
    assert publisher.flush(10)
    assert MessageLog.objects.filter(confirmed_at__isnull=False).count() == 20
    broker.channel.queue_delete("default")
    service = start_service()
    assert {row.status for row in finished(rows, 30)} == {MessageLog.COMPLETED}
    assert Counter(ledger()) == Counter(str(n) for n in range(20))
    service.wait_for("20 messages of queue default did not come; they are sent again")


@pytest.mark.once
def test_an_existing_queue_with_other_arguments_is_used_as_it_is(
    start_service: StartService, broker: Broker
) -> None:
    broker.channel.queue_declare("default", durable=True, arguments={"x-max-priority": 255})
    service = start_service()
    assert "queue 'default' exists with other arguments" in service.log
    assert run(publish_message(tasks.echo)).status == MessageLog.COMPLETED


@pytest.mark.once
def test_only_the_chosen_queues_are_consumed(start_service: StartService, broker: Broker) -> None:
    service = start_service("--queue=default")
    here = publish_message(tasks.echo)
    elsewhere = publish_message(tasks.echo, queue="other")
    run(here)
    assert publisher.flush(10)
    assert broker.depth("other") == 1
    elsewhere.refresh_from_db()
    assert elsewhere.status == MessageLog.PUBLISHED
    assert "Consuming queue other" not in service.log


@pytest.mark.only("postgres")
@pytest.mark.defect(11)
def test_a_database_session_that_is_killed_costs_no_task(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service()
    own = publish_message(tasks.session_killed)
    rows = [publish_message(tasks.effect, str(n), 0.01) for n in range(200)]
    for _ in range(5):
        wait_until(lambda: True)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    done = finished([own, *rows], 60)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert done[0].output == "alive"
    assert set(ledger()) == {str(n) for n in range(200)}
    assert service.stop() == 0


@pytest.mark.once
def test_a_user_who_may_not_declare_consumes_what_others_declared(
    start_service: StartService, private_broker: RabbitMQ
) -> None:
    start_service(CARROT_BROKER_URL=private_broker.url).stop()
    row = publish_message(tasks.echo)
    vhost = private_broker.url.rpartition("/")[2]
    private_broker.ctl("add_user", "reader", "reader")
    private_broker.ctl("set_permissions", "-p", vhost, "reader", "^$", ".*", ".*")
    url = f"amqp://reader:reader@127.0.0.1:{private_broker.port}/{vhost}"
    try:
        service = start_service(CARROT_BROKER_URL=url)
        assert "queue 'default' may not be declared by this user" in service.log
        assert run(row).status == MessageLog.COMPLETED
    finally:
        private_broker.ctl("delete_user", "reader")


@pytest.mark.once
@pytest.mark.defect(41)
def test_a_service_needs_two_connections_however_many_tasks_run_at_once(
    start_service: StartService, private_broker: RabbitMQ, tmp_path: Path
) -> None:
    service = start_service(CARROT_TEST_CONCURRENCY="8", CARROT_BROKER_URL=private_broker.url)
    service.wait_for("Consuming queue other")
    logs = [publish_message(tasks.wait_for_file, str(tmp_path / "go")) for _ in range(8)]
    running = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    wait_until(lambda: running.count() == 8)
    pids = private_broker.ctl("list_connections", "client_properties")
    (tmp_path / "go").touch()
    finished(logs)
    assert pids.count("carrot-twisted") == 2 + 1, pids


@pytest.mark.only("postgres")
@pytest.mark.defect(34)
def test_the_hot_questions_are_answered_by_indexes_however_many_rows_there_are(
    served: None,
) -> None:
    rows = [
        MessageLog.new(
            task="app.old",
            queue="default",
            status=MessageLog.COMPLETED,
            publish_time=timezone.now(),
            completion_time=timezone.now(),
        )
        for _ in range(20_000)
    ]
    MessageLog.objects.bulk_create(rows, batch_size=5_000)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE carrot_twisted_messagelog")
    due = Now() - timedelta(seconds=1)
    questions = [
        MessageLog.objects.filter(pk__in=[rows[0].pk, rows[1].pk]),
        MessageLog.objects.unsent().filter(relay_at__lte=due).order_by("relay_at")[:1000],
        MessageLog.objects.overdue(),
        MessageLog.objects.filter(status="IN_PROGRESS", worker="one"),
        MessageLog.objects.filter(status="COMPLETED", completion_time__lt=due).order_by(
            "completion_time"
        )[:1000],
        MessageLog.objects.filter(status="FAILED", failure_time__lt=due).order_by("failure_time")[
            :1000
        ],
    ]
    for question in questions:
        plan = question.explain()
        assert "Seq Scan" not in plan, plan
