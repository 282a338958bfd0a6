# SPDX-License-Identifier: Apache-2.0
"""Publishes with confirms on one open pika connection: many in flight, each outcome its own.

Callback style on ``pika.connection.Connection``, for the service and for every other process
alike (see ``declaring``). What pika offers does not serve: its Twisted adapter matches returned
messages with the wrong publish when several are in flight, and its blocking adapter waits for
each confirm, which is ten times slower.

The life of a post::

    publish -> pending -> basic_publish, in flight under its delivery tag
        ack                      -> settled, confirmed
        return, then ack         -> its topology is declared, it is published once more
        return again, or of a post without topology -> settled, unroutable
        nack                     -> published once more after a moment
        nack again               -> settled, refused
        the broker takes no messages (an alarm) -> settled, not sent
        no answer for SILENCE seconds -> settled, outcome unknown; its queue is tried one by one
        channel or connection closes -> settled, outcome unknown

A message larger than the broker permits closes the channel, too, and so does one to an exchange
that the user may not write to. That one is settled, refused; the others that were in flight are
published once more.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pika.exceptions import AMQPError

from carrot_twisted import failpoints
from carrot_twisted.declaring import Refusal, declare
from carrot_twisted.outage import Outage
from carrot_twisted.topology import Step

if TYPE_CHECKING:
    import pika
    from pika import spec
    from pika.channel import Channel
    from pika.connection import Connection
    from pika.frame import Method

    from carrot_twisted.outbox import Post

_logger = logging.getLogger("carrot_twisted.publisher")

#: Posts in flight at once. The broker confirms in batches: a smaller window waits for it more
#: often, a larger one gains nothing measurable.
WINDOW = 4000
#: Bytes of bodies in flight at once: a stalled broker must not fill our memory.
WINDOW_BYTES = 16 * 1024 * 1024
#: Seconds until a message is sent again that the broker did not take. A quorum queue does so for a
#: moment when it was just made, or has no leader; a full one does so for long.
NACK_RETRY = 0.5
#: Seconds between looks for messages that were sent before the last look and are unconfirmed yet. A
#: quorum queue without a leader confirms nothing; what is meant for it must not fill the window.
SILENCE = 15.0
#: Looks after which a silent queue is forgotten to which nothing is sent any more: others may have
#: sent what there was, and know better.
FORGET_LOOKS = 4
#: What the broker says when it closes the channel over a message that is too large.
TOO_LARGE = re.compile(r"message size \d+ .*max size (\d+)")
#: And over an exchange that the user may not write to, or not with this routing key.
FORBIDDEN = re.compile(r"ACCESS_REFUSED - .*access to (?:topic '.*' in )?exchange '(.*)' in vhost")
#: Its name for the exchange "".
DEFAULT_EXCHANGE = "amq.default"
#: Routing keys that are told by name; a project may have one for each of its customers.
MAX_NAMED = 5

Settled = Callable[["Post", str | None], None]
#: Exchange and routing key.
Destination = tuple[str, str]


class Refused(str):
    """A reason that the broker gave itself: it will say so again if asked at once."""

    __slots__ = ()


class Unanswered(str):
    """A reason of ours: the broker says nothing, and probably will not do so for a while."""

    __slots__ = ()


@dataclass(slots=True, kw_only=True)
class _Silence:
    """Of one destination: its messages are not confirmed."""

    tag: float = math.inf
    """Of the last one sent; infinite before that."""
    looks: int = 0
    """How often it was looked at since something was to go there."""


class PublishingSession:
    """Confirmed publishing on one connection, until that closes.

    Args:
        connection: an open connection that nobody else publishes on.
        settled: called once for each post with None (the broker has it) or the reason why it is
            not certain that the broker has it.
        idle: called when the last post has been settled.
        silent: exchanges and routing keys whose messages are not confirmed, as far as is known.
        on_silence: called when there are more of those. RabbitMQ stops reading from a connection
            that has a few dozen messages unconfirmed by one queue: others need a new connection.
    """

    def __init__(
        self,
        connection: Connection,
        settled: Settled,
        idle: Callable[[], None],
        silent: Iterable[Destination] = (),
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._settled = settled
        self._idle = idle
        self._pending: deque[Post] = deque()
        self._channel: Channel | None = None
        self._ready = False
        self.answers = 0
        """How often the broker has answered. Not each answer settles a post."""
        self._next_tag = 1
        self._in_flight: dict[int, Post] = {}
        self._bytes = 0
        #: Largest body that the broker permits, once it has said so; 16 MiB since RabbitMQ 4.0.
        self._max_body: float = math.inf
        #: Reasons of returned messages, until their confirms come. Messages may share an id.
        self._returned: dict[tuple[str, str, str], list[str]] = {}
        self._known_exchanges = {""}
        #: Posts that wait for a declaration, by the name of its last step.
        self._declaring: dict[str, list[Post]] = {}
        self._alarm = Outage(time.monotonic)
        self._closing = Outage(time.monotonic)
        #: Posts that wait for NACK_RETRY to pass.
        self._nacked: list[Post] = []
        #: The next tag when a queue was declared last, by the name of the last step.
        self._declared_at: dict[str, int] = {}
        #: The next tag at the last look for silence.
        self._looked_at = 1
        #: Where a confirm has come from since that look.
        self._answering: set[Destination] = set()
        #: Where messages are not confirmed.
        self._silent: dict[Destination, _Silence] = {one: _Silence() for one in silent}
        self._on_silence = on_silence
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel()
        self._look = connection._adapter_call_later(SILENCE, self._look_for_silence)

    @property
    def busy(self) -> bool:
        """Whether any post is not settled yet."""
        return bool(self._pending or self._in_flight or self._declaring or self._nacked)

    @property
    def alarm(self) -> str | None:
        """Why the broker takes no messages from anybody now, if so: memory or disk are short."""
        return self._alarm.reason

    @property
    def silent(self) -> list[Destination]:
        """Where messages go that the broker does not confirm."""
        return sorted(self._silent)

    @property
    def max_properties(self) -> int:
        """Bytes that the properties of a message may take: they go in one frame, with 20 more."""
        return int(self._connection.params.frame_max) - 20

    def tries(self, destination: Destination) -> bool:
        """Whether a post to there would be settled at once: the one before it has no answer yet."""
        silence = self._silent.get(destination)
        return silence is not None and silence.tag in self._in_flight

    def publish(self, posts: Iterable[Post]) -> None:
        """Take over posts; ``settled`` tells of each."""
        self._pending.extend(posts)
        if self.alarm is not None:
            self.abandon_pending(blocked(self.alarm))
            self._tell_if_idle()
        self._pump()

    def abandon_pending(self, reason: str) -> None:
        """Settle what was not sent yet."""
        pending, self._pending = self._pending, deque()
        for post in pending:
            self._settled(post, reason)

    def _open_channel(self) -> None:
        self._ready = False
        try:
            channel = self._connection.channel(on_open_callback=self._on_open)
        except AMQPError:
            return
        self._channel = channel
        channel.add_on_close_callback(self._on_close)

    def _on_open(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        # Publishing before SelectOk would leave the last message unconfirmed for ever.
        channel.confirm_delivery(self._on_confirm, callback=self._on_select_ok)

    def _on_select_ok(self, _frame: Method[Any]) -> None:
        self.answers += 1
        self._next_tag = self._looked_at = 1
        self._ready = True
        self._closing.over()
        self._pump()

    def _pump(self) -> None:
        if self._channel is None or not self._channel.is_open:
            # It is being opened, or closed; then what is pending is settled with its end.
            return
        while (
            self._pending
            and self._ready
            and self.alarm is None
            and len(self._in_flight) < WINDOW
            and self._bytes < WINDOW_BYTES
        ):
            post = self._pending.popleft()
            if len(post.body) > self._max_body:
                self._settled(post, self._too_large(post))
                continue
            if post.exchange not in self._known_exchanges:
                self._look_for_exchange(post)
                continue
            if self._silent and self._holds_back(post):
                continue
            assert self._channel is not None
            try:
                self._channel.basic_publish(
                    post.exchange, post.routing_key, post.body, post.properties, mandatory=True
                )
            except AMQPError:
                # The channel is closing; its end settles what was sent.
                self._settled(post, "the channel was closed before it was sent")
                continue
            except Exception as error:
                # Another program may have written the row: a priority of 1000, for example.
                self._settled(post, Refused(f"it cannot be sent: {type(error).__name__}: {error}"))
                continue
            if self._silent and (silence := self._silent.get(_destination(post))):
                silence.tag = self._next_tag
            self._in_flight[self._next_tag] = post
            self._next_tag += 1
            self._bytes += len(post.body)

    def _on_return(
        self,
        _channel: Channel,
        method: spec.Basic.Return,
        properties: pika.BasicProperties,
        _body: bytes,
    ) -> None:
        key = (str(properties.message_id), method.exchange, method.routing_key)
        self._returned.setdefault(key, []).append(method.reply_text or "unroutable")

    def _on_confirm(self, frame: Method[Any]) -> None:
        failpoints.reached("after_publish_before_confirm")
        self.answers += 1
        tag: int = frame.method.delivery_tag
        acked = frame.method.NAME == "Basic.Ack"
        if frame.method.multiple:
            # Tags are given out in ascending order, so a dictionary holds them in that order.
            tags = []
            for candidate in self._in_flight:
                if candidate > tag:
                    break
                tags.append(candidate)
        else:
            tags = [tag]
        if self._silent:
            self._hear(tags, tag, frame.method.multiple)
        for one in tags:
            post = self._in_flight.pop(one, None)
            if post is None:
                continue
            self._bytes -= len(post.body)
            self._answering.add((post.exchange, post.routing_key))
            reason = self._reason_of_return(post)
            if not acked and not post.nacked:
                self._retry_soon(post)
            elif not acked:
                self._settled(post, Refused("the broker refused it (basic.nack)"))
            elif reason is None:
                self._settled(post, None)
            elif post.declared or not post.steps:
                self._settled(post, _unroutable(post, reason))
            else:
                self._declare_for(post, one)
        self._pump()
        self._tell_if_idle()

    def _reason_of_return(self, post: Post) -> str | None:
        key = (post.message_id, post.exchange, post.routing_key)
        reasons = self._returned.get(key)
        if reasons is None:
            return None
        reason = reasons.pop()
        if not reasons:
            del self._returned[key]
        return reason

    def _retry_soon(self, post: Post) -> None:
        post.nacked = True
        self._nacked.append(post)
        if len(self._nacked) == 1:
            self._connection._adapter_call_later(NACK_RETRY, self._retry_nacked)

    def _retry_nacked(self) -> None:
        nacked, self._nacked = self._nacked, []
        if nacked:
            self.publish(nacked)

    def _look_for_silence(self) -> None:
        """Give up what was in flight at the last look already, if its queue has not answered since.

        Where it answers, be it slowly, there is just much to do, or a long way to go.
        """
        if not self._connection.is_open:
            return
        self._look = self._connection._adapter_call_later(SILENCE, self._look_for_silence)
        fresh: set[Destination] = set()
        # In an alarm nothing is confirmed, whatever its queue is like.
        if self.alarm is None:
            self._forget_silent()
            for tag in list(takewhile(lambda tag: tag < self._looked_at, self._in_flight)):
                destination = _destination(self._in_flight[tag])
                if destination in self._answering:
                    continue
                if destination not in self._silent:
                    fresh.add(destination)
                self._silent.setdefault(destination, _Silence()).tag = tag
                post = self._in_flight.pop(tag)
                self._bytes -= len(post.body)
                self._settled(post, _unanswered(post))
        self._answering.clear()
        self._looked_at = self._next_tag
        self._pump()
        self._tell_if_idle()
        if fresh:
            _logger.warning(
                "The broker does not confirm messages to %s. Their rows wait in the outbox, others "
                "go on. Has its queue a leader?",
                named(fresh),
            )
            self._on_silence()

    def _forget_silent(self) -> None:
        """Nothing is known any more of where nothing is sent."""
        for destination, silence in list(self._silent.items()):
            silence.looks += 1
            if silence.looks > FORGET_LOOKS and silence.tag not in self._in_flight:
                del self._silent[destination]

    def _holds_back(self, post: Post) -> bool:
        """Settle a post to where the last one is not confirmed yet; one at a time tries it."""
        destination = _destination(post)
        if destination in self._silent:
            self._silent[destination].looks = 0
        if not self.tries(destination):
            return False
        self._settled(post, _unanswered(post))
        return True

    def _hear(self, tags: Sequence[int], tag: int, multiple: bool) -> None:
        """A confirm of this tag has come, perhaps of what was given up; ``tags`` was in flight."""
        answering = {_destination(self._in_flight[one]) for one in tags if one in self._in_flight}
        heard = {
            destination
            for destination, silence in self._silent.items()
            if destination in answering or silence.tag == tag or (multiple and silence.tag < tag)
        }
        if heard:
            for destination in heard:
                del self._silent[destination]
            _logger.warning("The broker confirms messages to %s again.", named(heard))

    def _declare_for(self, post: Post, tag: int) -> None:
        """The broker knows no queue for this post: declare its topology, publish again."""
        post.declared = True
        # Not by the steps themselves: posts that were made together share them, and others that go
        # to the same queue have their own.
        key = post.steps[-1].name
        waiting = self._declaring.setdefault(key, [])
        waiting.append(post)
        if len(waiting) > 1:
            return
        if tag >= self._declared_at.get(key, 1):
            # It was sent after the last declaration, if there was one: the queue was deleted.
            post.missing_since = time.monotonic()

        def declared(refusals: list[Refusal]) -> None:
            self._declared_at[key] = self._next_tag
            self._on_declared(key, refusals)

        declare(self._connection, post.steps, declared)

    def _look_for_exchange(self, post: Post) -> None:
        """Publishing to an exchange that is not there would close the channel for all others."""
        exchange = post.exchange
        passive = Step(
            method="exchange_declare",
            name=f"exchange {exchange!r}",
            arguments={"exchange": exchange, "passive": True},
        )
        waiting = self._declaring.setdefault(passive.name, [])
        waiting.append(post)
        if len(waiting) > 1:
            return
        ours = any(
            step.method == "exchange_declare" and step.arguments["exchange"] == exchange
            for step in post.steps
        )

        def looked(refusals: list[Refusal]) -> None:
            if not _fatal(refusals):
                self._known_exchanges.add(exchange)
            self._on_declared(passive.name, refusals)

        declare(self._connection, post.steps if ours else [passive], looked)

    def _on_declared(self, key: str, refusals: Sequence[Refusal]) -> None:
        self.answers += 1
        posts = self._declaring.pop(key)
        fatal = _fatal(refusals)
        if fatal:
            for post in posts:
                remedy = ". It has to be declared first" if fatal[0].absent else ""
                text = f"{fatal[0].step.name}: {fatal[0].text}{remedy}"
                self._settled(post, Refused(text) if fatal[0].code else text)
        else:
            self._pending.extendleft(reversed(posts))
            self._pump()
        self._tell_if_idle()

    def _on_close(self, _channel: Channel, reason: Any) -> None:
        in_flight, self._in_flight = self._in_flight, {}
        self._returned.clear()
        self._bytes = 0
        self._known_exchanges = {""}
        self._silent.clear()
        self._answering.clear()
        self._declared_at.clear()
        if self._connection.is_open and self._knows_culprit(str(reason), in_flight.values()):
            self._pending.extendleft(reversed(in_flight.values()))
            in_flight = {}
            self._refuse_forbidden(_forbidden_exchange(str(reason)))
        for post in in_flight.values():
            self._settled(post, f"no answer from the broker before the channel closed: {reason}")
        if self._connection.is_open:
            told = self._closing.failed(str(reason))
            if told is not None:
                _logger.warning("The publishing channel was closed: %s", told)
            self._open_channel()
        else:
            self._ready = False
            self._connection._adapter_remove_timeout(self._look)
            self._pending.extend(self._nacked)
            self._nacked = []
            self.abandon_pending(f"the connection was lost: {reason}")
        self._tell_if_idle()

    def _knows_culprit(self, reason: str, sent: Collection[Post]) -> bool:
        """Whether it is known which of them have closed the channel: the others go once more."""
        too_large = TOO_LARGE.search(reason)
        if too_large is not None:
            # They are refused by _pump.
            self._max_body = int(too_large[1])
            return True
        exchange = _forbidden_exchange(reason)
        return exchange is not None and any(post.exchange == exchange for post in sent)

    def _refuse_forbidden(self, exchange: str | None) -> None:
        """Settle what is to go to an exchange that the user may not write to."""
        if exchange is None:
            return
        reason = Refused(
            f"the user may not write to exchange {exchange or DEFAULT_EXCHANGE!r}: "
            "give him the permission (rabbitmqctl set_permissions)"
        )
        pending, self._pending = self._pending, deque()
        for post in pending:
            if post.exchange == exchange:
                self._settled(post, reason)
            else:
                self._pending.append(post)

    def _too_large(self, post: Post) -> Refused:
        return Refused(
            f"the message of {len(post.body)} bytes is larger than the broker permits, "
            f"{self._max_body} bytes: raise max_message_size in its rabbitmq.conf"
        )

    def _on_blocked(self, _connection: Connection, frame: Method[Any]) -> None:
        told = self._alarm.failed(str(frame.method.reason))
        if told is not None:
            _logger.warning(
                "The broker takes no messages for now (%s); rows wait in the outbox.", told
            )
        # An alarm may last for hours: what was not sent is not kept in memory so long. The little
        # that was sent may have arrived, or arrives when the alarm ends.
        self.abandon_pending(blocked(str(frame.method.reason)))
        self._tell_if_idle()

    def _on_unblocked(self, _connection: Connection, _frame: Method[Any]) -> None:
        after = self._alarm.over()
        if after is not None:
            _logger.warning("The broker takes messages%s.", after)
        # What was sent before the alarm has its time from now on.
        self._looked_at = 1
        self._pump()

    def _tell_if_idle(self) -> None:
        if not self.busy:
            self._idle()


def blocked(alarm: str) -> str:
    """Why nothing is sent in an alarm, for people."""
    return f"the broker takes no messages for now: {alarm}"


def _destination(post: Post) -> Destination:
    return post.exchange, post.routing_key


def _forbidden_exchange(reason: str) -> str | None:
    found = FORBIDDEN.search(reason)
    if found is None:
        return None
    return "" if found[1] == DEFAULT_EXCHANGE else found[1]


def named(destinations: Iterable[Destination]) -> str:
    """The routing keys of destinations, for people: not more of them than they read."""
    keys = sorted({routing_key for _, routing_key in destinations})
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return ", ".join(keys[:MAX_NAMED]) + more


def _unroutable(post: Post, reason: str) -> Refused:
    question = "is a queue bound to this exchange?" if post.exchange else "is there such a queue?"
    return Refused(f"unroutable: {reason}; {question}")


def _unanswered(post: Post) -> Unanswered:
    return Unanswered(
        f"the broker does not confirm messages to {post.routing_key}: has its queue a leader?"
    )


def _fatal(refusals: Sequence[Refusal]) -> list[Refusal]:
    """Refusals after which a message cannot be sent."""
    return [refusal for refusal in refusals if not refusal.exists_differently]
