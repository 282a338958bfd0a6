# SPDX-License-Identifier: Apache-2.0
"""``CARROT["handlers"]``: typed values, and where they may come from.

The keys are celery-message-consumer's in small letters, and a project that comes from there may
leave its own settings as they are. Each value is looked for in this order:

1. ``CARROT["handlers"]``, for example ``{"max_retries": 2}``;
2. the environment: ``EVENT_CONSUMER_MAX_RETRIES=2``; lists and dictionaries as JSON;
3. ``EVENT_CONSUMER_MAX_RETRIES = 2`` in the module or object that the environment's
   ``EVENT_CONSUMER_APP_CONFIG`` names, or else in Django's settings.

``EVENT_CONSUMER_CONFIG_NAMESPACE`` in the environment names another prefix than EVENT_CONSUMER.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from carrot_twisted.kinds import is_arguments, is_bool, is_int, is_name, is_prefetch

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from carrot_twisted.retry import Backoff
    from carrot_twisted.virtual_host import VirtualHost

    class Reader(Protocol):
        """What ``conf`` has for the reading of any part of the settings."""

        def problem(self, number: int, message: str, hint: str) -> None:
            """Note a mistake."""

        def unknown_keys(
            self, given: Mapping[str, Any], known: Mapping[str, Any], where: str
        ) -> None:
            """Note keys that are none."""

        def checked(
            self, value: Any, default: Any, where: str, wanted: str, test: Callable[[Any], bool]
        ) -> Any:
            """The value; the default and a mistake if it is not what is wanted."""

        def broker(self, value: Any, where: str) -> VirtualHost:
            """The broker that a URL or dictionary names."""


NAMESPACE = "EVENT_CONSUMER"
#: The original's name of the exchange that handlers use who name none.
DEFAULT_EXCHANGE = "default"

DEFAULTS: dict[str, Any] = {
    # Broker of all handlers, URL or dict; None: default_broker.
    "host": None,
    # Import the modules named "handlers" of the installed apps.
    "autodiscover": True,
    # Further modules with handlers.
    "modules": [],
    # Messages of one queue that are handled at once, each in a thread of its own.
    "concurrency": 1,
    # What messages are written in, and what is accepted; None: what "serializer" says.
    "serializer": "json",
    "accept": None,
    # Put before the routing key, for the name of a queue that has none of its own.
    "queue_name_prefix": "",
    # After the first attempt.
    "max_retries": 4,
    # Function, or its dotted path: from the retries so far to the seconds until the next one.
    "backoff_func": None,
    # Header that counts the retries of a message.
    "retry_header": "x-retry-count",
    # Unacknowledged messages held for one queue; "auto" follows the measured run time.
    "prefetch_count": "auto",
    # Milliseconds after which the broker deletes a message of an archive.
    "archive_expiry": 24 * 24 * 3600 * 1000,
    # Messages in an archive; beyond that the broker deletes the oldest.
    "archive_max_length": 1_000_000,
    # Arguments of the archives' declaration, instead of those two.
    "archive_queue_args": None,
    # Name for handlers to a dictionary with name, type and further arguments of the exchange.
    "exchanges": {},
    # Which messages get a row in the MessageLog: one of LOGS.
    "log": "failures",
}
#: All; those that go to the archive; none.
LOGS = ("all", "failures", "none")
#: Keys that the original has, too.
ORIGINAL = (
    *("serializer", "accept", "queue_name_prefix", "max_retries", "backoff_func", "retry_header"),
    *("prefetch_count", "archive_expiry", "archive_max_length", "archive_queue_args", "exchanges"),
)
#: Keys of an exchange: kombu's, for that is what the original hands them to.
EXCHANGE_DEFAULTS: dict[str, Any] = {
    "name": None,
    "type": "direct",
    "durable": True,
    "auto_delete": False,
    "arguments": {},
    "passive": False,
    "no_declare": False,
    "delivery_mode": None,
}
#: Content types by the names of kombu's serializers that run nobody's code.
CONTENT_TYPES = {
    "json": "application/json",
    "text": "text/plain",
    "raw": "application/data",
}
_ARGUMENTS = "a dictionary of texts to values that AMQP knows"


@dataclass(frozen=True, kw_only=True, eq=False)
class ExchangeSettings:
    """One exchange that handlers' queues may be bound to."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    arguments: dict[str, Any]
    passive: bool
    """It exists, and is not declared."""


@dataclass(frozen=True, kw_only=True)
class HandlerSettings:
    """``CARROT["handlers"]``, checked and completed."""

    host: VirtualHost
    autodiscover: bool
    modules: tuple[str, ...]
    concurrency: int
    accept: frozenset[str]
    """Content types."""
    queue_name_prefix: str
    max_retries: int
    backoff_func: Backoff | str | None
    retry_header: str
    prefetch_count: int | None
    """A fixed number, or None for "auto"."""
    archive_arguments: dict[str, Any]
    log: str
    """One of LOGS."""
    exchanges: dict[str, ExchangeSettings] = field(default_factory=dict)


def original(environment: Mapping[str, str], django: object) -> dict[str, Any]:
    """Values that a project has in the places of celery-message-consumer.

    Args:
        environment: of this process.
        django: Django's settings.

    Raises:
        ImportError: EVENT_CONSUMER_APP_CONFIG names nothing.
    """
    prefix = namespace(environment)
    path = environment.get(f"{NAMESPACE}_APP_CONFIG")
    source = _imported(path) if path else django
    values = {}
    for key in ORIGINAL:
        name = f"{prefix}_{key.upper()}"
        if name in environment:
            values[key] = _from_text(environment[name])
        elif hasattr(source, name):
            values[key] = getattr(source, name)
    return values


