# SPDX-License-Identifier: Apache-2.0
"""Tasks with options, end to end: tried again, for later, expired, one of a kind."""

from __future__ import annotations

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from django.utils import timezone

from carrot_twisted import publisher
from carrot_twisted.message_log_set import EXPIRED
from carrot_twisted.models import Attempt, MessageLog
from carrot_twisted.utilities import publish_many, publish_message
from tests.conftest import run_python
from tests.integration.test_service import finished
from tests.processes import ServiceProcess, wait_until
from tests.project import optioned

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Broker

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]


def test_a_task_that_fails_is_tried_again_in_growing_intervals_then_it_has_failed(
    start_service: StartService, ledger: Ledger, broker: Broker
) -> None:
    service = start_service("--no-scheduler")
    good, bad = finished(
        [publish_message(optioned.flaky, "good", 2), publish_message(optioned.flaky, "bad", 9)]
    )
    assert (good.status, good.attempts, good.retries) == ("COMPLETED", 3, 2)
    assert (bad.status, bad.attempts, bad.retries) == ("FAILED", 3, 2)
    assert (good.exception, bad.exception) == (None, "failure 3")
    for row in (good, bad):
        told = Attempt.objects.filter(message=row.pk).order_by("number")
        assert [(one.outcome, one.exception) for one in told] == [
            (Attempt.RETRIED, "failure 1"),
            (Attempt.RETRIED, "failure 2"),
        ]
        starts = [one.started for one in told] + [row.start_time]
        gaps = [(b - a).total_seconds() for a, b in pairwise(starts) if a and b]
        assert gaps[0] >= 0.4
        assert gaps[1] >= 0.8
    assert sorted(ledger()) == sorted(
        ["good", *(f"attempt {n} at {key}" for key in ("good", "bad") for n in (1, 2, 3))]
    )
    assert service.log.count("is tried again in") == 4
    assert service.log.count("failed: failure 3") == 1
    assert service.stop() == 0
    assert broker.depth("default") == 0


@pytest.mark.parametrize(
    ("place", "attempts", "crashes"),
    [("before_finish_commit", 3, 1), ("after_finish_before_ack", 2, 0)],
)
def test_killed_between_an_attempt_and_its_retry_the_retry_comes_and_is_counted_once(
    start_service: StartService, ledger: Ledger, place: str, attempts: int, crashes: int
) -> None:
    row = publish_message(optioned.flaky, "it", 1)
    assert publisher.flush(10)
    dying = start_service(
        "--no-scheduler", wait=False, CARROT_FAILPOINT=f"{place}:exit", CARROT_TEST_CONCURRENCY="1"
    )
    assert dying.ends() == -signal.SIGKILL
    row.refresh_from_db()
    assert row.retries == (place == "after_finish_before_ack")
    service = start_service("--no-scheduler")
    (done,) = finished([row])
    assert (done.status, done.retries, done.attempts) == ("COMPLETED", 1, attempts)
    assert done.crashes == crashes
    assert done.run_after is not None
    assert done.start_time is not None
    assert done.start_time >= done.run_after
    assert ledger().count("it") == 1
    assert service.stop() == 0


def test_a_task_for_later_runs_then_and_one_that_has_expired_never_does(
    start_service: StartService, ledger: Ledger, broker: Broker
) -> None:
    quiet = optioned.quiet
    unread = quiet.options(queue="other", expires=1).publish("unread")
    late = quiet.options(expires=0.01).publish("late")
    later = quiet.options(run_after=2, expires=60).publish("later")
    far = quiet.options(run_after=timedelta(days=3650)).publish("far")
    assert publisher.flush(10)
    assert broker.depth("default") == 1, "what is for later is no message yet"
    service = start_service("--no-scheduler", "--queue=default")
    (done,) = finished([later])
    assert done.run_after is not None
    assert done.start_time is not None
    delay = (done.start_time - done.run_after).total_seconds()
    assert 0 <= delay < 30
    assert done.queue_wait == done.start_time - done.run_after
    wait_until(MessageLog.objects.filter(pk=unread.pk, status="CANCELLED").exists)
    for row in (unread, late):
        row.refresh_from_db()
        assert (row.status, row.exception, row.attempts) == ("CANCELLED", EXPIRED, 0)
    assert far.run_now()
    finished([far])
    assert ledger() == ["later", "far"]
    assert timezone.now() > done.run_after
    assert service.stop() == 0


RACE = """\
import sys, django; django.setup()
from carrot_twisted import publisher
from carrot_twisted.utilities import publish_many
from tests.project.optioned import one_at_a_time
mine = 0
for start in range(0, 150, 10):
    keys = [str(n) for n in range(start, start + 10)]
    if sys.argv[1] == "b":
        keys.reverse()
    logs = publish_many(one_at_a_time.options().message(key) for key in keys)
    mine += sum(not log.duplicate for log in logs)
publisher.flush(10)
print(mine)"""


def test_of_two_processes_that_publish_the_same_one_does(
    start_service: StartService, broker_url: str, ledger: Ledger
) -> None:
    """No error, no deadlock, and each key once; again after all have ended."""
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: run_python(RACE, broker_url, name), "ab"))
    assert [process.returncode for process in done] == [0, 0], [one.stdout for one in done]
    counts = [int(process.stdout.split()[-1]) for process in done]
    assert sum(counts) == MessageLog.objects.count() == 150
    service = start_service("--no-scheduler")
    finished(MessageLog.objects.all())
    logs = publish_many(optioned.one_at_a_time.options().message(str(n)) for n in range(150))
    assert not any(log.duplicate for log in logs)
    finished(logs)
    assert set(Counter(ledger()).values()) == {2}
    assert service.stop() == 0
