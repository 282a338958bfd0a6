# SPDX-License-Identifier: Apache-2.0
"""The page with the lists of tasks, as a browser meets it."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import keyset, task_list
from carrot_twisted.monitor.task_filter import STATES

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>{{ 7|add:7 }}\u202e\ufdfd"


@pytest.fixture
def viewer() -> Client:
    return client_with("view_messagelog")


def client_with(*permissions: str) -> Client:
    user = User.objects.create_user("-".join(permissions), is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def make(status: str = "COMPLETED", age: int = 0, **given: Any) -> MessageLog:
    """A row that is so many seconds older than NOW."""
    when = NOW - timedelta(seconds=age)
    fields = {
        "uuid": UUID(int=keyset.first_key(when).int | 7 << 76 | 2 << 62 | age),
        "status": status,
        "task": "shop.pay",
        "queue": "default",
        "publish_time": when,
        "start_time": None if status in ("PUBLISHED", "CANCELLED") else when,
        "completion_time": when if status == "COMPLETED" else None,
        "failure_time": when if status == "FAILED" else None,
        **given,
    }
    return MessageLog.objects.create(**fields)


def page(client: Client, address: str | None = "", **headers: str) -> str:
    assert address is not None, "there is no such link"
    answer = client.get(reverse("carrot-tasks") + address, headers=headers)
    assert answer.status_code == 200
    return answer.content.decode()


def shown(text: str) -> list[UUID]:
    """The rows of a page, in order."""
    keys = re.findall(r'<a href="/some/where/tasks/([0-9a-f-]{36})/"', text)
    return [UUID(key) for key in keys]


def link(text: str, label: str) -> str | None:
    """Where a link or a tab leads: the part of its address behind the path."""
    for address, content in re.findall(r'<a [^>]*?href="([^"]*)"[^>]*>(.*?)</a>', text, re.DOTALL):
        if content.strip().startswith(label):
            query = urlsplit(html.unescape(address)).query
            return f"?{query}" if query else ""
    return None


def walked(client: Client, address: str, label: str) -> list[list[UUID]]:
    """The rows of all pages that a link leads to, one after the other."""
    pages = []
    at: str | None = address
    while at is not None:
        text = page(client, at)
        pages.append(shown(text))
        at = link(text, label)
    return pages


@pytest.fixture
def five_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_list, "ROWS", 5)


@pytest.mark.parametrize("state", [name for name, _ in STATES])
def test_each_list_has_its_rows_and_says_how_many(viewer: Client, state: str) -> None:
    rows = [make(status, age) for age, (status, _) in enumerate(MessageLog.STATUS_CHOICES)]
    text = page(viewer, f"?state={state}")
    states = keyset.LISTINGS[state].states
    wanted = [row.pk for row in rows if not states or row.status in states]
    assert shown(text) == wanted
    assert re.search(
        rf'aria-current="page">{state.title()} <span class="count">{len(wanted)}<', text
    )


@pytest.mark.usefixtures("five_a_page")
@pytest.mark.parametrize("address", ["", "?state=failed", "?sort=oldest&q=pay", "?queue=default"])
def test_pages_lead_through_all_rows_and_back(viewer: Client, address: str) -> None:
    keys = [make("FAILED", age).pk for age in range(17)]
    wanted = keys[::-1] if "oldest" in address else keys
    there = walked(viewer, address, "Next page")
    assert [len(rows) for rows in there] == [5, 5, 5, 2]
    assert [*chain(*there)] == wanted
    last = page(viewer, address)
    for _ in range(3):
        last = page(viewer, link(last, "Next page"))
    back = []
    while (previous := link(last, "Previous page")) is not None:
        last = page(viewer, previous)
        back.append(shown(last))
    assert back == there[:3][::-1]
    assert link(last, "First page") is None


@pytest.mark.usefixtures("five_a_page")
def test_rows_that_come_meanwhile_neither_double_nor_hide_others(viewer: Client) -> None:
    old = [make(age=age).pk for age in range(10, 20)]
    first = page(viewer)
    for age in range(10):
        make(age=age)
    second = page(viewer, link(first, "Next page"))
    assert shown(first) + shown(second) == old
    # And the way back leads to those that came.
    assert shown(page(viewer, link(second, "Previous page"))) == old[:5]


def test_the_address_keeps_the_filter_in_every_link(viewer: Client, five_a_page: None) -> None:
    for age in range(12):
        make("FAILED", age, task="a&b=c", queue="é?", worker="w")
    given = {
        "state": "failed", "task": "a&b=c", "queue": "é?", "worker": "w", "q": "A&B",
        "since": "2026-02-28T10:00", "until": "2026-03-02T10:00", "sort": "oldest",
    }  # fmt: skip
    answer = viewer.get(reverse("carrot-tasks"), given)
    text = answer.content.decode()
    assert len(shown(text)) == 5
    for label, dropped in (("Next page", ()), ("Completed", ("state",)), ("All", ("state",))):
        query = parse_qs((link(text, label) or "").removeprefix("?"))
        kept = {name: value for name, value in given.items() if name not in dropped}
        assert {name: query[name][0] for name in kept} == kept, label
    for name, value in given.items():
        assert f'name="{name}"' in text
        assert name == "sort" or f'value="{html.escape(value)}"' in text
    assert '<option value="oldest" selected>' in text


def test_a_filter_with_a_mistake_says_so_and_stands_still(viewer: Client) -> None:
    make()
    for address, text in (
        ("?since=yesterday", "Enter a valid date/time."),
        ("?until=0001-01-01T00:00", "Enter a year from 1971 on."),
        ("?until=9999-12-31T23:59:59", "Enter a year from 1971 on."),
        ("?q=a%00b", "Null characters are not allowed."),
    ):
        answer = page(viewer, address)
        assert text in answer
        assert 'aria-invalid="true"' in answer
        assert "data-refresh" not in answer
    for address in (
        "?state=nonsense",
        "?sort=nonsense",
        "?after=nonsense",
        "?before=_",
        "?after=x_y",
    ):
        assert len(shown(page(viewer, address))) == 1


def test_the_id_of_a_row_leads_to_it(viewer: Client) -> None:
    row = make()
    for text in (str(row.pk), row.pk.hex.upper(), f" {row.pk} "):
        answer = viewer.get(reverse("carrot-tasks"), {"q": text})
        assert answer.headers["Location"] == reverse("carrot-task", args=[row.pk])
    assert "No task is like that." in page(viewer, f"?q={uuid4()}")


def test_texts_of_tasks_are_texts_on_the_page(viewer: Client) -> None:
    make(
        "FAILED", task=f"m.{HOSTILE}"[:200], queue=HOSTILE, worker=HOSTILE[:100], exception=HOSTILE,
        content=json.dumps({"note": HOSTILE}),
    )  # fmt: skip
    for address in ("?state=failed", "?state=all", "?q=%3Cscript%3E&state=failed"):
        text = page(viewer, address)
        assert len(shown(text)) == 1
        assert html.escape(HOSTILE) in text
        assert "<script>alert" not in text
        assert "<img" not in re.sub(r'<img src="[^"]*icon.svg', "", text)
        assert "14" not in re.findall(r"alert\(2\)&gt;(.{0,20})", text)[0]
    # What the filter says, too.
    text = page(viewer, f"?task={html.escape('<b>')}%22%3E%3Cscript%3E")
    assert "<script>" not in text


def test_messages_of_handlers_are_marked(viewer: Client) -> None:
    make(age=1)
    make(age=2, task_args='{"message_id": "m"}', content="a body")
    text = page(viewer)
    marks = [">message</span>" in row for row in re.findall(r"<tr id.*?</tr>", text, re.DOTALL)]
    assert marks == [False, True]


def test_large_arguments_are_not_read_and_long_exceptions_are_cut(viewer: Client) -> None:
    make("FAILED", content=json.dumps({"data": "x" * 30_000}), exception="y" * 10_000)
    text = page(viewer, "?state=failed")
    assert "… (30014 characters)" in text
    assert len(text) < 20_000


def test_what_may_not_be_shown_is_not(viewer: Client) -> None:
    make(content=json.dumps({"password": "hunter2", "user": "ada"}))
    text = page(viewer)
    assert "ada" in text
    assert "hunter2" not in text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window is the last for which there is time."""
    monkeypatch.setattr(keyset, "BUDGET", -1)
    monkeypatch.setattr(task_list, "FURTHER_BUDGET", -1)
    monkeypatch.setattr(keyset, "FIRST_WINDOW", 4)


