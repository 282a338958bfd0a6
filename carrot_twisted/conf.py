# SPDX-License-Identifier: Apache-2.0
"""The only reader of ``settings.CARROT``: one dictionary of defaults, typed values, all mistakes.

``current()`` is cached and forgets when a test changes the setting.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import django
from django.apps import apps
from django.conf import settings
from django.core.signals import setting_changed
from django.urls import NoReverseMatch, Resolver404, get_script_prefix, resolve, reverse

from carrot_twisted import DEFAULT_BROKER, handler_settings
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.kinds import (
    MAX_NAME_BYTES,
    MAX_PREFETCH,
    is_arguments,
    is_bool,
    is_int,
    is_list,
    is_name,
    is_path,
    is_prefetch,
    is_seconds,
    is_word,
    plain_name,
)
from carrot_twisted.limits import MAX_SECONDS, is_limit
from carrot_twisted.task_options import TaskOptions
from carrot_twisted.virtual_host import HEARTBEAT, VirtualHost

if TYPE_CHECKING:
    from carrot_twisted.handler_settings import HandlerSettings

DEFAULT_QUEUE = "default"
#: Of the environment: the broker's URL, for processes that are no Django project's.
BROKER_VARIABLE = "CARROT_BROKER"

DEFAULTS: dict[str, Any] = {
    # The broker of queues that name no host of their own.
    "default_broker": DEFAULT_BROKER,
    # The queues of tasks. Empty: one that is called "default".
    "queues": [],
    # Modules with tasks: their functions may be run, what their loggers say is kept with a task.
    # Imported at start.
    "task_modules": [],
    # The largest arguments of a task, in bytes of JSON. RabbitMQ 4 refuses 16 MiB.
    "max_message_size": 1024 * 1024,
    # Characters kept of a result, of an exception, and of a traceback (its end); the rest is cut,
    # and that is said.
    "max_result_size": 64 * 1024,
    # Characters kept of a task's log: the first half of them and the last.
    "max_log_size": 256 * 1024,
    # Seconds for running tasks to end when the service stops.
    "shutdown_timeout": 25.0,
    # Seconds after which a running task's message is acknowledged, so that RabbitMQ's delivery
    # acknowledgement timeout (30 minutes) never closes the channel; the row keeps custody.
    "ack_deadline": 600.0,
    # Whole seconds between signs of life on a connection to a broker. A broker that went away
    # without a word is noticed after one to two times so long, and 5 to 10 seconds more. Lower it,
    # not below 5, where a broker's address moves to another machine on failure.
    "heartbeat": HEARTBEAT,
    # Seconds without heartbeat after which a worker on another machine counts as dead.
    "lease": 10.0,
    # How many workers may die under one task before it becomes FAILED, or under one message before
    # it goes to its archive.
    "max_crashes": 5,
    # Seconds that one attempt at a task may run; None: no limit. A task may say otherwise for
    # itself, see docs/misbehaving-tasks.md.
    "time_limit": None,
    # What a @task leaves open: retries, expiry, retention and so on, see docs/tasks.md.
    "task_defaults": {},
    # Dotted paths of decorators for every view of the monitor, for example
    # "django.contrib.auth.decorators.login_required"; the last one is asked first. See
    # docs/monitor.md.
    "monitor_authentication": [],
    # The monitor does not show arguments, and values in dictionaries, whose name contains one of
    # these words; "-", "_" and capitals make no difference. See docs/monitor.md.
    "redact": [
        *("password", "passwd", "secret", "token", "authorization", "credential", "cookie"),
        *("api_key", "access_key", "private_key", "card"),
    ],
    # True: the service runs signed messages only, see docs/security.md. "publish": messages are
    # signed, others are taken, too.
    "signing": False,
    # Days that rows are kept after their end, by final state; None: for ever. A state that is not
    # named keeps its default. None instead of the dictionary: nothing is ever deleted. See
    # docs/retention.md.
    "retention": {"COMPLETED": 3, "FAILED": None, "CANCELLED": 3},
    # Of functions that get messages which others publish: exchanges, retries, archive. See
    # docs/handlers.md.
    "handlers": {},
}

#: As many as a PostgreSQL that is left as installed has connections: each one may need one.
ASYNC_CONCURRENCY = 100

QUEUE_DEFAULTS: dict[str, Any] = {
    # The queue's name at the broker.
    "name": None,
    # Broker of this queue.
    "host": None,
    # Tasks of this queue that run at once in one service process, each in a thread.
    "concurrency": 1,
    # Its async def tasks that run at once in one service process, beside those of threads. See
    # docs/async.md.
    "async_concurrency": ASYNC_CONCURRENCY,
    # False: tasks are published to it, the service does not consume from it.
    "consumable": True,
    # Whether the queue survives a restart of the broker.
    "durable": True,
    # Arguments of the queue's declaration, for example {"x-max-priority": 10}, without which
    # priorities have no effect, or {"x-queue-type": "quorum"}. See docs/clusters.md.
    "queue_arguments": {},
    # Of the declaration of the exchange that has the queue's name.
    "exchange_arguments": {},
    # For failure callbacks and other serializers, see docs/consumers.md.
    "consumer_class": "carrot_twisted.consumer.Consumer",
    # Unacknowledged messages held by the service; "auto" follows the measured run time of tasks.
    "prefetch": "auto",
    # As CARROT["signing"], for this queue; None: as there. False where others publish to it.
    "signing": None,
}

#: Keys of "task_defaults": those of carrot_twisted.task that make sense for all tasks.
TASK_DEFAULTS = (
    *("priority", "max_retries", "retry_backoff", "retry_backoff_max", "retry_jitter"),
    *("expires", "on_duplicate", "retention", "ignore_result", "cooperative_cancel"),
)
#: Keys of "exchange_arguments": those of pika's exchange_declare.
EXCHANGE_KEYS = ("exchange_type", "durable", "auto_delete", "internal", "arguments")
_BROKER_TYPES: dict[str, Any] = {
    "url": (str, type(None)),
    "host": (str, list, tuple),
    "name": str,
    "port": (int, type(None)),
    "username": str,
    "password": str,
    "secure": bool,
    "ca_file": (str, type(None)),
    "certificate_file": (str, type(None)),
    "key_file": (str, type(None)),
    "external": bool,
}
#: Modules of this package whose functions may be run, as if "task_modules" named them.
OWN_TASK_MODULES = ("carrot_twisted.helper_tasks",)
#: The longest heartbeat, in seconds: a dead broker must be noticed.
MAX_HEARTBEAT = 300
#: The longest retention, in days.
MAX_DAYS = MAX_SECONDS // 86_400
_ARGUMENTS = "a dictionary of texts to values that AMQP knows: texts, numbers, True, lists"
_SIGNING = "False, True or 'publish'"
#: Argument of a queue that says its type, and the types that tasks can be taken from.
TYPE_ARGUMENT = "x-queue-type"
QUEUE_TYPES = ("classic", "quorum")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake in the setting, as ``manage.py check`` tells it."""

    id: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """One entry of ``CARROT["queues"]``, checked and completed."""

    name: str
    host: VirtualHost
    concurrency: int
    consumable: bool
    durable: bool
    queue_arguments: dict[str, Any]
    exchange_arguments: dict[str, Any]
    consumer_class: str
    prefetch: int | None
    """A fixed number, or None for "auto"."""
    signing: bool | str
    """False, "publish" or True."""
    async_concurrency: int = ASYNC_CONCURRENCY

    @property
    def signs(self) -> bool:
        """Whether messages to this queue are signed."""
        return self.signing is not False

    @property
    def verifies(self) -> bool:
        """Whether only signed messages of this queue are let in."""
        return self.signing is True

    @property
    def type(self) -> str:
        """RabbitMQ's type of the queue: classic or quorum."""
        return str(self.queue_arguments.get(TYPE_ARGUMENT, "classic"))

    @property
    def is_quorum(self) -> bool:
        """Whether it is a quorum queue."""
        return self.type == "quorum"


