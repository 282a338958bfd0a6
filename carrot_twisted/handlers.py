# SPDX-License-Identifier: Apache-2.0
"""``@message_handler``: functions that get messages which others publish to RabbitMQ.

Names, arguments and rules are celery-message-consumer's. A handler is registered when its module
is imported: ``twistd carrot`` and ``manage.py check`` import the modules named ``handlers`` of the
installed apps, and those in ``CARROT["handlers"]["modules"]``. See docs/handlers.md.

Such a message has no row: the broker keeps it until the handler has returned, or until the broker
has a copy in a retry queue or in the archive.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import threading
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from django.apps import apps
from django.utils.module_loading import import_string, module_has_submodule

from carrot_twisted import conf, retry
from carrot_twisted.conf import QueueSettings
from carrot_twisted.exceptions import (
    CarrotConfigException,
    CarrotError,
    InvalidQueueRegistration,
    NoExchange,
    PermanentFailure,
    UnreadableBody,
)
from carrot_twisted.handler_settings import DEFAULT_EXCHANGE, LOGS
from carrot_twisted.handler_topology import MAX_QUEUE_BYTES, Layout
from carrot_twisted.kinds import MAX_NAME_BYTES, is_arguments
from carrot_twisted.limits import limit_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pika

    from carrot_twisted.conf import CarrotSettings
    from carrot_twisted.handler_settings import ExchangeSettings, HandlerSettings
    from carrot_twisted.retry import Policy
    from carrot_twisted.topology import Step

__all__ = [
    "InvalidQueueRegistration",
    "Message",
    "NoExchange",
    "PermanentFailure",
    "UnreadableBody",
    "message_handler",
]

Handler = TypeVar("Handler", bound=Callable[..., Any])

#: Name of the modules that are found by themselves.
MODULE = "handlers"

_logger = logging.getLogger("carrot_twisted.handlers")
_decode = json.JSONDecoder().decode


@dataclass(frozen=True, kw_only=True)
class Message:
    """A whole message, for handlers that ask for it: by the annotation of an argument."""

    body: bytes
    """As it came."""
    routing_key: str
    """What it was published with, also when it comes again."""
    exchange: str
    """What it was published to, also when it comes again; "" is the nameless one."""
    queue: str
    """Whose handler gets it."""
    headers: Mapping[str, Any]
    properties: pika.BasicProperties
    """All of AMQP's: content_type, message_id, timestamp and so on."""
    redelivered: bool
    """The broker has handed it over before, perhaps to a process that was killed."""
    retries: int
    """How often a handler has failed on it."""
    accept: frozenset[str] | None = field(default=frozenset(), repr=False)
    """Content types that ``content`` reads; None: all."""

    @property
    def content(self) -> Any:
        """The body, read as its content type says: what other handlers get as ``body``.

        Raises:
            UnreadableBody: it cannot be read, or its type is not accepted.
        """
        return content_of(self.body, self.properties, self.accept)


def content_of(body: bytes, properties: pika.BasicProperties, accept: frozenset[str] | None) -> Any:
    """A message's body, read as its content type says.

    Args:
        body: as it came.
        properties: of the message.
        accept: content types that are read; None: all.

    Raises:
        UnreadableBody: it cannot be read, or its type is not accepted.
    """
    reading = _reading_of(properties.content_type)
    if accept is not None and reading.one_of and accept.isdisjoint(reading.one_of):
        raise UnreadableBody(
            f"content type {reading.kind!r} is not accepted; CARROT['handlers']['accept'] says "
            "which"
        )
    return reading.read(body, properties.content_encoding or "utf-8")


class _Reading(NamedTuple):
    """How bodies of a content type are read."""

    kind: str
    """The content type, without what belongs to it."""
    one_of: frozenset[str]
    """One of these must be accepted; none: it is read anyway."""
    read: Callable[[bytes, str], Any]
    """Gets the body and its encoding."""


