# SPDX-License-Identifier: Apache-2.0
"""Signatures of messages: made by who has the SECRET_KEY, and worthless after any change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pika
import pytest
from django.core.signing import Signer
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import conf, outbox, wire
from carrot_twisted.consumer import Consumer
from carrot_twisted.objects import DefaultMessageSerializer, Message
from carrot_twisted.signing import HEADER, SALT, Seal
from tests.unit.test_dispatcher import Desk
from tests.unit.test_outbox import row

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "0192f0a0-0000-7000-8000-000000000001"
OTHER_KEY = "0192f0a0-0000-7000-8000-000000000002"
BODY = b'{"args": [1]}'
TASK = "app.work"


def signed(**changes: Any) -> dict[str, Any]:
    """The headers of a signed message."""
    headers = Seal().sign(wire.properties(TASK, KEY, 0), BODY)["headers"]
    return {**headers, **changes}


def test_a_signed_message_is_let_in_and_keeps_its_other_properties() -> None:
    plain = wire.properties(TASK, KEY, 3)
    properties = Seal().sign(plain, BODY)
    assert properties["headers"].keys() == {"type", HEADER}
    assert {**properties, "headers": plain["headers"]} == plain
    assert plain["headers"] == {"type": TASK}
    assert Seal().problem(properties["headers"], KEY, BODY) == ""


@pytest.mark.parametrize(
    ("headers", "key", "body"),
    [
        (signed(type="app.other"), KEY, BODY),
        (signed(type=""), KEY, BODY),
        (signed(type=5), KEY, BODY),
        (signed(type={"app": ["work"]}), KEY, BODY),
        (signed(), OTHER_KEY, BODY),
        (signed(), KEY.upper(), BODY),
        (signed(), KEY, b'{"args": [2]}'),
        (signed(), KEY, BODY + b" "),
        (signed(), KEY, b""),
        (signed(**{HEADER: ""}), KEY, BODY),
        (signed(**{HEADER: b"bytes"}), KEY, BODY),
        (signed(**{HEADER: "é" * 43}), KEY, BODY),
        (signed(**{HEADER: 5}), KEY, BODY),
        (signed(**{HEADER: [signed()[HEADER]]}), KEY, BODY),
        (signed(**{HEADER: signed()[HEADER] + "="}), KEY, BODY),
        # The same bytes, cut at another place.
        (signed(type=f"{TASK}\n{KEY}"), "", BODY),
        (signed(type=f"{TASK}')]\n'{KEY}'\n"), KEY, BODY),
        # By which a consumer of the project's may find another task, or RabbitMQ another queue.
        (signed(job="app.other"), KEY, BODY),
        (signed(CC=["other"]), KEY, BODY),
        (signed() | cast("Any", {b"\xff": "a name that is no UTF-8"}), KEY, BODY),
        # Where another salt was used, for example by the project itself.
        (signed(**{HEADER: Signer().signature(BODY)}), KEY, BODY),
        (signed(**{HEADER: Signer(salt=SALT).signature(BODY)}), KEY, BODY),
    ],
)
def test_nothing_else_is(headers: dict[str, Any], key: str, body: bytes) -> None:
    assert "signature is wrong" in Seal().problem(headers, key, body)


@pytest.mark.parametrize("headers", [None, {}, {"type": TASK}, {HEADER: None}])
def test_a_message_without_signature_is_told_from_one_with_a_wrong_one(
    headers: dict[str, Any] | None,
) -> None:
    assert "no signature" in Seal().problem(headers, KEY, BODY)


def test_a_secret_key_may_be_changed_while_messages_wait(settings: Any) -> None:
    before = signed()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", [settings.SECRET_KEY]
    assert Seal().problem(before, KEY, BODY) == ""
    assert Seal().problem(signed(), KEY, BODY) == ""
    assert signed() != before
    settings.SECRET_KEY_FALLBACKS = []
    assert "wrong" in Seal().problem(before, KEY, BODY)


def test_what_a_broker_adds_on_the_way_does_no_harm() -> None:
    headers = signed(**{"x-death": [{"count": 1, "queue": "default"}], "x-delivery-count": 3})
    assert Seal().problem(headers, KEY, BODY) == ""


@given(task=st.text(max_size=20), key=st.text(max_size=20), body=st.binary(max_size=20))
def test_whatever_a_message_says_it_is_answered(task: str, key: str, body: bytes) -> None:
    """Also lone surrogates, which pika makes of nothing, but a subclass may."""
    seal = Seal()
    headers = seal.sign({"headers": {"type": task}, "message_id": key}, body)["headers"]
    assert seal.problem(headers, key, body) == ""
    assert seal.problem(headers, f"{key}x", body) != ""


@pytest.mark.parametrize("signing", ["publish", True])
def test_what_is_published_is_signed(settings: Any, signing: bool | str) -> None:
    settings.CARROT = {
        "signing": signing,
        "queues": [{"name": "default"}, {"name": "other", "signing": False}],
    }
    log = row(task_args="[1]")
    ((post,),) = outbox.posts([log]).values()
    assert Seal().problem(post.properties.headers, post.message_id, post.body) == ""
    ((post,),) = outbox.posts([row(queue="other")]).values()
    assert post.properties.headers == {"type": "app.work"}

    formatter = Message(TASK, task_args=["é"]).formatter
    properties = pika.BasicProperties(**formatter.properties())
    body = formatter.body().encode()
    assert Seal().problem(properties.headers, properties.message_id, body) == ""
    assert Message(TASK, queue="other").formatter.properties()["headers"] == {"type": TASK}


def test_a_serializer_of_the_projects_signs_what_it_sends(settings: Any) -> None:
    settings.CARROT = {"signing": True}

    class Mine(DefaultMessageSerializer):
        type_header = "job"

        def body(self) -> str:
            return "of my own"

    headers = Mine(Message(TASK)).properties()["headers"]
    assert headers["job"] == TASK
    message = Message(TASK)
    headers = Mine(message).properties()["headers"]
    assert Seal().problem(headers, message.uuid, b"of my own") == ""
    # The header by which its consumer finds the task.
    changed = {**headers, "job": "app.other"}
    assert "wrong" in Seal().problem(changed, message.uuid, b"of my own")


def test_off_means_that_nothing_is_signed_and_nothing_asked(settings: Any) -> None:
    settings.CARROT = {}
    ((post,),) = outbox.posts([row()]).values()
    assert post.properties.headers == {"type": "app.work"}
    queue = conf.current().queue("default")
    assert (queue.signs, queue.verifies) == (False, False)


def admitted(desk: Desk) -> list[str]:
    """Reasons of what is not let in; the rest is claimed."""
    desk.turn()
    return [reason for _, reason in desk.dead]


@pytest.fixture
def make_desk(settings: Any) -> Callable[[Any], Desk]:
    def make(signing: Any) -> Desk:
        settings.CARROT = {"signing": signing}
        return Desk()

    return make


def test_the_service_asks_for_a_signature_before_it_asks_the_database(
    make_desk: Callable[[Any], Desk],
) -> None:
    desk = make_desk(True)
    good = str(desk.deliver(KEY, BODY, headers=signed()))
    desk.deliver(OTHER_KEY, BODY, headers=signed())
    desk.deliver(OTHER_KEY, BODY, headers={"type": TASK})
    desk.deliver("no id", b"\xff", headers={"type": "os.system"})
    assert [reason.split("'")[0][:28] for reason in admitted(desk)] == [
        "the message",
        "the message has no signature",
        "the message has no signature",
    ]
    assert [[str(key) for key in claim] for claim in desk.claims()] == [[good]]


def test_a_running_task_is_not_joined_by_an_unsigned_message(
    make_desk: Callable[[Any], Desk],
) -> None:
    desk = make_desk(True)
    desk.deliver(KEY, BODY, headers=signed())
    desk.turn()
    desk.deliver(KEY, BODY, headers={"type": TASK})
    assert len(admitted(desk)) == 1
    (job,) = desk.dispatcher._jobs.values()
    assert len(job.deliveries) == 1


def test_hooks_read_no_unsigned_message(settings: Any) -> None:
    class Reading(Consumer):
        def on_message(self, *given: Any) -> None:
            raise AssertionError(given)

    settings.CARROT = {"signing": True}
    desk = Desk(kind=Reading)
    desk.deliver(KEY, BODY, headers={"type": TASK})
    assert len(admitted(desk)) == 1
    assert desk.jobs() == []
    desk.deliver(KEY, BODY, headers=signed())
    assert len(admitted(desk)) == 1
    assert len(desk.jobs()) == 1


@pytest.mark.parametrize("signing", [False, "publish"])
def test_while_publishers_are_being_upgraded_unsigned_messages_are_let_in(
    make_desk: Callable[[Any], Desk], signing: bool | str
) -> None:
    desk = make_desk(signing)
    desk.deliver(KEY, BODY, headers={"type": TASK})
    desk.deliver(OTHER_KEY, BODY, headers=signed())
    assert admitted(desk) == []
    assert len(desk.claims()[0]) == 2
