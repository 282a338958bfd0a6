# SPDX-License-Identifier: Apache-2.0
"""The lists of tasks: a search fills its page, and work on many rows goes on to its end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from django.utils import timezone

from carrot_twisted.models import MessageLog, OperatorAction
from carrot_twisted.monitor import keyset, many_tasks, task_list
from tests.browser.conftest import check_accessibility, check_width, expect

if TYPE_CHECKING:
    from tests.browser.conftest import Visitor


def fill(count: int, status: str = "FAILED", **given: Any) -> None:
    """Rows a second apart, numbered in their arguments, 0 the newest."""
    now = timezone.now()
    rows = []
    for number in range(count):
        when = now - timedelta(seconds=number)
        rows.append(
            MessageLog.new(
                uuid=UUID(int=keyset.first_key(when).int | 7 << 76 | 2 << 62 | number),
                status=status,
                task="tests.project.tasks.effect",
                task_args=f"[{number}]",
                queue="default",
                publish_time=when,
                relay_at=when,
                start_time=None if status in ("PUBLISHED", "CANCELLED") else when,
                failure_time=when if status == "FAILED" else None,
                exception=f"number {number} is odd" if number % 2 else "even",
                **given,
            )
        )
    MessageLog.objects.bulk_create(rows)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search sees ten rows at a time; work on many rows meets ten."""
    monkeypatch.setattr(keyset, "BUDGET", -1)
    monkeypatch.setattr(task_list, "FURTHER_BUDGET", -1)
    monkeypatch.setattr(keyset, "FIRST_WINDOW", 10)
    monkeypatch.setattr(keyset, "LARGEST_WINDOW", 10)
    monkeypatch.setattr(many_tasks, "STRETCH", -1)
    for name, deed in many_tasks.DEEDS.items():
        few = many_tasks.Deed(**{**vars(deed), "chunk": 10})
        monkeypatch.setitem(many_tasks.DEEDS, name, few)


@pytest.mark.usefixtures("impatient")
def test_a_search_goes_on_by_itself_until_the_page_is_full(visitor: Visitor) -> None:
    fill(130)
    page = visitor.open("tasks/?state=failed&q=IS+ODD")
    rows = page.locator("#task-rows tr")
    expect(rows).to_have_count(50)
    expect(page.get_by_text("Looked through")).to_have_count(0)
    # In order, none twice, and the next page goes on behind them.
    texts = page.locator("#task-rows td[data-label=Exception]").all_inner_texts()
    assert texts == [f"number {number} is odd" for number in range(1, 100, 2)]
    page.get_by_role("link", name="Next page").click()
    expect(rows).to_have_count(15)
    expect(rows.first).to_contain_text("number 101 is odd")
    page.get_by_role("link", name="Previous page").click()
    expect(rows.last).to_contain_text("number 99 is odd")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("scripts", [True, False])
def test_work_on_all_that_a_filter_finds_goes_on_to_its_end(
    visitor: Visitor, scripts: bool
) -> None:
    fill(25)
    page = visitor.open("tasks/?state=failed", scripts=scripts)
    page.get_by_role("link", name="Delete…").click()
    expect(page.get_by_role("heading", name="Delete these rows?")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    if not scripts:
        for done in (10, 20):
            expect(page.get_by_text(f"{done} of about 25")).to_be_visible()
            page.get_by_role("button", name="Go on").click()
    expect(page.get_by_text("25 rows are deleted.")).to_be_visible()
    assert not MessageLog.objects.exists()
    assert OperatorAction.objects.get().count == 25


@pytest.mark.parametrize("scripts", [True, False])
def test_selected_rows_are_cancelled_from_the_page(visitor: Visitor, scripts: bool) -> None:
    fill(4, "PUBLISHED")
    page = visitor.open("tasks/?state=queued", scripts=scripts)
    boxes = page.locator("input[name=selected]")
    if scripts:
        page.get_by_label("Select all rows of this page").check()
        expect(boxes.last).to_be_checked()
        boxes.last.uncheck()
    else:
        for number in range(3):
            boxes.nth(number).check()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("3 tasks are cancelled, or asked to end.")).to_be_visible()
    assert MessageLog.objects.get(status="PUBLISHED").task_args == "[3]"


def test_what_is_selected_stays_selected_while_the_page_changes(visitor: Visitor) -> None:
    fill(3, "PUBLISHED")
    page = visitor.open("tasks/?state=queued")
    key = page.locator("input[name=selected]").nth(1).get_attribute("value")
    page.locator(f"input[value='{key}']").check()
    MessageLog.objects.create(task="tests.project.tasks.new", queue="default")
    expect(page.get_by_role("link", name="tests.project.tasks.new")).to_be_visible()
    expect(page.locator(f"input[value='{key}']")).to_be_checked()
    expect(page.locator("input[name=selected]:checked")).to_have_count(1)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 768), ("light", 390)])
def test_it_is_accessible_and_fits(visitor: Visitor, scheme: str, width: int) -> None:
    long = "x" * 190
    fill(3)
    MessageLog.objects.create(
        status="FAILED", task=f"shop.{long}", queue=long, worker=long[:90], exception=long
    )
    fill(1, "IN_PROGRESS", worker=long[:90])
    for path in ("", "?state=failed", "?state=running&since=x", "?q=nothing"):
        page = visitor.open(f"tasks/{path}", scheme=scheme, width=width)
        check_accessibility(page)
        check_width(page)
    page = visitor.open("tasks/matching/requeue/", scheme=scheme, width=width)
    check_accessibility(page)
    check_width(page)


def test_on_a_telephone_the_list_stands_above_most_filters(visitor: Visitor) -> None:
    fill(3)
    page = visitor.open("tasks/", width=390, scripts=False)
    expect(page.get_by_label("Queue")).to_be_hidden()
    page.get_by_label("More filters").check()
    page.get_by_label("Queue").fill("other")
    page.get_by_role("button", name="Show").click()
    # What filters is seen.
    expect(page.get_by_label("Queue")).to_have_value("other")
    wide = visitor.open("tasks/")
    expect(wide.get_by_label("Queue")).to_be_visible()
    expect(wide.get_by_label("More filters")).to_be_hidden()
