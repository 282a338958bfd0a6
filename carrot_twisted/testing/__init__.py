# SPDX-License-Identifier: Apache-2.0
"""For the tests of projects: what is published stays in memory, and runs here when the test says.

::

    with in_memory() as carrot:
        signup("ada@example.org")
        assert [log.task for log in carrot.published] == ["shop.tasks.welcome"]
        carrot.run_pending()

No broker, no service and no thread. A task takes the way that a service has it take, by the same
code: its row is claimed, the function found by its path, its arguments read from the row, its log
lines captured, and what became of it written. With pytest, the fixture ``carrot`` is the same. See
docs/testing.md.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest import mock

from django.db import router, transaction
from django.db.models import F
from django.db.models.functions import Now

from carrot_twisted import (
    admission,
    conf,
    execution,
    outbox,
    publisher,
    records,
    schedules,
    signals,
    task_logging,
    wire,
)
from carrot_twisted.admission_decision import Candidate
from carrot_twisted.due import is_due
from carrot_twisted.execution import Limits, Run
from carrot_twisted.identities import new_token
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.publishing import PublishingSession
from carrot_twisted.records import Claimant, Claimed, Finished
from carrot_twisted.testing.memory_broker import MemoryBroker, MemoryConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from django.db.models import QuerySet
    from django.db.models.expressions import Combinable

    from carrot_twisted.outbox import Post
    from carrot_twisted.virtual_host import VirtualHost

__all__ = ["InMemory", "MemoryBroker", "TaskFailed", "in_memory"]

#: Name of the worker that rows say they were run by.
WORKER = "test"
#: Tasks that one ``run_pending`` runs: one that publishes itself would never end.
LIMIT = 1000


class TaskFailed(AssertionError):
    """A task has failed in a test that did not expect it. The cause is what the task has raised.

    Attributes:
        log: the row of the task.
    """

    def __init__(self, log: MessageLog) -> None:
        super().__init__(
            f"Task {log.task} has failed: {log.exception}. If it shall, call "
            "run_pending(check=False) and look at its row."
        )
        self.log = log


class InMemory:
    """What a test sees of its tasks. Made by ``in_memory``.

    Args:
        eager: run each task as soon as it is published.

    Attributes:
        broker: has the messages that were sent, of tasks and by ``carrot_twisted.publish``.
    """

    def __init__(self, eager: bool) -> None:
        self.broker = MemoryBroker()
        self._eager = eager
        self._using = router.db_for_write(MessageLog)
        self._keys: list[Any] = []
        self._ahead = timedelta()
        settings = conf.current()
        self._limits = Limits(result=settings.max_result_size, log=settings.max_log_size)

    @property
    def published(self) -> list[MessageLog]:
        """The rows of all that was published since the beginning, in order, as they are now.

        Not those of transactions that were rolled back: they are gone.
        """
        found = self._rows().in_bulk(self._keys)
        return [found[key] for key in self._keys if key in found]

    def run_pending(self, queue: str | None = None, *, check: bool = True) -> list[MessageLog]:
        """Run all tasks that wait, and those that they publish, in this thread.

        In the order of their publishing, those of a higher priority first. Left alone is what is
        due later, and what a rate does not let start yet: see ``advance``. Rows need not have been
        published since the beginning, nor their transaction be committed: in a ``TestCase`` none
        ever is.

        Args:
            queue: of this queue only.
            check: a task that ends as FAILED is an error of the test.

        Returns:
            Their rows, in the order in which they have ended, as they were then.

        Raises:
            TaskFailed: one has failed, and ``check`` is set. All others have run, too.
            AssertionError: there are more than LIMIT: perhaps a task publishes itself.
        """
        run: list[MessageLog] = []
        failed: list[tuple[MessageLog, BaseException | None]] = []
        before = -1
        # What has to wait for its limits may start when others have ended.
        while len(run) > before:
            before = len(run)
            for row in self._pending(queue, {log.pk for log in run}):
                if len(run) >= LIMIT:
                    raise AssertionError(
                        f"{LIMIT} tasks have run, and more wait, such as {row.task}. Does a task "
                        "publish itself?"
                    )
                log, error = self._run(row)
                if log.limited_by is not None:
                    continue
                run.append(log)
                if log.status == MessageLog.FAILED:
                    failed.append((log, error))
        if failed and check:
            log, error = failed[0]
            raise TaskFailed(log) from error
        return run

    def advance(self, time: timedelta | None = None, **amount: float) -> None:
        """Let time pass for what waits for it; ``run_pending`` runs it then.

        Active schedules publish a task for each slot that comes, delayed tasks and retries become
        due, rates let more tasks start, and those that nobody has started in time expire. Their
        ``run_after`` and ``expires_at`` come nearer by as much. Nothing else has another clock: not
        ``timezone.now()`` in a task, for example.

        Args:
            time: how much.
            amount: the same as ``timedelta`` takes it: ``advance(hours=3)``.
        """
        passed = timedelta(**amount) if time is None else time
        end = self._ahead + passed
        # Those that are new get their first slot, counted from now.
        self._publish_slots()
        while (slot := self._next_slot()) is not None and slot <= end:
            self._ahead = max(slot, self._ahead)
            self._publish_slots()
        self._ahead = end
        self.broker.advance(passed.total_seconds())
        # Who claims them asks the database's clock: so not that one goes on, but they come nearer.
        waiting = self._rows().filter(status=MessageLog.PUBLISHED)
        waiting.update(run_after=F("run_after") - passed, expires_at=F("expires_at") - passed)
        admission.advance(passed.total_seconds(), self._using)

    def _rows(self) -> QuerySet[MessageLog]:
        return MessageLog.objects.using(self._using).all()

    def _now(self) -> Combinable:
        """The database's clock, and what the test has added to it."""
        return Now() + self._ahead

    def _publish_slots(self) -> None:
        with transaction.atomic(using=self._using):
            while schedules.publish_due(self._using):
                pass

    def _next_slot(self) -> timedelta | None:
        """When the next slot of any schedule comes, on the clock of ``_ahead``."""
        waiting = ScheduledTask.objects.using(self._using).filter(
            active=True, next_run_time__gt=self._now()
        )
        times = waiting.annotate(now=Now()).values_list("next_run_time", "now")
        soonest: Any = times.order_by("next_run_time").first()
        return None if soonest is None else soonest[0] - soonest[1]

    def _pending(self, queue: str | None, run: set[Any]) -> list[MessageLog]:
        waiting = self._rows().filter(is_due(), status=MessageLog.PUBLISHED)
        rows = waiting.exclude(pk__in=run)
        if queue is not None:
            rows = rows.filter(queue=queue)
        return list(rows.order_by("-priority", "publish_time", "pk"))

    def _run(self, row: MessageLog) -> tuple[MessageLog, BaseException | None]:
        """Run one task; its row then, and what it has raised, if it has."""
        claimant = Claimant(
            worker=WORKER, lease=60.0, max_crashes=records.ANY_NUMBER, alone=True, judges=False
        )
        raised: list[BaseException] = []
        token = new_token()
        claimed: Any
        with transaction.atomic(using=self._using):
            claimed = records.claim([row.pk], token, claimant, self._using)[row.pk]
            if isinstance(claimed, Candidate):
                request = admission.Request(token=token, rows=[claimed])
                claimed = admission.admit(request, WORKER, {}, self._using).runs.get(row.pk)
        if isinstance(claimed, Claimed):
            body = wire.body(claimed.task_args, claimed.content)
            result = execution.execute(
                Run.of(claimed, header=claimed.task, body=body),
                self._limits,
                lambda _, error: raised.append(error),
                # A test's transaction is open in this thread, and is not the task's.
                own_connections=False,
            )
            assert result is not None, "nobody gives threads up here"
            finished = Finished(
                uuid=claimed.uuid, token=claimed.token, result=result, flow=claimed.flow
            )
            with transaction.atomic(using=self._using):
                records.finish([finished], 0.0, self._using)
                records.settle_flows([finished], self._using)
        self._acknowledge(row)
        row.refresh_from_db()
        return row, raised[0] if raised else None

    def _acknowledge(self, row: MessageLog) -> None:
        for message in list(self.broker.messages):
            if message[1].message_id == str(row.pk):
                self.broker.take(message)

    def _enqueued(self, *, rows: Sequence[MessageLog], **_: Any) -> None:
        self._keys += [row.pk for row in rows]
        if self._eager:
            self.run_pending()


