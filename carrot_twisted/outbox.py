# SPDX-License-Identifier: Apache-2.0
"""The outbox: rows that the broker has not confirmed, and the posts made of them.

A *post* is what a publishing session needs to send one row's message. It is made of the row
alone, so a relay in another process sends byte for byte what the publisher would have sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pika
from django.db import transaction
from django.db.models import Case, Q, When
from django.db.models.functions import Now
from django.db.models.lookups import GreaterThan

from carrot_twisted import conf, failpoints, statements, topology, tracing, wire
from carrot_twisted.due import GRACE, due_in, in_state, is_due, since_due
from carrot_twisted.identities import new_token
from carrot_twisted.models import MessageLog
from carrot_twisted.signing import Seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from django.db.models import QuerySet
    from django.db.models.expressions import CombinedExpression

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.statements import Look
    from carrot_twisted.topology import Step
    from carrot_twisted.virtual_host import VirtualHost

#: Rows that are put back into the outbox at once.
RING_BATCH = 5000
#: Seconds for which a row is left to the relay that took it.
LEASE = 30.0
#: Seconds until a row is tried again that the broker has refused, for all we know for the first
#: time: a quorum queue may just be electing its leader.
REFUSED_RETRY_FIRST = 5.0
#: When it is tried again after that, by its age: while it is younger than so many seconds, after so
#: many.
REFUSED_RETRY = ((60.0, 5.0), (600.0, 30.0), (3600.0, 180.0))
#: And once it is older.
REFUSED_RETRY_LAST = 600.0


@dataclass(slots=True, eq=False, kw_only=True)
class Post:
    """One message on its way to the broker."""

    message_id: str
    token: int | None
    """Of the row when this was made; None for a message without a row."""
    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    steps: Sequence[Step]
    """What to declare if the broker does not know where to put the message."""
    declared: bool = field(default=False, init=False)
    missing_since: float | None = field(default=None, init=False)
    """When the first of those that go to this queue found it missing, on the monotonic clock."""
    nacked: bool = field(default=False, init=False)


def posts(rows: Iterable[MessageLog]) -> dict[VirtualHost, list[Post]]:
    """The rows' messages, grouped by the broker of their queues."""
    settings = conf.current()
    result: dict[VirtualHost, list[Post]] = {}
    # Looked up once for each queue: hashing a host takes as long as making a message.
    targets: dict[str, tuple[QueueSettings, Sequence[Step], list[Post]]] = {}
    seal = Seal() if any(queue.signs for queue in settings.queues.values()) else None
    for row in rows:
        target = targets.get(row.queue)
        if target is None:
            found = settings.queue(row.queue)
            target = found, topology.work_queue(found), result.setdefault(found.host, [])
            targets[row.queue] = target
        queue, steps, posts_of_host = target
        message_id = str(row.uuid)
        body = wire.body(row.task_args, row.content)
        properties = wire.properties(row.task, message_id, row.priority)
        if row.trace is not None:
            properties["headers"].update(tracing.headers_of(row.trace))
        if seal is not None and queue.signs:
            properties = seal.sign(properties, body)
        posts_of_host.append(
            Post(
                message_id=message_id,
                token=row.token,
                exchange=row.exchange,
                routing_key=row.routing_key or row.queue,
                body=body,
                properties=pika.BasicProperties(**properties),
                steps=steps,
            )
        )
    return result


def note_confirmed(posts: Sequence[Post], using: str) -> None:
    """The broker holds these messages. Rows that a worker has taken meanwhile need no note."""
    failpoints.reached("after_confirm_before_note")
    keys = [(UUID(post.message_id), post.token) for post in posts if post.token is not None]
    statements.confirm_rows(MessageLog._meta.db_table, keys, using)


def note_errors(errors: Mapping[str, str], using: str, delay: float) -> None:
    """These messages did not get to the broker, and why. They stay in the outbox.

    Args:
        errors: reason by message id.
        using: database alias.
        delay: seconds until a relay tries again.
    """
    _note(errors, lambda _: due_in(delay), using)


def note_refused(errors: Mapping[str, str], using: str) -> None:
    """The broker refused these messages, and why. They stay in the outbox.

    It will do so again until somebody mends the cause, so each is tried at growing intervals: see
    REFUSED_RETRY. How long it has been tried is the age of the row, on the database's clock, unless
    it was not refused before, or for another reason.

    Args:
        errors: reason by message id.
        using: database alias.
    """
    steps = [
        When(GreaterThan(since_due(), Now() - timedelta(seconds=age)), then=due_in(delay))
        for age, delay in REFUSED_RETRY
    ]
    last = due_in(REFUSED_RETRY_LAST)

    def due(text: str) -> Case:
        first = When(~Q(publish_error=text), then=due_in(REFUSED_RETRY_FIRST))
        return Case(first, *steps, default=last)

    _note(errors, due, using)


def _note(
    errors: Mapping[str, str], due: Callable[[str], Case | CombinedExpression], using: str
) -> None:
    by_text: dict[str, list[str]] = {}
    for message_id, text in errors.items():
        by_text.setdefault(text, []).append(message_id)
    rows = MessageLog.objects.using(using)
    for text, message_ids in by_text.items():
        with transaction.atomic(using=using):
            ids = _free(rows.filter(_unsent(), pk__in=message_ids))
            rows.filter(pk__in=ids).update(publish_error=text, relay_at=due(text))


