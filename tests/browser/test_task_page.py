# SPDX-License-Identifier: Apache-2.0
"""The page of one task: it grows while the task runs, and works without scripts, too."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from carrot_twisted import flow_steps
from carrot_twisted.flows import chain, group
from carrot_twisted.models import Attempt, MessageLog
from tests.browser.conftest import check_accessibility, check_width, expect
from tests.project import flowing

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Visitor

HEAD = "Thread-3   2026-01-31 08:00:00,250"
#: Pixels between the last line that is seen and the end of the log.
TO_THE_END = "e => e.scrollHeight - e.scrollTop - e.clientHeight"


def make(status: str, **given: Any) -> MessageLog:
    now = timezone.now()
    fields: dict[str, Any] = {"task": "tests.project.tasks.effect", "queue": "default"}
    fields["task_args"] = '["4711", 0.5]'
    if status != "PUBLISHED":
        fields |= {"start_time": now - timedelta(seconds=3), "attempts": 1, "worker": "host:1"}
    if status == "FAILED":
        fields |= {"failure_time": now, "exception": "no address", "traceback": traceback()}
    return MessageLog.objects.create(**{**fields, "status": status, **given})


def traceback() -> str:
    return "\n".join(
        [
            "Traceback (most recent call last):",
            '  File "/usr/lib/python3.13/site-packages/lib.py", line 1, in run',
            "    task()",
            '  File "/srv/shop/tasks.py", line 4, in send',
            "    raise ValueError('no address')",
            "ValueError: no address",
        ]
    )


def lines(count: int, level: str = "INFO") -> str:
    return "\n".join(f"{HEAD} {level}:: line {n}" for n in range(1, count + 1))


def path(row: MessageLog) -> str:
    return f"tasks/{row.pk}/"


def grow(row: MessageLog, count: int) -> None:
    MessageLog.objects.filter(pk=row.pk).update(log=lines(count))


def test_the_flow_of_a_task_is_seen_while_it_goes_on(visitor: Visitor) -> None:
    flow = chain(
        flowing.give.options().message(1),
        group([flowing.multiply.options().signature(by=n) for n in range(3)]),
        flowing.add_up,
    ).publish()
    first = flow.logs[0]
    run = flow_steps.next_rows(flow.pk, flow.steps, flow.plan, 1, "1")[0]
    MessageLog.objects.filter(pk=first.pk).update(status="COMPLETED", output="1", returned="=")
    with transaction.atomic():
        flow_steps.begin(flow, 1, run, "default")
    flow.logs.filter(flow_position=1).order_by().update(status="FAILED", exception="no")
    page = visitor.open(path(run[0]))
    section = page.get_by_role("region", name="Flow")
    expect(section.get_by_text("step 2 of 3")).to_be_visible()
    expect(section.get_by_text("1 of 3, 1 not completed")).to_be_visible()
    check_accessibility(page)
    check_width(page)
    MessageLog.objects.filter(pk=run[0].pk).update(status="COMPLETED", output="0", returned="=")
    expect(section.get_by_text("2 of 3, 1 not completed")).to_be_visible()
    section.get_by_role("link", name="all its tasks").click()
    expect(page.get_by_text(f"Only tasks of the flow {flow.pk}")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(5)
    check_accessibility(page)
    section = page.get_by_role("link", name="tests.project.flowing.give").first
    section.click()
    page.get_by_role("link", name="tests.project.flowing.give").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("tests.project.flowing.give")


def test_the_log_grows_and_its_end_stays_in_view_until_the_reader_scrolls(
    visitor: Visitor,
) -> None:
    row = make("IN_PROGRESS", log=lines(200))
    page = visitor.open(path(row))
    log = page.get_by_role("region", name="Lines of the log")
    expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "true")
    assert log.evaluate(TO_THE_END) < 5
    page.evaluate("window.same = true")
    grow(row, 300)
    expect(log.get_by_text("line 300", exact=True)).to_be_visible()
    assert log.evaluate(TO_THE_END) < 5
    log.evaluate("e => { e.scrollTop = 500; }")
    expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "false")
    grow(row, 400)
    expect(log.get_by_text("line 400", exact=True)).to_be_attached()
    assert log.evaluate("e => e.scrollTop") == 500
    page.get_by_role("button", name="Follow").click()
    assert log.evaluate(TO_THE_END) < 5
    MessageLog.objects.filter(pk=row.pk).update(
        status="COMPLETED", completion_time=timezone.now(), output="done"
    )
    expect(page.get_by_role("heading", name="Result")).to_be_visible()
    expect(page.get_by_role("button", name="Follow")).to_be_hidden()
    assert page.evaluate("window.same")


def test_a_row_that_goes_while_it_is_looked_at_leads_to_the_new_one(visitor: Visitor) -> None:
    row = make("IN_PROGRESS")
    page = visitor.open(path(row))
    visitor.expected.append(path(row))
    again = row.requeue()
    page.get_by_role("link", name=str(again.pk)).click()
    expect(page.get_by_text("Waiting to be sent to the broker")).to_be_visible()


def test_the_id_is_copied(visitor: Visitor) -> None:
    row = make("FAILED", log=lines(1))
    page = visitor.open(path(row))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the id").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.get_by_label("Search in the log").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Search in the log")).to_have_value(str(row.pk))


@pytest.mark.parametrize("scripts", [True, False])
def test_level_search_and_deletion_need_no_scripts(visitor: Visitor, scripts: bool) -> None:
    row = make("FAILED", log=f"{lines(3)}\n{lines(3, 'DEBUG')}")
    page = visitor.open(path(row), scripts=scripts)
    log = page.get_by_role("region", name="Lines of the log")
    expect(log.get_by_text("line 2")).to_have_count(1)
    page.get_by_role("link", name="DEBUG").click()
    expect(log.get_by_text("line 2")).to_have_count(2)
    page.get_by_label("Search in the log").fill("line 2")
    page.get_by_role("button", name="Search").click()
    expect(log.locator("mark")).to_have_count(2)
    expect(log.get_by_text("line 3")).to_have_count(0)
    page.get_by_role("link", name="Delete…").click()
    expect(page.get_by_role("heading", name="Delete this row?")).to_be_visible()
    if scripts:
        # axe is a script itself.
        check_accessibility(page)
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url(f"**{reverse('carrot-tasks')}")
    assert not MessageLog.objects.exists()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_task_runs_again_and_one_that_waits_for_its_time_at_once(
    visitor: Visitor, scripts: bool
) -> None:
    failed = make("FAILED")
    later = make("PUBLISHED", run_after=timezone.now() + timedelta(days=3))
    page = visitor.open(path(failed), scripts=scripts)
    page.get_by_role("button", name="Run again").click()
    page.wait_for_url("**/tasks/*/")
    expect(page.get_by_text("Published", exact=True).first).to_be_visible()
    again = MessageLog.objects.exclude(pk=later.pk).get()
    assert (again.status, again.retry_of) == ("PUBLISHED", failed.pk)
    page = visitor.open(path(later), scripts=scripts)
    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_role("button", name="Run now")).to_have_count(0)
    later.refresh_from_db()
    assert not later.due_later


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_is_accessible_and_fits(visitor: Visitor, scheme: str, width: int) -> None:
    long = "x" * 300
    levels = "\n".join(
        f"{HEAD} {level}:: {long} &" for level in ("INFO", "WARNING", "ERROR", "CRITICAL")
    )
    failed = make("FAILED", task=f"shop.{long[:190]}", log=levels, worker=long[:90], attempts=2)
    Attempt.objects.create(message=failed.pk, number=1, worker="w", outcome="LOST", log=levels)
    rows = [failed, make("IN_PROGRESS", log=lines(20)), make("PUBLISHED", publish_error=long)]
    for row in rows:
        page: Page = visitor.open(path(row), scheme=scheme, width=width)
        check_accessibility(page)
        check_width(page)


@pytest.mark.parametrize("width", [1280, 360])
def test_progress_grows_and_a_running_task_can_be_asked_to_end(
    visitor: Visitor, width: int
) -> None:
    told = {"done": 300, "total": 1000, "text": "the third hundred"}
    row = make("IN_PROGRESS", progress=told, log=lines(3))
    page = visitor.open(path(row), width=width)
    bar = page.get_by_role("progressbar", name="Progress")
    expect(bar).to_have_attribute("value", "30")
    expect(page.get_by_text("the third hundred")).to_be_visible()
    check_accessibility(page)
    check_width(page)
    MessageLog.objects.filter(pk=row.pk).update(progress={**told, "done": 600})
    expect(bar).to_have_attribute("value", "60")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancel asked")).to_be_visible()
    expect(page.get_by_text("by ann", exact=True)).to_be_visible()
