# SPDX-License-Identifier: Apache-2.0
"""The pages of schedules in a browser: the plan follows what somebody types."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.monitor import access
from tests.browser.conftest import check_accessibility, check_width, expect

if TYPE_CHECKING:
    from tests.browser.conftest import Visitor

TASK = "tests.project.tasks.effect"


def schedule(name: str = "nightly", **fields: Any) -> ScheduledTask:
    values = {"task": TASK, "task_args": '["k"]', "interval_type": "minutes", **fields}
    return ScheduledTask.objects.create(task_name=name, **values)


def test_the_plan_and_the_faults_follow_what_is_typed(visitor: Visitor) -> None:
    page = visitor.open("schedules/new/")
    page.evaluate("window.same = true")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("Every 5 minutes")
    page.get_by_label("by a crontab").check()
    expect(page.get_by_label("Every", exact=True)).to_be_hidden()
    page.get_by_label("Crontab", exact=True).type("30 2 * * ", delay=20)
    expect(page.locator("#error-cron")).to_contain_text("is no crontab")
    page.get_by_label("Crontab", exact=True).type("*")
    page.get_by_label("Time zone of the crontab").select_option("Europe/Berlin")
    expect(preview).to_contain_text("At 02:30 every day")
    expect(preview).to_contain_text("the clock goes from 02:00 to 03:00")
    expect(page.locator("#error-cron")).to_be_empty()
    # Five runs, in the schedule's zone and in the reader's.
    first = preview.get_by_role("table", name="Next runs")
    assert first.locator("tbody tr").count() == 5
    assert "UTC" not in first.locator("time").first.inner_text()
    page.get_by_label("Task", exact=True).select_option(TASK)
    page.get_by_label("Positional arguments").fill("[1, 2, 3]")
    expect(page.locator("#error-task_args")).to_contain_text("too many positional arguments")
    page.get_by_label("Positional arguments").fill('["k"]')
    expect(page.locator("#error-task_args")).to_be_empty()
    page.get_by_label("Name").fill("nightly")
    assert page.evaluate("window.same")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("nightly is a schedule now.")).to_be_visible()
    saved = ScheduledTask.objects.get()
    assert (saved.cron, saved.timezone, saved.task) == ("30 2 * * *", "Europe/Berlin", TASK)


def test_without_scripts_it_is_all_there(visitor: Visitor) -> None:
    schedule()
    page = visitor.open("schedules/", scripts=False)
    page.get_by_role("button", name="Run nightly now").click()
    expect(page.get_by_text("The task of nightly is published.")).to_be_visible()
    assert MessageLog.objects.get().task == TASK
    page.get_by_role("link", name="nightly").click()
    page.get_by_role("button", name="Switch off").click()
    expect(page.get_by_text("no run is planned")).to_be_visible()
    assert not ScheduledTask.objects.get().active
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("button", name="Switch off")).to_be_visible()
    assert ScheduledTask.objects.get().active
    page.get_by_role("link", name="Change").click()
    page.get_by_label("by a crontab").check()
    page.get_by_label("Crontab", exact=True).fill("61 * * * *")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#error-cron")).to_contain_text("is no crontab")
    page.get_by_label("Crontab", exact=True).fill("0 12 * * *")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("At 12:00 every day")
    assert ScheduledTask.objects.get().cron == ""
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("nightly is changed.")).to_be_visible()
    page.get_by_role("link", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("No schedules yet")).to_be_visible()


def test_two_who_edit_at_once_do_not_undo_each_other(visitor: Visitor) -> None:
    one = schedule()
    visitor.expected.append(f"schedules/{one.pk}/edit/")
    page = visitor.open(f"schedules/{one.pk}/edit/")
    ScheduledTask.objects.filter(pk=one.pk).update(routing_key="theirs")
    page.get_by_label("Priority").fill("3")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("theirs")
    expect(page.get_by_label("Priority")).to_have_value("3")
    page.get_by_label("Routing key").fill("theirs")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("nightly is changed.")).to_be_visible()
    one.refresh_from_db()
    assert (one.priority, one.routing_key) == (3, "theirs")


def test_who_may_only_look_cannot_change(visitor: Visitor) -> None:
    one = schedule()
    page = visitor.open("schedules/", user="bob", permissions=[access.VIEW])
    expect(page.get_by_role("link", name="nightly")).to_be_visible()
    assert page.get_by_role("button", name="Run").count() == 0
    visitor.expected.append("edit/")
    page.goto(f"schedules/{one.pk}/edit/")
    expect(page.get_by_text(access.SCHEDULE)).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_pages_are_accessible_and_fit(visitor: Visitor, width: int, scheme: str) -> None:
    log = MessageLog.objects.create(task=TASK, queue="default", status=MessageLog.FAILED)
    slot = datetime(2030, 1, 7, 1, 30, tzinfo=UTC)
    one = schedule(cron="30 2 * * *", timezone="Europe/Berlin", next_run_time=slot, last_log=log.pk)
    schedule("off", active=False)
    schedule("bad", problem="Unable to find the module", declaration="{}")
    page = visitor.open("schedules/", scheme=scheme, width=width)
    for path in ("", f"{one.pk}/", f"{one.pk}/edit/"):
        if path:
            page.goto(f"schedules/{path}")
        check_accessibility(page)
        check_width(page)
    # With faults told at their fields.
    page.get_by_label("Positional arguments").fill("[")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_be_visible()
    check_accessibility(page)
