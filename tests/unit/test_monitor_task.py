# SPDX-License-Identifier: Apache-2.0
"""The page of one task, and what people do there, as a browser without scripts meets them."""

from __future__ import annotations

import json
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from carrot_twisted.models import Attempt, MessageLog, OperatorAction
from carrot_twisted.monitor import task_page

pytestmark = pytest.mark.django_db

SECRET = "s3cr3t-Wort"
HOSTILE = "<script>alert('x')</script>\"'&</pre><img src=x onerror=alert(1)>{{ 7|add:7 }}\u202e"
HEAD = "Thread-3   2026-01-31 08:00:00,250"


def send(order: int, password: str, note: str = "") -> None:
    """A task."""


def user_with(*permissions: str) -> User:
    name = "-".join(permissions)
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


@pytest.fixture
def viewer() -> Client:
    """One who may look."""
    client = Client()
    client.force_login(user_with("view_messagelog"))
    return client


@pytest.fixture
def operator() -> Client:
    """One who may act."""
    client = Client()
    client.force_login(user_with("view_messagelog", "act_messagelog"))
    return client


def make(status: str = "COMPLETED", **given: Any) -> MessageLog:
    """A row that could be."""
    now = timezone.now()
    started = None if status in ("PUBLISHED", "CANCELLED") else now - timedelta(seconds=30)
    fields: dict[str, Any] = {
        "status": status,
        "task": f"{__name__}.send",
        "queue": "default",
        "task_args": f'[4711, "{SECRET}"]',
        "content": json.dumps({"note": "für Ada", "customer": {"api_key": SECRET}}),
        "publish_time": now - timedelta(seconds=40),
        "relay_at": now - timedelta(seconds=40),
        "start_time": started,
        "attempts": 1 if started else 0,
        "worker": "host:1" if started else "",
        "completion_time": now if status == "COMPLETED" else None,
        "failure_time": now if status == "FAILED" else None,
    }
    return MessageLog.objects.create(**{**fields, **given})


def url(name: str, row: MessageLog | uuid.UUID) -> str:
    return reverse(name, args=[row.pk if isinstance(row, MessageLog) else row])


def page_of(client: Client, row: MessageLog, query: str = "") -> str:
    response = client.get(url("carrot-task", row) + query)
    assert response.status_code == 200
    return response.content.decode()


def text_of(html: str) -> str:
    """What people read of a page, in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def lines_of(html: str) -> list[int]:
    """Numbers of the log's lines that are shown."""
    return [int(number) for number in re.findall(r'data-number="(\d+)"', html)]


# ---- The page


def test_it_tells_everything_of_a_task(viewer: Client) -> None:
    row = make(
        "FAILED",
        exchange="shop",
        routing_key="mail.out",
        priority=7,
        attempts=3,
        crashes=2,
        exception="no address",
        retry_of=uuid.uuid4(),
    )
    text = text_of(page_of(viewer, row))
    for part in (
        f"{__name__}.send {row.pk}",
        "Failed What went wrong no address",
        "Published",
        "Started, attempt 3 by worker host:1",
        "Queue default",
        "Waited 10.0 s",
        "Ran 30.0 s",
        "Attempts 3",
        "Workers lost 2",
        "Worker host:1",
        "Priority 7",
        "Exchange shop",
        "Routing key mail.out",
        "Broker amqp://",
        f"Again of {row.retry_of}",
        "[4711, &quot;[redacted]&quot;]",
    ):
        assert part in text, part


@pytest.mark.parametrize("status", [status for status, _ in MessageLog.STATUS_CHOICES])
def test_a_secret_is_nowhere_in_it(operator: Client, status: str) -> None:
    output = json.dumps({"order": 1, "card": {"number": SECRET}})
    row = make(status, output=output, log=f"{HEAD} INFO:: sent")
    for name in ("carrot-task", "carrot-task-delete", "carrot-task-requeue"):
        for query in ("", "?all", "?level=DEBUG&find=a"):
            response = operator.get(url(name, row) + query)
            assert response.status_code == 200
            assert SECRET not in response.content.decode()
    html = page_of(operator, row)
    assert html.count("[redacted]") == 3