@functools.lru_cache(maxsize=1000)
def _reading_of(content_type: str | None) -> _Reading:
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind in _JSON or kind.endswith("+json"):
        return _Reading(kind, frozenset({kind, "application/json"}), _json)
    if kind in _TRUSTED:
        return _Reading(kind, frozenset(), _text)
    return _Reading(kind, frozenset({kind}), _text if kind.startswith("text/") else _as_it_is)


def _as_it_is(body: bytes, _encoding: str) -> bytes:
    return body


def _json(body: bytes, encoding: str) -> Any:
    if not body:
        return ""
    try:
        # As json.loads, which first looks for what it was not given.
        return _decode(body.decode(encoding))
    except (ValueError, LookupError, RecursionError) as error:
        raise UnreadableBody(f"the body is no JSON: {error}") from None


def _text(body: bytes, encoding: str) -> str | bytes:
    encoding = encoding.lower()
    if encoding in ("binary", "ascii-8bit"):
        return body
    try:
        return body.decode(encoding)
    except (ValueError, LookupError) as error:
        raise UnreadableBody(f"the body is no text in {encoding}: {error}") from None


#: What kombu's JSON says it is.
_JSON = ("application/json", "application/x-json")
#: Types that kombu reads whatever is accepted; "" is that of a message that says none.
_TRUSTED = ("", "application/data", "application/text")


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One handler for one routing key."""

    queue: str
    exchange: str
    """A key of the settings' exchanges."""
    routing_key: str
    queue_arguments: Mapping[str, Any]
    log: str | None
    """Instead of the settings' "log"."""
    handler: Callable[..., Any]
    call: Callable[[Message], Any]
    """Calls the handler with what it asks for."""
    of_body: Callable[[Any], Any] | None
    """The handler, if it asks for the body alone, as most do; else None."""

    @property
    def name(self) -> str:
        """Of the handler, for people."""
        return name_of(self.handler)


@dataclass(frozen=True, kw_only=True)
class HandlerQueue(QueueSettings):
    """One queue whose messages a handler gets, for the service."""

    handler: str
    """Its name, for people."""
    call: Callable[[Message], Any]
    of_body: Callable[[Any], Any] | None = None
    """Does the same with the body alone, if that is all that is asked for: no Message is made."""
    accept: frozenset[str] | None
    time_limit: float | None
    """Seconds that one call may run."""
    policy: Policy
    layout: Layout
    delays: tuple[int, ...]
    """Milliseconds of the retry queues that are declared beforehand."""
    log: str
    """Which of its messages get a row: one of ``handler_settings.LOGS``."""

    @property
    def steps(self) -> Sequence[Step]:
        """All that is to be declared before its messages are taken."""
        return self.layout.steps(self.delays)


#: All handlers, by queue and exchange.
_registry: dict[tuple[str, str], Registration] = {}
#: Modules may be imported by several threads at once.
_lock = threading.Lock()