def further(text: str) -> str | None:
    found = re.search(r'id="task-pager"[^>]*hx-get="[^"?]*([^"]*)"', text)
    return html.unescape(found[1]) if found else None


@pytest.mark.usefixtures("impatient", "five_a_page")
@pytest.mark.parametrize("address", ["?q=wanted", "?state=completed&q=wanted&sort=oldest"])
def test_a_search_that_takes_long_says_how_far_it_is_and_goes_on(
    viewer: Client, address: str
) -> None:
    wanted = [
        make(age=age, content='{"x": "Wanted"}' if age % 3 == 0 else "{}").pk for age in range(30)
    ][::3]
    if "oldest" in address:
        wanted.reverse()
    text = page(viewer, address)
    assert "Looked through 4 rows" in text
    # Not asked for again: it would begin anew.
    assert "data-refresh" not in text
    # Without scripts: by its button, which gives a page of its own.
    on = link(text, "Go on looking")
    assert on is not None
    assert shown(page(viewer, on))[0] in wanted
    # With them: part after part comes into the same page.
    found = shown(text)
    looked = 4
    while (on := further(text)) is not None:
        text = page(viewer, on, **{"HX-Request": "true"})
        assert text.count("<tr ") == len(shown(text))
        assert 'id="task-pager" hx-swap-oob="true"' in text
        found += shown(text)
        looked += 4
        assert f"Looked through {looked} rows" in text or further(text) is None
    assert found == wanted[:5]
    assert link(text, "Previous page") is None
    # The same on a page that does not begin with the list, whose first part may be empty.
    text = page(viewer, link(text, "Next page"))
    found = shown(text)
    while (on := further(text)) is not None:
        text = page(viewer, on, **{"HX-Request": "true"})
        found += shown(text)
    assert found == wanted[5:]
    back = link(text, "Previous page")
    assert back is not None
    assert shown(page(viewer, back))[-1] == wanted[4]


