# SPDX-License-Identifier: Apache-2.0
"""Who gets into the monitor, what the answers carry, and what an action takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import DatabaseError
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse

from carrot_twisted.models import MessageLog, OperatorAction, PausedQueue, Worker
from carrot_twisted.monitor import access, assets, operator_actions
from carrot_twisted.monitor.page import CONTENT_SECURITY_POLICY
from tests.clients import client_of
from tests.settings import CARROT

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db

PAGES = [
    "carrot-monitor",
    "carrot-tasks",
    "carrot-schedules",
    "carrot-queues",
    "carrot-workers",
    "carrot-actions",
]


@pytest.mark.parametrize("name", PAGES)
def test_who_may_look_sees_every_page(name: str) -> None:
    answer = client_of(access.VIEW).get(reverse(name))
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("staff", [True, False])
def test_staff_without_the_permission_and_others_with_it_do_not(name: str, staff: bool) -> None:
    client = client_of(*([] if staff else [access.VIEW]), staff=staff)
    answer = client.get(reverse(name))
    assert answer.status_code == 403
    assert access.VIEW in answer.content.decode()


@pytest.mark.parametrize("name", PAGES)
def test_who_is_not_logged_in_is_sent_to_the_login(name: str, settings: Any) -> None:
    settings.LOGIN_URL = "/some/where/tasks/"
    answer = Client().get(reverse(name))
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/some/where/tasks/?next=")


def staff_of_the_month(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """A decorator of a project's own."""

    def guarded(request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.headers.get("X-Month") == "may":
            return view(request, *args, **kwargs)
        return HttpResponse("not this month", status=418)

    return guarded


def test_decorators_of_the_settings_decide_instead(settings: Any) -> None:
    settings.CARROT = {
        **CARROT,
        "monitor_authentication": [f"{__name__}.{staff_of_the_month.__name__}"],
    }
    address = reverse("carrot-tasks")
    assert client_of(access.VIEW).get(address).status_code == 418
    assert Client().get(address, headers={"X-Month": "may"}).status_code == 200
    # Whoever acts needs the permission still.
    pause = reverse("carrot-queue-pause", args=["default"])
    answer = Client().post(pause, headers={"X-Month": "may"})
    assert answer.status_code == 403
    assert not PausedQueue.objects.exists()


def test_doors_that_are_no_views_ask_the_same() -> None:
    request = RequestFactory().get("/")
    request.user = AnonymousUser()
    assert not access.may_view(request)
    request.user = User.objects.create_superuser("root")
    assert access.may_view(request)


def test_an_action_takes_its_permission_and_is_recorded() -> None:
    address = reverse("carrot-queue-pause", args=["default"])
    refused = client_of(access.VIEW).post(address)
    assert refused.status_code == 403
    assert access.ACT in refused.content.decode()
    assert not PausedQueue.objects.exists()
    assert not OperatorAction.objects.exists()
    client = client_of(access.VIEW, access.ACT, name="bob")
    done = client.post(address, {"reason-default": "flood"})
    assert done.status_code == 302
    assert (PausedQueue.objects.get().by, PausedQueue.objects.get().reason) == ("bob", "flood")
    action = OperatorAction.objects.get()
    assert (action.user, action.action, action.target) == ("bob", "pause", "default")
    # Told once, on the next page.
    assert "take nothing more" in client.get(reverse("carrot-queues")).content.decode()
    assert "take nothing more" not in client.get(reverse("carrot-queues")).content.decode()


def test_older_actions_are_on_further_pages() -> None:
    client = client_of(access.VIEW)
    for number in range(operator_actions.ROWS + 2):
        OperatorAction.note("ann", "pause", f"queue {number}", 1)
    newest = client.get(reverse("carrot-actions"))
    before = newest.context["before"]
    assert f"?before={before}" in newest.content.decode()
    older = client.get(reverse("carrot-actions"), {"before": before})
    shown = [[row.target for row in page.context["rows"]] for page in (newest, older)]
    assert (len(shown[0]), shown[0][-1]) == (operator_actions.ROWS, "queue 2")
    assert shown[1] == ["queue 1", "queue 0"]
    assert older.context["before"] is None


@pytest.mark.parametrize(
    ("word", "command"), [("quiet", "quiet"), ("unquiet", ""), ("stop", "stop")]
)
def test_a_worker_is_told_what_to_do_and_that_is_recorded(word: str, command: str) -> None:
    Worker.objects.create(name="host-1", pid=1, command="quiet")
    address = reverse(f"carrot-worker-{word}", args=["host-1"])
    assert client_of(access.VIEW).post(address).status_code == 403
    answer = client_of(access.VIEW, access.ACT, name="bob").post(address)
    assert answer.headers["Location"] == reverse("carrot-workers")
    assert Worker.objects.get().command == command
    action = OperatorAction.objects.get()
    assert (action.user, action.action, action.target) == ("bob", word, "host-1")


def test_what_cannot_be_recorded_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise DatabaseError("gone")

    client = client_of(access.VIEW, access.ACT)
    monkeypatch.setattr(OperatorAction, "note", away)
    with pytest.raises(DatabaseError):
        client.post(reverse("carrot-queue-pause", args=["default"]))
    assert not PausedQueue.objects.exists()


def test_an_action_by_get_does_nothing() -> None:
    client = client_of(access.VIEW, access.ACT)
    assert client.get(reverse("carrot-queue-pause", args=["default"])).status_code == 405
    assert not PausedQueue.objects.exists()


def test_a_form_of_another_site_does_nothing(settings: Any) -> None:
    """Also where the project has no middleware against that."""
    settings.MIDDLEWARE = [one for one in settings.MIDDLEWARE if "Csrf" not in one]
    user = User.objects.create_superuser("root")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    address = reverse("carrot-queue-pause", args=["default"])
    assert client.post(address).status_code == 403
    assert not PausedQueue.objects.exists()
    token = client.get(reverse("carrot-queues")).context["csrf_token"]
    assert client.post(address, {"csrfmiddlewaretoken": str(token)}).status_code == 302
    assert PausedQueue.objects.exists()


def test_what_a_viewer_may_not_do_is_not_offered() -> None:
    MessageLog.objects.create(task="shop.tasks.send", queue="default")
    seen = client_of(access.VIEW).get(reverse("carrot-queues")).content.decode()
    assert "formaction" not in seen
    assert "Purge" not in seen
    answer = client_of(access.VIEW, access.ACT, name="bob").get(reverse("carrot-queues"))
    assert "/pause/" in answer.content.decode()
    assert "Purge" not in answer.content.decode()


def test_the_live_part_has_no_token_and_no_change_without_one() -> None:
    client = client_of(access.VIEW, access.ACT, access.PURGE)
    for name in PAGES:
        first = client.get(reverse(name), headers={"HX-Request": "true"})
        assert "csrfmiddlewaretoken" not in first.content.decode()
        again = client.get(
            reverse(name),
            headers={"HX-Request": "true", "If-None-Match": first.headers["ETag"]},
        )
        assert again.status_code == 304, name


def test_files_are_kept_for_ever_by_browsers_and_are_found_by_their_digest() -> None:
    answer = Client().get(assets.url_of("monitor.css"))
    assert answer.status_code == 200
    assert "immutable" in answer.headers["Cache-Control"]
    assert "--accent" in answer.content.decode()
    old = Client().get(reverse("carrot-asset", args=["0123", "monitor.css"]))
    assert old.headers["Cache-Control"] == "no-cache"
    assert Client().get(reverse("carrot-asset", args=["0123", "conf.py"])).status_code == 404


def test_hostile_texts_are_text() -> None:
    bad = "<script>alert(1)</script>"
    MessageLog.objects.create(task=bad, queue=f'"{bad}', exception=bad, content=bad)
    OperatorAction.note(bad, bad[:50], bad)
    client = client_of(access.VIEW, access.ACT, access.PURGE)
    for name in PAGES:
        assert bad not in client.get(reverse(name)).content.decode(), name
