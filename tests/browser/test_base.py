# SPDX-License-Identifier: Apache-2.0
"""What all pages have in common: current without a reload, themes, keys, no scripts needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from django.urls import reverse

from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import access
from tests.browser.conftest import check_accessibility, check_width, expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Visitor


def publish(task: str = "shop.tasks.send") -> MessageLog:
    return MessageLog.objects.create(task=task, queue="default")


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_a_page_stays_current_without_a_reload(visitor: Visitor) -> None:
    page = visitor.open("tasks/")
    expect(page.get_by_text("No tasks yet")).to_be_visible()
    page.evaluate("window.same = true")
    publish()
    expect(page.get_by_text("shop.tasks.send")).to_be_visible()
    assert page.evaluate("window.same")


def test_live_can_be_switched_off_and_stays_off(visitor: Visitor) -> None:
    page = visitor.open("tasks/")
    page.get_by_role("button", name="Live").click()
    page.reload()
    expect(page.get_by_role("button", name="Live")).to_have_attribute("aria-pressed", "false")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert not asked
    publish()
    page.keyboard.press("l")
    expect(page.get_by_text("shop.tasks.send")).to_be_visible()


def test_an_unchanged_page_costs_no_transfer(visitor: Visitor) -> None:
    publish()
    page = visitor.open("tasks/")
    with page.expect_response(lambda answer: "hx-request" in answer.request.headers) as first:
        pass
    etag = str(first.value.headers["etag"])
    answer = page.request.get(
        page.url, headers={"HX-Request": "true", "If-None-Match": etag}, fail_on_status_code=False
    )
    assert answer.status == 304


def test_the_theme_follows_the_system_until_the_reader_says_otherwise(visitor: Visitor) -> None:
    page = visitor.open("tasks/", scheme="dark")
    dark = background(page)
    page.get_by_role("button", name="Theme").click()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert background(page) != dark
    page.reload()
    assert background(page) != dark
    page.keyboard.press("t")
    assert background(page) == dark


def test_keys_are_told_and_lead_to_pages(visitor: Visitor) -> None:
    page = visitor.open("tasks/")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("1")
    page.wait_for_url(f"**{reverse('carrot-tasks')}")


def test_times_are_the_readers(visitor: Visitor) -> None:
    publish()
    page = visitor.open("tasks/")
    expect(page.locator("time").first).to_contain_text(re.compile("now|ago"))
    assert "UTC" not in page.locator("time").first.inner_text()


def test_without_scripts_a_page_is_complete(visitor: Visitor) -> None:
    publish()
    page = visitor.open("tasks/", scripts=False)
    expect(page.get_by_text("shop.tasks.send")).to_be_visible()
    # What only scripts can do is not offered.
    expect(page.get_by_role("button", name="Live")).to_be_hidden()
    expect(page.locator("time").first).to_contain_text("UTC")


def test_who_may_not_see_it_is_told_why(visitor: Visitor) -> None:
    visitor.expected.append("tasks/")
    page = visitor.open("tasks/", user="bob", permissions=[])
    expect(page.get_by_text(access.VIEW)).to_be_visible()
    check_accessibility(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_accessible_and_fits(visitor: Visitor, scheme: str, width: int) -> None:
    for status, _ in MessageLog.STATUS_CHOICES:
        MessageLog.objects.create(task="shop.tasks.send", queue="default", status=status)
    page = visitor.open("tasks/", scheme=scheme, width=width)
    check_accessibility(page)
    check_width(page)
