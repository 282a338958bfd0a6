# SPDX-License-Identifier: Apache-2.0
"""Archives of messages: what is in them, back to work with it, or away.

AMQP knows no search. A *pass* gets the messages of an archive one by one, holds all of them
unacknowledged, and acknowledges those that shall go. At its end, or its death, its channel is
closed, and the broker puts what was held back to where it was: a classic queue does. A quorum queue
puts back up to 32 messages in their order, and more in any order, also if they are given back one
by one. Who else looks meanwhile does not see what is held.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from carrot_twisted import blocking, copies, failpoints, handlers, wire
from carrot_twisted.exceptions import BrokerError, CarrotConfigException
from carrot_twisted.handler_topology import ARCHIVED_SUFFIX
from carrot_twisted.topology import DEAD_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from carrot_twisted.conf import CarrotSettings
    from carrot_twisted.virtual_host import VirtualHost

#: Seconds without a sign of life from the broker after which a pass ends.
PATIENCE = 30


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where the archived messages of one queue are."""

    name: str
    """Of the archive."""
    queue: str
    """Of the handler, of the callback, or of tasks: its messages go back there."""
    host: VirtualHost
    retry_header: str


@dataclass(frozen=True, kw_only=True)
class Archived:
    """One message of an archive."""

    tag: int
    """In the pass that holds it."""
    properties: pika.BasicProperties
    body: bytes

    @property
    def headers(self) -> dict[str, Any]:
        """Of the message."""
        return self.properties.headers or {}

    @property
    def routing_key(self) -> str:
        """What it was published with; "" if that is not known."""
        key = self.headers.get(copies.ROUTING_KEY_HEADER)
        if isinstance(key, str):
            return key
        # Moved by the broker, from a quorum queue that it came back to too often.
        deaths = self.headers.get("x-death")
        keys = deaths[-1].get("routing-keys") if isinstance(deaths, list) and deaths else None
        return str(keys[0]) if keys else ""

    @property
    def reason(self) -> str:
        """What its handler has raised, and why it is here; "" if nobody has said so."""
        words = [
            self.headers.get(copies.EXCEPTION_HEADER),
            self.headers.get(copies.REASON_HEADER),
        ]
        return "; ".join(word for word in words if isinstance(word, str))

    @property
    def failed_at(self) -> datetime | None:
        """When it failed the last time; None: it does not say."""
        try:
            when = datetime.fromisoformat(self.headers[copies.LAST_FAILURE_HEADER])
        except (KeyError, TypeError, ValueError):
            return None
        return when if when.tzinfo else None


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which messages are meant; what is None asks for nothing."""

    routing_key: str | None = None
    """``*`` stands for any characters, ``?`` for one."""
    exception: str | None = None
    """A part of ``Archived.reason``, in capitals or not."""
    message_id: str | None = None
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def match(self, one: Archived, now: datetime) -> bool:
        """Whether a message is meant. One that does not say when it failed has no age.

        Args:
            one: the message.
            now: the time, with its zone.
        """
        if self.routing_key is not None and not fnmatchcase(one.routing_key, self.routing_key):
            return False
        if self.exception is not None and self.exception.casefold() not in one.reason.casefold():
            return False
        if self.message_id is not None and one.properties.message_id != self.message_id:
            return False
        if self.older_than is None and self.newer_than is None:
            return True
        if one.failed_at is None:
            return False
        age = now - one.failed_at
        return (self.older_than is None or age > self.older_than) and (
            self.newer_than is None or age < self.newer_than
        )


def archives(settings: CarrotSettings, names: Sequence[str]) -> list[Archive]:
    """The archives of these queues, each given by its own name or its archive's.

    ``<queue>.dead`` is the archive of a queue of tasks: messages that no task can be made of.

    Args:
        settings: checked settings.
        names: empty: those of all handlers that are registered. A queue without a handler had one,
            or has a callback: its archive is looked for at the broker of handlers.

    Raises:
        CarrotConfigException: a handler's settings are wrong, there is no handler at all, or no
            such queue of tasks.
    """
    known = {queue.name: queue for queue in handlers.queues(settings)}
    retry_header = settings.handlers.retry_header
    found: dict[str, Archive] = {}
    for name in names or known:
        if name.endswith(DEAD_SUFFIX) and name not in known:
            archive, queue = name, name.removesuffix(DEAD_SUFFIX)
            host = settings.queue(queue).host
        else:
            queue = name.removesuffix(ARCHIVED_SUFFIX)
            archive = f"{queue}{ARCHIVED_SUFFIX}"
            host = known[queue].host if queue in known else settings.handlers.host
        found[archive] = Archive(name=archive, queue=queue, host=host, retry_header=retry_header)
    if not found:
        raise CarrotConfigException(
            "No message handler is registered in this project. Name a queue, for example that of a "
            "callback, with --queue."
        )
    return [*found.values()]


class Pass:
    """One look through an archive, on a channel of its own.

    Args:
        archive: it may not exist: as good as empty.
        connection: to its broker.

    Raises:
        BrokerError: the broker does not answer.
    """

    def __init__(self, archive: Archive, connection: pika.BlockingConnection) -> None:
        self._archive = archive
        self._connection = connection
        self._back: Any = None
        self.total = 0
        """Messages that it is going to look at: what comes later is left alone."""
        with _broker_errors(archive):
            self._channel = connection.channel()
            try:
                frame = self._channel.queue_declare(archive.name, passive=True)
                self.total = frame.method.message_count
            except ChannelClosedByBroker as error:
                if error.reply_code != blocking.NOT_FOUND:
                    raise

    def __iter__(self) -> Iterator[Archived]:
        for _ in range(self.total):
            with _broker_errors(self._archive):
                method, properties, body = self._channel.basic_get(self._archive.name)
            if method is None:
                return
            yield Archived(tag=method.delivery_tag, properties=properties, body=body)

    def delete(self, one: Archived) -> None:
        """Take a message off the archive, for good when ``close`` has returned."""
        with _broker_errors(self._archive):
            self._channel.basic_ack(one.tag)

    def replay(self, one: Archived) -> None:
        """Put a message back to its queue, to be tried as if it had never been.

        It leaves the archive when the broker has confirmed that the queue holds it. A process
        that dies in between leaves it in both.

        Raises:
            BrokerError: the queue does not take it, or that is not certain. It stays.
        """
        archive = self._archive
        with _broker_errors(archive):
            if self._back is None:
                self._back = self._connection.channel()
                self._back.confirm_delivery()
            try:
                self._back.basic_publish(
                    "",
                    archive.queue,
                    one.body,
                    _replayed(one, archive.retry_header),
                    mandatory=True,
                )
            except UnroutableError:
                raise BrokerError(
                    f"There is no queue {archive.queue}: the service makes it when it starts."
                ) from None
            except NackError:
                raise BrokerError(f"Queue {archive.queue} takes no message: is it full?") from None
        failpoints.reached("replay_before_ack")
        self.delete(one)

    def close(self) -> None:
        """What is held goes back to the archive; what shall be gone is gone."""
        with _broker_errors(self._archive):
            if self._channel.is_open:
                self._channel.close()


@contextmanager
def opened(archive: Archive, patience: int = PATIENCE) -> Iterator[Pass]:
    """A pass through an archive, on a connection of its own.

    Args:
        archive: which.
        patience: seconds without a sign of life from the broker after which it ends.

    Raises:
        BrokerError: the broker does not let us in, or goes away.
    """
    connection = blocking.connect(archive.host, patience)
    try:
        one = Pass(archive, connection)
        yield one
        one.close()
    finally:
        blocking.close(connection)


def _replayed(one: Archived, retry_header: str) -> pika.BasicProperties:
    """What a message comes with another time: as it is, without the count of its retries."""
    properties = one.properties
    headers = {
        key: value
        for key, value in copies.kept_headers(properties).items()
        if key not in (retry_header, copies.REASON_HEADER) and not copies.is_count(key)
    }
    return pika.BasicProperties(
        **{name: getattr(properties, name) for name in copies.COPIED},
        cluster_id=properties.cluster_id,
        headers=headers,
        delivery_mode=wire.PERSISTENT,
    )


@contextmanager
def _broker_errors(archive: Archive) -> Iterator[None]:
    try:
        yield
    except (AMQPError, OSError) as error:
        raise BrokerError(
            f"The broker {archive.host.label} does not go on with {archive.name}: {error!r}"
        ) from error
