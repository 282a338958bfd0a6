# SPDX-License-Identifier: Apache-2.0
"""What operators do: to many tasks at once, to queues, and to workers. From any Django process."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING

from django.db import router, transaction

from carrot_twisted import blocking, conf, flow_settling, handlers, outbox
from carrot_twisted.exceptions import (
    BrokerError,
    CarrotConfigException,
    CarrotError,
    UnknownWorker,
)
from carrot_twisted.flow import kept_for_flows
from carrot_twisted.models import MessageLog, PausedQueue, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from django.db.models import QuerySet
    from pika import BlockingConnection

    from carrot_twisted.conf import QueueSettings
    from carrot_twisted.message_log_set import MessageLogQuerySet
    from carrot_twisted.virtual_host import VirtualHost

    Progress = Callable[[int], None]

_logger = logging.getLogger("carrot_twisted.housekeeping")

#: Rows per transaction: long enough to be quick, short enough that no worker has to wait.
CHUNK = 1000
#: The same where rows are loaded: their arguments may be large.
REQUEUE_CHUNK = 200
#: Why a unique task is not published again.
HELD = "Another task with the same unique key waits or runs."
#: Columns of a row that is published again; its result and its log may be much larger.
REPEATED = (
    *("task", "task_args", "content", "exchange", "queue", "routing_key", "priority"),
    *("unique_key", "unique_until", "retention", "django_task"),
    *("flow", "flow_step", "flow_position", "slot_key", "rate_key"),
)
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
    return _drop(MessageLog.objects.using(rows.db).filter(pk__in=list(chosen[:limit])))


def _drop(doomed: QuerySet[MessageLog]) -> int:
    # "only": where a project listens to deletions, Django loads the rows to tell of them.
    _, by_model = doomed.only("pk").delete()
    return by_model.get(MessageLog._meta.label, 0)


@dataclass(frozen=True, kw_only=True)
class Requeued:
    """What became of many rows that were to be published again."""

    count: int
    """How many were."""
    refused: Mapping[str, int]
    """Why others were not, and how many for that reason. These are as they were."""


def cancel_tasks(
    rows: MessageLogQuerySet,
    progress: Progress | None = None,
    *,
    by: str = "",
    reason: str = "",
    cooperative: bool = False,
) -> int:
    """Keep those of the rows from running that wait, ask those that run to end.

    Args:
        rows: a query, neither sliced nor distinct. What it finds later is left alone.
        progress: called after each chunk, with how many were cancelled, or asked, until then.
        by: as of ``MessageLog.cancel``, with the others.
        reason: for people.
        cooperative: those that run are only told.

    Returns:
        How many were cancelled, or asked.
    """

    def cancel(chosen: MessageLogQuerySet) -> int:
        return chosen.cancel(by, reason, cooperative=cooperative)

    # First what nobody is about to change, so that workers and this never wait for each other.
    waiting = rows.filter(status=MessageLog.PUBLISHED)
    chunks = [_in_chunks(waiting, CHUNK, cancel, skip_locked=first) for first in (True, False)]
    # A task may have locked its own row for as long as it runs: that is not waited for.
    running = rows.filter(status=MessageLog.IN_PROGRESS)
    chunks.append(_in_chunks(running, CHUNK, cancel, skip_locked=True))
    return _added_up(chain.from_iterable(chunks), progress)


def requeue_tasks(rows: MessageLogQuerySet, progress: Progress | None = None) -> Requeued:
    """Publish those of the rows again that have come to their end; see ``MessageLog.requeue``.

    Rows that somebody else changes at that moment are left alone.

    Args:
        rows: a query, neither sliced nor distinct. What it finds later is left alone.
        progress: called after each chunk, with how many were published until then.
    """
    refused: Counter[str] = Counter()

    def requeue(chosen: MessageLogQuerySet) -> int:
        again = []
        for row in chosen.only(*REPEATED):
            try:
                again.append(row.again())
            except CarrotError as error:
                refused[str(error)] += 1
        if not again:
            return 0
        flows = flow_settling.rejoin(again, chosen.db)
        # First these: an old row holds no unique key any more, and stays if somebody else does.
        logs = chosen.enqueue(again)
        replaced = {log.retry_of for log in logs if log.retry_of and not log.duplicate}
        if len(replaced) < len(again):
            refused[HELD] += len(again) - len(replaced)
        _drop(chosen.filter(pk__in=replaced))
        flow_settling.settle(flows, chosen.db)
        return len(replaced)

    final = rows.filter(status__in=MessageLog.FINAL)
    chunks = _in_chunks(final, REQUEUE_CHUNK, requeue, skip_locked=True)
    return Requeued(count=_added_up(chunks, progress), refused=refused)


def delete_tasks(rows: MessageLogQuerySet, progress: Progress | None = None) -> int:
    """Delete those of the rows that have come to their end.

    Rows that somebody else changes at that moment are left alone, and those of flows that run.

    Args:
        rows: a query, neither sliced nor distinct. What it finds later is left alone.
        progress: called after each chunk, with how many were deleted until then.

    Returns:
        How many were deleted.
    """
    final = rows.filter(status__in=MessageLog.FINAL)
    final = final.exclude(kept_for_flows(router.db_for_write(MessageLog)))
    return _added_up(_in_chunks(final, CHUNK, _drop, skip_locked=True), progress)


def _in_chunks(
    rows: MessageLogQuerySet,
    size: int,
    work: Callable[[MessageLogQuerySet], int],
    *,
    skip_locked: bool,
) -> Iterator[int]:
    """Do something with the rows that are there now, each chunk in a transaction of its own.

    Yields:
        What came of each chunk, when it is committed.
    """
    using = router.db_for_write(MessageLog)
    rows = rows.using(using).order_by("pk")
    # What becomes one of them meanwhile, as a task that is run again and fails, is none of them.
    newest = rows.values_list("pk", flat=True).last()
    if newest is None:
        return
    rows = rest = rows.filter(pk__lte=newest)
    while True:
        with transaction.atomic(using=using):
            chosen = rest.select_for_update(skip_locked=skip_locked).values_list("pk", flat=True)
            keys = list(chosen[:size])
            if not keys:
                return
            count = work(MessageLog.objects.using(using).filter(pk__in=keys))
        yield count
        rest = rows.filter(pk__gt=keys[-1])


def _added_up(counts: Iterable[int], progress: Progress | None) -> int:
    total = 0
    for count in counts:
        total += count
        if progress is not None:
            progress(total)
    return total


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


def pause_queue(name: str, by: str = "", reason: str = "") -> None:
    """Let no service take messages off a queue, until ``resume_queue``.

    Publishing goes on, and what runs comes to its end. Services look with each heartbeat (a fifth
    of ``CARROT["lease"]``), and stay paused when they are started anew. To pause a queue that is
    paused changes who and why.

    Args:
        name: a queue of tasks, or of a message handler.
        by: who does it, for people.
        reason: why, for people.

    Raises:
        CarrotConfigException: there is no such queue, or the setting has mistakes.
    """
    known = known_queues()
    if name not in known:
        raise CarrotConfigException(
            f"There is no queue {name!r} to pause. Known queues: {', '.join(known)}."
        )
    PausedQueue.objects.using(router.db_for_write(MessageLog)).update_or_create(
        name=name, defaults={"by": by, "reason": reason}
    )


def resume_queue(name: str) -> bool:
    """Let services take messages off a queue again; see ``pause_queue``.

    Args:
        name: of the queue. One that has left the settings meanwhile can be resumed, too.

    Returns:
        Whether it was paused.

    Raises:
        CarrotConfigException: there is no such queue, or the setting has mistakes.
    """
    paused = PausedQueue.objects.using(router.db_for_write(MessageLog))
    deleted, _ = paused.filter(name=name).delete()
    if not deleted and name not in (known := known_queues()):
        raise CarrotConfigException(
            f"There is no queue {name!r} to resume. Known queues: {', '.join(known)}."
        )
    return bool(deleted)


def known_queues() -> list[str]:
    """Names of all queues, of tasks and of handlers.

    Raises:
        CarrotConfigException: the setting has mistakes.
    """
    settings = conf.current()
    for module in handlers.modules():
        import_module(module)
    return [*settings.queues, *(queue.name for queue in handlers.queues(settings))]


def quiet_worker(name: str) -> None:
    """Let a worker take nothing more, until ``unquiet_worker``; what it runs comes to its end.

    It hears of that with its next heartbeat (a fifth of ``CARROT["lease"]``). It stays alive,
    goes on with schedules and with what was left in the outbox, and says in its state that it is
    quiet. A service that is started in its place is another worker, and works.

    Args:
        name: of the worker's row.

    Raises:
        UnknownWorker: there is none of that name.
    """
    _command(name, Worker.QUIET)


def unquiet_worker(name: str) -> None:
    """Let a quiet worker take tasks and messages again, with its next heartbeat.

    Args:
        name: of the worker's row.

    Raises:
        UnknownWorker: there is none of that name.
    """
    _command(name, "")


def stop_worker(name: str) -> None:
    """Let a worker stop with its next heartbeat, as by SIGTERM: its exit status is 0.

    Args:
        name: of the worker's row.

    Raises:
        UnknownWorker: there is none of that name.
    """
    _command(name, Worker.STOP)


def _command(name: str, command: str) -> None:
    workers = Worker.objects.using(router.db_for_write(MessageLog))
    if not workers.filter(name=name).update(command=command):
        raise UnknownWorker(f"There is no worker {name!r}: it has ended, or never was there.")