@dataclass(frozen=True, kw_only=True)
class CarrotSettings:
    """``settings.CARROT``, checked and completed."""

    default_broker: VirtualHost
    queues: dict[str, QueueSettings]
    task_modules: tuple[str, ...]
    max_message_size: int
    max_result_size: int
    max_log_size: int
    shutdown_timeout: float
    ack_deadline: float
    heartbeat: int
    lease: float
    max_crashes: int
    time_limit: float | None
    task_defaults: TaskOptions
    """What a ``@task`` leaves open."""
    monitor_authentication: tuple[str, ...]
    redact: tuple[str, ...]
    """Words, as ``kinds.plain_name`` makes them."""
    signing: bool | str
    """Of queues that say nothing of it."""
    retention: dict[str, timedelta]
    """How long rows are kept after their end, by final state; a state not in it: for ever."""
    handlers: HandlerSettings

    @property
    def registered_modules(self) -> tuple[str, ...]:
        """All modules whose functions may be run: this package's own and ``task_modules``."""
        return (*OWN_TASK_MODULES, *self.task_modules)

    def queue(self, name: str | None) -> QueueSettings:
        """The queue of that name, or the default one.

        Raises:
            CarrotConfigException: no such queue in the setting.
        """
        try:
            return self.queues[name or DEFAULT_QUEUE]
        except KeyError:
            raise CarrotConfigException(
                f"Cannot find queue called {name or DEFAULT_QUEUE} in settings.CARROT queue list. "
                f"Known queues: {', '.join(self.queues)}."
            ) from None


