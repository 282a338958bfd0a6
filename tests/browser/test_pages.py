# SPDX-License-Identifier: Apache-2.0
"""Overview, queues, workers and actions, as people see and use them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from carrot_twisted import histograms, rollups
from carrot_twisted.models import (
    MessageLog,
    OperatorAction,
    PausedQueue,
    QueueStatistics,
    Worker,
)
from tests.browser.conftest import check_accessibility, check_width, expect

if TYPE_CHECKING:
    from tests.browser.conftest import Visitor

WORKER = "web-1-4711-ab12cd"


def fill() -> MessageLog:
    """Something of everything that these pages show."""
    running = MessageLog.objects.create(
        task="shop.tasks.resize", queue="default", status=MessageLog.IN_PROGRESS, worker=WORKER
    )
    now = datetime.now(UTC).timestamp()
    times: histograms.Histogram = {}
    histograms.add(times, 0.25)
    start = datetime.fromtimestamp(rollups.start_of(now, 60), UTC)
    counted = rollups.Totals(completed=1234, failed=7, wait=times, run=times)
    for resolution in (60, 600):
        at = rollups.start_of(now, resolution)
        keys = rollups.counted_in((resolution, at, "default", "shop.tasks.send"))
        rollups.write([(key, counted) for key in keys], WORKER, "default")
    QueueStatistics.objects.create(
        **{"resolution": 60, "start": start, "queue": "default"},
        **{"waiting": 41, "running": 2, "oldest": 12.5, "unsent": 3},
    )
    state = {
        "running": [
            {"thread": "default-1", "task": running.task, "uuid": str(running.pk)}
            | {"seconds": 712.3, "stuck": True}
        ],
        "problems": ["The broker refuses the connection"],
    }
    Worker.objects.create(
        name=WORKER, host="web-1", pid=4711, version="1", queues="default", threads=8, state=state
    )
    OperatorAction.note("ann", "requeue", "12 tasks that had failed", 12)
    return running


@pytest.mark.parametrize("path", ["", "queues/", "workers/", "actions/", "workers/x/stop/"])
def test_a_page_is_accessible_and_fits_a_telephone(visitor: Visitor, path: str) -> None:
    fill()
    page = visitor.open(path, scheme="dark", width=390)
    check_accessibility(page)
    check_width(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    check_accessibility(page)


def test_the_overview_tells_numbers_and_charts_them_also_without_scripts(visitor: Visitor) -> None:
    fill()
    page = visitor.open("", scripts=False)
    for text in ("1,234", "0.6 %", "shop.tasks.send"):
        expect(page.get_by_text(text).first).to_be_visible()
    # A histogram knows a time to some percent.
    expect(page.get_by_role("cell", name=re.compile(r"2[2-8]\d ms")).first).to_be_visible()
    chart = page.get_by_role("img", name="Tasks that came to their end")
    assert chart.locator("rect.good, rect.bad").count() == 2
    page.get_by_role("link", name="Last week").click()
    expect(page.get_by_text("Nothing came to its end in this time.")).to_be_visible()


def test_a_queue_is_paused_with_a_reason_and_resumed(visitor: Visitor) -> None:
    page = visitor.open("queues/")
    page.get_by_label("Reason to pause default").fill("the disk is full")
    # What is typed stays when the page asks for itself again.
    with page.expect_response(
        lambda answer: answer.url.endswith("/queues/") and "hx-request" in answer.request.headers
    ):
        pass
    page.get_by_role("button", name="Pause default").click()
    expect(page.get_by_role("status")).to_contain_text("take nothing more off queue default")
    expect(page.get_by_text("the disk is full")).to_be_visible()
    paused = PausedQueue.objects.get()
    assert (paused.name, paused.by, paused.reason) == ("default", "ann", "the disk is full")
    page.get_by_role("button", name="Resume default").click()
    expect(page.get_by_role("button", name="Pause default")).to_be_visible()
    assert not PausedQueue.objects.exists()
    page.get_by_role("link", name="Actions", exact=True).click()
    assert page.locator("tbody tr").count() == 2


def test_a_worker_is_quiet_and_stopped_without_scripts(visitor: Visitor) -> None:
    fill()
    Worker.objects.update(machine="")
    page = visitor.open("workers/", scripts=False)
    page.get_by_role("button", name="Quiet").click()
    expect(page.get_by_text("told to be quiet")).to_be_visible()
    assert Worker.objects.get().command == Worker.QUIET
    page.get_by_role("button", name="Work again").click()
    assert Worker.objects.get().command == ""
    page.get_by_role("link", name="Stop").click()
    page.get_by_role("button", name="Stop it").click()
    expect(page.get_by_text("told to stop")).to_be_visible()
    assert Worker.objects.get().command == Worker.STOP