@pytest.mark.usefixtures("impatient")
def test_a_search_that_finds_nothing_ends_with_that(viewer: Client) -> None:
    for age in range(10):
        make(age=age)
    text = page(viewer, "?q=nowhere")
    parts = 1
    while (on := further(text)) is not None:
        text = page(viewer, on, **{"HX-Request": "true"})
        parts += 1
    assert parts == 3
    assert "No task is like that." in text


def test_numbers_of_parts_are_numbers(viewer: Client) -> None:
    make()
    for value in ("-1", "1e9", "9" * 30, "٣", ""):
        page(viewer, f"?q=pay&found={value}&looked={value}", **{"HX-Request": "true"})


def test_a_page_is_the_same_until_something_changes(viewer: Client) -> None:
    make()
    url = reverse("carrot-tasks")
    headers = {"HX-Request": "true"}
    tag = viewer.get(url, headers=headers).headers["ETag"]
    again = viewer.get(url, headers={**headers, "If-None-Match": tag})
    assert again.status_code == 304
    make(age=1)
    assert viewer.get(url, headers={**headers, "If-None-Match": tag}).status_code == 200


def queries(client: Client, address: str, **headers: str) -> Sequence[dict[str, str]]:
    with CaptureQueriesContext(connection) as captured:
        page(client, address, **headers)
    return captured.captured_queries


def test_more_rows_take_no_more_queries(viewer: Client) -> None:
    make(age=1)
    counts = {state: len(queries(viewer, f"?state={state}")) for state, _ in STATES}
    for age in range(2, 130):
        for n, (status, _) in enumerate(MessageLog.STATUS_CHOICES):
            make(status, age * 10 + n)
    for state, _ in STATES:
        taken = queries(viewer, f"?state={state}")
        # One section of a list may hold what two hold of an empty one; queues have queries.
        assert len(taken) <= counts[state] + 4
        assert len(taken) <= 19, [one["sql"] for one in taken]
        for one in taken:
            if "carrot_twisted_messagelog" in one["sql"]:
                assert "LIMIT" in one["sql"] or "IN (" in one["sql"], one["sql"]
                assert "OFFSET" not in one["sql"]


def test_counts_stop_at_many(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_list, "MANY", 3)
    for age in range(5):
        make(age=age)
    text = page(viewer)
    assert re.search(r'>All <span class="count">3\+</span>', text)
    assert re.search(r'>Failed <span class="count">0</span>', text)


def test_filtered_lists_have_no_counts_of_unfiltered_rows(viewer: Client) -> None:
    make()
    assert 'class="count"' not in page(viewer, "?queue=default")


def test_the_filter_offers_what_there_is(viewer: Client) -> None:
    make(task="shop.seen", queue="strange")
    text = page(viewer)
    assert '<option value="shop.seen"></option>' in text
    assert '<option value="strange"></option>' in text
    assert '<option value="other"></option>' in text


def test_who_may_only_look_gets_nothing_to_act_with(viewer: Client) -> None:
    make("FAILED")
    text = page(viewer, "?state=failed")
    assert 'name="selected"' not in text
    assert "Run again" not in text
    operator = client_with("view_messagelog", "act_messagelog")
    text = page(operator, "?state=failed")
    assert 'name="selected"' in text
    assert "Run again" in text
    # What is asked for again holds no token: it would differ each time.
    assert "csrfmiddlewaretoken" not in page(operator, "?state=failed", **{"HX-Request": "true"})