@dataclass
class _Reader:
    """Collects values and every mistake in one pass."""

    problems: list[Problem] = field(default_factory=list)

    def problem(self, number: int, message: str, hint: str) -> None:
        self.problems.append(Problem(id=f"carrot_twisted.E{number:03}", message=message, hint=hint))

    def unknown_keys(self, given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                self.problem(
                    2,
                    f"{where} has an unknown key {key!r}.",
                    f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}.",
                )

    def checked(
        self, value: Any, default: Any, where: str, wanted: str, test: Callable[[Any], bool]
    ) -> Any:
        if test(value):
            return value
        self.problem(6, f"{where} is {_shown(value)}.", f"It must be {wanted}.")
        return default

    def broker(self, value: Any, where: str) -> VirtualHost:
        try:
            if isinstance(value, VirtualHost):
                return value
            if isinstance(value, str):
                return VirtualHost(url=value)
            if isinstance(value, Mapping):
                _check_broker(value)
                return VirtualHost(**value)
            raise ValueError("it must be a URL or a dictionary")
        except (ValueError, TypeError, AttributeError) as error:
            # A TypeError names the unknown key of the dictionary, never its values.
            self.problem(
                3,
                f"{where} cannot be understood: {error}.",
                "Give a URL such as amqp://user:password@localhost:5672/my-vhost, or a dictionary "
                "with host, port, name, username, password, secure, ca_file, certificate_file, "
                "key_file and external.",
            )
            return VirtualHost()

    def queue(
        self, value: Any, default_broker: VirtualHost, signing: bool | str, position: int
    ) -> QueueSettings | None:
        where = f"CARROT['queues'][{position}]"
        if not isinstance(value, Mapping):
            self.problem(4, f"{where} is not a dictionary.", "Write {'name': 'default', …}.")
            return None
        self.unknown_keys(value, QUEUE_DEFAULTS, where)
        name = value.get("name")
        if not is_name(name):
            self.problem(
                4,
                f"{where} has no usable name.",
                f"Give 'name', a text of 1 to {MAX_NAME_BYTES} bytes without line ends.",
            )
            return None
        where = f"Queue {name!r} in CARROT['queues']"
        got = {**QUEUE_DEFAULTS, **value}

        def checked(key: str, wanted: str, test: Callable[[Any], bool]) -> Any:
            default = QUEUE_DEFAULTS[key]
            return self.checked(got[key], default, f"{where}: {key!r}", wanted, test)

        prefetch = checked(
            "prefetch", f"'auto' or a whole number from 1 to {MAX_PREFETCH}", is_prefetch
        )
        queue = QueueSettings(
            name=name,
            host=(
                default_broker
                if got["host"] is None
                else self.broker(got["host"], f"{where}: 'host'")
            ),
            concurrency=checked(
                "concurrency", "a whole number, 1 or more", lambda v: is_int(v) and v >= 1
            ),
            async_concurrency=checked(
                "async_concurrency", "a whole number, 1 or more", lambda v: is_int(v) and v >= 1
            ),
            consumable=checked("consumable", "True or False", is_bool),
            durable=checked("durable", "True or False", is_bool),
            queue_arguments=dict(checked("queue_arguments", _ARGUMENTS, is_arguments) or {}),
            exchange_arguments=dict(
                checked(
                    "exchange_arguments",
                    f"a dictionary with some of {', '.join(EXCHANGE_KEYS)}; what RabbitMQ calls "
                    "arguments, such as alternate-exchange, goes into the last of these",
                    _is_exchange_arguments,
                )
                or {}
            ),
            consumer_class=checked("consumer_class", "a dotted path", is_path),
            prefetch=None if prefetch == "auto" else prefetch,
            signing=(
                signing if got["signing"] is None else checked("signing", _SIGNING, _is_signing)
            ),
        )
        self.queue_type(queue, where)
        return queue

    def queue_type(self, queue: QueueSettings, where: str) -> None:
        """What the broker would refuse, or what would not work as a queue of tasks."""
        if queue.type not in QUEUE_TYPES:
            self.problem(
                6,
                f"{where}: 'queue_arguments' has {TYPE_ARGUMENT} {_shown(queue.type)}.",
                f"It must be {' or '.join(QUEUE_TYPES)}.",
            )
        if queue.is_quorum and not queue.durable:
            self.problem(
                6,
                f"{where} is a quorum queue and has 'durable': False.",
                "A quorum queue is always durable: leave 'durable' out.",
            )
        if queue.is_quorum and "x-max-priority" in queue.queue_arguments:
            self.problem(
                6,
                f"{where} is a quorum queue and has x-max-priority in its 'queue_arguments'.",
                "RabbitMQ refuses that. Leave it out: from RabbitMQ 4.0 on quorum queues heed the "
                "priority of a message without it (see docs/clusters.md).",
            )

    def read(self, raw: Any) -> CarrotSettings:
        if not isinstance(raw, Mapping):
            self.problem(1, "settings.CARROT is not a dictionary.", "Write CARROT = {…}.")
            raw = {}
        self.unknown_keys(raw, DEFAULTS, "settings.CARROT")
        got = {**DEFAULTS, **raw}

        def checked(key: str, wanted: str, test: Callable[[Any], bool]) -> Any:
            return self.checked(got[key], DEFAULTS[key], f"CARROT[{key!r}]", wanted, test)

        default_broker = self.broker(got["default_broker"], "CARROT['default_broker']")
        signing = checked("signing", _SIGNING, _is_signing)
        queues: dict[str, QueueSettings] = {}
        listed = checked("queues", "a list of dictionaries", is_list) or [{"name": DEFAULT_QUEUE}]
        for position, value in enumerate(listed):
            queue = self.queue(value, default_broker, signing, position)
            if queue is not None and queue.name in queues:
                self.problem(
                    5,
                    f"CARROT['queues'] names {queue.name!r} twice.",
                    "Keep one of the two entries; 'concurrency' sets how many tasks run at once.",
                )
            elif queue is not None:
                queues[queue.name] = queue

        def number(key: str) -> int:
            return int(checked(key, "a whole number above 0", lambda v: is_int(v) and v > 0))

        def seconds(key: str) -> float:
            return float(checked(key, "a number of seconds above 0, 100 years at most", is_seconds))

        def paths(key: str, wanted: str) -> tuple[str, ...]:
            return tuple(checked(key, wanted, lambda v: is_list(v) and all(is_path(m) for m in v)))

        return CarrotSettings(
            default_broker=default_broker,
            queues=queues,
            task_modules=paths("task_modules", "a list of module names"),
            max_message_size=number("max_message_size"),
            max_result_size=number("max_result_size"),
            max_log_size=number("max_log_size"),
            max_crashes=number("max_crashes"),
            shutdown_timeout=seconds("shutdown_timeout"),
            ack_deadline=seconds("ack_deadline"),
            heartbeat=checked(
                "heartbeat",
                f"a whole number of seconds, from 1 to {MAX_HEARTBEAT}",
                lambda v: is_int(v) and 1 <= v <= MAX_HEARTBEAT,
            ),
            lease=seconds("lease"),
            time_limit=checked(
                "time_limit", "a number of seconds above 0, or None for no limit", is_limit
            ),
            task_defaults=self.task_defaults(got["task_defaults"]),
            monitor_authentication=paths(
                "monitor_authentication", "a list of dotted paths of decorators"
            ),
            redact=tuple(
                plain_name(word)
                for word in checked(
                    "redact",
                    "a list of words, each with a letter or a digit; [] shows everything",
                    lambda v: is_list(v) and all(is_word(word) for word in v),
                )
            ),
            signing=signing,
            retention=self.retention(got["retention"]),
            handlers=handler_settings.read(
                self, got["handlers"], self.original_handlers(), default_broker
            ),
        )

    def original_handlers(self) -> Mapping[str, Any]:
        """Settings of celery-message-consumer that the project still has."""
        try:
            return handler_settings.original(os.environ, settings)
        except Exception as error:
            self.problem(
                13,
                "The environment's EVENT_CONSUMER_APP_CONFIG cannot be imported: "
                f"{type(error).__name__}: {error}.",
                "Name an importable module or object, for example django.conf.settings, or leave "
                "it out: Django's settings are read anyway.",
            )
            return {}

    def task_defaults(self, value: Any) -> TaskOptions:
        where = "CARROT['task_defaults']"
        given = self.checked(value, {}, where, "a dictionary", lambda v: isinstance(v, Mapping))
        self.unknown_keys(given, dict.fromkeys(TASK_DEFAULTS), where)
        options = {name: given[name] for name in TASK_DEFAULTS if name in given}
        try:
            return TaskOptions(**options)
        except InvalidMessage as error:
            self.problem(6, f"{where}: a value makes no sense.", str(error))
            return TaskOptions()

    def retention(self, value: Any) -> dict[str, timedelta]:
        if value is None:
            return {}
        default: dict[str, Any] = DEFAULTS["retention"]
        where = "CARROT['retention']"
        if not isinstance(value, Mapping):
            self.problem(
                6,
                f"{where} is {_shown(value)}.",
                "Write {'COMPLETED': days, …}, or None to keep every row for ever.",
            )
            return {}
        self.unknown_keys(value, default, where)
        wanted = f"a number of days above 0, {MAX_DAYS} at most, or None to keep them for ever"
        days = {
            state: self.checked(
                value.get(state, default[state]), None, f"{where}[{state!r}]", wanted, _is_days
            )
            for state in default
        }
        return {state: timedelta(days=n) for state, n in days.items() if n is not None}