def message_handler(
    routing_keys: str | Iterable[str],
    queue: str | None = None,
    exchange: str = DEFAULT_EXCHANGE,
    queue_arguments: Mapping[str, Any] | None = None,
    *,
    log: str | None = None,
) -> Callable[[Handler], Handler]:
    """Have a function called with each message of a queue.

    Args:
        routing_keys: one, or several: each gets a queue of its own. With a topic exchange they
            may have ``*`` and ``#``.
        queue: name of the queue, for a single routing key; by default the prefix of the settings
            and the routing key.
        exchange: a key of the settings' exchanges. "default" is the nameless exchange, unless
            there is one of that key: then the queue is bound to nothing, and gets what is
            published under its name.
        queue_arguments: of the work queue's declaration, for example
            ``{"x-queue-type": "quorum"}``.
        log: which of its messages get a row in the MessageLog, instead of the settings' "log":
            "all", "failures" (those that go to the archive) or "none".

    Returns:
        A decorator that returns the function as it is. It takes any callable: ``async def``, an
        object with ``__call__``, a partial. That gets one argument, the body, or a ``Message``
        where an argument is annotated as such.

    Raises:
        InvalidQueueRegistration: these arguments cannot work. Nothing is registered then, also
            where only one of several routing keys is at fault.
    """
    settings = conf.handlers()
    keys = _keys(routing_keys)
    if not isinstance(routing_keys, str) and queue is not None:
        raise InvalidQueueRegistration(
            "Each routing key has a queue of its own, so several cannot share the queue "
            f"{queue!r}. Leave the queue's name out, or write a handler for each routing key."
        )
    custom = settings.queue_name_prefix if queue is None else queue
    if custom and exchange not in settings.exchanges:
        raise InvalidQueueRegistration(
            f"A queue whose name is not its routing key ({custom!r}) must be bound to an exchange "
            f"of CARROT['handlers']['exchanges'], and there is no {exchange!r}. Known ones: "
            f"{', '.join(map(repr, settings.exchanges)) or 'none'}."
        )
    names = [settings.queue_name_prefix + key if queue is None else queue for key in keys]
    arguments = _checked_arguments(queue_arguments)
    if log is not None and log not in LOGS:
        raise InvalidQueueRegistration(f"log is one of {', '.join(LOGS)}, not {log!r:.100}.")
    for name in names:
        _check_name(name)

    def register(handler: Handler) -> Handler:
        call, of_body = _calls_of(handler)
        new = {
            (name, exchange): Registration(
                queue=name,
                exchange=exchange,
                routing_key=key,
                queue_arguments=arguments,
                log=log,
                handler=handler,
                call=call,
                of_body=of_body,
            )
            for name, key in zip(names, keys, strict=True)
        }
        with _lock:
            _check_new(new.values(), len(keys))
            _registry.update(new)
        for one in new.values():
            _logger.debug("queue %s of exchange %s: %s", one.queue, exchange, one.name)
        return handler

    return register


def _keys(routing_keys: Any) -> list[str]:
    try:
        keys: list[Any] = [routing_keys] if isinstance(routing_keys, str) else list(routing_keys)
    except TypeError:
        keys = [routing_keys]
    if not keys:
        raise InvalidQueueRegistration(
            "There is no routing key, so this handler would never get a message."
        )
    for key in keys:
        if not isinstance(key, str) or len(key.encode()) > MAX_NAME_BYTES:
            raise InvalidQueueRegistration(
                f"A routing key is a text of {MAX_NAME_BYTES} bytes at most, not {key!r:.300}."
            )
    return keys


def _checked_arguments(given: Any) -> dict[str, Any]:
    arguments = dict(given) if isinstance(given, Mapping) else given or {}
    if not is_arguments(arguments):
        raise InvalidQueueRegistration(
            "queue_arguments is a dictionary of texts to values that AMQP knows."
        )
    kind = arguments.get(conf.TYPE_ARGUMENT, conf.QUEUE_TYPES[0])
    if kind not in conf.QUEUE_TYPES:
        raise InvalidQueueRegistration(
            f"{conf.TYPE_ARGUMENT} must be {' or '.join(conf.QUEUE_TYPES)}, not {kind!r:.100}."
        )
    return arguments


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_QUEUE_BYTES:
        raise InvalidQueueRegistration(
            f"A queue needs a name of 1 to {MAX_QUEUE_BYTES} bytes, not {name!r:.300}: the names "
            "of its retry queues and its archive are made of it."
        )


def _check_new(new: Iterable[Registration], count: int) -> None:
    new = list(new)
    if len(new) < count:
        raise InvalidQueueRegistration("A routing key is given twice.")
    for one in new:
        if (one.queue, one.exchange) in _registry:
            other = _registry[one.queue, one.exchange]
            raise InvalidQueueRegistration(
                f"Queue {one.queue!r} of exchange {one.exchange!r} has a handler already: "
                f"{other.name}."
            )
        for other in _registry.values():
            if other.queue == one.queue and other.handler is not one.handler:
                raise InvalidQueueRegistration(
                    f"Queue {one.queue!r} has another handler, {other.name}, for messages of "
                    f"exchange {other.exchange!r}. They would get each other's messages: a queue "
                    "does not tell where they come from. Give one of them another queue."
                )


