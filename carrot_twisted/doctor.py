# SPDX-License-Identifier: Apache-2.0
"""Looks for what keeps tasks from running, and says how to mend it: ``manage.py carrot_doctor``.

It asks everything that takes part: the settings, the database, each broker as the user of the
settings, the workers. It changes nothing: what does not exist is not declared, no message is taken
or left anywhere. (``manage.py carrot_status`` asks the tables alone, and is for each minute.)
"""

from __future__ import annotations

import platform
import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.db import DatabaseError, InterfaceError, connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionBlockedTimeout,
    UnroutableError,
)

from carrot_twisted import __version__, blocking, checks, conf, handlers, outcomes, status, topology
from carrot_twisted.declaring import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from carrot_twisted.exceptions import BrokerError
from carrot_twisted.handlers import HandlerQueue
from carrot_twisted.models import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pika
    from pika.adapters.blocking_connection import BlockingChannel

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.status import Status
    from carrot_twisted.topology import Step
    from carrot_twisted.virtual_host import VirtualHost

#: Seconds without a word from a broker after which it is given up.
PATIENCE = 10
#: Seconds that this machine's clock may differ from the database's.
MAX_SKEW = 2.0
#: Characters that are shown of an error.
MAX_ERROR = 300
PACKAGES = ("Django", "Twisted", "pika", "txaio")
#: RabbitMQ's oldest version that this package is tried with.
OLDEST_BROKER = (3, 10)
#: What to do about the problems that ``status`` tells, by a part of their texts.
REMEDIES = {
    "No worker is running": "Start one; the log of the last one, or of its supervisor, says why "
    "it ended.",
    "has died": "Nothing, if another worker runs. Who has killed it stands in the kernel's log, or "
    "its supervisor's.",
    "has had no heartbeat": "Look whether the process is stopped, and whether its machine reaches "
    "the database.",
    "stuck in tasks": "Give what these tasks wait for a time-out of its own; manage.py "
    "carrot_status names them.",
    "is not in CARROT['queues']": "Add the queue to the settings, or cancel its tasks.",
    "has no worker": "Start a worker that consumes from it: twistd carrot --queue=NAME, or "
    "'consumable': True for it.",
    "messages are not sent": "The reason is the broker's: mend that. They are sent by themselves "
    "then.",
}


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one look has shown."""

    about: str
    """What was looked at."""
    level: Level
    text: str
    remedy: str = ""
    """How to mend it."""


def examine(using: str) -> list[Finding]:
    """Look at everything.

    Args:
        using: alias of the database with our tables.
    """
    found = [*_versions(), *_settings()]
    answers = [*_database(using)]
    found += answers
    if not any(one.level is Level.ERROR for one in answers):
        found += [*_clock(using), *_work(using)]
    if not conf.problems():
        found += _brokers()
    return found


def _ok(about: str, text: str) -> Finding:
    return Finding(about=about, level=Level.OK, text=text)


def _warning(about: str, text: str, remedy: str) -> Finding:
    return Finding(about=about, level=Level.WARNING, text=text, remedy=remedy)


def _error(about: str, text: str, remedy: str) -> Finding:
    return Finding(about=about, level=Level.ERROR, text=text, remedy=remedy)


def _versions() -> Iterator[Finding]:
    versions = [f"carrot-twisted {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    yield _ok("versions", ", ".join(versions))


def _settings() -> Iterator[Finding]:
    messages = checks.check_carrot()
    for one in messages:
        tell = _error if one.is_serious() else _warning
        yield tell("settings", f"{one.id}: {one.msg}", one.hint or "")
    if not messages:
        yield _ok("settings", "no mistakes")


def _database(using: str) -> Iterator[Finding]:
    about = f"database {using}"
    connection = connections[using]
    try:
        connection.ensure_connection()
        executor = MigrationExecutor(connection)
        app = Worker._meta.app_label
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes(app))
    except (DatabaseError, InterfaceError) as error:
        yield _error(
            about,
            f"does not answer: {outcomes.exception_line(error, MAX_ERROR)}",
            "Start it, or mend DATABASES. Services wait for it, and lose nothing.",
        )
        return
    if missing:
        names = ", ".join(sorted({migration.name for migration, _ in missing}))
        yield _error(about, f"lacks migrations: {names}", "Run manage.py migrate.")
    else:
        yield _ok(about, f"{connection.display_name} {_version_of(connection)}, migrated")
    if connection.vendor == "sqlite":
        yield from _sqlite(about, connection)


def _version_of(connection: Any) -> str:
    return ".".join(str(part) for part in connection.get_database_version())


def _sqlite(about: str, connection: Any) -> Iterator[Finding]:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        (mode,) = cursor.fetchone()
    # One in memory has none of the others.
    if mode not in ("wal", "memory"):
        yield _warning(
            about,
            f"SQLite keeps its journal in mode {mode!r}: readers and the writer wait for each "
            "other",
            "Set OPTIONS {'init_command': 'PRAGMA journal_mode=WAL;'}.",
        )


def _clock(using: str) -> Iterator[Finding]:
    before = time.time()
    # Django's own table, which has rows: only in them an expression has a value.
    rows = MigrationRecorder.Migration.objects.using(using).annotate(now=Now())
    there = rows.values_list("now", flat=True)[0].timestamp()
    skew = there - (before + time.time()) / 2
    text = f"the database's is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this host's"
    if abs(skew) > MAX_SKEW:
        yield _warning(
            "clock",
            text,
            "Set both by NTP. Schedules and retries go by the database's clock, the lines of "
            "tasks' logs by that of the worker.",
        )
    else:
        yield _ok("clock", text)


def _work(using: str) -> Iterator[Finding]:
    """What the tables tell of workers, queues and messages that are not sent."""
    if conf.problems():
        return
    found = status.read(using)
    for text in found.problems:
        remedy = next((remedy for part, remedy in REMEDIES.items() if part in text), "")
        yield _error("work", text, remedy or "See docs/on-call.md.")
    for paused in found.paused:
        yield _warning("work", paused.text, f"manage.py carrot_queue resume {paused.name}")
    yield from _workers(found)
    if not found.problems:
        waiting = sum(one.waiting for one in found.queues)
        running = sum(one.running for one in found.queues)
        yield _ok("work", f"{waiting} tasks wait, {running} run, all messages are sent")


def _workers(found: Status) -> Iterator[Finding]:
    alive = [one for one in found.workers if one.alive]
    others = sorted({one.version for one in alive} - {__version__})
    if others:
        yield _warning(
            "workers",
            f"some run version {', '.join(others)}, and this is {__version__}",
            "Restart them, unless an upgrade is going on.",
        )
    elif alive:
        yield _ok("workers", f"{len(alive)} run, with {sum(one.threads for one in alive)} threads")


def _brokers() -> Iterator[Finding]:
    settings = conf.current()
    queues: list[QueueSettings] = [*settings.queues.values(), *handlers.queues(settings)]
    for host in dict.fromkeys(queue.host for queue in queues):
        about = f"broker {host.label}"
        try:
            connection = blocking.connect(host, PATIENCE)
        except BrokerError as error:
            yield _error(
                about,
                outcomes.one_line(str(error), MAX_ERROR),
                f"Does it run, does virtual host {host.name!r} exist, and may user {host.user} "
                "log in there? Messages wait in the table until it is reached.",
            )
            continue
        try:
            yield _broker(about, connection)
            yield from _publishing(about, host, connection)
            for queue in queues:
                if queue.host == host and connection.is_open:
                    yield from _queue(queue, connection)
        except (AMQPError, OSError) as error:
            yield _error(
                about,
                f"the connection was lost: {outcomes.exception_line(error, MAX_ERROR)}",
                "Its log says why.",
            )
        finally:
            blocking.close(connection)


def _broker(about: str, connection: pika.BlockingConnection) -> Finding:
    # pika's blocking connection keeps to itself what the broker has said of itself.
    told = connection._impl.server_properties or {}
    product, version = str(told.get("product", "an unknown broker")), str(told.get("version", ""))
    text = f"lets us in: {product} {version}".rstrip()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if product == "RabbitMQ" and numbers < OLDEST_BROKER:
        oldest = ".".join(map(str, OLDEST_BROKER))
        return _warning(about, text, f"Upgrade it: nothing older than {oldest} is tried.")
    return _ok(about, text)


@contextmanager
def _channel(connection: pika.BlockingConnection) -> Iterator[BlockingChannel]:
    """A channel of its own: what the broker refuses closes it."""
    channel = connection.channel()
    try:
        yield channel
    finally:
        if channel.is_open:
            channel.close()


def _publishing(
    about: str, host: VirtualHost, connection: pika.BlockingConnection
) -> Iterator[Finding]:
    """Whether it takes messages of ours: one for a queue that does not exist comes back."""
    try:
        with _channel(connection) as channel:
            channel.confirm_delivery()
            channel.basic_publish("", f"carrot-doctor-{uuid4()}", b"", mandatory=True)
    except UnroutableError:
        yield _ok(about, f"user {host.user} may publish")
    except ChannelClosedByBroker as error:
        yield _error(
            about,
            f"user {host.user} may not publish: {error.reply_text}",
            _permission(host, "write"),
        )
    except ConnectionBlockedTimeout:
        yield _error(
            about,
            "it takes no messages: an alarm for memory or disk",
            "rabbitmq-diagnostics alarms tells which. Messages wait in the table until it is over.",
        )


def _permission(host: VirtualHost, which: str) -> str:
    return (
        f"As an administrator: rabbitmqctl set_permissions -p {host.name} {host.username} ...; its "
        f"{which} pattern has to match that name."
    )


def _queue(queue: QueueSettings, connection: pika.BlockingConnection) -> Iterator[Finding]:
    if isinstance(queue, HandlerQueue):
        steps: Sequence[Step] = queue.steps
    else:
        steps = (*topology.dead_letter_steps(queue), *topology.work_queue(queue))
    for step in steps:
        if step.method in ("queue_declare", "exchange_declare"):
            yield from _declared(queue, step, connection)
    if queue.consumable:
        yield from _reading(queue, connection)
    if not isinstance(queue, HandlerQueue):
        yield from _dead_letters(queue, connection)


def _declared(
    queue: QueueSettings, step: Step, connection: pika.BlockingConnection
) -> Iterator[Finding]:
    """Whether something is there, with the arguments of the settings."""
    kind = step.method.partition("_")[0]
    about, name = f"queue {queue.name}", step.arguments[kind]
    look = topology.look_for_queue if kind == "queue" else topology.look_for_exchange
    try:
        with _channel(connection) as channel:
            found = getattr(channel, step.method)(**look(name).arguments)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            yield _error(about, f"{step.name}: {error.reply_text}", "The broker's log says more.")
        elif kind == "queue" and name == queue.name:
            yield _warning(
                about, f"there is no {step.name} yet", "The first service or publisher declares it."
            )
        return
    try:
        with _channel(connection) as channel:
            # The same once more changes nothing.
            getattr(channel, step.method)(**step.arguments)
    except ChannelClosedByBroker as error:
        yield _refused(queue, step, error)
        return
    if kind == "queue" and name == queue.name:
        counts = found.method
        yield _ok(
            about, f"{counts.message_count} messages, {counts.consumer_count} consumers, as set"
        )


def _refused(queue: QueueSettings, step: Step, error: ChannelClosedByBroker) -> Finding:
    about = f"queue {queue.name}"
    if error.reply_code == PRECONDITION_FAILED:
        return _warning(
            about,
            f"{step.name} exists with other arguments, and is used as it is: {error.reply_text}",
            "Change the settings; or delete it at the broker: services declare it anew, and send "
            "again what was in it.",
        )
    if error.reply_code == ACCESS_REFUSED:
        return _warning(
            about,
            f"user {queue.host.user} may not declare {step.name}: {error.reply_text}",
            f"{_permission(queue.host, 'configure')} Else somebody has to declare it again when it "
            "is gone.",
        )
    return _error(about, f"{step.name}: {error.reply_text}", "The broker's log says more.")


def _reading(queue: QueueSettings, connection: pika.BlockingConnection) -> Iterator[Finding]:
    """Whether it may be consumed. The broker looks at permissions before it refuses the rest."""
    about = f"queue {queue.name}"
    try:
        with _channel(connection) as channel:
            # Should it not refuse the rest, at most one message comes, and goes back.
            channel.basic_qos(prefetch_count=1)
            channel.basic_consume(
                queue.name, lambda *_: None, arguments={"x-priority": "no number"}
            )
    except ChannelClosedByBroker as error:
        # Somebody's exclusive consumer is refused by the same number.
        if error.reply_code == ACCESS_REFUSED and "exclusive" not in error.reply_text:
            yield _error(
                about,
                f"user {queue.host.user} may not consume from it: {error.reply_text}",
                _permission(queue.host, "read"),
            )


def _dead_letters(queue: QueueSettings, connection: pika.BlockingConnection) -> Iterator[Finding]:
    name = topology.dead_letter_queue(queue.name)
    try:
        with _channel(connection) as channel:
            found = channel.queue_declare(**topology.look_for_queue(name).arguments)
    except ChannelClosedByBroker:
        return
    count = found.method.message_count
    if count:
        yield _warning(
            f"queue {queue.name}",
            f"{count} messages that no task can be made of are in {name}",
            f"manage.py carrot_archive list --queue={name} tells why.",
        )