@hypothesis_settings(max_examples=20)
@given(
    st.lists(st.sampled_from(["note", "to", "lines", "list"]), max_size=5),
    st.sampled_from(["password", "X-API-Key", "oldTokens", "CARD_no"]),
    st.booleans(),
)
def test_however_deep_a_secret_is_it_is_nowhere_in_it(
    path: list[str], name: str, in_list: bool
) -> None:
    client = Client()
    client.force_login(User.objects.filter(username="s").first() or _superuser())
    value: Any = {name: [SECRET, {"x": SECRET}]}
    for step in path:
        value = [0, {step: value}] if in_list else {step: value}
    row = make(task_args=json.dumps([1, SECRET, value]), content=json.dumps({"order": value}))
    assert SECRET not in page_of(client, row, "?all")
    about = MessageLog.objects.create(
        task="a.b", queue="q", task_args=json.dumps({"headers": value})
    )
    MessageLog.objects.filter(pk=about.pk).update(content=json.dumps(value), status="FAILED")
    assert SECRET not in page_of(client, about, "?all")


def _superuser() -> User:
    return User.objects.create_superuser("s")


def test_it_says_why_arguments_are_hidden(viewer: Client) -> None:
    row = make(task="nobody.knows.this")
    text = text_of(page_of(viewer, row))
    assert "[&quot;[not shown]&quot;, &quot;[not shown]&quot;]" in text
    assert "CARROT[&quot;task_modules&quot;]: nobody.knows." in text
    assert "task_modules" not in page_of(viewer, make())


def test_texts_of_tasks_are_texts(operator: Client) -> None:
    row = make(
        "FAILED",
        task=f"a.{HOSTILE}",
        task_args=json.dumps([HOSTILE]),
        content=json.dumps({HOSTILE: HOSTILE}),
        exchange=HOSTILE,
        queue=HOSTILE,
        routing_key=HOSTILE,
        worker=HOSTILE,
        output=json.dumps({"x": HOSTILE}),
        exception=HOSTILE,
        traceback=f'  File "/srv/{HOSTILE}", line 1, in x\n    {HOSTILE}\n{HOSTILE}',
        log=f"{HOSTILE} 2026-01-31 08:00:00,250 ERROR:: {HOSTILE}\n{HOSTILE}",
        publish_error=HOSTILE,
    )
    pages = [page_of(operator, row), page_of(operator, row, f"?find={HOSTILE}&level={HOSTILE}")]
    pages += [operator.get(url(n, row)).content.decode() for n in ("carrot-task-delete",)]
    message = make("FAILED", task=f"h.{HOSTILE}", task_args="{" + HOSTILE, content=HOSTILE)
    pages.append(page_of(operator, message))
    for html in pages:
        assert escape(HOSTILE) in html
        assert "<script>" not in html
        assert "<img src=x" not in html
        assert " onerror=" not in re.sub(r"&[^;]*;|>[^<]*<|\"[^\"]*\"", "", html)


def test_nothing_in_it_is_inline(operator: Client) -> None:
    row = make("FAILED", traceback="x", log=f"{HEAD} INFO:: a", output="o", publish_error="p")
    response = operator.get(url("carrot-task", row))
    html = response.content.decode()
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]* src=)", html)


def test_it_takes_few_queries_however_much_it_shows(viewer: Client) -> None:
    def queries(row: MessageLog) -> list[str]:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            page_of(viewer, row, "?level=DEBUG")
        return [query["sql"] for query in captured.captured_queries]

    small, large = make(), make("FAILED", log=f"{HEAD} INFO:: a\n" * 2000, traceback="x\n" * 500)
    queries(small)
    for number in range(2 * task_page.ATTEMPTS):
        tried(large, number)
    # The session, the user, its permissions and those of its groups, the row and its attempts.
    assert len(queries(small)) == len(queries(large)) == 6
    assert sum("carrot_twisted_messagelog" in sql for sql in queries(large)) == 1


def test_the_live_part_stays_the_same_and_holds_no_token(operator: Client) -> None:
    row = make("IN_PROGRESS", log=f"{HEAD} INFO:: a")
    address = url("carrot-task", row) + "?level=DEBUG"
    first = operator.get(address, headers={"HX-Request": "true"})
    assert b"csrf" not in first.content
    assert b"<html" not in first.content
    unchanged = {"HX-Request": "true", "If-None-Match": first.headers["ETag"]}
    assert operator.get(address, headers=unchanged).status_code == 304
    MessageLog.objects.filter(pk=row.pk).update(log=f"{HEAD} INFO:: a\n{HEAD} INFO:: b")
    assert operator.get(address, headers=unchanged).status_code == 200


