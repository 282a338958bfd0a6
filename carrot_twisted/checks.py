# SPDX-License-Identifier: Apache-2.0
"""What ``manage.py check`` says about the ``CARROT`` setting; the service asks the same at start.

Errors of the setting itself (E001 to E006, E013) come from ``conf``; here stands what needs the
project's code (E007 to E009, E014 to E017, W003, W004), its other settings (E010, E012, E018, W001,
W002) or files (E011).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.utils.module_loading import import_string

from carrot_twisted import conf, handlers, task_limits, task_options, view_decorators
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.signing import Seal

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Last part of ENGINE, Django's own and those of GeoDjango.
SQLITE = ("sqlite3", "spatialite")
POSTGRESQL = ("postgresql", "postgis")
#: Django's names of the kinds that our statements are written for.
VENDORS = ("sqlite", "postgresql")
#: The consumer of queues that name none.
BASE = conf.QUEUE_DEFAULTS["consumer_class"]


@register(Tags.compatibility)
def check_carrot(**_: Any) -> list[CheckMessage]:
    """All mistakes that can be known without a broker."""
    found = conf.problems()
    if found:
        return [Error(p.message, hint=p.hint, id=p.id) for p in found]
    value = conf.current()
    return [
        *_task_modules(value),
        *_tasks(value),
        *_limits(),
        *_consumer_classes(value),
        *_handlers(value),
        *_signing(value),
        *_tls_files(value),
        *_monitor_authentication(value),
        *_time_zones(),
        *_unknown_databases(),
        *_databases(),
    ]


def require() -> None:
    """Raise what ``check_carrot`` finds, warnings aside.

    Raises:
        CarrotConfigException: with all errors and their hints.
    """
    errors = [m for m in check_carrot() if m.is_serious()]
    if errors:
        raise CarrotConfigException("\n".join(f"{m.id}: {m.msg} {m.hint or ''}" for m in errors))


def _task_modules(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    for name in value.registered_modules:
        try:
            import_module(name)
        except (Exception, SystemExit) as error:
            yield Error(
                f"CARROT['task_modules'] names {name!r}, which cannot be imported: "
                f"{type(error).__name__}: {error}.",
                hint="Mend the module or take it out of the list.",
                id="carrot_twisted.E007",
            )


def _tasks(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    for one in task_options.all_declared():
        queue = one.options.queue
        module = one.path.rpartition(".")[0]
        if module not in value.registered_modules:
            continue
        if queue is not None and queue not in value.queues:
            yield Error(
                f"@task of {one.path} names the queue {queue!r}, which is not in CARROT['queues'].",
                hint=f"Add it there, or name one of these: {', '.join(value.queues)}.",
                id="carrot_twisted.E016",
            )


def _limits() -> Iterator[CheckMessage]:
    """Tasks that share a limit have to say the same of it."""
    said: dict[tuple[str, str], tuple[str, tuple[float, ...]]] = {}
    for one in task_options.all_declared():
        for kind, limit in one.limits():
            numbers = task_limits.numbers_of(limit)
            first, others = said.setdefault((kind, limit.group or one.path), (one.path, numbers))
            if others != numbers:
                yield Error(
                    f"{one.path} and {first} share the {type(limit).__name__} of group "
                    f"{limit.group!r}, and give it different numbers.",
                    hint="Make one object of it, and give that to both.",
                    id="carrot_twisted.E017",
                )


def _consumer_classes(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    for queue in value.queues.values():
        if queue.consumer_class == BASE:
            # Not imported here: a web process has no use for it.
            continue
        try:
            problem = _no_consumer(import_string(queue.consumer_class))
        except (Exception, SystemExit) as error:
            problem = f"cannot be imported: {error}"
        if problem:
            yield Error(
                f"Queue {queue.name!r}: 'consumer_class' {queue.consumer_class!r} {problem}.",
                hint="Give the dotted path of a subclass of carrot_twisted.consumer.Consumer.",
                id="carrot_twisted.E008",
            )


def _no_consumer(factory: Any) -> str:
    # By name: a subclass has imported that module; to import it here for all others would bring
    # the service's side into every web process.
    bases = [_name(base) for base in getattr(factory, "__mro__", ())]
    return "" if BASE in bases else "is no Consumer"


def _handlers(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    for name in handlers.modules():
        try:
            import_module(name)
        except (Exception, SystemExit) as error:
            yield Error(
                f"Module {name!r} with message handlers cannot be imported: "
                f"{type(error).__name__}: {error}",
                hint="Mend the module. If it is somebody else's, and not about messages: set "
                "CARROT['handlers']['autodiscover'] to False, and name your own in 'modules'.",
                id="carrot_twisted.E014",
            )
    for problem in handlers.problems(value):
        yield Error(problem, hint="See docs/handlers.md.", id="carrot_twisted.E015")
    for one in handlers.registered():
        exchange = value.handlers.exchanges.get(one.exchange)
        kind = "direct" if exchange is None else exchange.type
        words = one.routing_key.split(".")
        if kind == "direct" and not {"*", "#"}.isdisjoint(words):
            yield Warning(
                f"Handler {one.name} has the routing key {one.routing_key!r}, and its exchange "
                f"{one.exchange!r} is a direct one: only messages with just this key come.",
                hint="Name an exchange of CARROT['handlers']['exchanges'] of type 'topic'.",
                id="carrot_twisted.W004",
            )


def _signing(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    if any(queue.signs for queue in value.queues.values()):
        try:
            Seal()
        except ImproperlyConfigured as error:
            yield Error(
                f"CARROT['signing'] is set, and messages cannot be signed: {error}",
                hint="Set SECRET_KEY, the same for the service and for all that publish.",
                id="carrot_twisted.E012",
            )
    for queue in value.queues.values():
        if queue.verifies and _reads_foreign_messages(queue.consumer_class):
            yield Warning(
                f"Queue {queue.name!r} lets signed messages in only, and its 'consumer_class' "
                f"{queue.consumer_class!r} reads messages that others publish.",
                hint="Set 'signing': False for this queue, unless those others sign as "
                "carrot_twisted does: their messages would be kept in its dead-letter queue.",
                id="carrot_twisted.W003",
            )


def _tls_files(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    hosts = [queue.host for queue in value.queues.values()]
    if handlers.registered():
        hosts.append(value.handlers.host)
    for host in dict.fromkeys(hosts):
        if not host.secure:
            continue
        try:
            host.tls_context()
        except OSError as error:
            yield Error(
                f"Broker {host.label}: {error}.",
                hint="Give the paths of PEM files that this user may read: a certificate with the "
                "private key that belongs to it, unencrypted.",
                id="carrot_twisted.E011",
            )


def _reads_foreign_messages(path: str) -> bool:
    if path == BASE:
        return False
    try:
        found = import_string(path)
    except (Exception, SystemExit):
        # E008 tells.
        return False
    base = next((b for b in getattr(found, "__mro__", ()) if _name(b) == BASE), found)
    return any(
        getattr(found, name, None) is not getattr(base, name, None)
        for name in ("get_message_log", "serializer")
    )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _monitor_authentication(value: conf.CarrotSettings) -> Iterator[CheckMessage]:
    for path in value.monitor_authentication:
        problem = view_decorators.problem_of(path)
        if problem:
            yield Error(
                f"CARROT['monitor_authentication'] names {path!r}, which {problem}.",
                hint=view_decorators.HINT,
                id="carrot_twisted.E009",
            )


def _time_zones() -> Iterator[CheckMessage]:
    if not settings.USE_TZ:
        yield Error(
            "USE_TZ is False: the times of tasks could not be stored and compared.",
            hint="Set USE_TZ = True, Django's default.",
            id="carrot_twisted.E010",
        )


def _unknown_databases() -> Iterator[CheckMessage]:
    for alias in {router.db_for_write(model): None for model in (MessageLog, ScheduledTask)}:
        # Not connected to: the name of the product might be asked of the server.
        if connections[alias].vendor not in VENDORS:
            engine = connections[alias].settings_dict["ENGINE"]
            yield Error(
                f"Tasks would be kept in database {alias!r}, of {engine}: they could be published "
                "there, and none would ever be run.",
                hint="Keep the tables of the app carrot_twisted in PostgreSQL, or in SQLite; a "
                "database router can do that for them alone. See docs/deployment.md.",
                id="carrot_twisted.E018",
            )


def _databases() -> Iterator[CheckMessage]:
    for alias, database in settings.DATABASES.items():
        engine = str(database.get("ENGINE", "")).rpartition(".")[2]
        options: Any = database.get("OPTIONS") or {}
        if engine in SQLITE and options.get("transaction_mode") != "IMMEDIATE":
            yield Warning(
                f"SQLite database {alias!r} does not take its write lock at the start of a "
                "transaction: threads that write at the same time will meet 'database is locked'.",
                hint="Set OPTIONS {'transaction_mode': 'IMMEDIATE', 'timeout': 20, "
                "'init_command': 'PRAGMA journal_mode=WAL;'}.",
                id="carrot_twisted.W001",
            )
        if (
            engine in POSTGRESQL
            and database.get("CONN_MAX_AGE", 0) == 0
            and not options.get("pool")
        ):
            yield Warning(
                f"PostgreSQL database {alias!r} has CONN_MAX_AGE 0: each task of the service opens "
                "a connection of its own, and closes it.",
                hint="Set CONN_MAX_AGE to 600, for example, and CONN_HEALTH_CHECKS to True; or "
                "use a pool: OPTIONS {'pool': True}.",
                id="carrot_twisted.W002",
            )
