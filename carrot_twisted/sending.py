# SPDX-License-Identifier: Apache-2.0
"""Messages that no row stands for: published, and waited for until the broker has them."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pika

from carrot_twisted import publisher, tracing, wire
from carrot_twisted.exceptions import InvalidMessage, PublishReturned, PublishTimeout
from carrot_twisted.kinds import MAX_NAME_BYTES, is_seconds
from carrot_twisted.outbox import Post
from carrot_twisted.publishing import Refused, blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from carrot_twisted.virtual_host import VirtualHost

#: Seconds until a message is sent again whose confirm did not come, or that could not be sent.
RETRY = 0.5
NO_ANSWER = "no answer from the broker"


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A message, and where it is to go."""

    host: VirtualHost
    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties

    def send(self, settled: Callable[[str | None], None]) -> None:
        """Have it sent once; ``settled`` is called as by ``Publisher.submit_post``."""
        post = Post(
            message_id=str(self.properties.message_id),
            token=None,
            exchange=self.exchange,
            routing_key=self.routing_key,
            body=self.body,
            properties=self.properties,
            steps=(),
        )
        publisher.current().submit_post(self.host, post, settled)

    def check(self, error: str | None, left: float) -> bool:
        """Whether the broker has it; False: it is to be sent again after RETRY seconds.

        Args:
            error: what ``settled`` was called with.
            left: seconds that are left.

        Raises:
            PublishReturned: the broker refused it.
            PublishTimeout: there is no time for another try.
        """
        if isinstance(error, Refused):
            raise PublishReturned(f"{self._name} was not published: {error}")
        if error is not None and left <= RETRY:
            raise self.late(error)
        return error is None

    def late(self, reason: str | None) -> PublishTimeout:
        """What to raise when the time is over.

        Args:
            reason: of the last try that has failed, if one has.
        """
        alarm = publisher.current().alarm(self.host)
        # What was sent just before an alarm gets no answer until that ends.
        reason = blocked(alarm) if alarm is not None else reason or NO_ANSWER
        return PublishTimeout(
            f"{self._name} was not confirmed in time: {reason}. The broker may have it all the "
            "same: publish it again if it may come twice."
        )

    @property
    def _name(self) -> str:
        return (
            f"The message to exchange {self.exchange!r} with routing key {self.routing_key!r} "
            f"on {self.host.label}"
        )


def outgoing(
    body: Any,
    exchange: str,
    routing_key: str,
    *,
    headers: Mapping[str, Any] | None,
    host: VirtualHost,
    **properties: Any,
) -> Outgoing:
    """A message made of the arguments of ``carrot_twisted.publish``.

    Raises:
        InvalidMessage: one of them makes no sense; the text names it.
    """
    for name, value in (("exchange", exchange), ("routing_key", routing_key)):
        if not _is_name(value):
            raise InvalidMessage(f"{name} is a text of {MAX_NAME_BYTES} bytes at most.")
    if not (exchange or routing_key):
        raise InvalidMessage(
            "Say where the message is to go: exchange='amq.topic', routing_key='my.topic', or "
            "routing_key alone, the name of a queue."
        )
    data, kind = _encoded(body)
    given = {
        "content_type": kind,
        "delivery_mode": wire.PERSISTENT,
        "message_id": str(uuid.uuid4()),
        **properties,
    }
    try:
        told = dict(headers or {})
        made = pika.BasicProperties(headers=told, **given)
        made.encode()
    except Exception as error:
        raise InvalidMessage(
            f"Headers or properties cannot be sent ({type(error).__name__}: {error}): texts, "
            "numbers and the names of pika.BasicProperties."
        ) from error
    # After all that may be wrong with it.
    made.headers = tracing.carried_by(exchange, routing_key, str(made.message_id), told)
    return Outgoing(
        host=host, exchange=exchange, routing_key=routing_key, body=data, properties=made
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode()) <= MAX_NAME_BYTES


def _encoded(body: Any) -> tuple[bytes, str | None]:
    """The body's bytes, and their content type."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), None
    if isinstance(body, str):
        try:
            return body.encode(), "text/plain"
        except UnicodeEncodeError as error:
            raise InvalidMessage(f"The body is no text that UTF-8 knows: {error}.") from None
    return wire.exact_json(body, "body").encode(), wire.CONTENT_TYPE


def check_timeout(timeout: float) -> float:
    """The seconds to wait.

    Raises:
        InvalidMessage: it is no number above 0.
    """
    if not is_seconds(timeout):
        raise InvalidMessage(f"timeout is a number of seconds above 0, not {timeout!r}.")
    return timeout


def publish(message: Outgoing, timeout: float) -> None:
    """Send a message, and again until the broker has confirmed it.

    Raises:
        PublishReturned: the broker refused it.
        PublishTimeout: it was not confirmed in so many seconds.
    """
    end = time.monotonic() + timeout
    reason: str | None = None
    while True:
        answers: SimpleQueue[str | None] = SimpleQueue()
        message.send(answers.put)
        try:
            error = answers.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            raise message.late(reason) from None
        if message.check(error, end - time.monotonic()):
            return
        reason = error or reason
        time.sleep(RETRY)