def namespace(environment: Mapping[str, str]) -> str:
    """What the names of the original's settings begin with."""
    return environment.get(f"{NAMESPACE}_CONFIG_NAMESPACE") or NAMESPACE


def _imported(path: str) -> object:
    """A module, or an object in one: as ``django.conf.settings``."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        if not module:
            raise
        found = import_module(module)
        try:
            return getattr(found, name)
        except AttributeError as error:
            raise ImportError(f"module {module!r} has no {name!r}") from error


def _from_text(text: str) -> Any:
    """The value of a variable: JSON where it is, else the text itself."""
    with suppress(ValueError):
        return json.loads(text)
    return text


def read(
    reader: Reader, given: Any, elsewhere: Mapping[str, Any], default_broker: VirtualHost
) -> HandlerSettings:
    """The checked settings; every mistake is told to the reader.

    Args:
        reader: collects mistakes.
        given: ``CARROT["handlers"]``.
        elsewhere: what ``original`` says.
        default_broker: of all queues that name none.
    """
    where = "CARROT['handlers']"
    if not isinstance(given, Mapping):
        reader.problem(6, f"{where} is no dictionary.", "Write {'max_retries': 4, …}.")
        given = {}
    reader.unknown_keys(given, DEFAULTS, where)
    got = {**DEFAULTS, **elsewhere, **given}

    def checked(key: str, wanted: str, test: Callable[[Any], bool]) -> Any:
        name = f"{where}[{key!r}]"
        if key in elsewhere and key not in given:
            name = f"EVENT_CONSUMER_{key.upper()}"
        return reader.checked(got[key], DEFAULTS[key], name, wanted, test)

    def number(key: str, least: int) -> int:
        wanted = f"a whole number, {least} or more"
        return int(checked(key, wanted, lambda v: is_int(v) and v >= least))

    accept = checked("accept", "a list of names such as json, text, raw", _is_accept)
    serializer = checked(
        "serializer", f"one of {', '.join(CONTENT_TYPES)}: none that could run code", _is_serializer
    )
    prefetch = checked("prefetch_count", "'auto' or a whole number from 1 to 65535", is_prefetch)
    limits = {
        "x-message-ttl": number("archive_expiry", 0),
        "x-max-length": number("archive_max_length", 1),
    }
    arguments = checked("archive_queue_args", _ARGUMENTS, is_arguments)
    return HandlerSettings(
        host=(
            default_broker
            if got["host"] is None
            else reader.broker(got["host"], f"{where}['host']")
        ),
        autodiscover=checked("autodiscover", "True or False", is_bool),
        modules=tuple(checked("modules", "a list of module names", _is_texts)),
        concurrency=number("concurrency", 1),
        accept=frozenset(
            CONTENT_TYPES.get(n, n) for n in ([serializer] if accept is None else accept)
        ),
        queue_name_prefix=checked("queue_name_prefix", "a text", _is_text),
        max_retries=number("max_retries", 0),
        backoff_func=checked(
            "backoff_func", "a function or its dotted path", lambda v: v is None or _is_function(v)
        ),
        retry_header=checked("retry_header", "a text", lambda v: _is_text(v) and 0 < len(v) < 128),
        prefetch_count=None if prefetch == "auto" else prefetch,
        archive_arguments=dict(limits if arguments is None else arguments),
        log=checked("log", f"one of {', '.join(LOGS)}", LOGS.__contains__),
        exchanges=_exchanges(reader, checked("exchanges", "a dictionary", _is_dictionary)),
    )


def _exchanges(reader: Reader, given: Mapping[str, Any]) -> dict[str, ExchangeSettings]:
    found = {}
    for key, value in given.items():
        where = f"Exchange {key!r} of CARROT['handlers']"
        if not isinstance(value, Mapping):
            reader.problem(6, f"{where} is no dictionary.", "Write {'name': …, 'type': 'topic'}.")
            continue
        reader.unknown_keys(value, EXCHANGE_DEFAULTS, where)
        got = {**EXCHANGE_DEFAULTS, **value}

        def checked(
            name: str,
            wanted: str,
            test: Callable[[Any], bool],
            got: dict[str, Any] = got,
            where: str = where,
        ) -> Any:
            return reader.checked(
                got[name], EXCHANGE_DEFAULTS[name], f"{where}: {name!r}", wanted, test
            )

        name = checked("name", "a text of 1 to 255 bytes", is_name)
        if name is None:
            continue
        found[key] = ExchangeSettings(
            name=name,
            type=checked("type", "direct, topic, fanout, headers or a plugin's", is_name),
            durable=checked("durable", "True or False", is_bool),
            auto_delete=checked("auto_delete", "True or False", is_bool),
            arguments=dict(checked("arguments", _ARGUMENTS, is_arguments) or {}),
            passive=checked("passive", "True or False", is_bool)
            or checked("no_declare", "True or False", is_bool),
        )
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _is_serializer(value: Any) -> bool:
    return isinstance(value, str) and value in CONTENT_TYPES


def _is_accept(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple | set | frozenset)
        and all(isinstance(one, str) and (one in CONTENT_TYPES or "/" in one) for one in value)
    )


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_function(value: Any) -> bool:
    return callable(value) or (isinstance(value, str) and "." in value)