@pytest.mark.parametrize(
    ("status", "live"),
    [("PUBLISHED", True), ("IN_PROGRESS", True), ("COMPLETED", False), ("FAILED", False)],
)
def test_it_keeps_itself_current_until_the_task_has_come_to_its_end(
    viewer: Client, status: str, live: bool
) -> None:
    row = make(status, log=f"{HEAD} INFO:: a")
    html = page_of(viewer, row)
    assert ("data-refresh" in html) is live
    assert ('id="follow"' in html) is live
    assert f'hx-get="{url("carrot-task", row)}"' in html or not live


def test_what_the_broker_did_not_take_is_told(viewer: Client) -> None:
    text = text_of(page_of(viewer, make("PUBLISHED", publish_error="disk alarm", queue="gone")))
    assert "The broker has not taken the message: disk alarm Nothing is lost" in text
    assert "Broker unknown: this queue is not in the settings" in text
    assert "Waiting to be sent to the broker" in text


def test_the_password_of_the_broker_is_not_shown(viewer: Client, settings: Any) -> None:
    settings.CARROT = {"default_broker": f"amqp://ada:{SECRET}@rabbit/v"}
    html = page_of(viewer, make())
    assert "amqp://ada@rabbit:5672/v" in html
    assert SECRET not in html


def test_a_long_text_is_cut_until_somebody_asks(viewer: Client) -> None:
    row = make(content=json.dumps({"note": "x" * task_page.CROP + "the end"}))
    html = page_of(viewer, row)
    assert "the end" not in html
    assert 'href="?all"' in html
    everything = page_of(viewer, row, "?all")
    assert "the end" in everything
    assert 'href="?all"' not in everything


def test_a_message_with_its_handler_is_no_task(operator: Client) -> None:
    about = json.dumps({"message_id": "m", "headers": {"authorization": SECRET}})
    row = make("FAILED", task_args=about, content="<order/>", exception="no", traceback=None)
    html = page_of(operator, row)
    text = text_of(html)
    assert "Body &lt;order/&gt; Properties {&quot;message_id&quot;" in text
    assert "Arrived" in text
    assert "Positional" not in text
    assert SECRET not in html
    assert url("carrot-task-requeue", row) not in html
    assert url("carrot-task-delete", row) in html
    assert operator.post(url("carrot-task-requeue", row)).status_code == 400
    assert MessageLog.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize(
    "given",
    [
        {"task_args": "", "content": ""},
        {"task_args": "nonsense", "content": "nonsense"},
        {"task": ""},
        {"traceback": "", "exception": "", "output": "", "log": ""},
        {"start_time": None, "completion_time": None, "failure_time": None},
        {"retry_of": uuid.UUID(int=0)},
    ],
)
@pytest.mark.parametrize("status", [status for status, _ in MessageLog.STATUS_CHOICES])
def test_rows_of_every_kind_have_a_page(viewer: Client, status: str, given: Any) -> None:
    assert "<h1>" in page_of(viewer, make(status, **given))


# ---- The log

LOG = "\n".join(
    [
        f"{HEAD} DEBUG:: looking",
        f"{HEAD} INFO:: found Ada",
        f"{HEAD} ERROR:: no address",
        "Traceback: ada",
        f"{HEAD} WARNING:: tired",
    ]
)


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [2, 3, 4, 5]),
        ("?level=DEBUG", [1, 2, 3, 4, 5]),
        ("?level=error", [3, 4]),
        ("?level=CRITICAL", []),
        ("?level=nonsense", [2, 3, 4, 5]),
        ("?find=ADA", [2, 4]),
        ("?find=ADA&level=ERROR", [4]),
    ],
)
def test_the_level_and_the_search_are_in_the_address(
    viewer: Client, query: str, numbers: list[int]
) -> None:
    html = page_of(viewer, make(log=LOG), query)
    assert lines_of(html) == numbers
    assert ("of 5 lines" in html) is (len(numbers) < 5)


def test_what_was_searched_for_is_marked(viewer: Client) -> None:
    html = page_of(viewer, make(log=f"{HEAD} INFO:: <Ada> & ADA"), "?find=ada")
    assert "&lt;<mark>Ada</mark>&gt; &amp; <mark>ADA</mark>" in html
    html = page_of(viewer, make(log=f"{HEAD} INFO:: Straße İx"), "?find=x")
    assert lines_of(html) == [1], "letters that become two are found, if not marked"


