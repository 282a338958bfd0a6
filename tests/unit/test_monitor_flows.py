# SPDX-License-Identifier: Apache-2.0
"""Flows on the pages of the monitor, and in the JSON API."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from carrot_twisted.flows import Flow, chain, group
from carrot_twisted.models import MessageLog, OperatorAction
from carrot_twisted.utilities import publish_message
from tests.project import flowing, tasks

if TYPE_CHECKING:
    from carrot_twisted.testing import InMemory

pytestmark = pytest.mark.django_db


@pytest.fixture
def client() -> Client:
    """One who may do everything."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def flow(carrot: InMemory) -> Flow:
    """One of which one task has failed, three have completed, and the last has not begun."""
    flowing.broken.add(1)
    try:
        made = chain(
            flowing.tell.options().message("<b>"),
            group([flowing.give.options().message(n) for n in range(3)]),
            flowing.add_up,
        ).publish()
        carrot.run_pending(check=False)
    finally:
        flowing.broken.clear()
    made.refresh_from_db()
    assert made.status == "FAILED"
    return made


def text_of(client: Client, row: MessageLog) -> str:
    return " ".join(client.get(reverse("carrot-task", args=[row.pk])).content.decode().split())


def test_the_page_of_a_task_shows_its_flow(client: Client, flow: Flow) -> None:
    first = flow.logs[0]
    text = text_of(client, flow.logs[1])
    assert f'<span class="mono">{flow.pk}</span>: Failed' in text
    assert "step 2 of 3" in text
    assert "1 is broken" in text
    assert (
        f'<a href="{reverse("carrot-task", args=[first.pk])}">tests.project.flowing.tell</a>'
        in text
    )
    assert "3 of 3, 1 not completed" in text
    assert 'aria-current="step"' in text
    assert "0 of 1" in text
    assert f"?flow={flow.pk}&amp;sort=oldest" in text


def test_a_page_of_a_task_without_a_flow_asks_nothing_more(client: Client, flow: Flow) -> None:
    plain = publish_message(tasks.noop)
    address = reverse("carrot-task", args=[plain.pk])
    with CaptureQueriesContext(connection) as seen:
        text = client.get(address).content.decode()
    assert 'id="flow"' not in text
    assert not [query for query in seen if "carrot_twisted_flow" in query["sql"]]
    Flow.objects.update(shape=[{}])
    assert "step 2 of 1" in text_of(client, flow.logs[0]), "somebody has written into the row"
    MessageLog.objects.filter(pk=plain.pk).update(flow=uuid.uuid4(), flow_step=0)
    assert client.get(address).status_code == 200, "its flow is gone"


@pytest.mark.parametrize("state", ["", "failed", "completed"])
def test_a_list_is_narrowed_to_a_flow(client: Client, flow: Flow, state: str) -> None:
    publish_message(tasks.noop)
    expected = flow.logs if not state else flow.logs.filter(status=state.upper())
    page = client.get(reverse("carrot-tasks"), {"flow": str(flow.pk), "state": state})
    shown = {str(row.pk) for row in page.context["rows"]} if page.context else set()
    text = page.content.decode()
    shown = shown or {str(row.pk) for row in MessageLog.objects.all() if str(row.pk) in text}
    assert shown == {str(row.pk) for row in expected}
    assert f'<input type="hidden" name="flow" value="{flow.pk}">' in text


def test_what_the_filter_finds_of_a_flow_is_run_again(client: Client, flow: Flow) -> None:
    address = reverse("carrot-tasks-matching", args=["requeue"])
    client.post(f"{address}?state=failed&flow={flow.pk}", {"rows": "1"})
    flow.refresh_from_db()
    assert flow.status in ("RUNNING", "FAILED")
    for row in flow.logs.filter(status="FAILED"):
        client.post(reverse("carrot-task-requeue", args=[row.pk]))
    flow.refresh_from_db()
    assert (flow.status, flow.error) == ("RUNNING", "")


def test_a_row_of_a_flow_that_runs_is_not_deleted(client: Client, flow: Flow) -> None:
    Flow.objects.update(status="RUNNING")
    row = flow.logs[0]
    page = client.post(reverse("carrot-task-delete", args=[row.pk]), {"confirmed": "1"})
    assert "Its flow is not over" in page.content.decode()
    answer = client.delete(reverse("messagelog", args=[row.pk]))
    assert (answer.status_code, answer.json()) == (
        409,
        {"detail": "Its flow is not over, and needs it."},
    )
    assert MessageLog.objects.filter(pk=row.pk).exists()


def test_programs_get_a_flow(client: Client, flow: Flow) -> None:
    told = client.get(reverse("carrot-api-flow", args=[flow.pk])).json()
    steps = told.pop("steps")
    assert told["id"] == str(flow.pk)
    assert (told["status"], told["step"]) == ("FAILED", 1)
    assert [(one["task"], one["size"], one["completed"], one["failed"]) for one in steps] == [
        ("tests.project.flowing.tell", 1, 1, 0),
        ("tests.project.flowing.give", 3, 2, 1),
        ("tests.project.flowing.add_up", 1, 0, 0),
    ]
    rows = client.get(reverse("failed-messagelog"), {"flow": str(flow.pk)}).json()["results"]
    assert [(one["flow"], one["flow_step"], one["flow_position"]) for one in rows] == [
        (str(flow.pk), 1, 1)
    ]
    assert client.get(reverse("failed-messagelog"), {"flow": "x"}).status_code == 400
    other = {"flow": str(uuid.uuid4())}
    assert client.get(reverse("failed-messagelog"), other).json()["results"] == []
    for address in (uuid.uuid4(), "nonsense"):
        assert client.get(reverse("carrot-api-flow", args=[address])).status_code == 404


def test_programs_cancel_a_flow(client: Client, flow: Flow) -> None:
    address = reverse("carrot-api-flow-cancel", args=[flow.pk])
    answer: Any = client.post(address)
    assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
    assert answer.json()["error"] == "cancelled by root"
    assert client.post(address).status_code == 409
    assert OperatorAction.objects.filter(action="cancel", target=f"flow {flow.pk}").count() == 1
