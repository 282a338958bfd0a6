# SPDX-License-Identifier: Apache-2.0
"""Flows end to end: services that run them, are killed in them, and meet each other in them."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from carrot_twisted import flow_settling, publisher, records
from carrot_twisted.exceptions import CannotWait, HasFailed, NotFinished
from carrot_twisted.flows import Flow, chain, group, signature
from carrot_twisted.identities import new_token
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.utilities import create_message, publish_message
from tests.integration.test_service import finished, run
from tests.processes import ServiceProcess, wait_until
from tests.project import flowing, tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from tests.conftest import Broker

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]

KILLED = -signal.SIGKILL


def counting(count: int, key: str, seconds: float = 0.0, first: int = 0) -> Any:
    """A group that gives so many numbers, and a task that adds them up and tells."""
    numbers = range(first, first + count)
    return group(
        [flowing.pause.options().message(n, seconds) for n in numbers],
        then=flowing.note.options().signature(key=key),
    )


def ended(flows: Sequence[Flow], seconds: float = 60.0) -> list[Flow]:
    """Wait until all of them have ended; as they are then."""
    keys = [flow.pk for flow in flows]
    going = Flow.objects.filter(pk__in=keys, status=Flow.RUNNING)
    wait_until(lambda: not going.exists(), seconds)
    by_key = Flow.objects.in_bulk(keys)
    return [by_key[key] for key in keys]


def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """Call it in a thread without a reactor."""

    def call() -> Any:
        try:
            return function(*args)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def awaited(waiting: Coroutine[Any, Any, Any]) -> Any:
    """Await it in an event loop, whose thread for Django leaves no connection."""

    async def wait() -> Any:
        try:
            return await waiting
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(wait())


def in_a_transaction(log: MessageLog) -> None:
    with transaction.atomic():
        log.wait(10)


def check_counted(flow: Flow, count: int, first: int = 0) -> None:
    """All of its tasks have one row, and the last one has got all results, once."""
    assert (flow.status, flow.error) == ("COMPLETED", "")
    members, last = flow.logs.filter(flow_step=0), flow.logs.filter(flow_step=1)
    assert [row.status for row in members] == ["COMPLETED"] * count
    (row,) = last
    assert row.positionals == ([*range(first, first + count)],)
    assert flow.result() == sum(range(first, first + count))


def test_flows_run_and_their_results_can_be_waited_for(
    start_service: StartService, ledger: Ledger, broker: Broker
) -> None:
    service = start_service("--no-scheduler")
    flow = chain(
        create_message(flowing.give, task_args=[3]),
        group([signature(flowing.multiply, by=n) for n in range(40)]),
        flowing.note.options(priority=1).signature(key="all"),
    ).publish()
    assert elsewhere(flow.wait, 30).result() == 3 * sum(range(40))
    assert awaited(flow.await_result(30)) == 3 * sum(range(40))
    assert [row.result() for row in flow.logs.filter(flow_step=1)] == [3 * n for n in range(40)]
    assert ledger() == [f"all: 40 results, {3 * sum(range(40))}"]
    bad = chain(create_message(tasks.fail, task_args=["on purpose"]), flowing.tell).publish()
    with pytest.raises(HasFailed, match="is FAILED: on purpose"):
        elsewhere(bad.wait, 30).result()
    log = publish_message(flowing.give, {"a": [1, None]})
    assert elsewhere(log.wait, 30).result() == {"a": [1, None]}
    assert awaited(log.await_result(30)) == {"a": [1, None]}
    inner = publish_message(flowing.pause, 7, 0.5)
    assert run(publish_message(flowing.wait_for, str(inner.pk))).output == "7"
    assert f"Task tests.project.flowing.wait_for waits for Task {inner.pk}." in service.log
    assert service.stop() == 0
    assert broker.depth("default") == 0


@pytest.mark.django_db(transaction=True)
def test_who_waits_in_vain_is_told_so(served: None) -> None:
    log = publish_message(flowing.give, 1)
    began = time.monotonic()
    with pytest.raises(NotFinished, match=r"within 0\.2 s"):
        elsewhere(log.wait, 0.2)
    assert 0.2 <= time.monotonic() - began < 5
    with pytest.raises(TimeoutError):
        awaited(log.await_result(0.05))
    with pytest.raises(CannotWait, match="in a transaction"):
        elsewhere(in_a_transaction, log)
    with transaction.atomic():
        MessageLog.objects.update(status="COMPLETED", output="1", returned="=")
        assert log.wait(10).result() == 1, "what has ended is not waited for"
    with pytest.raises(MessageLog.DoesNotExist):
        elsewhere(MessageLog.new(task="gone").wait)
    log = publish_message(flowing.give, 1)
    with pytest.raises(CannotWait, match="reactor"):
        # Tests have a reactor, in this very thread.
        log.wait(10)


#: Where it is killed, the how many-th time, and how many rows the next step has then.
KILLS = {
    "before_finish_commit": (3, 0),
    "in_flow_step": (1, 0),
    # The first row that a service inserts is that of the next step.
    "before_insert_commit": (1, 0),
    "after_finish_before_ack": (3, 1),
    "after_commit_before_publish": (1, 1),
}


@pytest.mark.parametrize("place", KILLS)
def test_killed_between_two_steps_the_next_one_begins_once(
    start_service: StartService, ledger: Ledger, place: str
) -> None:
    flow = counting(3, "it", 0.1).publish()
    assert publisher.flush(10)
    times, rows = KILLS[place]
    # One thread: each of the three ends by itself.
    dying = start_service(
        "--no-scheduler",
        wait=False,
        CARROT_FAILPOINT=f"{place}:exit:{times}",
        CARROT_TEST_CONCURRENCY="1",
    )
    assert dying.ends() == KILLED
    assert flow.logs.filter(flow_step=1).count() == rows
    service = start_service("--no-scheduler")
    (done,) = ended([flow])
    check_counted(done, 3)
    assert ledger() == ["it: 3 results, 3"]
    assert service.stop() == 0


def test_several_services_that_end_tasks_of_the_same_flows_are_in_nobodys_way(
    start_service: StartService, ledger: Ledger
) -> None:
    services = [start_service("--no-scheduler", wait=False) for _ in range(2)]
    for service in services:
        service.wait_for("Consuming queue default")
    flows = [counting(150, f"flow {n}", first=n).publish() for n in range(8)]
    for n, flow in enumerate(ended(flows)):
        check_counted(flow, 150, first=n)
    assert sorted(ledger()) == sorted(
        f"flow {n}: 150 results, {sum(range(n, n + 150))}" for n in range(8)
    )
    for service in services:
        assert service.stop() == 0
        assert "deadlock" not in service.log
        assert "does not take everything" not in service.log


@pytest.mark.only("postgres")
@pytest.mark.django_db(transaction=True)
def test_who_ends_the_last_tasks_at_the_same_moment_waits_for_the_other(served: None) -> None:
    """Without that neither would see that nothing is left."""
    flow = counting(2, "it").publish()
    runs = [in_progress(row.pk) for row in flow.logs]
    held = threading.Event()

    def first() -> None:
        with transaction.atomic():
            end(runs[0])
            held.set()
            wait_until(waits_for_a_lock)

    def second() -> None:
        assert held.wait(30)
        with transaction.atomic():
            end(runs[1])

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(elsewhere, first), pool.submit(elsewhere, second)]:
            done.result(60)
    assert [row.positionals for row in flow.logs.filter(flow_step=1)] == [([0, 1],)]


def in_progress(key: Any) -> Claimed:
    """The row of a task that runs."""
    claimant = Claimant(worker="test", lease=60, max_crashes=5, alone=True, judges=False)
    one = records.claim([key], new_token(), claimant, "default")[key]
    assert isinstance(one, Claimed)
    return one


def end(run: Claimed) -> None:
    """As a service does; the task has returned its argument."""
    value = json.loads(run.task_args)[0]
    result = Result(kind=Kind.COMPLETED, output=str(value), returned="=")
    ends = [Finished(uuid=run.uuid, token=run.token, result=result, flow=run.flow)]
    records.finish(ends, 0.0, "default")
    records.settle_flows(ends, "default")


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database() AND query LIKE '%carrot_twisted_flow%'"
        )
        return bool(cursor.fetchone()[0])


@pytest.mark.only("postgres")
@pytest.mark.django_db(transaction=True)
def test_how_a_flow_stands_is_asked_of_its_index(served: None) -> None:
    """However large a part of the table is of the flow, and whatever the database guesses."""
    flow = counting(3000, "it").publish()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE carrot_twisted_messagelog")
    with CaptureQueriesContext(connection) as seen, transaction.atomic():
        flow_settling.settle({flow.pk}, "default")
    asking = [query["sql"] for query in seen if "flow_position" in query["sql"]]
    assert len(asking) == 1
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {asking[0]}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Seq Scan on carrot_twisted_messagelog" not in plan
    assert "Index Scan using carrot_flow " in plan
    Flow.objects.update(changed_at=F("changed_at") - timedelta(minutes=1))
    with transaction.atomic():
        assert flow_settling.sweep("default") == 0
    flow.logs.order_by().update(status="COMPLETED", output="1", returned="=")
    with transaction.atomic():
        assert flow_settling.sweep("default") == 1
    assert flow.logs.filter(flow_step=1).count() == 1


@pytest.mark.only("postgres")
def test_ten_thousand_tasks_are_published_and_counted(
    start_service: StartService, ledger: Ledger
) -> None:
    messages = [flowing.give.options().message(n) for n in range(10_000)]
    with CaptureQueriesContext(connection) as seen:
        flow = group(messages, then=flowing.note.options().signature(key="all")).publish()
    sent = [query["sql"] for query in seen]
    assert sum(sql.startswith("INSERT") for sql in sent) == 1 + 5, "2,000 rows at a time"
    assert len(sent) <= 15, sent
    service = start_service("--no-scheduler")
    (done,) = ended([flow], 120)
    check_counted(done, 10_000)
    assert len(ledger()) == 1
    assert service.stop() == 0


def test_flows_survive_services_that_are_killed_again_and_again(
    start_service: StartService, ledger: Ledger
) -> None:
    """The short form; ``run.py chaos`` has flows among its tasks, too."""
    seed = 7
    chance = random.Random(seed)
    flows = [counting(20, f"flow {n}", 0.02, first=n).publish() for n in range(50)]
    services = [start_service("--no-scheduler", wait=False) for _ in range(2)]
    kills = 0
    going = Flow.objects.filter(status=Flow.RUNNING)
    while going.exists() and kills < 6:
        victim = chance.randrange(2)
        threading.Event().wait(chance.uniform(0.5, 1.2))
        services[victim].kill()
        kills += 1
        services[victim] = start_service("--no-scheduler", wait=False)
    for n, flow in enumerate(ended(flows)):
        check_counted(flow, 20, first=n)
    told = ledger()
    assert {*told} == {f"flow {n}: 20 results, {sum(range(n, n + 20))}" for n in range(50)}
    # A task that was killed before its end was written runs again, as any other: each run of a
    # flow's last task is one that its only row has counted.
    lasts = MessageLog.objects.filter(flow_step=1)
    assert lasts.count() == 50
    assert len(told) <= sum(lasts.values_list("attempts", flat=True))
    assert kills >= 2
    assert MessageLog.objects.count() == 50 * 21
    finished([])