def test_links_of_levels_keep_the_search(viewer: Client) -> None:
    html = page_of(viewer, make(log=LOG), "?find=a%26b")
    assert 'href="?level=ERROR&amp;find=a%26b#log"' in html
    assert 'aria-current="true">INFO <span class="count">4</span>' in html
    assert 'name="level" value="INFO"' in html


def test_the_log_is_there_as_a_file(viewer: Client) -> None:
    log = f"{LOG}\n<b>ü\u2028"
    row = make(log=log)
    response = viewer.get(url("carrot-task-log", row))
    assert response.content.decode() == log
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{row.pk}.txt"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert url("carrot-task-log", row) in page_of(viewer, row)
    assert viewer.get(url("carrot-task-log", make(log=None))).content == b""
    assert viewer.get(url("carrot-task-log", uuid.uuid4())).status_code == 404


# ---- Earlier attempts


def tried(row: MessageLog, number: int, **given: Any) -> Attempt:
    """An attempt that came to nothing."""
    fields = {"worker": f"lost:{number}", "started": row.publish_time, "outcome": Attempt.LOST}
    return Attempt.objects.create(message=row.pk, number=number, **{"log": "", **fields, **given})


def test_earlier_attempts_are_in_the_time_line(viewer: Client) -> None:
    row = make("FAILED", attempts=3)
    tried(row, 2, exception=HOSTILE)
    tried(row, 1)
    tried(make(), 1, worker="of another")
    html = page_of(viewer, row)
    text = text_of(html)
    places = [
        text.index(part)
        for part in (
            "Published",
            "Started by worker lost:1",
            "Attempt 1 came to nothing Worker lost",
            "Started, attempt 2 by worker lost:2",
            "Started, attempt 3 by worker host:1",
        )
    ]
    assert places == sorted(places)
    assert escape(HOSTILE) in html
    assert "of another" not in text


def test_the_last_of_many_attempts_are_listed(viewer: Client) -> None:
    row = make(attempts=task_page.ATTEMPTS + 2)
    for number in range(1, task_page.ATTEMPTS + 2):
        tried(row, number)
    text = text_of(page_of(viewer, row))
    assert "lost:1 " not in text
    assert "lost:2 " in text
    assert f"lost:{task_page.ATTEMPTS + 1} " in text


def test_each_attempt_has_its_log(viewer: Client) -> None:
    row = make("IN_PROGRESS", attempts=2, log=f"{HEAD} INFO:: second")
    tried(row, 1, log=f"{HEAD} INFO:: first <b>\n{HEAD} DEBUG:: more")
    html = page_of(viewer, row)
    assert "second" in html
    assert "first" not in html
    assert 'href="?attempt=1&amp;level=INFO#log"' in html
    html = page_of(viewer, row, "?attempt=1")
    assert "first &lt;b&gt;" in html
    assert "second" not in html
    assert 'href="?attempt=1&amp;level=DEBUG#log"' in html
    assert 'name="attempt" value="1"' in html
    assert 'href="?level=INFO#log"' in html
    assert 'id="follow"' not in html
    for query in ("?attempt=7", "?attempt=x", "?attempt="):
        assert "second" in page_of(viewer, row, query)
    assert "The last attempt" not in page_of(viewer, make(log="x"))


# ---- A row that is gone


def test_a_row_that_is_gone_leads_to_the_one_that_has_replaced_it(viewer: Client) -> None:
    old = uuid.uuid4()
    new = make("PUBLISHED", retry_of=old)
    response = viewer.get(url("carrot-task", old))
    assert response.status_code == 404
    assert url("carrot-task", new) in response.content.decode()
    partial = viewer.get(url("carrot-task", old), headers={"HX-Request": "true"})
    assert "<html" not in partial.content.decode()
    assert url("carrot-task", new) in partial.content.decode()


