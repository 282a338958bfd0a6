# SPDX-License-Identifier: Apache-2.0
"""The records in Django's admin: who sees what, what is not shown, what is done and recorded."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext

from carrot_twisted.models import MessageLog, OperatorAction, PausedQueue, ScheduledTask, Worker
from carrot_twisted.monitor import access
from tests import settings as project
from tests.clients import client_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = "/admin/carrot_twisted/"
MODELS = ["messagelog", "scheduledtask", "operatoraction", "pausedqueue", "worker"]
TASK = "tests.project.tasks.effect"

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module", autouse=True)
def installed(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """A project with the admin, and the table that it needs. The other tests have none."""
    processors = ["django.contrib.auth.context_processors.auth"]
    processors += [
        "django.contrib.messages.context_processors.messages",
        "django.template.context_processors.request",
    ]
    templates = {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": processors},
    }
    more = ["django.contrib.messages", "django.contrib.admin"]
    with override_settings(
        INSTALLED_APPS=[*project.INSTALLED_APPS, *more],
        MIDDLEWARE=[*project.MIDDLEWARE, "django.contrib.messages.middleware.MessageMiddleware"],
        TEMPLATES=[templates],
        ROOT_URLCONF="tests.project.admin_urls",
    ):
        entries = apps.get_app_config("admin").get_model("LogEntry")
        with django_db_blocker.unblock():
            with connection.schema_editor() as editor:
                editor.create_model(entries)
            yield
            with connection.schema_editor() as editor:
                editor.delete_model(entries)


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def row(**given: Any) -> MessageLog:
    return MessageLog.objects.create(**{"task": TASK, "queue": "default", **given})


def schedule(**given: Any) -> ScheduledTask:
    return ScheduledTask.objects.create(**{"task_name": "nightly", "task": TASK, **given})


def act(client: Client, model: str, action: str, *keys: object, **more: str) -> str:
    """What the list says after an action on these rows."""
    data = {"action": action, "_selected_action": [str(key) for key in keys], **more}
    return client.post(f"{ADMIN}{model}/", data, follow=True).content.decode()


def actions() -> list[tuple[str, str, int]]:
    known = OperatorAction.objects.order_by("pk")
    return [(one.user, one.action, one.count) for one in known]


def form(**changed: str) -> dict[str, str]:
    return {
        "task_name": "nightly",
        "task": TASK,
        "task_args": '["night"]',
        "content": "{}",
        "active": "on",
        "interval_count": "1",
        "interval_type": "hours",
        "misfire": "run_once",
        "overlap": "allow",
        "queue": "default",
        "priority": "0",
        **changed,
    }


@pytest.mark.parametrize("model", MODELS)
def test_who_may_look_at_the_monitor_sees_each_list(model: str) -> None:
    one = row()
    made: dict[str, Any] = {
        "messagelog": one,
        "scheduledtask": schedule(),
        "operatoraction": OperatorAction.note("ann", "cancel", "x"),
        "pausedqueue": PausedQueue.objects.create(name="default"),
        "worker": Worker.objects.create(name="w", host="h", pid=1, version="1", queues="default"),
    }
    viewer = client_of(access.VIEW)
    assert viewer.get(f"{ADMIN}{model}/").status_code == 200
    page = viewer.get(f"{ADMIN}{model}/{made[model].pk}/change/")
    assert page.status_code == 200
    assert b'name="_save"' not in page.content
    assert viewer.get(f"{ADMIN}{model}/add/").status_code == 403
    assert viewer.get(f"{ADMIN}{model}/{made[model].pk}/delete/").status_code == 403
    stranger = client_of("carrot_twisted.view_worker", name="bob")
    assert stranger.get(f"{ADMIN}{model}/").status_code == 403


def test_a_list_of_tasks_reads_what_it_shows_and_counts_the_newest_only(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from carrot_twisted import admin

    monkeypatch.setattr(admin, "NEWEST", 3)
    made = sorted((row(status="FAILED", log="x" * 1000).pk for _ in range(5)), reverse=True)
    with CaptureQueriesContext(connection) as captured:
        page = root.get(f"{ADMIN}messagelog/?status__exact=FAILED&queue=default")
    asked = [one["sql"] for one in captured if "carrot_twisted_messagelog" in one["sql"]]
    assert [one.pk for one in page.context["cl"].result_list] == made[:3]
    assert page.context["cl"].result_count == 3
    assert not [one for one in asked if '"log"' in one]
    counts = [one for one in asked if "COUNT(" in one]
    assert len(counts) == 1
    assert "uuid" in counts[0], "of a part of the table"
    assert len(asked) == 3
    # A row that is in no list any more has its page.
    assert root.get(f"{ADMIN}messagelog/{made[-1]}/change/").status_code == 200
    assert not root.get(f"{ADMIN}messagelog/?queue=other").context["cl"].result_list


def test_secrets_are_not_shown() -> None:
    secret = '{"password": "hunter2"}'
    one = row(task="unknown.task", task_args='["hunter2"]', content=secret, output=secret)
    plan = schedule(content=secret)
    viewer = client_of(access.VIEW)
    for path in (f"messagelog/{one.pk}", f"scheduledtask/{plan.pk}"):
        page = viewer.get(f"{ADMIN}{path}/change/").content.decode()
        assert "[redacted]" in page
        assert "hunter2" not in page
    editor = client_of(access.VIEW, access.SCHEDULE, name="bob")
    assert b"hunter2" in editor.get(f"{ADMIN}scheduledtask/{plan.pk}/change/").content


@pytest.mark.parametrize("model", ["messagelog", "scheduledtask"])
def test_an_address_does_not_tell_of_secrets_by_a_filter(model: str) -> None:
    viewer = client_of(access.VIEW)
    for lookup in ("content__icontains", "task_args__startswith", "content"):
        assert viewer.get(f"{ADMIN}{model}/?{lookup}=h").status_code == 400


def test_tasks_are_requeued_cancelled_and_deleted(root: Client) -> None:
    failed, waiting = row(status="FAILED"), row()
    keys = [failed.pk, waiting.pk]
    assert "Done to 1 task." in act(root, "messagelog", "requeue_them", *keys)
    again = MessageLog.objects.get(retry_of=failed.pk)
    assert "Done to 1 task." in act(root, "messagelog", "cancel_them", waiting.pk)
    assert "Done to 1 task." in act(root, "messagelog", "delete_them", waiting.pk, again.pk)
    assert MessageLog.objects.get() == again
    assert actions() == [("root", "requeue", 1), ("root", "cancel", 1), ("root", "delete", 1)]
    # Django's own action, which would delete what waits.
    act(root, "messagelog", "delete_selected", again.pk, post="yes")
    assert MessageLog.objects.get() == again


@pytest.mark.parametrize("action", ["requeue_them", "cancel_them", "delete_them"])
def test_an_action_takes_its_permission(action: str) -> None:
    rows = [row(status="FAILED").pk, row().pk]
    act(client_of(access.VIEW, access.SCHEDULE, access.PURGE), "messagelog", action, *rows)
    assert sorted(MessageLog.objects.values_list("pk", "status")) == sorted(
        zip(rows, ["FAILED", "PUBLISHED"], strict=True)
    )
    assert actions() == []


def test_schedules_are_made_changed_run_and_deleted(root: Client) -> None:
    assert root.post(f"{ADMIN}scheduledtask/add/", form()).status_code == 302
    one = ScheduledTask.objects.get()
    change = f"{ADMIN}scheduledtask/{one.pk}/change/"
    assert root.post(change, form(cron="0 3 * * *")).status_code == 302
    one.refresh_from_db()
    assert (one.cron, one.task_args) == ("0 3 * * *", '["night"]')
    assert "The task of nightly is published." in act(root, "scheduledtask", "run_them", one.pk)
    assert MessageLog.objects.get().task == TASK
    delete = f"{ADMIN}scheduledtask/{one.pk}/delete/"
    assert root.post(delete, {"post": "yes"}).status_code == 302
    other = schedule()
    act(root, "scheduledtask", "delete_selected", other.pk, post="yes")
    assert not ScheduledTask.objects.exists()
    words = ["create", "change", "run", "delete", "delete"]
    assert actions() == [("root", f"{word} schedule", 1) for word in words]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"task": "os.mkdir"}, "This is not a valid selection"),
        ({"task_args": "1"}, "Positional arguments are a JSON list"),
        ({"queue": "nose"}, "Cannot find queue called nose"),
        ({"cron": "nose"}, "nose"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_told(root: Client, wrong: Any, text: str) -> None:
    answer = root.post(f"{ADMIN}scheduledtask/add/", form(**wrong))
    assert answer.status_code == 200
    assert text in str(answer.context["errors"])
    assert not ScheduledTask.objects.exists()
    assert actions() == []


def test_a_schedule_takes_the_permission_and_a_declared_one_keeps_its_name(root: Client) -> None:
    one = schedule(declaration="{}", queue="gone")
    change = f"{ADMIN}scheduledtask/{one.pk}/change/"
    viewer = client_of(access.VIEW, access.ACT)
    assert viewer.post(change, form()).status_code == 403
    assert "run_them" not in viewer.get(f"{ADMIN}scheduledtask/").content.decode()
    assert b'name="task_name"' not in root.get(change).content
    assert "Schedule nightly cannot run" in act(root, "scheduledtask", "run_them", one.pk)
    assert not MessageLog.objects.exists()


def test_a_project_without_the_admin_does_not_load_it() -> None:
    program = (
        "import sys, django; django.setup()\n"
        "import carrot_twisted.urls\n"
        "print('carrot_twisted.admin' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr
