# SPDX-License-Identifier: Apache-2.0
"""Callbacks in the manner of fedora-messaging: what is given to ``consume``, checked, as values.

A callback gets each message of its queues, and says by an exception what becomes of it. Names and
meanings are fedora-messaging's; see docs/callbacks.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.db import connections, router

from carrot_twisted import conf, outcomes, retry
from carrot_twisted.exceptions import Drop, HaltConsumer, InvalidCallback, Nack
from carrot_twisted.handler_settings import LOGS
from carrot_twisted.handler_topology import MAX_QUEUE_BYTES, Layout
from carrot_twisted.handlers import HandlerQueue, name_of
from carrot_twisted.kinds import (
    MAX_NAME_BYTES,
    is_arguments,
    is_bool,
    is_int,
    is_list,
    is_name,
    is_prefetch,
)
from carrot_twisted.retry import Action, Decision, Fault
from carrot_twisted.topology import DEAD_DELIVERY_LIMIT, Step
from carrot_twisted.virtual_host import VirtualHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from carrot_twisted.retry import Failure

    Callback = Callable[..., Any]

#: What becomes of a message whose callback raises something else than Nack, Drop, HaltConsumer.
HALT = "halt"
ARCHIVE = "archive"
#: Seconds that a message is kept which comes again and is not wanted yet: else it would go to and
#: fro as fast as the broker can.
NACK_DELAY = 1.0
#: Where neither queues nor bindings are given: a queue of one's own, which gets all that is
#: published to the exchange, as with fedora-messaging.
DEFAULT_EXCHANGE = "amq.topic"
DEFAULT_BINDING: Mapping[str, Any] = {"exchange": DEFAULT_EXCHANGE, "routing_keys": ["#"]}

#: What Django takes where DATABASES names none.
_NO_DATABASE = "django.db.backends.dummy"

_NAMED = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}
_UNNAMED = {"durable": False, "auto_delete": True, "exclusive": True, "arguments": {}}
_EXCHANGE = {"type": "topic", "durable": True, "auto_delete": False, "arguments": {}}
_BINDING = ("exchange", "queue", "routing_keys")
_TESTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "durable": (is_bool, "True or False"),
    "auto_delete": (is_bool, "True or False"),
    "exclusive": (is_bool, "True or False"),
    "arguments": (is_arguments, "a dictionary of texts to values that AMQP knows"),
    "type": (is_name, "a type of exchanges, such as topic, direct or fanout"),
}


@dataclass(frozen=True, kw_only=True)
class CallbackQueue(HandlerQueue):
    """One queue whose messages a callback gets."""

    on_error: str
    declarations: tuple[Step, ...]
    """Exchanges, the queue, and its bindings."""

    @property
    def label(self) -> str:
        """Its name, for people."""
        return self.name or "that the broker names"

    @property
    def archives(self) -> bool:
        """Whether it has an archive. One that the broker names is gone with its consumer."""
        return bool(self.name)

    @property
    def steps(self) -> Sequence[Step]:
        """All that is to be declared before its messages are taken."""
        archive = self.layout.archive_steps if self.on_error == ARCHIVE else ()
        return (*archive, *self.declarations)


def load(path: str) -> Callback:
    """The callback that ``package.module:object`` names.

    Raises:
        InvalidCallback: there is none.
        Exception: whatever the module raises.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise InvalidCallback(f"Write the callback as package.module:object, not {path!r}.")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            # The module is there, and imports one that is not.
            raise
        raise InvalidCallback(
            f"There is no module {module_name!r} ({error}). Start in the folder that it is in, "
            "or set PYTHONPATH."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidCallback(f"Module {module_name!r} has no {name!r}.")
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def prepared(callback: Any) -> Callback:
    """What is called with each message: of a class, one object.

    Raises:
        InvalidCallback: it cannot be called with a message.
    """
    if isinstance(callback, type):
        try:
            callback = callback()
        except TypeError as error:
            raise InvalidCallback(
                f"No object can be made of the class {callback.__qualname__} without arguments: "
                f"{error}."
            ) from error
    if not callable(callback):
        raise InvalidCallback(
            f"A callback is something to call with a message; {_shown(callback)} is not. A class "
            "needs a __call__."
        )
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):
        # Some callables that are written in C tell nothing of their arguments.
        return callback  # type: ignore[no-any-return]
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidCallback(
            f"A callback is called with one argument, the message; {name_of(callback)} takes "
            f"others: {error}."
        ) from error
    return callback  # type: ignore[no-any-return]


def queues_of(
    callback: Callback,
    bindings: Any = None,
    queues: Any = None,
    *,
    exchanges: Any = None,
    broker: Any = None,
    concurrency: int = 1,
    prefetch_count: int | str = "auto",
    on_error: str = HALT,
    log: str | None = None,
) -> list[CallbackQueue]:
    """The queues to consume from. The arguments are those of ``carrot_twisted.consume``.

    Raises:
        InvalidCallback: one of them makes no sense; the text names it.
    """
    _require(on_error in (HALT, ARCHIVE), f"on_error is 'halt' or 'archive', not {on_error!r}.")
    _require(
        is_int(concurrency) and concurrency >= 1,
        f"concurrency is a whole number, 1 or more, not {concurrency!r}.",
    )
    _require(
        is_prefetch(prefetch_count),
        f"prefetch_count is a whole number from 1 to 65535, or 'auto', not {prefetch_count!r}.",
    )
    _require(
        isinstance(prefetch_count, str) or prefetch_count >= concurrency,
        f"With a prefetch_count of {prefetch_count}, {concurrency} callbacks never run at once.",
    )
    if bindings is None:
        bindings = [] if queues is not None else [DEFAULT_BINDING]
    bindings = [bindings] if isinstance(bindings, Mapping) else bindings
    _require(is_list(bindings), "bindings is a dictionary, or a list of dictionaries.")
    for binding in bindings:
        _check_binding(binding)
    if queues is None:
        queues = {binding.get("queue", ""): {} for binding in bindings}
    _require(
        isinstance(queues, Mapping) and bool(queues),
        "queues is a dictionary of names to dictionaries such as {'durable': True}.",
    )
    by_queue: dict[str, list[tuple[str, str]]] = {name: [] for name in queues}
    for binding in bindings:
        keys = binding.get("routing_keys", ["#"])
        by_queue[_queue_of(binding, by_queue)] += [(binding["exchange"], key) for key in keys]
    declared = _exchanges({} if exchanges is None else exchanges)
    host = broker_of(broker)
    wanted = _log_of(log)
    result = []
    for name, given in queues.items():
        arguments = _queue(name, given, on_error)
        used = dict.fromkeys(exchange for exchange, _ in by_queue[name])
        layout = Layout(name=name, arguments=dict(arguments["arguments"]))
        result.append(
            CallbackQueue(
                name=name,
                host=host,
                concurrency=concurrency,
                consumable=True,
                durable=arguments["durable"],
                queue_arguments=dict(arguments["arguments"]),
                exchange_arguments={},
                consumer_class=conf.QUEUE_DEFAULTS["consumer_class"],
                prefetch=None if isinstance(prefetch_count, str) else prefetch_count,
                signing=False,
                handler=name_of(callback),
                call=callback,
                accept=None,
                time_limit=None,
                log=wanted,
                policy=retry.Policy(max_retries=0, header=conf.current().handlers.retry_header),
                delays=(),
                layout=layout,
                on_error=on_error,
                declarations=(
                    # First: the queue may name it as the target of its dead letters.
                    *(layout.archive_steps if on_error == ARCHIVE else ()),
                    *(declared[exchange] for exchange in used if exchange in declared),
                    _queue_step(name, arguments),
                    *(_bind_step(name, exchange, key) for exchange, key in by_queue[name]),
                ),
            )
        )
    return result


def _log_of(given: Any) -> str:
    """Which messages get a row; a callback needs no database for ``none``."""
    from carrot_twisted.models import MessageLog

    _require(
        given is None or given in LOGS,
        f"log is one of {', '.join(LOGS)}, not {_shown(given)}.",
    )
    # Looked up, not connected to.
    engine = connections.settings[router.db_for_write(MessageLog)]["ENGINE"]
    if engine != _NO_DATABASE:
        return given or "failures"
    _require(
        given in (None, "none"),
        f"log={given!r} asks for rows, and there is no database to keep them. Name the settings of "
        "a Django project that has one in DATABASES, by --settings or DJANGO_SETTINGS_MODULE.",
    )
    return "none"


def _check_binding(given: Any) -> None:
    _require(isinstance(given, Mapping), f"A binding is a dictionary, not {_shown(given)}.")
    _require_keys(given, _BINDING, "A binding")
    exchange, keys = given.get("exchange"), given.get("routing_keys", ["#"])
    _require(
        is_name(exchange),
        f"A binding needs the name of an 'exchange', for example 'amq.topic', not {exchange!r}. "
        "What is published to the nameless exchange comes without a binding.",
    )
    _require(
        is_list(keys) and bool(keys) and all(_is_key(key) for key in keys),
        f"'routing_keys' of a binding is a list of texts of {MAX_NAME_BYTES} bytes at most, for "
        f"example ['#'], not {_shown(keys)}.",
    )
    _require(isinstance(given.get("queue", ""), str), "'queue' of a binding is its name, a text.")


def _queue_of(binding: Mapping[str, Any], queues: Mapping[str, Any]) -> str:
    """The queue that a binding belongs to."""
    if "queue" not in binding and len(queues) > 1:
        raise InvalidCallback(f"Say to which 'queue' of {', '.join(queues)} a binding belongs.")
    name: str = binding.get("queue", next(iter(queues)))
    _require(name in queues, f"A binding names the queue {name!r}, which is not in queues.")
    return name


def _queue(name: Any, given: Any, on_error: str) -> dict[str, Any]:
    _require(
        isinstance(name, str) and len(name.encode()) <= MAX_QUEUE_BYTES,
        f"The name of a queue is a text of {MAX_QUEUE_BYTES} bytes at most, not {_shown(name)}.",
    )
    where = f"Queue {name!r}"
    arguments = _completed(given, _NAMED if name else _UNNAMED, where)
    kind = arguments["arguments"].get(conf.TYPE_ARGUMENT, conf.QUEUE_TYPES[0])
    _require(
        kind in conf.QUEUE_TYPES,
        f"{where}: {conf.TYPE_ARGUMENT} must be {' or '.join(conf.QUEUE_TYPES)}, not {kind!r}.",
    )
    # The broker's refusal would be the same as that of a queue which exists with other arguments.
    _require(
        kind != "quorum"
        or (arguments["durable"] and not arguments["exclusive"] and not arguments["auto_delete"]),
        f"{where}: a quorum queue is durable, and neither exclusive nor auto_delete.",
    )
    if not name:
        _require(
            arguments["exclusive"] and arguments["auto_delete"],
            "A queue that the broker names is exclusive and auto_delete: nobody else would find "
            "it, and it would fill for ever. Give it a name.",
        )
        _require(
            on_error != ARCHIVE,
            "on_error='archive' needs a queue with a name: the archive's is made of it.",
        )
    return arguments


def _completed(given: Any, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    _require(isinstance(given, Mapping), f"{where} is described by a dictionary.")
    _require_keys(given, tuple(defaults), where)
    for key, value in given.items():
        test, wanted = _TESTS[key]
        _require(test(value), f"{where}: {key!r} is {wanted}, not {_shown(value)}.")
    result = {**defaults, **given}
    result["arguments"] = result["arguments"] or {}
    return result


def _exchanges(given: Any) -> dict[str, Step]:
    _require(
        isinstance(given, Mapping) and all(map(is_name, given)),
        "exchanges is a dictionary of names to dictionaries such as {'type': 'topic'}.",
    )
    steps = {}
    for name, each in given.items():
        arguments = _completed(each, _EXCHANGE, f"Exchange {name!r}")
        arguments["exchange_type"] = arguments.pop("type")
        steps[name] = Step(
            method="exchange_declare",
            name=f"exchange {name!r}",
            arguments={"exchange": name, **arguments},
        )
    return steps


def _queue_step(name: str, arguments: Mapping[str, Any]) -> Step:
    safety: dict[str, Any] = {}
    if arguments["arguments"].get(conf.TYPE_ARGUMENT) == "quorum":
        # RabbitMQ 4 would throw away a message that has come back 20 times.
        safety["x-delivery-limit"] = DEAD_DELIVERY_LIMIT
    further = {conf.TYPE_ARGUMENT: "classic", **safety, **arguments["arguments"]}
    return Step(
        method="queue_declare",
        name=f"queue {name!r}" if name else "queue that the broker names",
        arguments={**arguments, "queue": name, "arguments": further},
    )


def _bind_step(name: str, exchange: str, routing_key: str) -> Step:
    # Without a name it is the queue that was declared last on the channel.
    return Step(
        method="queue_bind",
        name=f"binding of queue {name!r} to exchange {exchange!r}",
        arguments={"queue": name, "exchange": exchange, "routing_key": routing_key},
    )


def broker_of(given: Any) -> VirtualHost:
    """The broker that is meant; None: that of the settings.

    Raises:
        InvalidCallback: it is none.
    """
    if given is None:
        return conf.current().default_broker
    if isinstance(given, VirtualHost):
        return given
    try:
        return VirtualHost(given)
    except (ValueError, AttributeError) as error:
        raise InvalidCallback(f"broker cannot be understood: {error}.") from None


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise InvalidCallback(text)


def _require_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = sorted(map(repr, set(given) - set(known)))
    _require(
        not unknown, f"{where} has unknown keys: {', '.join(unknown)}. Known: {', '.join(known)}."
    )


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode()) <= MAX_NAME_BYTES


def _shown(value: Any) -> str:
    return f"{value!r:.200}"


def decide(
    failure: Failure | None, *, redelivered: bool, waits: int, queue: CallbackQueue
) -> Decision:
    """What is to be done about a message whose callback has ended.

    Args:
        failure: of this call; None: it has returned.
        redelivered: the message had come back before.
        waits: how often it was kept waiting for the database, before this call.
        queue: its queue.
    """
    if failure is None:
        return Decision(action=Action.ACK)
    match failure.error:
        case Nack():
            return Decision(action=Action.REQUEUE, delay=NACK_DELAY if redelivered else 0.0)
        case Drop():
            return Decision(action=Action.REJECT)
        case HaltConsumer() as halt:
            return Decision(action=Action.REQUEUE if halt.requeue else Action.ACK, halt=True)
    if failure.fault is Fault.DATABASE:
        return Decision(action=Action.WAIT, delay=outcomes.release_delay(waits + 1))
    if failure.fault is Fault.PERMANENT:
        action = Action.ARCHIVE if queue.archives else Action.REJECT
        return Decision(action=action, reason="no other time can help")
    if queue.on_error == ARCHIVE:
        return Decision(action=Action.ARCHIVE, reason="its callback has failed")
    return Decision(action=Action.REQUEUE, halt=True)


def failure_of(failure: Failure | None) -> Failure | None:
    """What the row of a message tells of its callback's end; None: nothing went wrong.

    ``Nack`` says that another time is better, and ``HaltConsumer`` with the exit code 0 that all is
    well. ``Drop`` counts: the message is gone, and nobody has used it.
    """
    match failure and failure.error:
        case Nack() | HaltConsumer(exit_code=0):
            return None
    return failure
