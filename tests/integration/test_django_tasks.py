# SPDX-License-Identifier: Apache-2.0
"""Tasks of django.tasks end to end: enqueued here, run by a service, looked at here again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from carrot_twisted.models import MessageLog
from tests.processes import ServiceProcess, wait_until
from tests.project import standard

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]


def ended(*results: Any) -> None:
    """Wait until all are finished."""

    def all_are() -> bool:
        for one in results:
            one.refresh()
        return all(one.is_finished for one in results)

    wait_until(all_are, what=str([(one.task.name, one.status) for one in results]))


def test_a_service_runs_what_was_enqueued_and_tells_what_came_of_it(
    start_service: StartService, ledger: Ledger
) -> None:
    """Also of modules that no setting names, and later; signals come where things happen."""
    due = timezone.now() + timedelta(seconds=1)
    added = standard.add.enqueue(20, other=22)
    told = standard.tell.enqueue({"a": ["é", None, 1.5]})
    failed = standard.fail.enqueue("no such luck")
    tried = standard.third_time.enqueue("Ada")
    later = standard.tell.using(run_after=due).enqueue("later")
    start_service()
    ended(added, told, failed, tried, later)

    assert added.return_value == 42
    value: Any = told.return_value
    assert value == {"a": ["é", None, 1.5]}
    (error,) = failed.errors
    assert error.exception_class is ValueError
    assert error.traceback.endswith("ValueError: no such luck\n")
    row = MessageLog.objects.get(pk=tried.id)
    assert tried.return_value == [tried.id, 3, "RUNNING", ["Ada"], 3]
    assert tried.worker_ids == [row.worker] * 3
    assert later.started_at
    assert later.started_at >= due
    results: list[Any] = [added, told, failed, tried, later]
    for one in results:
        assert one.enqueued_at <= one.started_at <= one.last_attempted_at <= one.finished_at
    assert ledger() == [
        "enqueued CarrotBackend READY",
        f"started CarrotBackend RUNNING {row.worker}",
        f"finished CarrotBackend SUCCESSFUL {row.worker}",
    ]