def _calls_of(handler: Any) -> tuple[Callable[[Message], Any], Callable[[Any], Any] | None]:
    """What calls a handler with the arguments that it asks for; see ``Registration``.

    Raises:
        InvalidQueueRegistration: it cannot be called with a body, or a message, alone.
    """
    if not callable(handler):
        raise InvalidQueueRegistration(f"A handler is something to call, not {handler!r:.200}.")
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        # Some callables that are written in C tell nothing of their arguments.
        return lambda message: handler(message.content), handler
    wanting = _asks_for_message(handler, parameters)
    positional: list[bool] = []
    keywords: list[str] = []
    body = False
    for one in parameters:
        required = one.default is one.empty and one.kind not in (
            one.VAR_POSITIONAL,
            one.VAR_KEYWORD,
        )
        by_position = one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        if one.name in wanting and one.kind is not one.POSITIONAL_ONLY:
            keywords.append(one.name)
        elif one.name in wanting:
            positional.append(True)
        elif not body and (
            (by_position and (required or not wanting))
            or (one.kind is one.VAR_POSITIONAL and not wanting)
        ):
            body = True
            positional.append(False)
        elif required:
            raise InvalidQueueRegistration(
                f"Handler {name_of(handler)} has an argument {one.name!r} that nothing is passed "
                "for. It gets the message's body, and a Message where an argument is annotated so."
            )
    if not (body or wanting):
        raise InvalidQueueRegistration(
            f"Handler {name_of(handler)} takes no argument for the message's body."
        )

    def call(message: Message) -> Any:
        args = [message if whole else message.content for whole in positional]
        return handler(*args, **dict.fromkeys(keywords, message))

    return call, None if wanting else handler


def _asks_for_message(
    handler: Callable[..., Any], parameters: Iterable[inspect.Parameter]
) -> set[str]:
    """Names of the arguments that are annotated as Message, by itself or by its name."""
    function = _unwrapped(handler)
    if not inspect.isroutine(function):
        # A class is called by making an object of it.
        is_class = isinstance(function, type)
        owner, name = (function, "__init__") if is_class else (type(function), "__call__")
        function = getattr(owner, name)
    try:
        hints = typing.get_type_hints(function)
    except Exception:
        # A name that is imported for the type checker only, for example.
        hints = {}
    return {
        one.name
        for one in parameters
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and _is_message(hints.get(one.name, one.annotation))
    }