def test_a_row_that_is_gone_for_good_says_so(
    viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = uuid.uuid4()
    make("PUBLISHED", retry_of=old)
    make("PUBLISHED", uuid=uuid.UUID(int=2**128 - 1))
    monkeypatch.setattr(task_page, "NEWEST", 1)
    with CaptureQueriesContext(connection) as captured:
        response = viewer.get(url("carrot-task", old))
    assert response.status_code == 404
    assert f"There is no row {old}" in response.content.decode()
    assert "LIMIT 1" in captured.captured_queries[-1]["sql"], "only the newest are looked through"


# ---- Who may do what


ACTIONS = (
    *("carrot-task-requeue", "carrot-task-cancel", "carrot-task-delete"),
    "carrot-task-run",
)


def for_action(name: str) -> MessageLog:
    """A row that it can be done to."""
    if name == "carrot-task-run":
        return make("PUBLISHED", run_after=timezone.now() + timedelta(days=1))
    return make("PUBLISHED" if "cancel" in name else "FAILED")


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("status", [status for status, _ in MessageLog.STATUS_CHOICES])
def test_who_may_look_only_sees_no_button_and_can_do_nothing(
    viewer: Client, name: str, status: str
) -> None:
    row = make(status)
    assert url(name, row) not in page_of(viewer, row)
    response = viewer.post(url(name, row))
    assert response.status_code == 403
    assert "carrot_twisted.act_messagelog" in response.content.decode()
    by_post_only = name in ("carrot-task-cancel", "carrot-task-run")
    assert viewer.get(url(name, row)).status_code == (405 if by_post_only else 403)
    assert MessageLog.objects.get().status == status
    assert not OperatorAction.objects.exists()


@pytest.mark.parametrize("name", ["carrot-task", "carrot-task-log", *ACTIONS])
def test_strangers_come_to_the_login(name: str) -> None:
    row = make("PUBLISHED")
    for response in (Client().get(url(name, row)), Client().post(url(name, row))):
        assert response.status_code == 302
        assert "next=" in response.headers["Location"]
    stranger = Client()
    stranger.force_login(User.objects.create_user("stranger", is_staff=True))
    assert stranger.get(url(name, row)).status_code == 403
    assert stranger.post(url(name, row)).status_code == 403
    assert MessageLog.objects.get().status == "PUBLISHED"


@pytest.mark.parametrize("name", ACTIONS)
def test_a_form_of_another_site_does_nothing(name: str) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user_with("view_messagelog", "act_messagelog"))
    row = for_action(name)
    assert strict.post(url(name, row)).status_code == 403
    assert MessageLog.objects.filter(pk=row.pk, status=row.status).exists()
    # The page's own form has the token.
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page_of(strict, row))
    assert token is not None
    done = strict.post(url(name, row), {"csrfmiddlewaretoken": token[1]})
    assert done.status_code == 302
    assert OperatorAction.objects.count() == 1


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("PUBLISHED", {"carrot-task-cancel"}),
        ("IN_PROGRESS", {"carrot-task-requeue", "carrot-task-cancel"}),
        ("COMPLETED", {"carrot-task-requeue", "carrot-task-delete"}),
        ("FAILED", {"carrot-task-requeue", "carrot-task-delete"}),
        ("CANCELLED", {"carrot-task-requeue", "carrot-task-delete"}),
    ],
)
def test_each_state_has_its_buttons(operator: Client, status: str, shown: set[str]) -> None:
    row = make(status)
    html = page_of(operator, row)
    assert {name for name in ACTIONS if url(name, row) in html} == shown


# ---- What is done


def notice(client: Client, response: Any) -> str:
    """The text that the next page shows."""
    page = client.get(response.headers["Location"])
    found = re.search(r'<p class="notice">([^<]*)</p>', page.content.decode())
    assert found is not None
    return found[1]


def noted() -> tuple[str, str, str]:
    action = OperatorAction.objects.get()
    return action.user, action.action, action.target


USER = "view_messagelog-act_messagelog"


@pytest.mark.parametrize("status", [status for status, _ in MessageLog.STATUS_CHOICES])
def test_run_again_leads_to_the_new_row(operator: Client, status: str) -> None:
    row = make(status)
    response = operator.post(url("carrot-task-requeue", row))
    again = MessageLog.objects.get()
    assert (again.retry_of, again.status) == (row.pk, "PUBLISHED")
    assert (again.task_args, again.content) == (row.task_args, row.content)
    assert response.headers["Location"] == url("carrot-task", again)
    assert notice(operator, response) == "It was published again: this is the new task."
    assert noted() == (USER, "requeue", f"{row.task} {row.pk} as {again.pk}")
    # As by a second click.
    twice = operator.post(url("carrot-task-requeue", row))
    assert twice.status_code == 404
    assert url("carrot-task", again) in twice.content.decode()
    assert MessageLog.objects.count() == 1


