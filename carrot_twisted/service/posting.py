# SPDX-License-Identifier: Apache-2.0
"""The service's publishing: its own connections, apart from the consuming ones.

In a memory alarm the broker reads nothing from a connection that publishes, acknowledgements
included; so consuming has a connection of its own.
"""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
from txaio.tx import make_logger

from carrot_twisted import conf, copies, failpoints, outbox, outcomes, topology, wire
from carrot_twisted.copies import QUEUE_HEADER, REASON_HEADER
from carrot_twisted.outage import Outage
from carrot_twisted.outbox import Post
from carrot_twisted.publisher import ThreadPublisher
from carrot_twisted.publishing import PublishingSession, Refused, Unanswered, named
from carrot_twisted.service.connection import BrokerConnection, close_all
from carrot_twisted.service.operations import Confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.defer import Deferred

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.models import MessageLog
    from carrot_twisted.publishing import Destination
    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.protocol import CarrotProtocol
    from carrot_twisted.virtual_host import VirtualHost

_log = make_logger()

#: Characters of a reason in the log.
MAX_REASON = 300
#: Seconds until a dead letter is tried again that the broker did not take.
DEAD_LETTER_RETRY = 5.0
#: Seconds until a relay tries rows again whose connection was lost.
LOST_RETRY = 1.0
#: And rows whose queue does not answer.
UNANSWERED_RETRY = 5.0
#: Posts that wait for a confirm; above this, rows are left to the relay: the table is the buffer.
MAX_WAITING = 20_000


