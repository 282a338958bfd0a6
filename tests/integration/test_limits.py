# SPDX-License-Identifier: Apache-2.0
"""Limits over several services, end to end: never more than they say, and nobody waits for ever."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import Count
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from carrot_twisted import admission, outbox, outcomes, publisher, records
from carrot_twisted.admission import Request
from carrot_twisted.admission_decision import Candidate
from carrot_twisted.identities import new_token
from carrot_twisted.models import LimitState, MessageLog
from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.records import Claimant, Finished
from carrot_twisted.utilities import publish_many, publish_message
from tests.conftest import kind_of_database
from tests.integration.test_service import finished
from tests.processes import ServiceProcess, constants, wait_until
from tests.project import limited
from tests.project.optioned import quiet
from tests.unit.test_records import worker as living

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.conftest import Broker

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]


#: Failpoints of letting tasks start, and some on the way to letting the next one.
POINTS = ("before_admission_commit", "after_admission_commit")
AFTER = ("before_finish_commit", "after_finish_before_ack", "after_admission_commit:exit:2")


def most_at_once(lines: Iterable[str]) -> dict[str, int]:
    """Of each key, how many tasks were under way at the same time at most."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for line in lines:
        sign, key, *_ = line.split()
        if sign not in "+-":
            continue
        now[key] += 1 if sign == "+" else -1
        most[key] = max(most[key], now[key])
    return dict(most)


def starts(lines: Iterable[str], key: str) -> list[float]:
    return sorted(float(line.split()[3]) for line in lines if line.startswith(f"+ {key} "))


def nobody_waits() -> None:
    assert not LimitState.objects.filter(look_at__isnull=False).exists()
    assert not MessageLog.objects.filter(status="PUBLISHED").exists()


def test_no_more_run_at_once_than_the_limit_says_over_all_services_and_others_go_on(
    start_service: StartService, ledger: Ledger, broker: Broker
) -> None:
    logs = publish_many(
        limited.by_account.options().message(account=n % 3, pause=0.005) for n in range(150)
    )
    others = publish_many(quiet.options().message(f"- other{n}") for n in range(20))
    assert publisher.flush(10)
    services = [start_service("--no-scheduler", CARROT_TEST_CONCURRENCY="8") for _ in range(3)]
    done = finished([*logs, *others], 60)
    assert {row.status for row in done} == {"COMPLETED"}
    assert {row.attempts for row in done} == {1}
    lines = [line for line in ledger() if "other" not in line]
    assert len(lines) == 300
    assert most_at_once(lines) == {f"account:{n}": 2 for n in range(3)}
    wait_until(lambda: not LimitState.objects.filter(look_at__isnull=False).exists())
    nobody_waits()
    assert [service.stop() for service in services] == [0, 0, 0]
    assert broker.depth("default") == 0