def test_the_message_of_a_new_row_is_handed_over_on_commit(
    operator: Client, handed_over: Any, django_capture_on_commit_callbacks: Any
) -> None:
    row = make("FAILED")
    with django_capture_on_commit_callbacks(execute=True):
        operator.post(url("carrot-task-requeue", row))
    assert [one.retry_of for one in handed_over.rows] == [row.pk]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"queue": "gone"}, "Cannot find queue called gone"),
        ({"content": f'{{"password": "{SECRET}'}, "The arguments of this row cannot be read"),
        ({"task_args": f'nonsense "{SECRET}'}, "The arguments of this row cannot be read"),
    ],
)
def test_what_cannot_run_again_stays_and_says_why(
    operator: Client, given: dict[str, Any], text: str
) -> None:
    row = make("FAILED", **given)
    response = operator.post(url("carrot-task-requeue", row))
    assert response.status_code == 400
    assert text in response.content.decode()
    assert SECRET not in response.content.decode()
    assert MessageLog.objects.get().pk == row.pk
    assert not OperatorAction.objects.exists()


def test_one_that_runs_is_published_again_only_after_a_question(operator: Client) -> None:
    row = make("IN_PROGRESS")
    assert f'formaction="{url("carrot-task-requeue", row)}"' not in page_of(operator, row)
    question = operator.get(url("carrot-task-requeue", row)).content.decode()
    assert "It is running just now." in question
    assert f'formaction="{url("carrot-task-requeue", row)}"' in question
    assert MessageLog.objects.get().pk == row.pk


def test_a_task_that_waits_is_cancelled(operator: Client) -> None:
    row = make("PUBLISHED")
    response = operator.post(url("carrot-task-cancel", row))
    assert response.headers["Location"] == url("carrot-task", row)
    assert MessageLog.objects.get().status == "CANCELLED"
    assert notice(operator, response) == "It is cancelled, and will not run."
    assert noted() == (USER, "cancel", f"{row.task} {row.pk}")


def test_a_task_for_later_says_when_and_can_be_run_now(operator: Client) -> None:
    row = make(
        "PUBLISHED",
        run_after=timezone.now() + timedelta(days=30),
        expires_at=timezone.now() + timedelta(days=31),
        unique_key="send <b>",
        unique_until="start",
        retention=7200,
        retries=2,
        attempts=2,
        exception="no",
    )
    Attempt.objects.create(
        message=row.pk, number=1, worker="w", outcome=Attempt.RETRIED, exception="no way", log=""
    )
    text = text_of(page_of(operator, row))
    for told in (
        *("Attempt 1 failed no way", "Next attempt due", "Retries 2", "Not before", "Expires"),
        *("Unique send &lt;b&gt; until it starts", "Kept 2 h 0 min after its end"),
    ):
        assert told in text
    listed = operator.get(reverse("carrot-tasks") + "?state=queued").content.decode()
    assert "Published due" in text_of(listed)
    response = operator.post(url("carrot-task-run", row))
    assert notice(operator, response) == "It is sent to its queue now."
    assert noted() == (USER, "run now", f"{row.task} {row.pk}")
    response = operator.post(url("carrot-task-run", row))
    assert "does not wait for a later time" in notice(operator, response)
    assert OperatorAction.objects.count() == 1


def test_a_task_that_its_limits_do_not_let_start_says_what_it_waits_for(operator: Client) -> None:
    name = "slot shop.tasks.sync account:7 <b>"
    row = make("PUBLISHED", slot_key=name, rate_key="rate shop", waits_for=name)
    html = page_of(operator, row)
    text = text_of(html)
    for told in (
        "Published waits for a slot of account:7 &lt;b&gt;",
        "Waiting for a slot of account:7 &lt;b&gt; as many run, or have started, as its limits",
        "Needs a slot of account:7 &lt;b&gt;, the rate of shop to start",
    ):
        assert told in text, text
    listed = text_of(operator.get(reverse("carrot-tasks")).content.decode())
    assert "waits for a slot of account:7 &lt;b&gt;" in listed
    told_by_api = operator.get(f"/some/where/api/message-logs/{row.pk}/").json()
    assert told_by_api["waits_for"] == told_by_api["slot_key"] == name


