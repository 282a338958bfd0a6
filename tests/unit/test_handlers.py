# SPDX-License-Identifier: Apache-2.0
"""``@message_handler``: what may be registered, under which names, and what a handler gets."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

import pika
import pytest
from django.test import override_settings

from carrot_twisted import checks, conf, handlers
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.handlers import (
    InvalidQueueRegistration,
    Message,
    NoExchange,
    PermanentFailure,
    UnreadableBody,
    message_handler,
)
from carrot_twisted.service.chosen_queues import chosen_queues
from carrot_twisted.service.engine_options import ServiceOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from carrot_twisted.handlers import HandlerQueue

EXCHANGES = {
    "data": {"name": "data.events", "type": "topic"},
    "other": {"name": "other"},
}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """No handlers but those of the test."""
    empty: dict[Any, Any] = {}
    monkeypatch.setattr(handlers, "_registry", empty)
    return empty


@pytest.fixture
def exchanges(settings: Any) -> None:
    settings.CARROT = {"handlers": {"exchanges": EXCHANGES}}


def handle(body: object) -> object:
    return body


def bindings(queue: HandlerQueue) -> list[tuple[str, str]]:
    return [(exchange.name, key) for exchange, key in queue.layout.bindings]


def layout() -> dict[str, list[tuple[str, str]]]:
    """Each queue, and what it is bound to."""
    return {queue.name: bindings(queue) for queue in handlers.queues(conf.current())}


def told() -> list[str]:
    """What ``manage.py check`` says of handlers."""
    return [f"{m.id} {m.msg}" for m in checks.check_carrot() if m.id != "carrot_twisted.W001"]


def message(body: bytes = b"{}", content_type: str | None = "application/json", **more: Any) -> Any:
    accept = more.pop("accept", frozenset({"application/json"}))
    return Message(
        body=body,
        routing_key="key",
        exchange="x",
        queue="q",
        headers={},
        properties=pika.BasicProperties(content_type=content_type, **more),
        redelivered=False,
        retries=0,
        accept=accept,
    )


def test_arguments_are_the_originals_in_its_order() -> None:
    parameters = list(inspect.signature(message_handler).parameters.values())[:4]
    assert [(one.name, one.default) for one in parameters] == [
        ("routing_keys", inspect.Parameter.empty),
        ("queue", None),
        ("exchange", "default"),
        ("queue_arguments", None),
    ]
    assert {one.kind for one in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


class TestNames:
    def test_by_default_the_queue_is_called_like_the_key_and_bound_to_nothing(self) -> None:
        assert message_handler("my.key")(handle) is handle
        assert layout() == {"my.key": []}

    @pytest.mark.usefixtures("exchanges")
    def test_each_key_has_a_queue_whatever_iterable_they_come_in(self) -> None:
        message_handler((key for key in ("one", "two")), exchange="data")(handle)
        assert layout() == {"one": [("data.events", "one")], "two": [("data.events", "two")]}

    @pytest.mark.usefixtures("exchanges")
    def test_a_name_of_its_own_and_wildcards(self) -> None:
        message_handler("shop.*.paid", queue="paid", exchange="data")(handle)
        message_handler("#", exchange="data")(handle)
        assert layout() == {
            "paid": [("data.events", "shop.*.paid")],
            "#": [("data.events", "#")],
        }

    def test_the_prefix_is_for_queues_without_a_name_of_their_own(self, settings: Any) -> None:
        settings.CARROT = {"handlers": {"exchanges": EXCHANGES, "queue_name_prefix": "shop."}}
        message_handler("one", exchange="data")(handle)
        message_handler("two", queue="second", exchange="data")(handle)
        assert layout() == {
            "shop.one": [("data.events", "one")],
            "second": [("data.events", "two")],
        }

    def test_an_exchange_called_default_takes_the_place_of_the_nameless_one(
        self, settings: Any
    ) -> None:
        settings.CARROT = {
            "handlers": {
                "exchanges": {"default": {"name": "data", "type": "topic"}},
                "queue_name_prefix": "shop.",
            }
        }
        message_handler("one")(handle)
        message_handler("two", queue="second")(handle)
        assert layout() == {"shop.one": [("data", "one")], "second": [("data", "two")]}

    @pytest.mark.usefixtures("exchanges")
    def test_one_queue_may_be_bound_to_two_exchanges_for_one_handler(self) -> None:
        message_handler("one", queue="q", exchange="data")(handle)
        message_handler("two", queue="q", exchange="other")(handle)
        assert layout() == {"q": [("data.events", "one"), ("other", "two")]}


class TestRefused:
    @pytest.mark.parametrize("keys", [[], (), iter(())])
    def test_no_routing_key(self, keys: Iterable[str]) -> None:
        with pytest.raises(InvalidQueueRegistration, match="no routing key"):
            message_handler(keys)

    @pytest.mark.parametrize("keys", [b"key", ["one", 2], None, 7, "x" * 256])
    def test_what_is_no_routing_key(self, keys: Any) -> None:
        with pytest.raises(InvalidQueueRegistration, match="is a text of 255 bytes"):
            message_handler(keys)

    def test_a_name_or_a_prefix_without_an_exchange(self, settings: Any) -> None:
        with pytest.raises(InvalidQueueRegistration, match=r"'mine'.*no 'default'.*none"):
            message_handler("one", queue="mine")
        settings.CARROT = {"handlers": {"queue_name_prefix": "shop.", "exchanges": EXCHANGES}}
        with pytest.raises(InvalidQueueRegistration, match=r"'shop\.'.*'data', 'other'"):
            message_handler("one")

    @pytest.mark.usefixtures("exchanges")
    def test_one_name_for_several_keys(self) -> None:
        for keys in (["one", "two"], ["one"]):
            with pytest.raises(InvalidQueueRegistration, match="queue of its own"):
                message_handler(keys, queue="mine", exchange="data")

    @pytest.mark.parametrize("name", ["", "x" * 240, 7])
    @pytest.mark.usefixtures("exchanges")
    def test_a_name_that_makes_no_names_for_the_other_queues(self, name: Any) -> None:
        with pytest.raises(InvalidQueueRegistration, match="1 to 236 bytes"):
            message_handler("one", queue=name, exchange="data")

    def test_a_second_handler_of_a_queue_and_nothing_is_half_registered(
        self, registry: dict[Any, Any]
    ) -> None:
        message_handler("two")(handle)
        with pytest.raises(InvalidQueueRegistration, match=r"'two'.*already: .*handle"):
            message_handler(["one", "two", "three"])(lambda body: body)
        assert list(registry) == [("two", "default")]

    def test_the_same_key_twice(self, registry: dict[Any, Any]) -> None:
        with pytest.raises(InvalidQueueRegistration, match="twice"):
            message_handler(["one", "one"])(handle)
        assert registry == {}

    @pytest.mark.usefixtures("exchanges")
    def test_two_handlers_that_would_get_each_others_messages(self) -> None:
        message_handler("one", queue="q", exchange="data")(handle)
        with pytest.raises(InvalidQueueRegistration, match="each other's messages"):
            message_handler("one", queue="q", exchange="other")(lambda body: body)

    @pytest.mark.parametrize(
        "arguments", [7, {1: 2}, {"x-max-length": object()}, {"x-queue-type": "stream"}]
    )
    def test_arguments_that_no_broker_takes(self, arguments: Any) -> None:
        with pytest.raises(InvalidQueueRegistration):
            message_handler("one", queue_arguments=arguments)

    @pytest.mark.parametrize(
        "handler",
        [
            7,
            lambda: None,
            lambda body, other: None,
            lambda body, *, needed: None,
            lambda **more: None,
        ],
    )
    def test_what_cannot_be_called_with_a_message(
        self, handler: Any, registry: dict[Any, Any]
    ) -> None:
        with pytest.raises(InvalidQueueRegistration):
            message_handler("one")(handler)
        assert registry == {}


def test_an_exchange_that_is_not_in_the_settings_is_told_when_the_service_starts() -> None:
    message_handler("one", exchange="gone")(handle)
    with pytest.raises(NoExchange, match="handle names the exchange 'gone'"):
        handlers.queues(conf.current())
    assert [text[:19] for text in told()] == ["carrot_twisted.E015"]


def test_a_queue_of_tasks_is_none_of_handlers() -> None:
    message_handler("default")(handle)
    with pytest.raises(CarrotConfigException, match="queue of tasks"):
        handlers.queues(conf.current())


@pytest.mark.usefixtures("exchanges")
def test_one_queue_has_one_set_of_arguments() -> None:
    message_handler("one", queue="q", exchange="data")(handle)
    message_handler("two", queue="q", exchange="other", queue_arguments={"x-max-length": 1})(handle)
    with pytest.raises(CarrotConfigException, match="different queue_arguments"):
        handlers.queues(conf.current())


def test_a_backoff_function_by_its_path(settings: Any) -> None:
    message_handler("one")(handle)
    settings.CARROT = {"handlers": {"backoff_func": "carrot_twisted.retry.default_backoff"}}
    assert handlers.queues(conf.current())[0].policy.backoff(2) == 60
    for path in ("carrot_twisted.retry.gone", "no.such", "carrot_twisted.retry.DELAYS"):
        settings.CARROT = {"handlers": {"backoff_func": path}}
        with pytest.raises(CarrotConfigException, match=path):
            handlers.queues(conf.current())
        assert [text[:19] for text in told()] == ["carrot_twisted.E015"]


def test_wildcards_without_a_topic_exchange_are_warned_of() -> None:
    message_handler("shop.*")(handle)
    (warning,) = told()
    assert warning.startswith("carrot_twisted.W004")
    assert "'shop.*'" in warning


class TestChosen:
    """Which queues a service consumes from."""

    def names(self, *asked: str) -> list[str]:
        queues = chosen_queues(conf.current(), ServiceOptions(queues=asked))
        return [queue.name for queue in queues]

    def test_those_of_handlers_come_after_those_of_tasks(self) -> None:
        message_handler(["one", "two"])(handle)
        assert self.names() == ["default", "other", "one", "two"]
        assert self.names("two", "other") == ["other", "two"]
        with pytest.raises(CarrotConfigException, match="Cannot find queue called three"):
            self.names("three")

    def test_a_service_may_have_handlers_only(self, settings: Any) -> None:
        settings.CARROT = {"queues": [{"name": "default", "consumable": False}]}
        with pytest.raises(CarrotConfigException, match="is consumable"):
            self.names()
        message_handler("one")(handle)
        assert self.names() == ["one"]


class TestDiscovery:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Path:
        """The file of a module that the settings name."""
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "probe_handlers", raising=False)
        settings.CARROT = {"handlers": {"modules": ["probe_handlers"]}}
        return tmp_path / "probe_handlers.py"

    def test_modules_of_apps_and_of_the_settings_are_found(self, module: Path) -> None:
        module.write_text(
            "from carrot_twisted.handlers import message_handler\n"
            "@message_handler('probe')\ndef handle(body): ...\n"
        )
        assert list(handlers.modules()) == ["tests.project.handlers", "probe_handlers"]
        assert told() == []
        assert list(layout()) == ["probe"]

    def test_those_of_apps_can_be_left_alone(self, module: Path, settings: Any) -> None:
        settings.CARROT = {"handlers": {"autodiscover": False, "modules": ["probe_handlers"]}}
        assert list(handlers.modules()) == ["probe_handlers"]

    @override_settings(INSTALLED_APPS=["django.contrib.staticfiles", "carrot_twisted"])
    def test_djangos_own_are_not_about_messages(self) -> None:
        assert list(handlers.modules()) == []

    def test_one_that_cannot_be_imported_is_told(self, module: Path) -> None:
        module.write_text("raise SystemExit(3)")
        (error,) = told()
        assert error.startswith("carrot_twisted.E014 Module 'probe_handlers'")


class Callable1:
    def __call__(self, body: object) -> tuple[str, object]:
        return "object", body


class Callable2:
    async def __call__(self, message: Message) -> Message:
        return message


def whole(message: Message) -> Message:
    return message


def both(body: object, note: str = "note", *, message: Message) -> tuple[object, str, Message]:
    return body, note, message


def named_only(extra: str, message: handlers.Message) -> tuple[str, Message]:
    return extra, message


def unknown_names(message: Message, other: Unknown = None) -> Message:  # type: ignore[name-defined]  # noqa: F821
    return message


class TestCalls:
    """What a handler asks for is what it gets."""

    def call(self, handler: Callable[..., Any], given: Message) -> Any:
        message_handler("key")(handler)
        (queue,) = handlers.queues(conf.current())
        return queue.call(given)

    @pytest.mark.parametrize(
        ("handler", "expected"),
        [
            (handle, {"a": 1}),
            (lambda *args: args, ({"a": 1},)),
            (lambda body, more=5: (body, more), ({"a": 1}, 5)),
            (lambda body=None: body, {"a": 1}),
            (Callable1(), ("object", {"a": 1})),
            (functools.partial(lambda one, two: (one, two), 1), (1, {"a": 1})),
            (dict, {"a": 1}),
        ],
    )
    def test_the_body(self, handler: Callable[..., Any], expected: Any) -> None:
        assert self.call(handler, message(b'{"a": 1}')) == expected

    @pytest.mark.parametrize("handler", [whole, unknown_names])
    def test_the_whole_message_unread(self, handler: Callable[..., Any]) -> None:
        given = message(b"\xff no JSON")
        assert self.call(handler, given) is given

    def test_both(self) -> None:
        given = message(b"[1]")
        assert self.call(both, given) == ([1], "note", given)

    def test_the_whole_message_for_a_partial(self) -> None:
        given = message()
        assert self.call(functools.partial(named_only, "extra"), given) == ("extra", given)

    def test_the_whole_message_for_an_object(self) -> None:
        given = message()
        coroutine = self.call(Callable2(), given)
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        assert stopped.value.value is given

    @pytest.mark.parametrize(
        ("handler", "name"),
        [
            (handle, "handle"),
            (Callable1(), "Callable1"),
            (functools.partial(both, 1), "both"),
        ],
    )
    def test_every_handler_has_a_name_for_people(
        self, handler: Callable[..., Any], name: str
    ) -> None:
        assert handlers.name_of(handler) == f"{__name__}.{name}"


class TestContent:
    @pytest.mark.parametrize(
        ("body", "content_type", "encoding", "expected"),
        [
            (b'{"a": 1}', "application/json", None, {"a": 1}),
            (b'{"a": 1}', "application/json; charset=utf-8", "utf-8", {"a": 1}),
            (b"[1]", "application/problem+json", None, [1]),
            ('"\u00e9"'.encode("latin-1"), "application/json", "latin-1", "\u00e9"),
            (b"", "application/json", None, ""),
            (b"hello", None, None, "hello"),
            (b"hello", "application/text", None, "hello"),
            (b"\xff", "application/data", "binary", b"\xff"),
        ],
    )
    def test_is_read_as_the_original_does(
        self, body: bytes, content_type: str | None, encoding: str | None, expected: Any
    ) -> None:
        given = message(body, content_type, content_encoding=encoding)
        assert given.content == expected

    @pytest.mark.parametrize(
        ("body", "content_type", "encoding"),
        [
            (b"{", "application/json", None),
            (b"\xff", "application/json", None),
            (b"[" * 100_000, "application/json", None),
            (b"{}", "application/json", "no such encoding"),
            (b"\xff", None, None),
            (b"x", "text/plain", None),
            (b"x", "application/x-python-serialize", None),
        ],
    )
    def test_what_cannot_be_read_is_a_permanent_failure(
        self, body: bytes, content_type: str | None, encoding: str | None
    ) -> None:
        given = message(body, content_type, content_encoding=encoding)
        with pytest.raises(UnreadableBody) as raised:
            _ = given.content
        assert isinstance(raised.value, PermanentFailure)
        assert raised.value.message == str(raised.value)

    def test_other_types_if_they_are_accepted(self) -> None:
        accept = frozenset({"text/plain", "application/x-protobuf"})
        assert message(b"x", "text/plain", accept=accept).content == "x"
        assert message(b"\xff", "application/x-protobuf", accept=accept).content == b"\xff"
        with pytest.raises(UnreadableBody, match="not accepted"):
            _ = message(accept=accept).content
