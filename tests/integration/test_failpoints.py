# SPDX-License-Identifier: Apache-2.0
"""Killed at each failpoint: what the contract says of the row, the message and the effect."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.db.models import F
from django.db.models.functions import Now

from carrot_twisted import failpoints, publisher
from carrot_twisted.due import due_in
from carrot_twisted.models import MessageLog, ScheduledTask, Worker
from carrot_twisted.outbox import LEASE
from carrot_twisted.utilities import (
    create_message,
    create_scheduled_task,
    publish_many,
    publish_message,
)
from tests.conftest import run_python
from tests.integration import test_archive, test_flows, test_handlers, test_limits
from tests.integration.test_service import finished
from tests.processes import ServiceProcess, carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Broker

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

KILLED = -signal.SIGKILL


class Stage:
    """A service that is to die, and one that comes after it."""

    def __init__(self, start: StartService, broker: Broker, broker_url: str, folder: Path) -> None:
        self._start = start
        self._broker_url = broker_url
        self.broker = broker
        self.file = folder / "file"

    def armed(self, point: str, *options: str, **environment: str) -> ServiceProcess:
        """A service with this failpoint, without a scheduler."""
        options = options or ("--no-scheduler",)
        return self._start(
            *options, wait=False, CARROT_FAILPOINT=point, CARROT_TEST_CONCURRENCY="1", **environment
        )

    def dies(self, point: str, *options: str, **environment: str) -> None:
        """A service is started, and killed at this failpoint."""
        assert self.armed(point, *options, **environment).ends() == KILLED

    def service(self, *options: str) -> ServiceProcess:
        """One without a failpoint."""
        return self._start(*options)

    def publish(self, program: str, **environment: str) -> int:
        """A process that publishes; its exit status."""
        text = f"{PUBLISHING}\n{program}\npublisher.flush(10)"
        done = run_python(text, self._broker_url, **environment)
        assert done.returncode in (0, KILLED), done.stdout
        return done.returncode


PUBLISHING = """\
import django; django.setup()
from django.db import transaction
from carrot_twisted import publisher
from carrot_twisted.utilities import publish_message
from tests.project.tasks import effect"""


def a_waiting_task(stage: Stage, place: str) -> None:
    publish_message(tasks.effect, "it")
    assert publisher.flush(10)
    stage.dies(f"{place}:exit")


def an_unsent_task(stage: Stage, place: str) -> None:
    """It is relayed by a service that consumes from another queue."""
    row = create_message(tasks.effect, task_args=["it"]).row
    row.save(force_insert=True)
    MessageLog.objects.update(relay_at=due_in(0))
    stage.dies(f"{place}:exit", "--no-scheduler", "--queue=other")
    sooner()


def a_publishing_process(stage: Stage, place: str) -> None:
    environment = {failpoints.VARIABLE: f"{place}:exit"}
    assert stage.publish("publish_message(effect, 'it')", **environment) == KILLED
    sooner()


def a_transaction(stage: Stage, place: str) -> None:
    program = "with transaction.atomic(): publish_message(effect, 'never')"
    assert stage.publish(program, **{failpoints.VARIABLE: f"{place}:exit"}) == KILLED
    assert not MessageLog.objects.exists()


def a_task_that_publishes(stage: Stage, place: str) -> None:
    publish_message(tasks.publish_another, "it")
    assert publisher.flush(10)
    stage.dies(f"{place}:exit")
    sooner()


def a_running_task(stage: Stage) -> ServiceProcess:
    publish_message(tasks.wait_for_file, str(stage.file), 60)
    service = stage.service("--no-scheduler")
    in_progress = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    wait_until(in_progress.exists)
    return service


def a_dead_workers_task_put_back(stage: Stage, place: str) -> None:
    a_running_task(stage).kill()
    stage.dies(f"{place}:exit", "--no-scheduler", "--queue=other")


def a_dead_workers_task_taken_over(stage: Stage, place: str) -> None:
    first = a_running_task(stage)
    # Its reaper looks every few seconds, and would now and then be there before the delivery.
    second = stage.armed(f"{place}:exit,in_reap:raise")
    second.wait_for("Consuming queue default")
    # The broker notices the end of a process before others can see it as dead: were the delivery
    # that fast, the second service would leave the row to a first one that still seems to live.
    second.signal(signal.SIGSTOP)
    first.kill()
    second.signal(signal.SIGCONT)
    assert second.ends() == KILLED


def a_task_with_heartbeats(stage: Stage, place: str) -> None:
    publish_message(tasks.wait_for_file, str(stage.file), 60)
    assert publisher.flush(10)
    stage.dies(f"{place}:exit:4", **carrot(lease=2))


def a_task_in_custody(stage: Stage, place: str) -> None:
    publish_message(tasks.wait_for_file, str(stage.file), 60)
    assert publisher.flush(10)
    stage.dies(f"{place}:exit", **carrot(ack_deadline=0.4))


def a_released_task(stage: Stage, place: str) -> None:
    publish_message(tasks.wait_for_file, str(stage.file), 60)
    service = stage.armed(f"{place}:exit", "--no-scheduler", "--shutdown-timeout=0.2")
    in_progress = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    wait_until(in_progress.exists)
    service.signal()
    assert service.ends() == KILLED
    assert not in_progress.exists()


def a_due_schedule(stage: Stage, place: str, when: str = "") -> None:
    create_scheduled_task(tasks.effect, {"hours": 1}, key="it")
    ScheduledTask.objects.update(next_run_time=Now() - timedelta(minutes=1))
    stage.dies(f"{place}:exit{when}", "--queue=other")
    assert MessageLog.objects.count() == (place == "after_schedule_commit")
    sooner()


def a_published_slot(stage: Stage, place: str) -> None:
    # The first time are the schedules planned that come with the package.
    a_due_schedule(stage, place, ":2")


def a_foreign_message(stage: Stage, place: str) -> None:
    stage.service("--no-scheduler").stop()
    stage.broker.send("default", b"hello")
    stage.dies(f"{place}:exit")


def sooner() -> None:
    """The time has passed after which other relays take what a dead one has left."""
    MessageLog.objects.update(relay_at=F("relay_at") - timedelta(seconds=LEASE))


@dataclass(frozen=True)
class Case:
    """What is killed where, and what must come of it."""

    place: str
    scene: Callable[[Stage, str], None]
    attempts: int = 1
    crashes: int = 0
    effects: int = 1
    dead: int = 0
    """Messages in the dead-letter queue."""
    once: bool = False
    """What the database has done by then is the same with each of them."""


CASES = [
    Case("before_insert_commit", a_transaction, attempts=0, effects=0),
    Case("before_insert_commit", a_publishing_process, once=True),
    Case("after_commit_before_publish", a_publishing_process, once=True),
    Case("after_publish_before_confirm", a_publishing_process, once=True),
    Case("after_confirm_before_note", a_publishing_process),
    # The task has committed a task, and not its own end: it publishes once more.
    Case("after_commit_before_publish", a_task_that_publishes, attempts=2, crashes=1, effects=2),
    Case("in_relay_after_take", an_unsent_task),
    Case("after_publish_before_confirm", an_unsent_task, once=True),
    Case("after_confirm_before_note", an_unsent_task),
    Case("after_delivery_before_claim", a_waiting_task, once=True),
    Case("before_claim_commit", a_waiting_task),
    Case("after_claim_commit", a_waiting_task, attempts=2, crashes=1),
    # Here, and only here, an effect comes twice: it was there, and nothing lasting said so.
    Case("after_run_before_finish", a_waiting_task, attempts=2, crashes=1, effects=2),
    Case("before_finish_commit", a_waiting_task, attempts=2, crashes=1, effects=2),
    Case("after_finish_before_ack", a_waiting_task),
    Case("custody_taken", a_task_in_custody, attempts=2, crashes=1),
    Case("on_heartbeat", a_task_with_heartbeats, attempts=2, crashes=1),
    Case("in_reap", a_dead_workers_task_put_back, attempts=2, crashes=1),
    Case("in_take_over", a_dead_workers_task_taken_over, attempts=2, crashes=1),
    Case("during_stop", a_released_task, attempts=2),
    Case("in_schedule_transaction", a_due_schedule),
    Case("after_schedule_commit", a_published_slot),
    Case("dead_letter_before_ack", a_foreign_message, attempts=0, effects=0, dead=2, once=True),
]


#: Places where the database can say no in the middle of things; the process lives on.
DATABASE = (
    "after_confirm_before_note",
    "before_claim_commit",
    "after_claim_commit",
    "before_finish_commit",
    "after_finish_before_ack",
    "in_reap",
    "on_heartbeat",
    "in_schedule_transaction",
)


def test_where_the_database_says_no_nothing_is_lost_and_nothing_runs_twice(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """One time in ten, at all places at once."""
    schedule = create_scheduled_task(tasks.effect, {"seconds": 1}, key="tick")
    points = ",".join(f"{place}:raise:0.1@{n}" for n, place in enumerate(DATABASE))
    service = start_service(CARROT_FAILPOINT=points, **carrot(lease=2))
    rows = publish_many(create_message(tasks.effect, task_args=[str(n), 0.02]) for n in range(60))
    done = finished(rows)
    wait_until(lambda: ledger().count("tick") > 2)
    schedule.delete()
    assert service.stop() == 0
    assert {row.attempts for row in done} == {1}
    effects = Counter(key for key in ledger() if key != "tick")
    assert effects.keys() == {str(n) for n in range(60)}
    assert {key for key, times in effects.items() if times != 1} == set()
    assert not MessageLog.objects.unfinished().exists()
    assert broker.depth("default") == 0


def test_a_thread_that_breaks_after_its_task_costs_neither_the_row_nor_the_thread(
    start_service: StartService, ledger: Ledger
) -> None:
    service = start_service(
        CARROT_FAILPOINT="after_run_before_finish:raise:1", CARROT_TEST_CONCURRENCY="1"
    )
    done = finished([publish_message(tasks.effect, "first"), publish_message(tasks.effect, "next")])
    assert sorted(row.attempts for row in done) == [1, 2]
    assert sorted(ledger()) == ["first", "first", "next"]
    assert "A worker thread met an error outside of its task" in service.log
    assert service.stop() == 0


def test_every_place_is_in_the_table() -> None:
    elsewhere = {
        *(*test_handlers.POINTS, *test_archive.POINTS),
        *(*test_flows.KILLS, *test_limits.POINTS),
    }
    assert {case.place for case in CASES} | elsewhere == set(failpoints.PLACES)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.once] if case.once else []) for case in CASES],
    ids=lambda case: f"{case.place}-{case.scene.__name__}",
)
def test_killed_at_any_place_the_contract_holds(
    case: Case,
    start_service: StartService,
    broker: Broker,
    broker_url: str,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    stage = Stage(start_service, broker, broker_url, tmp_path)
    case.scene(stage, case.place)
    stage.file.touch()
    service = stage.service()
    rows = MessageLog.objects.filter(task__startswith="tests.").order_by("pk")
    if case.attempts:
        # What a task publishes is committed before its own end, so this waits for that, too.
        wait_until(rows.exists)
        finished([rows[0]])
    done = finished(rows)
    wait_until(lambda: broker.depth("default.dead") == case.dead)
    assert service.stop() == 0

    assert {row.status for row in done} <= {MessageLog.COMPLETED}
    assert len(ledger()) == case.effects
    assert {(row.attempts, row.crashes) for row in done[:1]} == (
        {(case.attempts, case.crashes)} if case.attempts else set()
    )
    assert broker.depth("default") == 0
    assert broker.depth("default.dead") == case.dead
    assert not Worker.objects.exists()
    assert "Traceback" not in service.log
