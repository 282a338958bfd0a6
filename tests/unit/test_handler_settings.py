# SPDX-License-Identifier: Apache-2.0
"""``CARROT["handlers"]``, and the settings that a project brings from celery-message-consumer."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted import conf, handler_settings
from carrot_twisted.virtual_host import VirtualHost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 24 * 3600 * 1000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment is read anew in each test."""
    conf._read.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    conf._read.cache_clear()


def told(settings: Any, **handlers: Any) -> str:
    settings.CARROT = {"handlers": handlers}
    return " ".join(f"{p.id} {p.message} {p.hint}" for p in conf.problems())


def test_the_defaults_are_the_originals() -> None:
    value = conf.handlers()
    assert value.host == conf.current().default_broker
    assert value.accept == {"application/json"}
    assert value.max_retries == 4
    assert value.retry_header == "x-retry-count"
    assert value.queue_name_prefix == ""
    assert value.exchanges == {}
    assert value.archive_arguments == {"x-message-ttl": 24 * DAY, "x-max-length": 1_000_000}
    assert (value.concurrency, value.prefetch_count) == (1, None)


def test_a_limit_of_the_archive_has_an_effect_by_itself(settings: Any) -> None:
    settings.CARROT = {"handlers": {"archive_expiry": 5}}
    assert conf.handlers().archive_arguments == {"x-message-ttl": 5, "x-max-length": 1_000_000}
    settings.CARROT = {"handlers": {"archive_expiry": 5, "archive_queue_args": {}}}
    assert conf.handlers().archive_arguments == {}


def test_another_serializer_is_accepted(settings: Any) -> None:
    settings.CARROT = {"handlers": {"serializer": "raw"}}
    assert conf.handlers().accept == {"application/data"}
    settings.CARROT = {"handlers": {"serializer": "raw", "accept": ["json", "image/png"]}}
    assert conf.handlers().accept == {"application/json", "image/png"}


def test_exchanges_have_kombus_defaults(settings: Any) -> None:
    settings.CARROT = {
        "handlers": {
            "exchanges": {
                "plain": {"name": "one"},
                "full": {
                    "name": "two",
                    "type": "topic",
                    "durable": False,
                    "auto_delete": True,
                    "arguments": {"alternate-exchange": "three"},
                    "delivery_mode": 2,
                },
                "there": {"name": "amq.topic", "type": "topic", "no_declare": True},
            }
        }
    }
    assert conf.problems() == ()
    found = conf.handlers().exchanges
    plain, full = found["plain"], found["full"]
    assert (plain.name, plain.type, plain.durable, plain.passive) == ("one", "direct", True, False)
    assert (full.durable, full.auto_delete) == (False, True)
    assert full.arguments == {"alternate-exchange": "three"}
    assert found["there"].passive


@pytest.mark.parametrize(
    ("handlers", "expected"),
    [
        ({"max_retry": 3}, "E002 CARROT['handlers'] has an unknown key 'max_retry'. Did you mean"),
        ({"max_retries": -1}, "CARROT['handlers']['max_retries'] is -1."),
        ({"max_retries": True}, "CARROT['handlers']['max_retries'] is True."),
        ({"serializer": "pickle"}, "none that could run code"),
        ({"accept": ["yaml"]}, "CARROT['handlers']['accept']"),
        ({"backoff_func": 7}, "a function or its dotted path"),
        ({"prefetch_count": 0}, "'auto' or a whole number"),
        ({"archive_expiry": "soon"}, "CARROT['handlers']['archive_expiry'] is 'soon'."),
        ({"archive_queue_args": {"x": object()}}, "CARROT['handlers']['archive_queue_args']"),
        ({"exchanges": ["data"]}, "CARROT['handlers']['exchanges']"),
        ({"exchanges": {"data": "data"}}, "Exchange 'data' of CARROT['handlers'] is no dictionary"),
        ({"exchanges": {"data": {"name": ""}}}, "Exchange 'data' of CARROT['handlers']: 'name'"),
        ({"exchanges": {"data": {"name": "x", "typ": "topic"}}}, "unknown key 'typ'. Did you mean"),
        ({"host": "nonsense"}, "E003 CARROT['handlers']['host'] cannot be understood"),
        ({"modules": "myapp.events"}, "a list of module names"),
        ({"concurrency": 0}, "a whole number, 1 or more"),
    ],
)
def test_mistakes_are_told_and_do_not_stop_the_import_of_handlers(
    settings: Any, handlers: Any, expected: str
) -> None:
    assert expected in told(settings, **handlers)
    assert conf.handlers().max_retries == 4