class _MemoryPublisher:
    """Sends to the broker in memory, in the caller's thread."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._connection = MemoryConnection(broker)
        self._session = PublishingSession(self._connection, self._settled, lambda: None)
        self._callbacks: dict[str, Callable[[str | None], None]] = {}
        self._sent: list[Post] = []
        self._lock = threading.RLock()

    def submit(self, rows: Sequence[MessageLog], using: str) -> None:
        with self._lock:
            for posts in outbox.posts(rows).values():
                self._session.publish(posts)
                self._connection.run()
            sent, self._sent = self._sent, []
        outbox.note_confirmed(sent, using)

    def submit_post(
        self, host: VirtualHost, post: Post, settled: Callable[[str | None], None]
    ) -> None:
        with self._lock:
            self._callbacks[post.message_id] = settled
            self._session.publish([post])
            self._connection.run()

    def flush(self, timeout: float) -> bool:
        return True

    def alarm(self, host: VirtualHost) -> str | None:
        return None

    def _settled(self, post: Post, error: str | None) -> None:
        settled = self._callbacks.pop(post.message_id, None)
        if settled is not None:
            settled(error)
        elif error is None:
            self._sent.append(post)


@contextmanager
def in_memory(*, eager: bool = False) -> Iterator[InMemory]:
    """Keep what is published in memory, as long as the block lasts.

    Needs a database, as the project's tests have it: rows are written.

    Args:
        eager: run each task as soon as it is published, in the same thread and transaction; what
            it raises comes out of ``publish_message`` as a ``TaskFailed``. Tasks that are due later
            still wait for ``advance`` and ``run_pending``.
    """
    carrot = InMemory(eager)
    task_logging.capture({*conf.current().task_modules})
    with ExitStack() as stack:
        before = publisher.install(_MemoryPublisher(carrot.broker))
        stack.callback(publisher.install, before)
        signals.rows_enqueued.connect(carrot._enqueued, weak=False)
        stack.callback(signals.rows_enqueued.disconnect, carrot._enqueued)
        stack.enter_context(mock.patch.object(schedules, "clock", carrot._now))
        yield carrot
