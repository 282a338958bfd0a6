# SPDX-License-Identifier: Apache-2.0
"""The JSON API: django-carrot's addresses, fields and errors; who may do what; what is recorded."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from rest_framework.settings import api_settings

from carrot_twisted import housekeeping
from carrot_twisted.api import task_pages
from carrot_twisted.api.endpoint import Endpoint
from carrot_twisted.api.message_logs import MAX_TEXT
from carrot_twisted.exceptions import BrokerError
from carrot_twisted.models import MessageLog, OperatorAction, PausedQueue, ScheduledTask, Worker
from carrot_twisted.monitor import access, keyset
from carrot_twisted.utilities import create_scheduled_task
from tests.clients import client_of
from tests.pages import DOCS, blocks
from tests.settings import CARROT
from tests.shell_script import commands

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db

API = "/some/where/api/"
TASK = "tests.project.tasks.effect"
SCHEDULE = {
    "task_name": "nightly",
    "task": TASK,
    "task_args": '["night"]',
    "queue": "default",
    "interval_type": "hours",
    "interval_count": 1,
}


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def row(**given: Any) -> MessageLog:
    return MessageLog.objects.create(**{"task": TASK, "queue": "default", **given})


def failed(**given: Any) -> MessageLog:
    return row(status="FAILED", failure_time=timezone.now(), **given)


def actions() -> list[tuple[str, str, str, int]]:
    known = OperatorAction.objects.order_by("pk")
    return [(one.user, one.action, one.target, one.count) for one in known]


def send(client: Client, method: str, path: str, data: Any = None, **headers: str) -> Any:
    """An answer; ``data`` goes as JSON, a text as it is."""
    text = data if isinstance(data, str) else "" if data is None else json.dumps(data)
    kind = "application/json" if text else "application/octet-stream"
    return client.generic(method, API + path, text, kind, headers=headers)


def listed(client: Client, path: str) -> list[Any]:
    rows: list[Any] = client.get(API + path).json()["results"]
    return rows


# Who


def test_who_is_not_let_in_gets_json_not_a_login() -> None:
    answer = Client().get(API + "message-logs/published/")
    assert answer.status_code == 401
    assert answer.json() == {"detail": "Authentication credentials were not provided."}
    assert answer.headers["WWW-Authenticate"]
    answer = client_of().get(API + "message-logs/published/")
    assert answer.status_code == 403
    assert access.VIEW in answer.json()["detail"]


def test_answers_are_for_one_user(root: Client) -> None:
    for client, status in ((root, 200), (Client(), 401), (client_of(), 403)):
        answer = client.get(API + "message-logs/published/")
        assert answer.status_code == status
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Cookie" in answer.headers["Vary"]


CHANGES = [
    ("DELETE", "message-logs/failed/", access.ACT),
    ("PUT", "message-logs/failed/", access.ACT),
    ("POST", "message-logs/purge/", access.PURGE),
    ("POST", "message-logs/requeue/", access.ACT),
    ("PUT", "message-logs/{row}/", access.ACT),
    ("DELETE", "message-logs/{row}/", access.ACT),
    ("POST", "message-logs/{row}/cancel/", access.ACT),
    ("POST", "scheduled-tasks/", access.SCHEDULE),
    ("PATCH", "scheduled-tasks/{schedule}/", access.SCHEDULE),
    ("DELETE", "scheduled-tasks/{schedule}/", access.SCHEDULE),
    ("POST", "scheduled-tasks/{schedule}/run/", access.SCHEDULE),
    ("POST", "queues/default/pause/", access.ACT),
    ("POST", "queues/default/resume/", access.ACT),
    ("POST", "queues/default/purge/", access.PURGE),
    ("POST", "workers/w/quiet/", access.ACT),
    ("POST", "workers/w/unquiet/", access.ACT),
    ("POST", "workers/w/stop/", access.ACT),
]
PERMISSIONS = [access.VIEW, access.ACT, access.PURGE, access.SCHEDULE]


@pytest.mark.parametrize(("method", "path", "permission"), CHANGES)
def test_a_change_takes_its_permission_and_a_token(method: str, path: str, permission: str) -> None:
    Worker.objects.create(name="w", host="h", pid=1, version="1", queues="default")
    path = path.format(row=failed().pk, schedule=ScheduledTask.objects.create(**SCHEDULE).pk)
    others = client_of(*[one for one in PERMISSIONS if one != permission])
    refused = send(others, method, path, {})
    assert refused.status_code == 403
    assert permission in refused.json()["detail"]
    # A form of another site has the user's cookies, too.
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    refused = send(client, method, path, {})
    assert refused.status_code == 403
    assert refused.json()["detail"].startswith("CSRF Failed")
    assert MessageLog.objects.get().status == "FAILED"
    assert ScheduledTask.objects.count() == 1
    assert not PausedQueue.objects.exists()
    assert Worker.objects.get().command == ""
    assert actions() == []


@pytest.mark.parametrize("middleware", [True, False])
def test_with_its_token_a_session_changes_things(middleware: bool, settings: Any) -> None:
    if not middleware:
        settings.MIDDLEWARE = [one for one in settings.MIDDLEWARE if "Csrf" not in one]
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    token = str(client.get(reverse("carrot-queues")).context["csrf_token"])
    done = send(client, "POST", "queues/default/pause/", {}, **{"X-CSRFToken": token})
    assert done.status_code == 204
    assert PausedQueue.objects.get().by == "root"


def the_month_of_may(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """A decorator of a project's own."""

    def guarded(request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.headers.get("X-Month") == "may":
            return view(request, *args, **kwargs)
        return HttpResponse("not this month", status=418)

    return guarded


def test_decorators_of_the_settings_decide_who_looks(settings: Any) -> None:
    settings.CARROT = {
        **CARROT,
        "monitor_authentication": [f"{__name__}.{the_month_of_may.__name__}"],
    }
    address = API + "message-logs/published/"
    assert Client().get(address).status_code == 418
    assert Client().get(address, headers={"X-Month": "may"}).status_code == 200
    path = f"message-logs/{row().pk}/cancel/"
    assert send(Client(), "POST", path, **{"X-Month": "may"}).status_code == 403
    # Also of somebody without a session: decorators may let a whole network in.
    strict = Client(enforce_csrf_checks=True)
    refused = send(strict, "POST", path, **{"X-Month": "may"})
    assert refused.json()["detail"].startswith("CSRF Failed")


def test_the_settings_of_a_projects_own_api_change_nothing(settings: Any, root: Client) -> None:
    failed()
    before = root.get(API + "message-logs/failed/").json()
    settings.REST_FRAMEWORK = {
        "PAGE_SIZE": 1,
        "SEARCH_PARAM": "q",
        "DATETIME_FORMAT": "%Y",
        "EXCEPTION_HANDLER": "no.such.handler",
        "UNICODE_JSON": False,
        "URL_FORMAT_OVERRIDE": "as",
    }
    assert api_settings.PAGE_SIZE == 1
    assert root.get(API + "message-logs/failed/").json() == before
    assert root.get(API + "message-logs/failed/?page=7&as=html").json() == {
        "detail": "Invalid page."
    }
    for name in vars(Endpoint.__mro__[2]):
        # What the framework's view takes from the setting, when it is imported.
        if name.endswith("_classes") or name in ("metadata_class", "versioning_class"):
            assert name in vars(Endpoint), name


GUIDE = DOCS / "api.md"


def test_a_program_gets_in_by_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    User.objects.create_superuser("deploy")
    (block,) = blocks(GUIDE, "python")
    exec(block, {})  # noqa: S102 - it is ours
    client = Client(enforce_csrf_checks=True)
    client.cookies["sessionid"] = capsys.readouterr().out.strip()
    client.cookies["csrftoken"] = "0123456789abcdef" * 2
    path, more = "queues/default/pause/", {"X-CSRFToken": "0123456789abcdef" * 2}
    assert send(client, "POST", path, {}, **more).status_code == 204
    assert PausedQueue.objects.get().by == "deploy"
    # By HTTPS Django looks at where it comes from, too.
    for referer, status in (("https://testserver/carrot/api", 204), ("https://else.where/", 403)):
        headers = {**more, "Referer": referer}
        answer = client.post(API + path, "{}", "application/json", secure=True, headers=headers)
        assert answer.status_code == status


def test_what_the_guide_asks_for_is_answered(
    capsys: pytest.CaptureFixture[str], settings: Any
) -> None:
    """By what curl is called with, when a shell has read the guide's commands."""
    User.objects.create_superuser("deploy")
    exec(next(blocks(GUIDE, "python")), {})  # noqa: S102 - it is ours
    settings.ALLOWED_HOSTS = ["example.com"]
    asked, other = failed(task="shop.invoice"), failed()
    create_scheduled_task("tests.project.tasks.echo", {"hours": 1})
    ScheduledTask.objects.update(id=7)
    script = "openssl() { echo 0123456789abcdef0123456789abcdef; }\n" + "".join(blocks(GUIDE, "sh"))
    script = script.replace("shop.tasks.report", "tests.project.tasks.noop")
    calls = commands(script, session=capsys.readouterr().out.strip())
    parser = argparse.ArgumentParser()
    for option in ("cookie", "header", "referer", "request", "data"):
        parser.add_argument(f"--{option}", action="append", default=[])
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("url")
    statuses = []
    for program, *words in calls:
        assert program == "curl"
        given = parser.parse_args(words)
        client = Client(enforce_csrf_checks=True)
        client.cookies.load(given.cookie[0])
        headers = dict(header.split(": ") for header in given.header)
        address = given.url.partition("https://example.com/carrot/api/")[2]
        (method,) = given.request or ["POST" if given.data else "GET"]
        answer = client.generic(
            method,
            API + address,
            "".join(given.data),
            headers.pop("Content-Type"),
            secure=True,
            headers={**headers, "Host": "example.com", "Referer": given.referer[0]},
        )
        statuses.append((method, answer.status_code))
    assert statuses == [("GET", 200), ("PUT", 200), ("POST", 201), ("PATCH", 200), ("POST", 204)]
    assert MessageLog.objects.filter(status="FAILED").get() == other
    assert not MessageLog.objects.filter(pk=asked.pk).exists()
    assert ScheduledTask.objects.get(task_name="nightly").task.endswith("noop")
    assert not ScheduledTask.objects.get(pk=7).active
    assert PausedQueue.objects.get().reason == "the shop moves"


# Tasks

FIELDS = {
    *("status", "exchange", "queue", "routing_key", "uuid", "priority", "task", "task_args"),
    *("content", "exception", "traceback", "output", "publish_time", "failure_time"),
    *("completion_time", "log", "id", "virtual_host"),
}


def test_lists_have_django_carrots_form(root: Client) -> None:
    rows = [failed(task_args="[1]", content='{"a": 2}', log="one\ntwo") for _ in range(51)]
    row(), row(status="IN_PROGRESS"), row(status="COMPLETED", completion_time=timezone.now())
    row(status="CANCELLED")
    answer = root.get(API + "message-logs/failed/").json()
    assert set(answer) == {"count", "is_exact", "next", "previous", "results"}
    assert (answer["count"], len(answer["results"]), answer["previous"]) == (51, 50, None)
    assert answer["is_exact"]
    one = answer["results"][0]
    assert set(one) >= FIELDS
    assert one["id"] == one["uuid"] == str(rows[-1].pk), "the latest first"
    assert (one["content"], one["log"]) == ('{"a": 2}', "one\ntwo")
    assert one["virtual_host"].startswith("amqp://guest@")
    assert len(listed(root, "message-logs/failed/?page=2")) == 1
    for page in ("3", "0", "x", "1e9"):
        lost = root.get(f"{API}message-logs/failed/?page={page}")
        assert (lost.status_code, lost.json()) == (404, {"detail": "Invalid page."})
    waiting = listed(root, "message-logs/published/")
    assert {one["status"] for one in waiting} == {"PUBLISHED", "IN_PROGRESS"}
    assert len(waiting) == 2
    assert len(listed(root, "message-logs/completed/")) == 1
    assert reverse("published-messagelog") == API + "message-logs/published/"


def test_links_lead_through_all_pages_and_back(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_pages, "PAGE_SIZE", 2)
    monkeypatch.setattr(task_pages, "MANY", 4)
    rows = [str(failed().pk) for _ in range(7)][::-1]
    pages, url = [], "/some/where/api/message-logs/failed/?fields=id&page=1"
    while url:
        answer = root.get(url).json()
        assert (answer["count"], answer["is_exact"]) == (4, False)
        pages.append(([one["id"] for one in answer["results"]], url))
        url = answer["next"]
    assert [keys for keys, _ in pages] == [rows[0:2], rows[2:4], rows[4:6], rows[6:]]
    for (keys, _url), (_keys, behind) in pairwise(pages):
        back = root.get(root.get(behind).json()["previous"]).json()
        assert [one["id"] for one in back["results"]] == keys
    assert back["next"] == pages[-1][1]
    # Also where the page does not come to be full by going back.
    assert root.get(pages[1][1]).json()["previous"] != pages[0][1]
    assert listed(root, "message-logs/failed/?page=2") != []
    assert root.get(API + "message-logs/failed/?page=3").status_code == 404
    lost = root.get(API + "message-logs/failed/?after=x")
    assert lost.status_code == 404
    assert "no position" in lost.json()["detail"]


def test_a_search_that_takes_long_goes_on_with_the_next_page(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_pages, "SEARCHING", -1)
    monkeypatch.setattr(keyset, "FIRST_WINDOW", 4)
    keys = [str(failed(content=f'"{n % 5}"').pk) for n in range(10)]
    found, asked, url = [], 0, API + "message-logs/failed/?fields=id&search=%220"
    while url:
        answer = root.get(url).json()
        found += [one["id"] for one in answer["results"]]
        asked, url = asked + 1, answer["next"]
    assert (found, asked) == ([keys[5], keys[0]], 3)
    far = root.get(API + "message-logs/failed/?search=%220&page=2")
    assert far.status_code == 404
    assert "not come that far" in far.json()["detail"]


def test_a_list_takes_few_queries_and_loads_no_more_than_it_shows(root: Client) -> None:
    long = "é" * MAX_TEXT * 3
    args = json.dumps([long])
    for _ in range(3):
        failed(log=long, traceback=long, exception=long, output=args, task_args=args)
    root.get(API + "message-logs/failed/")
    with CaptureQueriesContext(connection) as captured:
        rows = listed(root, "message-logs/failed/")
    asked = [one["sql"] for one in captured if "messagelog" in one["sql"]]
    # Rows with their time, rows that lack it, the count.
    assert len(asked) == 3
    assert len(rows) == 3
    for name in ("log", "traceback", "exception"):
        assert rows[0][name] == "é" * MAX_TEXT + "\n… (cut in a list)"
    assert rows[0]["output"] == rows[0]["task_args"] == "… (too long for a list)"
    with CaptureQueriesContext(connection) as captured:
        rows = listed(root, "message-logs/failed/?fields=id,content,virtual_host")
    asked = [one["sql"] for one in captured if "messagelog" in one["sql"]]
    assert len(asked) == 3
    assert not [one for one in asked if "traceback" in one]
    assert set(rows[0]) == {"id", "content", "virtual_host"}
    assert root.get(f"{API}message-logs/{rows[0]['id']}/").json()["log"] == long
    unknown = root.get(API + "message-logs/failed/?fields=id,nose")
    assert unknown.status_code == 400
    assert "nose" in unknown.json()["fields"][0]


def test_what_lists_ask_is_answered_by_an_index(root: Client) -> None:
    row(), failed(), row(status="COMPLETED", completion_time=timezone.now())
    for name, index in (
        ("published", "carrot_waiting"),
        ("failed", "carrot_failed"),
        ("completed", "carrot_completed"),
    ):
        with CaptureQueriesContext(connection) as captured:
            listed(root, f"message-logs/{name}/")
        for one in captured:
            if "messagelog" in one["sql"]:
                with connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN QUERY PLAN {one['sql']}")
                    plan = str(cursor.fetchall())
                assert index in plan, plan


def test_search_looks_in_what_is_shown(root: Client) -> None:
    failed(task="shop.tasks.Pack"), failed(task_args='["Pack"]'), failed(content='{"a": "pAcK"}')
    failed(exception="pack"), failed(content='{"password": "pack"}')
    assert len(listed(root, "message-logs/failed/?search=pack")) == 4
    assert send(root, "DELETE", "message-logs/failed/?search=pack").status_code == 204
    assert len(listed(root, "message-logs/failed/")) == 1, "what is not shown is not found"
    assert send(root, "DELETE", "message-logs/failed/?search=%00").status_code == 204
    assert listed(root, "message-logs/failed/?search=%00") == []


def test_secrets_are_not_shown(root: Client) -> None:
    one = failed(
        task="unknown.task",
        task_args='["hunter2"]',
        content='{"password": "hunter2"}',
        output='{"token": "hunter2"}',
    )
    for path in ("message-logs/failed/", f"message-logs/{one.pk}/"):
        assert "hunter2" not in root.get(API + path).content.decode()
    ScheduledTask.objects.create(**{**SCHEDULE, "content": '{"password": "hunter2"}'})
    viewer = client_of(access.VIEW)
    assert "hunter2" not in viewer.get(API + "scheduled-tasks/").content.decode()
    # Whoever changes a schedule would else write "[redacted]" into it.
    assert "hunter2" in root.get(API + "scheduled-tasks/").content.decode()


def test_failed_tasks_are_deleted_and_requeued_as_searched_for(root: Client) -> None:
    failed(task_args='["a"]'), failed(task_args='["a"]'), failed(task_args='["b"]')
    waiting = row(task_args='["a"]')
    assert send(root, "DELETE", "message-logs/failed/?search=%22a%22").status_code == 204
    assert [one["task_args"] for one in listed(root, "message-logs/failed/")] == ['["b"]']
    failed(task_args="no list")
    left = send(root, "PUT", "message-logs/failed/").json()
    assert left["count"] == 1, "what cannot run again stays"
    assert MessageLog.objects.filter(status="PUBLISHED").count() == 2
    assert send(root, "DELETE", "message-logs/failed/").status_code == 204
    assert {one.pk for one in MessageLog.objects.all()} > {waiting.pk}
    assert actions() == [
        ("root", "delete", "failed tasks with '\"a\"'", 2),
        ("root", "requeue", "all failed tasks", 1),
        ("root", "delete", "all failed tasks", 1),
    ]


def test_one_task_is_requeued_cancelled_deleted(root: Client) -> None:
    old = failed(task_args='["x"]', priority=3)
    answer = send(root, "PUT", f"message-logs/{old.pk}/")
    new = answer.json()
    assert answer.status_code == 200
    assert (new["status"], new["task_args"], new["priority"]) == ("PUBLISHED", '["x"]', 3)
    assert new["retry_of"] == str(old.pk)
    assert root.get(f"{API}message-logs/{old.pk}/").status_code == 404
    early = send(root, "DELETE", f"message-logs/{new['id']}/")
    assert early.status_code == 409
    assert "cancel" in early.json()["detail"]
    cancelled = send(root, "POST", f"message-logs/{new['id']}/cancel/")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "CANCELLED")
    assert send(root, "POST", f"message-logs/{new['id']}/cancel/").status_code == 409
    assert send(root, "DELETE", f"message-logs/{new['id']}/").status_code == 204
    assert not MessageLog.objects.exists()
    assert [one[1] for one in actions()] == ["requeue", "cancel", "delete"]
    assert str(old.pk) in actions()[0][2]