def test_a_broker_of_its_own(settings: Any) -> None:
    settings.CARROT = {"handlers": {"host": "amqp://u:p@events.example/"}}
    assert conf.handlers().host == VirtualHost("amqp://u:p@events.example/")


class TestFromTheOriginal:
    def test_its_django_settings_are_read(self, settings: Any) -> None:
        settings.EVENT_CONSUMER_MAX_RETRIES = 2
        settings.EVENT_CONSUMER_EXCHANGES = {"default": {"name": "data", "type": "topic"}}
        settings.EVENT_CONSUMER_USE_DJANGO = True
        settings.EVENT_CONSUMER_BACKOFF_FUNC = lambda retries: retries + 1
        value = conf.handlers()
        assert conf.problems() == ()
        assert value.max_retries == 2
        assert value.exchanges["default"].name == "data"
        assert callable(value.backoff_func)

    def test_those_of_carrot_come_first_and_mistakes_name_the_place(self, settings: Any) -> None:
        settings.EVENT_CONSUMER_MAX_RETRIES = "many"
        assert "EVENT_CONSUMER_MAX_RETRIES is 'many'" in told(settings)
        assert told(settings, max_retries=3) == ""
        assert conf.handlers().max_retries == 3

    def test_the_environment_has_values_as_text(
        self, settings: Any, environment: pytest.MonkeyPatch
    ) -> None:
        settings.EVENT_CONSUMER_MAX_RETRIES = 2
        environment.setenv("EVENT_CONSUMER_MAX_RETRIES", "7")
        environment.setenv("EVENT_CONSUMER_QUEUE_NAME_PREFIX", "shop.")
        environment.setenv("EVENT_CONSUMER_EXCHANGES", '{"data": {"name": "d", "type": "topic"}}')
        value = conf.handlers()
        assert (value.max_retries, value.queue_name_prefix) == (7, "shop.")
        assert value.exchanges["data"].type == "topic"

    def test_another_module_and_another_prefix(
        self, environment: pytest.MonkeyPatch, tmp_path: Path, settings: Any
    ) -> None:
        (tmp_path / "probe_celeryconfig.py").write_text("SHOP_MAX_RETRIES = 9\n")
        environment.syspath_prepend(tmp_path)
        environment.setenv("EVENT_CONSUMER_APP_CONFIG", "probe_celeryconfig")
        environment.setenv("EVENT_CONSUMER_CONFIG_NAMESPACE", "SHOP")
        settings.SHOP_MAX_RETRIES = 1
        settings.EVENT_CONSUMER_MAX_RETRIES = 1
        assert conf.handlers().max_retries == 9
        sys.modules.pop("probe_celeryconfig")

    def test_an_object_in_a_module(self, settings: Any) -> None:
        settings.EVENT_CONSUMER_MAX_RETRIES = 6
        found = handler_settings.original(
            {"EVENT_CONSUMER_APP_CONFIG": "django.conf.settings"}, object()
        )
        assert found == {"max_retries": 6}

    @pytest.mark.parametrize("path", ["no_such_module", "no.such", "os.no_such"])
    def test_one_that_is_not_there_is_told(
        self, environment: pytest.MonkeyPatch, path: str
    ) -> None:
        environment.setenv("EVENT_CONSUMER_APP_CONFIG", path)
        (problem,) = conf.problems()
        assert problem.id == "carrot_twisted.E013"
        assert handler_settings.namespace(os.environ) == "EVENT_CONSUMER"