def test_an_expired_task_says_so(operator: Client) -> None:
    row = make("CANCELLED", exception="expired", completion_time=timezone.now())
    html = page_of(operator, row)
    assert "Cancelled expired: it had not started in time" in text_of(html)
    assert "What went wrong" not in html


def test_a_duplicate_is_not_run_again(operator: Client) -> None:
    key = {"unique_key": "k", "unique_until": "end"}
    row = make("FAILED", **key)
    make("PUBLISHED", **key)
    response = operator.post(url("carrot-task-requeue", row))
    assert response.status_code == 400
    assert "There is a task of the unique key" in response.content.decode()
    assert MessageLog.objects.count() == 2


def test_a_running_task_is_asked_to_end(operator: Client) -> None:
    row = make("IN_PROGRESS", progress={"done": 3, "total": 8, "text": "<b>three</b>"})
    html = page_of(operator, row)
    assert f'formaction="{url("carrot-task-cancel", row)}"' in html
    assert 'value="37"' in html
    assert "37 % 3 / 8: &lt;b&gt;three&lt;/b&gt;" in " ".join(html.split()) or (
        "&lt;b&gt;three&lt;/b&gt;" in html
    )
    response = operator.post(url("carrot-task-cancel", row))
    assert "It is asked to end" in notice(operator, response)
    asked = MessageLog.objects.get().cancel_asked
    assert asked is not None
    assert asked.by == OperatorAction.objects.get().user
    text = text_of(page_of(operator, row))
    assert "cancel asked" in text
    assert f"Asked to end by {asked.by}" in text
    listed = text_of(operator.get(reverse("carrot-tasks")).content.decode())
    assert "37 % cancel asked" in listed


def test_one_that_has_ended_for_it_tells_who_wanted_that(operator: Client) -> None:
    request = {"by": "ann", "reason": "too slow", "cooperative": False, "at": "x"}
    row = make("CANCELLED", exception="cancelled by ann: too slow", cancel_request=request)
    html = page_of(operator, row)
    assert "Cancelled by ann: too slow" in text_of(html)
    assert "What went wrong" not in html


@pytest.mark.parametrize("status", MessageLog.FINAL)
def test_what_has_ended_is_not_cancelled(operator: Client, status: str) -> None:
    row = make(status)
    response = operator.post(url("carrot-task-cancel", row))
    assert "Too late to cancel it" in notice(operator, response)
    assert MessageLog.objects.get().status == status
    assert not OperatorAction.objects.exists()


@pytest.mark.parametrize("status", MessageLog.FINAL)
def test_a_row_is_deleted_after_a_question(operator: Client, status: str) -> None:
    row = make(status)
    assert f'formaction="{url("carrot-task-delete", row)}"' not in page_of(operator, row)
    question = operator.get(url("carrot-task-delete", row)).content.decode()
    assert "This cannot be undone" in question
    assert f'formaction="{url("carrot-task-delete", row)}"' in question
    assert MessageLog.objects.count() == 1
    response = operator.post(url("carrot-task-delete", row))
    assert not MessageLog.objects.exists()
    assert response.headers["Location"] == reverse("carrot-tasks")
    assert notice(operator, response) == "The row is deleted."
    assert noted() == (USER, "delete", f"{row.task} {row.pk}")


@pytest.mark.parametrize("status", MessageLog.UNFINISHED)
def test_a_row_that_is_needed_is_not_deleted(operator: Client, status: str) -> None:
    row = make(status)
    response = operator.post(url("carrot-task-delete", row))
    assert response.status_code == 400
    assert "It has not come to its end yet" in response.content.decode()
    assert MessageLog.objects.get().status == status
    assert not OperatorAction.objects.exists()


@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_is_done_to_a_row_that_is_gone(operator: Client, name: str) -> None:
    response = operator.post(url(name, uuid.uuid4()))
    assert response.status_code == 404
    assert not OperatorAction.objects.exists()
    if "cancel" not in name:
        assert operator.get(url(name, uuid.uuid4())).status_code == 404


@pytest.mark.parametrize("name", ACTIONS)
def test_what_is_not_noted_is_not_done(
    operator: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("no note")

    monkeypatch.setattr(OperatorAction, "note", fail)
    row = for_action(name)
    with pytest.raises(RuntimeError, match="no note"):
        operator.post(url(name, row))
    found = MessageLog.objects.get()
    assert (found.pk, found.status) == (row.pk, row.status)