def _is_days(value: Any) -> bool:
    return value is None or (is_seconds(value) and value <= MAX_DAYS)


def _is_signing(value: Any) -> bool:
    return is_bool(value) or value == "publish"


def _is_exchange_arguments(value: Any) -> bool:
    return is_arguments(value) and set(value or ()) <= set(EXCHANGE_KEYS)


def _check_broker(value: Mapping[str, Any]) -> None:
    """Types of a broker's dictionary; the text never holds a value."""
    for key, kinds in _BROKER_TYPES.items():
        if key in value and (
            not isinstance(value[key], kinds) or (key == "port" and isinstance(value[key], bool))
        ):
            raise ValueError(f"{key} is of type {type(value[key]).__name__}")


def _shown(value: Any) -> str:
    """A value in an error; a broker's URL in the wrong place must not show its password."""
    simple = isinstance(value, bool | int | float | str | None)
    text = repr(value)
    return text if simple and "://" not in text else f"of type {type(value).__name__}"


@cache
def _read() -> tuple[CarrotSettings, tuple[Problem, ...]]:
    reader = _Reader()
    value = reader.read(getattr(settings, "CARROT", {}))
    return value, tuple(reader.problems)


def set_up() -> None:
    """Set up Django, unless that is done; without a project, with a broker and no database.

    Raises:
        CarrotConfigException: the project does not have this app.
        Exception: whatever hinders Django.
    """
    if not settings.configured and "DJANGO_SETTINGS_MODULE" not in os.environ:
        broker = os.environ.get(BROKER_VARIABLE) or DEFAULT_BROKER
        settings.configure(
            INSTALLED_APPS=["carrot_twisted"], USE_TZ=True, CARROT={"default_broker": broker}
        )
    if not apps.models_ready:
        django.setup()
    if not apps.is_installed("carrot_twisted"):
        raise CarrotConfigException("Add 'carrot_twisted' to INSTALLED_APPS.")