def _unsent() -> Case:
    return in_state(MessageLog.PUBLISHED, Q(confirmed_at__isnull=True))


def _free(rows: QuerySet[MessageLog]) -> list[UUID]:
    """Lock those of the rows that nobody else has locked; returns their primary keys.

    Who has one is about to claim or to send it. To wait for that, holding others, makes deadlocks.
    """
    return list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True))


def give_back(posts: Sequence[Post], using: str) -> None:
    """What a relay took and could not send is due again, for any relay."""
    keys = [post.message_id for post in posts]
    tokens = {post.token for post in posts}
    rows = MessageLog.objects.using(using).filter(_unsent(), pk__in=keys, token__in=tokens)
    rows.update(relay_at=due_in(0))


def unsent() -> Look:
    """For what there is for a relay: so it is with few looks, and this one costs little."""
    return statements.unsent(MessageLog._meta.db_table, GRACE)


def take_unsent(queues: Sequence[str], limit: int, using: str) -> list[MessageLog]:
    """Up to ``limit`` unsent rows of these queues, oldest first, for this relay alone.

    Several relays share the work: a row that was taken is left alone by all for LEASE
    seconds, or until it is confirmed. Should the taker die meanwhile, another one follows. Call it
    inside a transaction.
    """
    token = new_token()
    waiting = (
        MessageLog.objects.using(using)
        .unsent()
        .filter(queue__in=queues, relay_at__lte=Now() - timedelta(seconds=GRACE))
    )
    candidates = _free(waiting.order_by("relay_at")[:limit])
    if not candidates:
        return []
    # By their keys alone: they are locked. What more is asked for might be looked up by an index
    # of all unsent rows.
    taken = MessageLog.objects.using(using).filter(pk__in=candidates)
    taken.update(token=token, relay_at=due_in(LEASE))
    return list(taken)


def ring_again(queue: str, quiet: float, using: str) -> int:
    """Put rows back into the outbox whose message was confirmed but did not come.

    For a queue that the broker says is empty: the message was lost with a purged queue, or with a
    broker's disk. A second message does no harm where the first is still there: the row runs once.

    Args:
        queue: name of the queue.
        quiet: leave rows alone that were confirmed less than this many seconds ago.
        using: database alias.

    Returns:
        How many rows were put back; RING_BATCH at most.
    """
    # Those that wait for their limits have no message.
    lost = MessageLog.objects.using(using).filter(
        status=MessageLog.PUBLISHED,
        queue=queue,
        waits_for__isnull=True,
        confirmed_at__lt=Now() - timedelta(seconds=quiet),
    )
    return _unsend(lost, skip_locked=True)


def queue_was_missing(queue: str, since: float, using: str) -> int:
    """Put rows back into the outbox whose messages a queue held before it was deleted.

    Args:
        queue: its name.
        since: when it was found missing, on the monotonic clock.
        using: database alias.

    Returns:
        How many rows were put back; RING_BATCH at most: call it again then.
    """
    return ring_again(queue, time.monotonic() - since, using)


def queue_lost(queue: str, using: str) -> int:
    """Put all waiting rows of a queue back into the outbox that has lost its messages.

    But for those that are due later, which have none. Also those whose publisher has not noted the
    confirm yet: their token goes, so it will not.

    Returns:
        How many rows were put back; RING_BATCH at most: call it again then.
    """
    lost = MessageLog.objects.using(using).filter(
        is_due(), status=MessageLog.PUBLISHED, queue=queue, token__isnull=False
    )
    # Those that are being noted as confirmed just now as well.
    return _unsend(lost, skip_locked=False)


def ring_for_all(queues: Sequence[str], using: str) -> int:
    """Put all waiting rows of these queues back into the outbox, in chunks.

    Left alone is what waits in the outbox for a later time, and what others change just now: it is
    being claimed, or its message was sent this very moment.

    Returns:
        How many rows were put back.
    """
    waiting = MessageLog.objects.using(using).filter(
        is_due(),
        Q(confirmed_at__isnull=False) | Q(relay_at__lte=Now()),
        waits_for__isnull=True,
        status=MessageLog.PUBLISHED,
        queue__in=queues,
    )
    # Rows published meanwhile need no second message, and must not keep this from ending.
    newest = waiting.order_by("-pk").values_list("pk", flat=True).first()
    if newest is None:
        return 0
    total = 0
    rest = waiting.filter(pk__lte=newest)
    while True:
        with transaction.atomic(using=using):
            candidates = rest.order_by("pk").select_for_update(skip_locked=True)
            ids = list(candidates.values_list("pk", flat=True)[:RING_BATCH])
            if not ids:
                return total
            total += _put_back(ids, using)
        rest = waiting.filter(pk__gt=ids[-1], pk__lte=newest)


def _unsend(rows: QuerySet[MessageLog], skip_locked: bool) -> int:
    with transaction.atomic(using=rows.db):
        # Where this has to wait: in the order in which claims mostly come to the rows.
        locked = rows.order_by("publish_time").select_for_update(skip_locked=skip_locked)
        ids = list(locked.values_list("pk", flat=True)[:RING_BATCH])
        return _put_back(ids, rows.db) if ids else 0


def _put_back(locked: Sequence[UUID], using: str) -> int:
    rows = MessageLog.objects.using(using).filter(pk__in=locked)
    return rows.update(confirmed_at=None, token=None, relay_at=due_in(0))