def _is_message(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.strip("'\" ").rpartition(".")[2] == Message.__name__
    return isinstance(annotation, type) and issubclass(annotation, Message)


def _unwrapped(handler: Any) -> Any:
    """What a partial calls in the end."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def name_of(handler: Callable[..., Any]) -> str:
    """A name for people: ``app.handlers.function``; also of what has none of its own."""
    function = _unwrapped(handler)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def registered() -> Sequence[Registration]:
    """All handlers so far."""
    with _lock:
        return list(_registry.values())


def modules() -> Iterator[str]:
    """Names of the modules to import: of the apps, and of the settings."""
    settings = conf.handlers()
    for app in apps.get_app_configs() if settings.autodiscover else ():
        name = f"{app.name}.{MODULE}"
        # Django's own are about requests, this one is not about messages of anybody's.
        others = app.name.startswith("django.") or name == __name__
        if not others and module_has_submodule(app.module or import_module(app.name), MODULE):
            yield name
    yield from settings.modules


def queues(settings: CarrotSettings) -> list[HandlerQueue]:
    """The queues of all handlers so far.

    Raises:
        NoExchange: a handler names an exchange that the settings do not.
        CarrotConfigException: a queue has contradicting arguments, or the name of a queue of
            tasks, or ``backoff_func`` names no function.
    """
    found = _by_queue()
    if not found:
        return []
    policy = policy_of(settings.handlers)
    return [_queue(name, handlers, settings, policy) for name, handlers in found.items()]


def problems(settings: CarrotSettings) -> Iterator[str]:
    """Why the handlers that are registered cannot work with these settings."""
    try:
        policy = policy_of(settings.handlers)
    except CarrotConfigException as error:
        yield str(error)
        return
    for name, handlers in _by_queue().items():
        try:
            _queue(name, handlers, settings, policy)
        except CarrotError as error:
            yield str(error)


def _by_queue() -> dict[str, list[Registration]]:
    found: dict[str, list[Registration]] = {}
    for one in registered():
        found.setdefault(one.queue, []).append(one)
    return found


def policy_of(settings: HandlerSettings) -> Policy:
    """What is done about failures.

    Raises:
        CarrotConfigException: ``backoff_func`` names no function.
    """
    backoff: Any = settings.backoff_func or retry.default_backoff
    if isinstance(backoff, str):
        try:
            backoff = import_string(backoff)
        except Exception as error:
            raise CarrotConfigException(
                f"CARROT['handlers']['backoff_func'] names {backoff!r}, which cannot be imported: "
                f"{type(error).__name__}: {error}."
            ) from error
    if not callable(backoff):
        raise CarrotConfigException(
            f"CARROT['handlers']['backoff_func'] names {settings.backoff_func!r}, which is no "
            "function."
        )
    return retry.Policy(
        max_retries=settings.max_retries,
        header=settings.retry_header,
        backoff=backoff,
    )


def _queue(
    name: str, found: Sequence[Registration], settings: CarrotSettings, policy: Policy
) -> HandlerQueue:
    one = found[0]
    if name in settings.queues:
        raise CarrotConfigException(
            f"Queue {name!r} of handler {one.name} is a queue of tasks in CARROT['queues'], too. "
            "Give one of them another name."
        )
    if any(other.queue_arguments != one.queue_arguments for other in found):
        raise CarrotConfigException(
            f"Queue {name!r} is registered several times with different queue_arguments. Give it "
            "the same each time."
        )
    exchanges = [(_exchange(each, settings.handlers), each.routing_key) for each in found]
    return HandlerQueue(
        name=name,
        host=settings.handlers.host,
        concurrency=settings.handlers.concurrency,
        consumable=True,
        durable=True,
        queue_arguments=dict(one.queue_arguments),
        exchange_arguments={},
        consumer_class=conf.QUEUE_DEFAULTS["consumer_class"],
        prefetch=settings.handlers.prefetch_count,
        signing=False,
        handler=one.name,
        call=one.call,
        of_body=one.of_body,
        accept=settings.handlers.accept,
        time_limit=limit_of(_unwrapped(one.handler), settings.time_limit),
        policy=policy,
        delays=retry.own_steps(policy),
        log=next((each.log for each in found if each.log is not None), settings.handlers.log),
        layout=Layout(
            name=name,
            arguments=dict(one.queue_arguments),
            archive_arguments=settings.handlers.archive_arguments,
            bindings=tuple((exchange, key) for exchange, key in exchanges if exchange is not None),
        ),
    )


def _exchange(one: Registration, settings: HandlerSettings) -> ExchangeSettings | None:
    """The exchange that a queue is bound to; None: the nameless one, by itself."""
    if one.exchange in settings.exchanges:
        return settings.exchanges[one.exchange]
    if one.exchange == DEFAULT_EXCHANGE:
        return None
    raise NoExchange(
        f"Handler {one.name} names the exchange {one.exchange!r}, which is not in "
        f"CARROT['handlers']['exchanges']. Known ones: "
        f"{', '.join(map(repr, settings.exchanges)) or 'none'}."
    )