def test_what_waits_has_no_message_and_no_thread_the_oldest_of_the_highest_priority_is_next(
    start_service: StartService, ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    service = start_service("--no-scheduler", CARROT_TEST_CONCURRENCY="2")
    file = tmp_path / "go"
    first = publish_message(limited.alone, "first", file=str(file))
    wait_until(MessageLog.objects.filter(pk=first.pk, status="IN_PROGRESS").exists)
    rows = [
        limited.alone.options(priority=priority).publish(f"{priority}/{n}")
        for n, priority in enumerate([0, 3, 0, 3])
    ]
    keys = [row.pk for row in rows]
    waiting = MessageLog.objects.filter(pk__in=keys, waits_for__isnull=False)
    wait_until(lambda: waiting.count() == 4)
    # There is a thread for others, and the broker holds nothing.
    finished([publish_message(quiet, "- other")])
    wait_until(lambda: broker.depth("default") == 0)
    rows[0].refresh_from_db()
    assert rows[0].limited_by == "a slot of tests.project.limited.alone"
    assert (rows[0].status, rows[0].attempts) == ("PUBLISHED", 0)
    assert rows[2].cancel()
    file.touch()
    finished([first, *rows])
    begun = [line.split()[1] for line in ledger() if line.startswith("+")]
    assert begun == ["first", "3/1", "3/3", "0/0"]
    assert service.stop() == 0


def test_no_more_start_in_a_period_than_the_rate_says_over_all_services(
    start_service: StartService, ledger: Ledger
) -> None:
    for _ in range(2):
        start_service("--no-scheduler")
    logs = publish_many(
        limited.ask.options().message(server) for server in ("a", "b") for _ in range(15)
    )
    finished(logs)
    for server in ("a", "b"):
        rows = MessageLog.objects.filter(rate_key__endswith=f" {server}").order_by("start_time")
        claims = sorted(row.start_time.timestamp() for row in rows if row.start_time)
        assert len(claims) == 15
        # What is in the row is when a thread began it, by this machine's clock.
        gaps = [later - earlier for earlier, later in zip(claims, claims[5:], strict=False)]
        assert min(gaps) > 0.3, "it has to wait for a thread, too"
        assert claims[-1] - claims[0] < 15, "and not much later than it lets them"
    nobody_waits()


def test_both_limits_hold_and_tasks_share_those_of_their_group(
    start_service: StartService, ledger: Ledger
) -> None:
    services = [start_service("--no-scheduler") for _ in range(2)]
    logs = publish_many(
        (limited.sync if n % 2 else limited.upload).options().message(n % 3, pause=0.01)
        for n in range(60)
    )
    done = finished(logs)
    assert {row.status for row in done} == {"COMPLETED"}
    assert max(most_at_once(ledger()).values()) == 2
    rated = MessageLog.objects.filter(rate_key__isnull=False)
    claims = sorted(row.start_time.timestamp() for row in rated if row.start_time)
    gaps = [later - earlier for earlier, later in zip(claims, claims[20:], strict=False)]
    assert len(claims) == 30
    assert min(gaps) > 0.3, "it has to wait for a thread, too"
    assert [service.stop() for service in services] == [0, 0]


def test_a_task_that_is_tried_again_gives_its_slot_back_meanwhile(
    start_service: StartService, ledger: Ledger
) -> None:
    start_service("--no-scheduler")
    done = finished(publish_many(limited.flaky.options().message(f"{n}") for n in range(4)))
    assert {(row.status, row.retries, row.attempts) for row in done} == {("COMPLETED", 2, 3)}
    assert most_at_once(line.replace(line.split()[1], "x", 1) for line in ledger()) == {"x": 1}


@pytest.mark.parametrize("place", [*POINTS, *AFTER])
def test_a_worker_that_is_killed_gives_its_slots_back(
    start_service: StartService, ledger: Ledger, place: str
) -> None:
    action = place if ":" in place else f"{place}:exit"
    logs = publish_many(limited.alone.options().message("k", pause=0.01) for _ in range(12))
    assert publisher.flush(10)
    dying = start_service("--no-scheduler", wait=False, CARROT_FAILPOINT=action)
    assert dying.ends() == -signal.SIGKILL
    service = start_service("--no-scheduler")
    done = finished(logs)
    assert {row.status for row in done} == {"COMPLETED"}
    assert sum(row.crashes for row in done) <= 1
    signs = Counter(line[0] for line in ledger())
    # What was killed while it ran has no end.
    killed = signs["+"] - signs["-"]
    assert killed <= sum(row.crashes for row in done)
    assert most_at_once(ledger()) == {"k": 1 + killed}
    wait_until(lambda: not LimitState.objects.filter(look_at__isnull=False).exists())
    assert service.stop() == 0


def test_a_task_that_kills_its_worker_has_its_slot_until_that_is_known(
    start_service: StartService, ledger: Ledger
) -> None:
    row = publish_message(limited.dies, "first")
    dying = start_service("--no-scheduler", wait=False)
    assert dying.ends() == -signal.SIGKILL
    next_one = publish_message(limited.dies, "next")
    start_service("--no-scheduler")
    done = finished([row, next_one])
    assert [one.status for one in done] == ["COMPLETED"] * 2
    assert (done[0].crashes, done[1].crashes) == (1, 0)


@pytest.mark.parametrize("kind", ["coroutines", "hooks"])
def test_limits_hold_for_coroutines_and_where_hooks_read_messages(
    start_service: StartService, ledger: Ledger, kind: str
) -> None:
    hooks = {"CARROT_TEST_CONSUMER": "tests.project.consumers.Guard"}
    service = start_service("--no-scheduler", **(hooks if kind == "hooks" else {}))
    work = limited.by_account if kind == "hooks" else limited.in_loop
    logs = publish_many(work.options().message(account=n % 2, pause=0.05) for n in range(16))
    done = finished(logs, 60)
    assert {(row.status, row.attempts) for row in done} == {("COMPLETED", 1)}
    assert max(most_at_once(ledger()).values()) == 2
    assert service.stop() == 0


def test_a_service_that_stops_lets_others_go_on(
    start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    leaving = start_service("--no-scheduler")
    first = publish_message(limited.alone, "k", file=str(file))
    wait_until(MessageLog.objects.filter(pk=first.pk, status="IN_PROGRESS").exists)
    logs = publish_many(limited.alone.options().message("k", pause=0.01) for _ in range(10))
    wait_until(lambda: MessageLog.objects.filter(waits_for__isnull=False).count() == 10)
    staying = start_service("--no-scheduler")
    leaving.signal()
    leaving.wait_for("tasks are still running")
    file.touch()
    assert leaving.ends() == 0
    done = finished([first, *logs])
    assert {row.status for row in done} == {"COMPLETED"}
    assert most_at_once(ledger()) == {"k": 1}
    assert staying.stop() == 0


def test_a_key_of_two_queues_is_one_and_each_has_its_turn(
    start_service: StartService, ledger: Ledger
) -> None:
    start_service("--no-scheduler", "--queue=default")
    other = start_service("--no-scheduler", "--queue=other", wait=False)
    other.wait_for("Consuming queue other")
    logs = publish_many(
        limited.alone.options(queue=queue).message("k")
        for _ in range(6)
        for queue in ("default", "other")
    )
    done = finished(logs)
    assert {row.status for row in done} == {"COMPLETED"}
    assert most_at_once(ledger()) == {"k": 1}


def test_rows_that_are_run_again_or_thrown_away_while_they_run_hold_no_slot(
    start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    """Found by the look that each limit with waiting rows has."""
    start_service("--no-scheduler", **constants({"admission_decision.SAFETY": 1.0}))
    file = tmp_path / "go"
    first = publish_message(limited.alone, "gone", file=str(file))
    wait_until(MessageLog.objects.filter(pk=first.pk, status="IN_PROGRESS").exists)
    row = publish_message(limited.alone, "next")
    wait_until(MessageLog.objects.filter(pk=row.pk, waits_for__isnull=False).exists)
    MessageLog.objects.filter(pk=first.pk).delete()
    finished([row])
    again = row.requeue()
    file.touch()
    (done,) = finished([again])
    assert done.slot_key == "slot tests.project.limited.alone"


@pytest.mark.skipif(kind_of_database() == "sqlite", reason="tests/unit looks at SQLite's plan")
def test_thousands_that_wait_are_found_by_an_index(served: None) -> None:
    name = "slot tests.project.limited.alone"
    rows = {"task": "tests.project.limited.alone", "queue": "default", "slot_key": name}
    MessageLog.objects.bulk_create(
        MessageLog(**rows, waits_for=name, confirmed_at=Now(), priority=n % 9) for n in range(5000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE carrot_twisted_messagelog")
    LimitState.objects.create(name=name, look_at=Now())
    request = Request(token=new_token(), freed={name: 1})
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        (run,) = admission.admit(request, "me", {"default": 1}, "default").runs
    assert MessageLog.objects.get(pk=run).priority == 8
    reads = [one["sql"] for one in queries if "ORDER BY priority" in one["sql"]]
    for read in reads:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {read}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "carrot_limited" in plan, plan
        assert "Sort" not in plan, plan
    assert len(reads) == 2, "one is for tasks with two limits"


def test_what_waits_expires(start_service: StartService, tmp_path: Path) -> None:
    start_service("--no-scheduler")
    file = tmp_path / "go"
    first = publish_message(limited.alone, "k", file=str(file))
    wait_until(MessageLog.objects.filter(pk=first.pk, status="IN_PROGRESS").exists)
    row = limited.alone.options(expires=1).publish("late")
    wait_until(MessageLog.objects.filter(pk=row.pk, status="CANCELLED").exists)
    row.refresh_from_db()
    assert (row.exception, row.limited_by) == ("expired", None)
    file.touch()
    finished([first])


DONE = Result(kind=Kind.COMPLETED, started=1.0, ended=2.0)


def lasting(work: Callable[..., Any], *given: Any) -> Any:
    """In a transaction, which is repeated as the writer does."""
    for _ in range(100):
        try:
            with transaction.atomic():
                return work(*given)
        except OperationalError as error:
            if not outcomes.blames_database(error):
                raise
    raise AssertionError("others are always in the way")


def test_many_that_claim_at_the_same_moment_never_take_more_than_there_is(served: None) -> None:
    """Threads with connections of their own; each looks what is there after its commit."""
    kinds = (limited.sync, limited.upload, limited.by_account)
    logs = publish_many(kinds[n % 3].options().message(n % 2) for n in range(120))
    keys = [log.pk for log in logs]
    random.Random(7).shuffle(keys)
    most: Counter[str] = Counter()
    done: set[Any] = set()
    names = [f"worker {n}" for n in range(6)]
    for name in names:
        living(name)

    def work(worker: str) -> None:
        claimant = Claimant(worker=worker, lease=60, max_crashes=5, alone=False, judges=False)
        end = time.monotonic() + 50
        while len(done) < len(logs) and time.monotonic() < end:
            batch = [keys.pop() for _ in range(3) if keys]
            asked = lasting(records.claim, batch, new_token(), claimant, "default")
            rows = [one for one in asked.values() if isinstance(one, Candidate)]
            request = Request(token=new_token(), rows=rows, due=True)
            runs = lasting(admission.admit, request, worker, {"default": 3}, "default").runs
            running = MessageLog.objects.filter(status="IN_PROGRESS").values("slot_key")
            for name, count in running.annotate(n=Count("pk")).values_list("slot_key", "n"):
                most[str(name)] = max(most[str(name)], count)
            ended = [Finished(uuid=r.uuid, token=r.token, result=DONE) for r in runs.values()]
            if ended:
                lasting(records.finish, ended, 0.0, "default")
                done.update(one.uuid for one in ended)
                freed = Counter(run.slot_key for run in runs.values())
                request = Request(token=new_token(), freed=freed)
                lasting(admission.admit, request, worker, {"default": 0}, "default")
            # A machine that has much to do is late: then tasks get messages.
            keys.extend(row.pk for row in lasting(outbox.take_unsent, ["default"], 9, "default"))
            time.sleep(0.01)
        connection.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, names, timeout=60))
    assert len(done) == 120
    assert list(most.values()) == [2] * 4, "two accounts of two groups"
    assert set(MessageLog.objects.values_list("status", "attempts")) == {("COMPLETED", 1)}
