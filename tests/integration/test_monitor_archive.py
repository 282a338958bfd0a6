# SPDX-License-Identifier: Apache-2.0
"""The monitor's page of an archive, with a real broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from carrot_twisted import conf
from carrot_twisted.models import OperatorAction
from carrot_twisted.monitor import archive_page
from tests.settings import CARROT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.conftest import Broker

pytestmark = [pytest.mark.rabbitmq, pytest.mark.once, pytest.mark.usefixtures("served")]


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("ann"))
    return client


@pytest.fixture
def dead(broker: Broker) -> Iterator[Broker]:
    """Three messages that no task could be made of, and the queue that they came from."""
    for name in ("default", "default.dead"):
        broker.channel.queue_declare(name, durable=True)
    for n in range(3):
        headers = {"x-carrot-reason": f"<b>reason {n}</b>"}
        broker.send("default.dead", f"body {n}".encode(), message_id=f"id-{n}", headers=headers)
    yield broker
    broker.channel.queue_delete("default")
    broker.channel.queue_delete("default.dead")


def seen(client: Client) -> str:
    answer = client.get(reverse("carrot-archive", args=["default"]))
    assert answer.status_code == 200
    return str(answer.content.decode())


def keys(client: Client) -> list[str]:
    answer = client.get(reverse("carrot-archive", args=["default"]))
    return [row.key for row in answer.context["rows"]]


def test_a_look_shows_the_messages_and_takes_none(client: Client, dead: Broker) -> None:
    for _ in range(2):
        page = seen(client)
        assert all(f"body {n}" in page and f"id-{n}" in page for n in range(3))
        assert "<b>" not in page
    assert dead.depth("default.dead") == 3


def test_what_is_selected_goes_back_to_its_queue(client: Client, dead: Broker) -> None:
    first = keys(client)[0]
    client.post(reverse("carrot-archive-replay", args=["default"]), {"selected": [first]})
    assert (dead.depth("default"), dead.depth("default.dead")) == (1, 2)
    properties, body = dead.get("default")
    assert (properties.message_id, body) == ("id-0", b"body 0")
    action = OperatorAction.objects.get()
    assert (action.action, action.target, action.count) == ("replay", "default.dead", 1)


def test_what_is_selected_is_deleted_and_then_all(client: Client, dead: Broker) -> None:
    second = keys(client)[1]
    client.post(reverse("carrot-archive-delete", args=["default"]), {"selected": [second]})
    assert "body 1" not in seen(client)
    assert dead.depth("default.dead") == 2
    address = f"{reverse('carrot-archive-delete-all', args=['default'])}?all"
    assert "cannot be undone" in client.get(address).content.decode()
    assert dead.depth("default.dead") == 2
    client.post(address)
    assert "is empty" in seen(client)
    assert (dead.depth("default.dead"), dead.depth("default")) == (0, 0)


def test_all_are_replayed(client: Client, dead: Broker) -> None:
    client.post(f"{reverse('carrot-archive-replay', args=['default'])}?all")
    assert (dead.depth("default"), dead.depth("default.dead")) == (3, 0)


def test_an_archive_that_does_not_exist_is_empty(client: Client) -> None:
    assert "is empty" in seen(client)


def test_a_broker_that_is_away_is_told(client: Client, settings: Any) -> None:
    settings.CARROT = {**CARROT, "default_broker": "amqp://guest:guest@127.0.0.1:1/"}
    assert conf.current().default_broker.host == "127.0.0.1"
    answer = client.get(reverse("carrot-archive", args=["default"]))
    assert answer.status_code == 503
    assert "127.0.0.1" in answer.content.decode()
    assert archive_page.PATIENCE <= 5


def test_the_broker_is_asked_what_waits_and_who_consumes(client: Client, dead: Broker) -> None:
    dead.send("default", b"one more", message_id="id-9")
    assert reverse("carrot-queues-broker") in client.get(reverse("carrot-queues")).content.decode()
    answer = client.get(reverse("carrot-queues-broker"))
    (default,) = [one for one in answer.context["queues"] if one.name == "default"]
    assert (default.ready, default.consumers, default.archived) == (1, 0, 3)
    others = [one for one in answer.context["queues"] if one.name != "default"]
    assert {(one.is_known, one.archived) for one in others} == {(False, None)}
    assert answer.context["problems"] == []


def test_a_broker_that_is_away_leaves_its_queues_unknown(client: Client, settings: Any) -> None:
    settings.CARROT = {**CARROT, "default_broker": "amqp://guest:guest@127.0.0.1:1/"}
    answer = client.get(reverse("carrot-queues-broker"))
    assert answer.status_code == 200
    assert not any(one.is_known for one in answer.context["queues"])
    (problem,) = answer.context["problems"]
    assert "127.0.0.1" in problem
    assert client.get(reverse("carrot-queues")).status_code == 200