def test_why_a_row_cannot_run_again_quotes_no_arguments(root: Client) -> None:
    answer = send(root, "PUT", f"message-logs/{failed(task_args='hunter2').pk}/")
    assert answer.status_code == 400
    assert "hunter2" not in answer.content.decode()
    assert "cannot be read" in answer.json()["detail"]


@pytest.mark.parametrize("key", ["x", "7", "00000000-0000-4000-8000-000000000000", "%00"])
def test_what_is_not_there_is_not_found(root: Client, key: str) -> None:
    assert root.get(f"{API}message-logs/{key}/").status_code == 404
    assert root.get(f"{API}scheduled-tasks/{key}/").status_code == 404
    assert send(root, "POST", f"scheduled-tasks/{key}/run/").status_code == 404


@pytest.mark.parametrize(
    "path", ["message-logs/purge/", "message-logs/requeue/", "scheduled-tasks/1/run/"]
)
def test_what_was_a_get_says_that_it_is_a_post(root: Client, path: str) -> None:
    ScheduledTask.objects.create(pk=1, **SCHEDULE)
    row()
    answer = root.get(API + path)
    assert answer.status_code == 405
    assert answer.json()["detail"] == (
        'Method "GET" not allowed: this changes something. Use POST.'
    )
    assert answer.headers["Allow"] == "POST"
    assert MessageLog.objects.count() == 1