class ReactorPublisher:
    """Takes committed rows of this process to the broker (see ``publisher.Publisher``).

    Args:
        hosts: the brokers of all queues.
        writer: notes confirms, with its next batch.
        using: database alias of the rows.
        reactor: Twisted's reactor.
    """

    def __init__(
        self, hosts: Sequence[VirtualHost], writer: LogWriter, using: str, reactor: Any
    ) -> None:
        self._writer = writer
        self._using = using
        self._reactor = reactor
        self._hosts = frozenset(hosts)
        self._elsewhere: ThreadPublisher | None = None
        self._sessions: dict[VirtualHost, PublishingSession] = {}
        self.protocols: dict[VirtualHost, CarrotProtocol] = {}
        self.connections = [
            BrokerConnection(host, "publishing", self._connector(host), reactor) for host in hosts
        ]
        self._lock = threading.Lock()
        self._inbox: list[Sequence[MessageLog]] = []
        self._waiting: dict[Post, Callable[[str | None], None] | None] = {}
        self._confirmed: list[Post] = []
        self._errors: dict[str, str] = {}
        self._note_due = False
        self._flushers: list[threading.Event] = []
        self._refusals = Outage(reactor.seconds)
        self._dead: Counter[tuple[str, str]] = Counter()
        #: Of dead-letter queues, by the queues' names: the broker does not take what is for them.
        self._burials: dict[str, Outage] = {}
        self.sent = 0
        """Messages that went out to the broker, some of them more than once."""
        self.confirmed = 0
        self.failed = 0
        """Those that it has refused, or that were under way when the connection was lost."""

    def can_publish(self, host: VirtualHost) -> bool:
        """Whether a post to this broker would go out now."""
        session = self._sessions.get(host)
        return session is not None and not session.alarm and len(self._waiting) < MAX_WAITING

    def takes(self, queue: QueueSettings) -> bool:
        """Whether rows of this queue should be taken from the outbox now.

        Not where one message is being tried that has no answer yet: all others would be settled at
        once, and all the rows that wait for that queue be taken and put back again and again.
        """
        return self.can_publish(queue.host) and not self._sessions[queue.host].tries(
            ("", queue.name)
        )

    @property
    def problem(self) -> str | None:
        """Why messages do not get to their brokers now, in a text for people; None: they do."""
        problems = [connection.problem for connection in self.connections]
        problems += [
            f"the broker {host.label} takes no messages for now: {session.alarm}"
            for host, session in self._sessions.items()
            if session.alarm
        ]
        problems += [
            f"the broker {host.label} does not confirm messages to {named(session.silent)}"
            for host, session in self._sessions.items()
            if session.silent
        ]
        problems += [
            f"messages of queue {queue} that cannot run are not taken by "
            f"{topology.dead_letter_queue(queue)}: {burial.reason}"
            for queue, burial in self._burials.items()
            if burial.reason
        ]
        return "; ".join(problem for problem in problems if problem) or None

    # From any thread.

    def submit(self, rows: Sequence[MessageLog], using: str) -> None:
        """Take over committed rows."""
        with self._lock:
            wake = not self._inbox
            self._inbox.append(rows)
        if wake:
            self._reactor.callFromThread(self._take)

    def submit_post(
        self, host: VirtualHost, post: Post, settled: Callable[[str | None], None]
    ) -> None:
        """Send a message that no row stands for, also to a broker that no queue is on."""
        if host in self._hosts:
            self._reactor.callFromThread(self.send, host, post, settled)
            return
        with self._lock:
            if self._elsewhere is None or not self._elsewhere.alive:
                # Whether this broker is there is no concern of the service's.
                self._elsewhere = ThreadPublisher()
            self._elsewhere.submit_post(host, post, settled)

    def alarm(self, host: VirtualHost) -> str | None:
        """Why a broker takes no messages now, if that is known; from any thread."""
        session = self._sessions.get(host)
        if session is not None:
            return session.alarm
        return None if self._elsewhere is None else self._elsewhere.alarm(host)

    def flush(self, timeout: float) -> bool:
        """Wait, in a worker thread, until all that was taken over is settled."""
        done = threading.Event()
        self._reactor.callFromThread(self._add_flusher, done)
        return done.wait(timeout)

    # In the reactor.

    def publish_rows(self, rows: Sequence[MessageLog]) -> list[Post]:
        """Send rows.

        Returns:
            What cannot go out now; it stays in the outbox.
        """
        left: list[Post] = []
        for host, posts in outbox.posts(rows).items():
            if self.can_publish(host):
                self._waiting.update(dict.fromkeys(posts))
                self._sessions[host].publish(posts)
                self.sent += len(posts)
            else:
                left += posts
        return left

    def dead_letter(self, host: VirtualHost, queue: str, delivery: Delivery, reason: str) -> None:
        """Move a delivery to the queue's dead-letter queue; acknowledged when that holds it."""
        burial = self._burials.setdefault(queue, Outage(self._reactor.seconds))
        if not delivery.settler.is_open:
            # The broker delivers it anew, here or elsewhere; then it may go better.
            burial.over()
            return
        properties = delivery.properties
        headers = copies.kept_headers(properties)
        session = self._sessions.get(host)
        copy = pika.BasicProperties(
            **{name: getattr(properties, name) for name in copies.COPIED},
            headers=headers | {REASON_HEADER: reason, QUEUE_HEADER: queue},
            delivery_mode=wire.PERSISTENT,
        )
        if session is not None and sum(map(len, copy.encode())) > session.max_properties:
            # The broker would end the connection, now and each time that this is tried again.
            text = f"{reason} (its own headers are left out, they leave no room for this one)"
            copy.headers = {REASON_HEADER: text, QUEUE_HEADER: queue}
        post = Post(
            message_id=str(properties.message_id),
            token=None,
            exchange="",
            routing_key=topology.dead_letter_queue(queue),
            body=delivery.body,
            properties=copy,
            steps=topology.dead_letter_steps(conf.current().queue(queue)),
        )

        def settled(error: str | None) -> None:
            if error is None:
                failpoints.reached("dead_letter_before_ack")
                burial.over()
                self._tell_dead(queue, reason)
                delivery.ack()
                delivery.settler.flush()
            else:
                if isinstance(error, Refused):
                    self._tell_unburied(queue, burial, error)
                self._reactor.callLater(
                    DEAD_LETTER_RETRY, self.dead_letter, host, queue, delivery, reason
                )

        self.send(host, post, settled)

    def send(self, host: VirtualHost, post: Post, settled: Callable[[str | None], None]) -> None:
        """Send a message that no row stands for.

        Args:
            host: the broker.
            post: the message.
            settled: called with None (the broker has it) or the reason why that is not certain.
        """
        session = self._sessions.get(host)
        if session is not None:
            self._waiting[post] = settled
            session.publish([post])
            self.sent += 1
        else:
            settled("no connection")

    def _tell_dead(self, queue: str, reason: str) -> None:
        """One log line a second and reason, however many messages there are."""
        if not self._dead:
            self._reactor.callLater(1.0, self._log_dead)
        self._dead[queue, outcomes.one_line(reason, MAX_REASON)] += 1

    def _tell_unburied(self, queue: str, burial: Outage, reason: str) -> None:
        told = burial.failed(reason)
        if told is not None:
            _log.error(
                "Messages of queue {queue} that cannot run are not taken by {dead}: {reason}. They "
                "stay unacknowledged, which leaves room for fewer others, and are tried again",
                queue=queue,
                dead=topology.dead_letter_queue(queue),
                reason=told,
            )

    def _log_dead(self) -> None:
        dead, self._dead = self._dead, Counter()
        for (queue, reason), count in dead.items():
            _log.error(
                "{n} messages of queue {queue} cannot run: {reason}. They are kept in {dead}",
                n=count,
                queue=queue,
                reason=reason,
                dead=topology.dead_letter_queue(queue),
            )

    def start(self) -> None:
        """Connect."""
        for connection in self.connections:
            connection.start()

    @property
    def unconfirmed(self) -> int:
        """How much the broker has still to confirm."""
        return len(self._waiting)

    async def stop(self) -> None:
        """Close the connections. What is unconfirmed stays in the outbox."""
        await close_all(self.connections)
        self._note()

    def _connector(self, host: VirtualHost) -> Callable[[CarrotProtocol], None]:
        silent: list[Destination] = []

        def connected(protocol: CarrotProtocol) -> None:
            self.protocols[host] = protocol
            session = self._sessions[host] = PublishingSession(
                protocol.connection,
                self._settled,
                self._answer_flushers,
                silent,
                lambda: connect_anew(protocol, session),
            )
            silent.clear()
            protocol.connection.add_on_close_callback(lambda *_: closed(protocol))

        def connect_anew(protocol: CarrotProtocol, session: PublishingSession) -> None:
            silent.extend(session.silent)
            # Not closed in order: the broker does not read that.
            protocol.abort()

        def closed(protocol: CarrotProtocol) -> None:
            if self.protocols.get(host) is protocol:
                del self.protocols[host]
                del self._sessions[host]

        return connected

    def _take(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
        for rows in inbox:
            try:
                self.publish_rows(rows)
            except Exception:
                _log.failure("Committed rows could not be made into messages")
        self._answer_flushers()

    def _settled(self, post: Post, error: str | None) -> None:
        callback = self._waiting.pop(post, None)
        if error is None:
            self.confirmed += 1
        else:
            self.failed += 1
        if callback is not None:
            callback(error)
        elif error is None:
            self._confirmed.append(post)
            if post.missing_since is not None and not post.exchange:
                self._ring(post.routing_key, post.missing_since)
        else:
            self._errors[post.message_id] = error
        if not self._note_due:
            self._note_due = True
            self._reactor.callLater(0, self._note)

    def _note(self) -> None:
        self._note_due = False
        if self._confirmed:
            confirmed, self._confirmed = self._confirmed, []
            self._writer.submit(Confirmed(posts=confirmed))
        if self._errors:
            errors, self._errors = self._errors, {}
            self._tell_refused(errors)
            self._write(partial(self._note_errors, errors))

    def _ring(self, queue: str, since: float) -> None:
        """Ring again for what a queue has lost; batch by batch, for the lease has to be renewed."""

        def again(count: int | None) -> None:
            if count == outbox.RING_BATCH:
                self._ring(queue, since)

        ring = partial(outbox.queue_was_missing, queue, since, self._using)
        self._write(ring).addCallback(again)

    def _write(self, note: Callable[[], Any]) -> Deferred[Any]:
        """Have the writer do it; fires with what it returns, or None if it cannot be done."""

        def failed(failure: Any) -> None:
            _log.warn("What became of messages could not be noted: {e}", e=failure.value)

        return self._writer.call(note).addErrback(failed)

    def _tell_refused(self, errors: Mapping[str, str]) -> None:
        reason = next((text for text in errors.values() if isinstance(text, Refused)), None)
        told = None if reason is None else self._refusals.failed(reason)
        if told is not None:
            _log.error(
                "The broker refuses messages: {reason}. Their rows stay in the outbox, say why "
                "(publish_error) and are tried again",
                reason=told,
            )

    def _note_errors(self, errors: Mapping[str, str]) -> None:
        """On the writer's thread. What was lost is sent again soon, what was refused later."""
        refused: dict[str, str] = {}
        unanswered: dict[str, str] = {}
        lost: dict[str, str] = {}
        for key, text in errors.items():
            kinds = {Refused: refused, Unanswered: unanswered}
            kinds.get(type(text), lost)[key] = text
        if refused:
            outbox.note_refused(refused, self._using)
        if unanswered:
            outbox.note_errors(unanswered, self._using, UNANSWERED_RETRY)
        if lost:
            outbox.note_errors(lost, self._using, LOST_RETRY)

    def _add_flusher(self, done: threading.Event) -> None:
        self._flushers.append(done)
        self._answer_flushers()

    def _answer_flushers(self) -> None:
        if self._flushers and not self._inbox and not self._waiting:
            flushers, self._flushers = self._flushers, []
            for done in flushers:
                done.set()
