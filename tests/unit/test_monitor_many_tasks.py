# SPDX-License-Identifier: Apache-2.0
"""What people do to many tasks at once: to selected ones, and to all that a filter finds."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from carrot_twisted import housekeeping
from carrot_twisted.models import MessageLog, OperatorAction
from carrot_twisted.monitor import keyset, many_tasks

if TYPE_CHECKING:
    from tests.unit.conftest import RecordingPublisher

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEEDS = {
    "requeue": MessageLog.FINAL,
    "cancel": MessageLog.UNFINISHED,
    "delete": MessageLog.FINAL,
}


def client_with(*permissions: str, **options: Any) -> Client:
    user = User.objects.create_user("-".join(permissions), is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> Client:
    return client_with("view_messagelog", "act_messagelog")


def make(status: str = "FAILED", age: int = 0, **given: Any) -> MessageLog:
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


def one_of_each(**given: Any) -> dict[str, MessageLog]:
    return {
        status: make(status, age, **given)
        for age, (status, _) in enumerate(MessageLog.STATUS_CHOICES)
    }


def selected(client: Client, deed: str, *rows: MessageLog, query: str = "") -> Any:
    url = reverse("carrot-tasks-selected", args=[deed]) + query
    return client.post(url, {"selected": [str(row.pk) for row in rows]})


def notice(client: Client, answer: Any) -> str:
    """What the next page says."""
    text = client.get(answer.headers["Location"]).content.decode()
    found = re.search(r'<p class="notice">(.*?)</p>', text, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


def url_of(deed: str, query: str = "") -> str:
    return reverse("carrot-tasks-matching", args=[deed]) + query


def token(answer: Any) -> str:
    found = re.search(r'name="work" value="([^"]*)"', answer.content.decode())
    assert found is not None
    return html.unescape(found[1])


def confirmed(client: Client, deed: str, query: str = "") -> Any:
    """Ask, confirm, and go on to the end."""
    answer: Any = client.get(url_of(deed, query))
    assert answer.status_code == 200
    while answer.status_code == 200:
        answer = client.post(url_of(deed, query), {"work": token(answer)})
    assert answer.status_code == 302
    return answer


def states() -> dict[UUID, str]:
    return dict(MessageLog.objects.values_list("pk", "status"))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("deed", DEEDS)
def test_only_rows_in_a_state_for_it_are_touched(operator: Client, deed: str, whole: bool) -> None:
    rows = one_of_each()
    answer = confirmed(operator, deed) if whole else selected(operator, deed, *rows.values())
    touched = DEEDS[deed]
    left = {row.pk: status for status, row in rows.items() if status not in touched}
    now = states()
    assert {pk: now.get(pk) for pk in left} == left
    if deed == "cancel":
        assert now[rows["PUBLISHED"].pk] == "CANCELLED"
        assert now[rows["IN_PROGRESS"].pk] == "IN_PROGRESS"
        assert MessageLog.objects.get(pk=rows["IN_PROGRESS"].pk).cancel_asked is not None
    else:
        assert not any(rows[status].pk in now for status in touched)
    new = [row for row in MessageLog.objects.all() if row.retry_of is not None]
    assert len(new) == (3 if deed == "requeue" else 0)
    assert all(row.status == "PUBLISHED" for row in new)
    action = OperatorAction.objects.get()
    assert (action.action, action.count) == (deed, len(touched))
    assert action.user == "view_messagelog-act_messagelog"
    said = notice(operator, answer)
    verb = {"requeue": "again", "cancel": "cancelled", "delete": "deleted"}[deed]
    assert said.startswith(str(len(touched)))
    assert verb in said
    # All that the filter finds are those in a state for it; of selected ones some are left.
    assert ("left alone" in said) != whole


def test_requeued_tasks_are_handed_to_the_publisher_once_and_oldest_first(
    operator: Client,
    handed_over: RecordingPublisher,
    django_capture_on_commit_callbacks: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "REQUEUE_CHUNK", 2)
    rows = [make(age=age) for age in range(5)]
    with django_capture_on_commit_callbacks(execute=True):
        confirmed(operator, "requeue", "?state=failed")
    assert [row.retry_of for row in handed_over.rows] == [row.pk for row in rows[::-1]]


def test_a_filter_decides_what_is_met_and_is_recorded_in_words(operator: Client) -> None:
    met = make(age=5, task="shop.mail", worker="w")
    others = [make(age=6), make(age=7, task="shop.mail", queue="other"), make("COMPLETED", 8)]
    query = (
        "?state=failed&task=shop.mail&queue=default&worker=w&q=MAIL"
        "&since=2026-03-01T11:00&until=2026-03-01T13:00"
    )
    text = operator.get(url_of("delete", query)).content.decode()
    words = (
        "failed tasks, task shop.mail, queue default, worker w, failed from 2026-03-01 11:00:00 "
        "UTC, failed before 2026-03-01 13:00:00 UTC, with the text MAIL"
    )
    assert words in text
    assert re.search(r"How many</dt><dd>\s*1\s*</dd>", text)
    answer = confirmed(operator, "delete", query)
    assert set(states()) == {row.pk for row in others}
    assert OperatorAction.objects.get().target == words
    assert met.pk not in states()
    assert answer.headers["Location"].startswith(reverse("carrot-tasks") + "?state=failed&")


def test_long_work_goes_on_page_by_page_and_has_one_record(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_tasks, "STRETCH", -1)
    monkeypatch.setitem(many_tasks.DEEDS, "delete", replaced(many_tasks.DEEDS["delete"], chunk=4))
    for age in range(10):
        make(age=age)
    answer = operator.get(url_of("delete", "?state=failed"))
    assert "data-go-on" not in answer.content.decode()
    assert MessageLog.objects.count() == 10
    seen = []
    for left in (6, 2):
        answer = operator.post(url_of("delete", "?state=failed"), {"work": token(answer)})
        text = answer.content.decode()
        # The script goes on by this button, and so can people.
        assert "data-go-on" in text
        seen += re.findall(r"(\d+) of about (\d+)", text)
        assert f'max="10" value="{10 - left}"' in text
        assert MessageLog.objects.count() == left
        assert OperatorAction.objects.get().count == 10 - left
    assert seen == [("4", "10"), ("8", "10")]
    answer = operator.post(url_of("delete", "?state=failed"), {"work": token(answer)})
    assert answer.status_code == 302
    assert OperatorAction.objects.get().count == 10
    assert "10 rows are deleted." in notice(operator, answer)


def replaced(deed: many_tasks.Deed, **changes: Any) -> many_tasks.Deed:
    return many_tasks.Deed(**{**vars(deed), **changes})


@pytest.mark.parametrize("query", ["", "?state=failed", "?q=pay"])
def test_what_comes_meanwhile_is_left_alone(operator: Client, query: str) -> None:
    """Also the new rows of a requeue, which would be met again and again."""
    for age in range(5, 10):
        make(age=age)
    page = operator.get(url_of("requeue", query))
    late = make(age=0, publish_time=timezone.now(), uuid=MessageLog.new().pk)
    answer = operator.post(url_of("requeue", query), {"work": token(page)})
    assert answer.status_code == 302
    assert late.pk in states()
    assert OperatorAction.objects.get().count == 5
    assert sorted(states().values()) == ["FAILED"] + ["PUBLISHED"] * 5


def test_rows_brought_over_from_django_carrot_are_met_once(operator: Client) -> None:
    old = [make(age=age, uuid=UUID(f"{age}e1f3c1e-0b6a-4f5e-8d43-4b1f2c3d4e5f")) for age in (3, 9)]
    make(age=5)
    confirmed(operator, "requeue")
    assert OperatorAction.objects.get().count == 3
    assert sorted(states().values()) == ["PUBLISHED"] * 3
    assert not {row.pk for row in old} & set(states())


def test_what_cannot_run_again_is_left_alone_and_counted(operator: Client) -> None:
    stays = [make(age=1, queue="gone"), make(age=2, task_args='{"message_id": "m"}')]
    make(age=3)
    answer = confirmed(operator, "requeue", "?state=failed")
    said = notice(operator, answer)
    assert "1 task runs again." in said
    assert "2 were left alone" in said
    assert {row.pk for row in stays} <= set(states())
    assert OperatorAction.objects.get().count == 1


def test_two_who_do_the_same_do_it_once(operator: Client) -> None:
    for age in range(3):
        make(age=age)
    page = operator.get(url_of("delete"))
    work = token(page)
    for _ in range(2):
        assert operator.post(url_of("delete"), {"work": work}).status_code == 302
    assert [action.count for action in OperatorAction.objects.all()] == [3]


def test_a_page_that_was_not_ours_is_refused(operator: Client) -> None:
    row = make()
    forged = token(operator.get(url_of("delete")))
    for work in ("", "x", forged[:-1] + ("a" if forged[-1] != "a" else "b")):
        answer = operator.post(url_of("delete"), {"work": work})
        assert answer.status_code == 400
        assert "begin again at the list" in answer.content.decode()
    assert operator.post(url_of("delete")).status_code == 400
    # Nor does one for another action do.
    assert operator.post(url_of("requeue"), {"work": forged}).status_code == 404
    assert states() == {row.pk: "FAILED"}


@pytest.mark.parametrize("query", ["?since=nonsense", "?q=%00", "?until=9999-12-31T23:59"])
def test_a_filter_with_a_mistake_is_no_reason_to_take_all(operator: Client, query: str) -> None:
    answer = operator.get(url_of("delete", query))
    assert answer.status_code == 400
    assert "The filter has a mistake" in answer.content.decode()


def test_unknown_actions_are_not_found(operator: Client) -> None:
    assert operator.get(url_of("explode")).status_code == 404
    assert selected(operator, "explode").status_code == 404


def test_nothing_selected_is_said_and_not_recorded(operator: Client) -> None:
    make()
    answer = selected(operator, "delete", query="?state=failed&after=x")
    assert notice(operator, answer) == "Select some rows first."
    url = reverse("carrot-tasks-selected", args=["delete"])
    answer = operator.post(url, {"selected": ["nonsense", ""]})
    assert notice(operator, answer) == "Select some rows first."
    answer = operator.post(url, {"selected": [str(uuid4())]})
    assert notice(operator, answer).startswith("0 rows are deleted. 1 was left alone")
    assert not OperatorAction.objects.exists()
    assert len(states()) == 1


def test_the_way_back_keeps_filter_and_page(operator: Client) -> None:
    row = make()
    answer = selected(operator, "delete", row, query=f"?state=failed&q=a%26b&after={row.pk.hex}")
    assert answer.headers["Location"] == (
        reverse("carrot-tasks") + f"?state=failed&q=a%26b&after={row.pk.hex}"
    )


def test_who_may_only_look_does_nothing() -> None:
    client = client_with("view_messagelog")
    row = make()
    for answer in (
        client.get(url_of("delete")),
        client.post(url_of("delete"), {"work": "x"}),
        selected(client, "delete", row),
    ):
        assert answer.status_code == 403
        assert "act_messagelog" in answer.content.decode()
    assert states() == {row.pk: "FAILED"}
    assert not OperatorAction.objects.exists()


def test_nothing_is_done_without_the_token_of_the_form() -> None:
    client = client_with("view_messagelog", "act_messagelog", enforce_csrf_checks=True)
    row = make()
    page = client.get(url_of("delete"))
    assert client.post(url_of("delete"), {"work": token(page)}).status_code == 403
    assert selected(client, "delete", row).status_code == 403
    assert states() == {row.pk: "FAILED"}
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.content.decode())
    assert found is not None
    given = {"work": token(page), "csrfmiddlewaretoken": found[1]}
    assert client.post(url_of("delete"), given).status_code == 302
    assert not states()


@pytest.mark.parametrize("deed", DEEDS)
def test_more_rows_in_a_chunk_take_no_more_queries(operator: Client, deed: str) -> None:
    def taken(rows: int) -> int:
        MessageLog.objects.all().delete()
        for age in range(rows):
            make("PUBLISHED" if deed == "cancel" else "FAILED", age)
        work = token(operator.get(url_of(deed)))
        with CaptureQueriesContext(connection) as captured:
            operator.post(url_of(deed), {"work": work})
        return len(captured)

    assert taken(50) == taken(2)


def test_texts_of_a_filter_are_texts_on_the_page(operator: Client) -> None:
    text = operator.get(url_of("delete", "?q=%3Cscript%3Ealert(1)%22%E2%80%AE")).content.decode()
    assert "with the text &lt;script&gt;alert(1)&quot;\u202e</bdi>" in text
    assert "<script>alert" not in text


def test_a_record_grows_with_what_is_done() -> None:
    record = OperatorAction.note("ann", "delete", "all tasks", 2)
    OperatorAction.add(record.pk, 3)
    record.refresh_from_db()
    assert record.count == 5


@pytest.mark.parametrize("where", ["filter", "selection"])
def test_what_was_done_until_something_failed_is_recorded(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rows = [make(age=age) for age in range(5)][::-1]
    deed = many_tasks.DEEDS["delete"]

    def fails_in_the_end(chunk: Any) -> int:
        last = chunk.filter(pk=rows[-1].pk).exists()
        count = deed.do(chunk)
        if last:
            raise OperationalError("the database is away")
        return count

    monkeypatch.setitem(many_tasks.DEEDS, "delete", replace(deed, chunk=2, do=fails_in_the_end))
    do: Any = many_tasks.those_selected if where == "selection" else many_tasks.all_found
    which = [row.pk for row in rows] if where == "selection" else keyset.Query(listing="failed")
    with pytest.raises(OperationalError):
        do("delete", which, "failed tasks", "ann")
    assert [row.pk for row in MessageLog.objects.all()] == [rows[-1].pk]
    (action,) = OperatorAction.objects.all()
    assert (action.user, action.action, action.target, action.count) == (
        *("ann", "delete", "failed tasks", 4),
    )