def test_all_that_waits_gets_a_new_message(root: Client) -> None:
    row(confirmed_at=timezone.now() - timedelta(hours=1))
    answer = send(root, "POST", "message-logs/requeue/")
    assert (answer.status_code, answer.json()["count"]) == (200, 1)
    assert MessageLog.objects.get().confirmed_at is None
    assert actions() == [("root", "ring again", "all tasks that wait", 1)]


def test_a_purge_answers_with_what_is_left(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    purged: list[str] = []
    monkeypatch.setattr(
        housekeeping, "_purge_messages", lambda queues, _: purged.extend(q.name for q in queues)
    )
    row(), row(queue="other"), row(queue="other"), failed()
    answer = send(root, "POST", "queues/other/purge/")
    assert (answer.status_code, answer.json()) == (200, {"deleted": 2})
    assert set(purged) == {"other"}
    answer = send(root, "POST", "message-logs/purge/")
    assert (answer.status_code, answer.json()["count"]) == (200, 0)
    assert set(purged) == {"default", "other"}
    assert MessageLog.objects.get().status == "FAILED"
    assert actions() == [
        ("root", "purge", "other", 2),
        ("root", "purge", "all queues", 1),
    ]


def test_a_broker_that_is_away_is_not_the_callers_fault(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise BrokerError("it is away")

    monkeypatch.setattr(housekeeping, "_purge_messages", away)
    answer = send(root, "POST", "message-logs/purge/")
    assert (answer.status_code, answer.json()) == (503, {"detail": "it is away"})
    assert actions() == [("root", "purge", "all queues", 0)]


# Schedules


def test_a_schedule_is_made_changed_in_parts_run_and_deleted(root: Client) -> None:
    answer = send(root, "POST", "scheduled-tasks/", SCHEDULE)
    made = answer.json()
    assert answer.status_code == 201
    assert made["interval_display"] == "Every 1 hour"
    assert made["active"] is True
    path = f"scheduled-tasks/{made['id']}/"
    changed = send(root, "PATCH", path, {"cron": "0 3 * * *"})
    assert changed.status_code == 200
    assert changed.json()["interval_display"] == "Cron 0 3 * * *"
    assert changed.json()["task_args"] == '["night"]'
    ran = send(root, "POST", f"{path}run/")
    assert ran.status_code == 200
    one = MessageLog.objects.get()
    assert (one.task, one.task_args) == (TASK, '["night"]')
    assert ran.json()["last_log"] == str(one.pk)
    assert [one["task_name"] for one in listed(root, "scheduled-tasks/")] == ["nightly"]
    assert send(root, "DELETE", path).status_code == 204
    assert not ScheduledTask.objects.exists()
    assert [(action, count) for _, action, _, count in actions()] == [
        ("create schedule", 1),
        ("change schedule", 1),
        ("run schedule", 1),
        ("delete schedule", 1),
    ]


@pytest.mark.parametrize(
    ("wrong", "field", "text"),
    [
        ({"task": "os.mkdir"}, "task", "This is not a valid selection"),
        ({"task": "tests.project.tasks.nothing"}, "task", "This is not a valid selection"),
        ({"task_args": "1, 2"}, "task_args", "Error parsing argument 1, 2"),
        ({"task_args": "[1, 2, 3]"}, "task_args", "too many positional arguments"),
        ({"content": "[1"}, "content", "This field must be json serializable"),
        ({"content": "[1]"}, "content", "This field must be json serializable"),
        ({"content": '{"nose": 1}'}, "content", "unexpected keyword argument"),
        ({"queue": ""}, "queue", "This field is required"),
        ({"queue": "none"}, "queue", "Cannot find queue called none"),
        ({"interval_count": 0}, "interval_count", "greater than or equal to 1"),
        ({"interval_count": 2**31}, "interval_count", "less than or equal to 2147483647"),
        ({"interval_type": "days", "interval_count": 2**31 - 1}, "interval_count", ""),
        ({"interval_type": "weeks"}, "interval_type", "not a valid choice"),
        ({"cron": "bad"}, "cron", ""),
        ({"run_at": "2030-01-01T00:00:00Z", "cron": "0 3 * * *"}, "run_at", "not both"),
        ({"priority": 256}, "priority", "less than or equal to 255"),
        ({"task_name": "taken"}, "task_name", "with this task name already exists."),
        ([], "non_field_errors", "Send a JSON object"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_told_by_field(
    root: Client, wrong: Any, field: str, text: str
) -> None:
    ScheduledTask.objects.create(**{**SCHEDULE, "task_name": "taken"})
    other = ScheduledTask.objects.create(**{**SCHEDULE, "task_name": "other"})
    whole = {**SCHEDULE, **wrong} if wrong else wrong
    for method, path, data in (
        ("POST", "scheduled-tasks/", whole),
        ("PATCH", f"scheduled-tasks/{other.pk}/", wrong),
    ):
        answer = send(root, method, path, data)
        assert answer.status_code == 400, method
        assert list(answer.json()) == [field]
        assert text in answer.json()[field][0]
    assert ScheduledTask.objects.count() == 2
    assert actions() == []


def test_a_schedule_that_is_wrong_can_be_switched_off(root: Client) -> None:
    bad = ScheduledTask.objects.create(**{**SCHEDULE, "queue": "gone", "task": "gone.task"})
    path = f"scheduled-tasks/{bad.pk}/"
    assert send(root, "PATCH", path, {"active": False}).json()["active"] is False
    assert send(root, "PATCH", path, {"active": True}).status_code == 400
    ran = send(root, "POST", f"{path}run/")
    assert (ran.status_code, list(ran.json())) == (400, ["detail"])


def test_a_declared_schedule_keeps_its_name(root: Client) -> None:
    one = ScheduledTask.objects.create(**SCHEDULE, declaration="{}")
    answer = send(root, "PATCH", f"scheduled-tasks/{one.pk}/", {"task_name": "daily"})
    assert answer.status_code == 400
    assert list(answer.json()) == ["task_name"]


def test_what_helps_to_write_a_schedule(root: Client) -> None:
    choices = root.get(API + "scheduled-tasks/task-choices/").json()
    assert TASK in choices
    assert not [one for one in choices if one.endswith("publish_message")]
    for args, count in (("[1]", 0), ("", 0), ("1, 2", 1)):
        answer = send(root, "POST", "scheduled-tasks/validate-args/", {"args": args})
        assert answer.status_code == 200
        assert len(answer.json()["errors"]) == count
    # It changes nothing: whoever may look may ask.
    viewer = client_of(access.VIEW)
    assert send(viewer, "POST", "scheduled-tasks/validate-args/", {"args": "[]"}).json() == {
        "errors": []
    }


# Queues and workers


def test_queues_are_paused_and_resumed(root: Client) -> None:
    row()
    done = send(root, "POST", "queues/default/pause/", {"reason": "flood"})
    assert done.status_code == 204
    queues = {one["name"]: one for one in root.get(API + "queues/").json()}
    assert queues["default"]["paused"]["reason"] == "flood"
    assert queues["default"]["paused"]["by"] == "root"
    assert (queues["default"]["waiting"], queues["other"]["paused"]) == (1, None)
    assert send(root, "POST", "queues/default/resume/").status_code == 204
    assert not PausedQueue.objects.exists()
    assert send(root, "POST", "queues/nose/pause/").status_code == 404
    assert send(root, "POST", "queues/nose/resume/").status_code == 404
    assert [one[1] for one in actions()] == ["pause", "resume"]


def test_workers_are_told(root: Client) -> None:
    Worker.objects.create(name="w", host="h", pid=1, version="1", queues="default\nother")
    for word, command in (("quiet", "quiet"), ("unquiet", ""), ("stop", "stop")):
        assert send(root, "POST", f"workers/w/{word}/").status_code == 204
        assert Worker.objects.get().command == command
    (one,) = root.get(API + "workers/").json()
    assert (one["name"], one["queues"], one["command"]) == ("w", ["default", "other"], "stop")
    gone = send(root, "POST", "workers/v/stop/")
    assert gone.status_code == 404
    assert "no worker 'v'" in gone.json()["detail"]
    assert [one[1] for one in actions()] == ["quiet", "unquiet", "stop"]


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "NaN", "null"])
def test_what_is_no_object_is_a_bad_request(root: Client, text: str) -> None:
    for path in ("scheduled-tasks/", "scheduled-tasks/validate-args/", "queues/default/pause/"):
        assert send(root, "POST", path, text).status_code == 400, path
    form = root.post(API + "scheduled-tasks/", {"task_name": "x"})
    assert form.status_code == 415
