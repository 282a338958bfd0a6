# SPDX-License-Identifier: Apache-2.0
"""What an operator does to all waiting tasks at once: throw them away, or ring for them again."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from django.db import router, transaction

from carrot_twisted import blocking, conf, outbox
from carrot_twisted.exceptions import BrokerError
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.db.models import QuerySet
    from pika import BlockingConnection

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.virtual_host import VirtualHost

_logger = logging.getLogger("carrot_twisted.housekeeping")

#: Rows per transaction: long enough to be quick, short enough that no worker has to wait.
CHUNK = 1000
#: Seconds without a sign of life from a broker after which a purge gives up.
PATIENCE = 10


def purge_queue(queue: str | None = None) -> int:
    """Delete all tasks that are PUBLISHED or IN_PROGRESS, and their messages at the broker.

    What a service has taken already runs on, but its row is gone and does not come back: its
    result, log and failure go nowhere. What is published after the call has begun is kept.

    The messages go first, then the rows, in chunks, then the messages that services and publishers
    sent meanwhile. So with a broker away nothing is deleted. Should the broker go away in between,
    messages without a row are left; so are those that a service holds in its memory. They do no
    harm: no task runs without its row, and the service moves them to ``<queue>.dead``.

    Args:
        queue: one queue of the settings; None: all rows, and the messages of all queues of the
            settings. Queues that the broker does not know yet are as good as empty.

    Returns:
        How many rows were deleted.

    Raises:
        CarrotConfigException: no such queue in the settings.
        BrokerError: a broker could not be reached, or refused. No row was deleted; should messages
            have been, the services send them again.
    """
    settings = conf.current()
    queues = list(settings.queues.values()) if queue is None else [settings.queue(queue)]
    using = router.db_for_write(MessageLog)
    rows = MessageLog.objects.using(using).unfinished()
    if queue is not None:
        rows = rows.filter(queue=queue)
    newest = rows.order_by("-pk").values_list("pk", flat=True).first()
    _purge_messages(queues, using)
    deleted = 0
    if newest is not None:
        deleted = _delete(rows.filter(pk__lte=newest), using)
        try:
            _purge_messages(queues, using)
        except BrokerError as error:
            _logger.warning("All rows are deleted, but perhaps not all messages: %s", error)
    # What was published since the call began has lost its messages, too.
    _ring_again(queues, using)
    return deleted


def _purge_messages(queues: Sequence[QueueSettings], using: str) -> None:
    with ExitStack() as stack:
        connections: dict[VirtualHost, BlockingConnection] = {}
        # All of them first: where one cannot be reached, nothing is purged at the others.
        for host in dict.fromkeys(queue.host for queue in queues):
            connections[host] = blocking.connect(host, PATIENCE)
            stack.callback(blocking.close, connections[host])
        try:
            for queue in queues:
                blocking.purge(connections[queue.host], queue.name)
        except BrokerError:
            _ring_again(queues, using)
            raise


def _ring_again(queues: Sequence[QueueSettings], using: str) -> None:
    for queue in queues:
        while outbox.queue_lost(queue.name, using) == outbox.RING_BATCH:
            pass


def _delete(rows: QuerySet[MessageLog], using: str) -> int:
    total = 0
    # The order of the index of unfinished rows: final ones, perhaps millions, are not looked at.
    rows = rows.order_by("queue", "publish_time")
    # First what nobody is about to change, so that workers and this never wait for each other.
    for skip_locked in (True, False):
        count = CHUNK
        while count == CHUNK:
            with transaction.atomic(using=using):
                count = delete_some(rows, CHUNK, skip_locked=skip_locked)
            total += count
    return total


def delete_some(rows: QuerySet[MessageLog], limit: int, *, skip_locked: bool) -> int:
    """Delete the first ``limit`` of these rows, without loading them. Call it in a transaction.

    Args:
        rows: a query, in the order in which they go.
        limit: how many at most.
        skip_locked: leave rows alone that others are about to change.

    Returns:
        How many rows were deleted. Fewer than ``limit``: no more are left.
    """
    chosen = rows.select_for_update(skip_locked=skip_locked).values_list("pk", flat=True)
    doomed = MessageLog.objects.using(rows.db).filter(pk__in=list(chosen[:limit]))
    # "only": where a project listens to deletions, Django loads the rows to tell of them.
    _, by_model = doomed.only("pk").delete()
    return by_model.get(MessageLog._meta.label, 0)


def requeue_all() -> int:
    """Ring again for all waiting tasks: every PUBLISHED row gets a new message.

    The rows stay, so nothing runs twice: a message whose task has run, or runs, is acknowledged
    and starts nothing. Tasks IN_PROGRESS are not touched: their worker sees to them, or the
    services do when that worker is lost. Rows that wait in the outbox for a later time keep it.

    The running services send the messages, within a second or two.

    Returns:
        How many tasks get a new message.

    Raises:
        CarrotConfigException: the setting has mistakes.
    """
    names = list(conf.current().queues)
    using = router.db_for_write(MessageLog)
    homeless = MessageLog.objects.using(using).filter(status=MessageLog.PUBLISHED)
    homeless = homeless.exclude(queue__in=names).order_by()
    for name in homeless.values_list("queue", flat=True).distinct():
        _logger.warning(
            "Queue %r is not in CARROT['queues']; its tasks wait until it is there again.", name
        )
    return outbox.ring_for_all(names, using)