def login_url() -> str | None:
    """Where people log in: the project's own page; None: as Django's settings say.

    The admin's, where LOGIN_URL leads nowhere; that of ``carrot_twisted.standalone_urls`` before
    all, where those are served.
    """
    for name in ("carrot-login", str(settings.LOGIN_URL), "admin:login"):
        url = name if name.startswith(("/", "http")) else _reversed(name)
        if url is not None and (not url.startswith("/") or _resolves(url)):
            return url
    return None


def _reversed(name: str) -> str | None:
    try:
        return reverse(name)
    except NoReverseMatch:
        return None


def _resolves(url: str) -> bool:
    try:
        resolve(f"/{urlsplit(url).path.removeprefix(get_script_prefix())}".replace("//", "/"))
    except Resolver404:
        return False
    return True


def of_django(name: str) -> Any:
    """One of Django's own settings; None if there is none of that name."""
    return getattr(settings, name, None)


def serve_urls(urlconf: str) -> None:
    """Serve these where the project has no URLs at all: Django cannot answer without ROOT_URLCONF.

    A project that has some keeps them.
    """
    if not of_django("ROOT_URLCONF"):
        settings.ROOT_URLCONF = urlconf


def problems() -> tuple[Problem, ...]:
    """Every mistake in ``settings.CARROT`` that can be seen without importing project code."""
    return _read()[1]


def current() -> CarrotSettings:
    """The checked setting.

    Raises:
        CarrotConfigException: the setting has mistakes; the text tells all of them.
    """
    value, found = _read()
    if found:
        raise CarrotConfigException("\n".join(f"{p.id}: {p.message} {p.hint}" for p in found))
    return value


def handlers() -> HandlerSettings:
    """Those of message handlers, also where others have mistakes: for use at import.

    Where these have mistakes, their defaults are given; ``problems`` tells.
    """
    return _read()[0].handlers


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "CARROT" or setting.startswith(handler_settings.namespace(os.environ)):
        _read.cache_clear()


setting_changed.connect(_forget, dispatch_uid="carrot_twisted.conf")
