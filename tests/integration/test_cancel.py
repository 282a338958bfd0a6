# SPDX-License-Identifier: Apache-2.0
"""Running tasks that somebody cancels: told, interrupted, and never run again for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.integration.test_service import finished
from tests.processes import carrot, wait_until
from tests.project import coroutines, misbehaving

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any
    from uuid import UUID

    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]


def begun(row: MessageLog) -> MessageLog:
    """Wait until it runs; returns it as it is then."""
    now = MessageLog.objects.filter(pk=row.pk, status=MessageLog.IN_PROGRESS)
    wait_until(now.exists, what=row.task)
    return now.get()


def test_running_tasks_end_as_they_are_asked_to(start_service: StartService) -> None:
    service = start_service("--queue=default", "--concurrency=6")
    interrupted = publish_message(misbehaving.works_on, "on")
    looking = publish_message(misbehaving.works_on, "looks")
    failing = publish_message(misbehaving.works_on, "fails")
    told = publish_message(misbehaving.returns_when_told)
    swallowing = publish_message(misbehaving.swallows_for, 5)
    coroutine = publish_message(coroutines.wait_to_be_cancelled)
    untold = publish_message(misbehaving.works_on, "nobody asks")
    rows = [interrupted, looking, failing, told, swallowing, coroutine]
    cooperative = (looking, failing)
    for row in rows:
        assert begun(row).cancel("ann", "too slow", cooperative=row in cooperative)
        row.refresh_from_db()
        assert (row.status, row.cancel_asked is not None) == (MessageLog.IN_PROGRESS, True)

    def is_told() -> bool:
        return MessageLog.objects.get(pk=untold.pk).how_far is not None

    # While it runs.
    wait_until(is_told)
    assert untold.cancel()
    ended: dict[UUID, Any] = {row.pk: row for row in finished(rows)}
    why = "cancelled by ann: too slow"
    for row, status, text in (
        (interrupted, MessageLog.CANCELLED, why),
        (looking, MessageLog.CANCELLED, "saw it"),
        (failing, MessageLog.CANCELLED, "a reason to try again"),
        (told, MessageLog.COMPLETED, None),
        (swallowing, MessageLog.COMPLETED, None),
        (coroutine, MessageLog.CANCELLED, why),
    ):
        end = ended[row.pk]
        assert (end.status, end.exception, end.attempts) == (status, text, 1), end.traceback
        assert end.completion_time is not None
        assert end.cancel_asked is not None
    assert "in works_on\n" in ended[interrupted.pk].traceback
    far = ended[interrupted.pk].how_far
    assert far is not None
    assert (far.total, far.text) == (6000, "on")
    assert far.done > 0
    assert ended[told.pk].output == "was told"
    # What is swallowed is raised again.
    assert int(ended[swallowing.pk].output.split()[1]) > 1
    assert "tidied up, cancelled: True" in ended[coroutine.pk].log
    assert "in wait_to_be_cancelled\n" in ended[coroutine.pk].traceback
    assert f"Task {interrupted.pk} is to end: {why}" in service.log
    assert service.stop(20) == 0


@pytest.mark.once
def test_the_wish_survives_the_worker(start_service: StartService) -> None:
    row = publish_message(misbehaving.returns_when_told)
    first = start_service("--queue=default", **carrot(lease=4.0))
    running = begun(row)
    first.kill()
    assert running.cancel("ann")
    start_service("--queue=default", **carrot(lease=4.0))
    (ended,) = finished([row])
    assert (ended.status, ended.attempts) == (MessageLog.CANCELLED, 1)
    assert ended.exception == "cancelled; its worker was lost before it had ended"
    assert ended.cancel_asked is not None
