# SPDX-License-Identifier: Apache-2.0
"""What a thousand tasks cost: statements, frames, hand-overs to the reactor, and memory.

The way is the real one, from publishing to the acknowledgement, with the real writer and the tests'
database. Only the broker is left out, and all threads are this one: what is counted is the same in
every run. None of it is a time. What a task does not ask for must not change these numbers.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pika
import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from carrot_twisted import conf, execution, outbox, publisher
from carrot_twisted.consumer import Consumer
from carrot_twisted.execution import Limits
from carrot_twisted.models import MessageLog
from carrot_twisted.records import Claimant
from carrot_twisted.service.delivery import Delivery, SafeChannel, Settler
from carrot_twisted.service.dispatcher import Dispatcher
from carrot_twisted.service.event_loop import EventLoop
from carrot_twisted.service.log_writer import LogWriter
from carrot_twisted.service.operations import Confirmed
from carrot_twisted.service.tally import Tally
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.project.tasks import noop
from tests.unit.conftest import RecordingPublisher
from tests.unit.test_delivery import Channel
from tests.unit.test_dispatcher import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from carrot_twisted.outbox import Post

pytestmark = pytest.mark.django_db(transaction=True)

#: So many tasks are counted; publisher, broker and service may hold as many at once.
THOUSAND = 1000


class CountingReactor(Reactor):
    """Counts what threads hand over."""

    hand_overs = 0

    def callFromThread(  # noqa: N802
        self, function: Callable[..., Any], *args: Any
    ) -> None:
        self.hand_overs += 1
        super().callFromThread(function, *args)


class Way:
    """A task's way through a service; the writer's and the workers' loops run in this thread."""

    def __init__(self) -> None:
        self.reactor = CountingReactor()
        self.writer = LogWriter(
            lambda alone: Claimant(
                worker="me", lease=10.0, max_crashes=5, alone=alone, judges=True
            ),
            "default",
            self.reactor,
            away="is away",
            on_away=pytest.fail,
            on_back=lambda: None,
            on_broken=lambda failure: pytest.fail(str(failure)),
        )
        queue = conf.current().queue("default")
        self.dispatcher = Dispatcher(
            queue=queue,
            concurrency=4,
            consumer=Consumer(queue.host, queue.name, logging.getLogger("carrot"), "consumer"),
            writer=self.writer,
            limits=Limits(result=1000, log=1000),
            dead_letter=lambda _delivery, reason: pytest.fail(reason),
            events=EventLoop(self.reactor, execution.clean_connections),
            tally=Tally(
                writer=self.writer,
                worker="me",
                queues=["default"],
                using="default",
                reactor=self.reactor,
                now=self.reactor.seconds,
            ),
            reactor=self.reactor,
        )
        # As it is with short tasks after a while, whatever this machine's clock says of them.
        self.dispatcher.pace.seconds = 1e-6
        self.dispatcher.pace.measured = lambda *_: None  # type: ignore[method-assign]
        self.channel = Channel()
        self.settler = Settler(self.channel)
        self.safe = SafeChannel(cast("Any", self.channel), self.settler, self.reactor)
        self.tag = 0

    def write(self) -> None:
        """The writer does all that was submitted."""
        self.writer._inbox.put(None)
        _without_closing(self.writer._loop)

    def confirm(self, posts: list[Post]) -> None:
        """The broker holds them."""
        self.writer.submit(Confirmed(posts=posts))
        self.write()

    def deliver(self, keys: Sequence[UUID]) -> None:
        """One read of the socket brings messages."""
        for key in keys:
            self.tag += 1
            self.channel.unacked.add(self.tag)
            self.settler.delivered(self.tag)
            properties = pika.BasicProperties(
                message_id=str(key),
                app_id="carrot-twisted",
                headers={"type": "tests.project.tasks.noop"},
            )
            self.dispatcher.deliver(
                Delivery(
                    self.settler,
                    self.tag,
                    properties,
                    b'{"args": [], "kwargs": {}}',
                    "",
                    "default",
                    channel=self.safe,
                )
            )
        self.reactor.advance(0)

    def run(self) -> int:
        """The worker threads do all that they have; returns how much that is."""
        jobs = self.dispatcher._executor._pool.recall()
        for job in jobs:
            self.dispatcher._executor.work(job)
        return len(jobs)

    def go(self, keys: Sequence[UUID]) -> None:
        """Messages come, and their tasks run to their end."""
        self.deliver(keys)
        self.write()
        assert self.run() == len(keys)
        self.write()
        self.reactor.advance(0)


def _without_closing(loop: Callable[[], None]) -> None:
    """The writer closes its connection when it ends, which is the test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("carrot_twisted.service.log_writer.connections.close_all", lambda: None)
        loop()


@pytest.fixture
def handed_over() -> Iterator[RecordingPublisher]:
    recording = RecordingPublisher()
    before = publisher.install(recording)
    yield recording
    publisher.install(before)


@pytest.fixture
def way(handed_over: RecordingPublisher, monkeypatch: pytest.MonkeyPatch) -> Way:
    # A task of the tests runs on the writer's connection here, and must not clean it.
    monkeypatch.setattr(execution, "clean_connections", lambda: None)
    way = Way()
    # The first ones bring what stays: caches, the state of the connection.
    way.go(publish(THOUSAND))
    way.channel.frames.clear()
    way.reactor.hand_overs = 0
    return way


def publish(count: int) -> list[UUID]:
    return [row.pk for row in publish_many(create_message(noop) for _ in range(count))]


def statements(work: Callable[[], object]) -> list[str]:
    """The beginnings of all statements, but for those of transactions; one for many rows is one."""
    found: list[str] = []

    def keep(execute: Callable[..., Any], sql: str, *given: Any) -> Any:
        if not sql.startswith(("BEGIN", "SAVEPOINT", "RELEASE")):
            found.append(" ".join(sql.split()[:2]))
        return execute(sql, *given)

    with connection.execute_wrapper(keep):
        work()
    return found


def blocks() -> int:
    """Pieces of memory that are in use."""
    gc.collect()
    return sys.getallocatedblocks()


#: That a transaction waits for locks no longer than a second.
BEGIN = ["SET LOCAL"]
UPDATE = "UPDATE carrot_twisted_messagelog"


def test_a_thousand_tasks_are_published_by_one_insert(handed_over: RecordingPublisher) -> None:
    found = statements(lambda: publish(THOUSAND))
    clock = ["SELECT statement_timestamp()"] if connection.vendor == "postgresql" else []
    assert found == [*clock, "INSERT INTO"]
    assert len(handed_over.rows) == THOUSAND


def test_one_task_is_published_by_one_insert(handed_over: RecordingPublisher) -> None:
    assert statements(lambda: publish_message(noop)) == ["INSERT INTO"]


def test_a_thousand_confirms_are_noted_by_one_statement(
    way: Way, handed_over: RecordingPublisher
) -> None:
    handed_over.rows.clear()
    publish(THOUSAND)
    ((_, posts),) = outbox.posts(handed_over.rows).items()
    found = statements(lambda: way.confirm(posts))
    on_postgresql = [*BEGIN, "WITH free"]
    assert found == (on_postgresql if connection.vendor == "postgresql" else [UPDATE])
    assert MessageLog.objects.filter(confirmed_at__isnull=False).count() == THOUSAND


def test_a_thousand_tasks_are_claimed_by_one_statement_and_ended_by_another(way: Way) -> None:
    keys = publish(THOUSAND)
    found = statements(lambda: way.go(keys))
    assert found == [UPDATE] * 2, "each is a transaction of its own, with nothing around it"
    assert Counter(MessageLog.objects.values_list("status", flat=True)) == {
        "COMPLETED": 2 * THOUSAND
    }


@pytest.mark.only("postgres")
def test_no_statement_reads_a_whole_backlog(way: Way, handed_over: RecordingPublisher) -> None:
    """Also while the database believes that no task waits, as it does after a quiet hour.

    Counted are rows that were read and did not match, in all statements from confirm to end.
    """
    publish(5 * THOUSAND)
    MessageLog.objects.update(status="COMPLETED", confirmed_at=Now())
    with connection.cursor() as cursor:
        cursor.execute(f"VACUUM ANALYZE {MessageLog._meta.db_table}")
    # The backlog, which others work on, and some of it that comes here.
    publish(10 * THOUSAND)
    handed_over.rows.clear()
    keys = publish(THOUSAND // 10)
    ((_, posts),) = outbox.posts(handed_over.rows).items()
    plans: list[str] = []

    def explain(
        execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        if sql.startswith(("UPDATE", "WITH")):
            with transaction.atomic():
                execute(f"EXPLAIN ANALYZE {sql}", params, many, context)
                plans.extend(row[0] for row in context["cursor"].fetchall())
                transaction.set_rollback(True)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        way.confirm(posts)
        way.go(keys)
    removed = [int(n) for line in plans for n in re.findall(r"Rows Removed by Filter: (\d+)", line)]
    assert len([line for line in plans if line.startswith("Execution Time")]) == 3
    assert sum(removed) < THOUSAND, "\n".join(plans)


def test_a_thousand_tasks_cost_one_frame_and_one_hand_over_to_the_reactor(way: Way) -> None:
    way.go(publish(THOUSAND))
    assert way.channel.frames == [("ack", 2 * THOUSAND, True)]
    assert way.reactor.hand_overs == 1


def test_a_task_that_has_ended_leaves_nothing_in_memory(way: Way) -> None:
    keys = publish(THOUSAND)
    before = blocks()
    way.go(keys)
    # What the test's channel remembers is no part of the service.
    way.channel.acked.clear()
    # A thousand would be one for each.
    assert blocks() - before < THOUSAND // 4


def test_a_claimed_task_takes_little_memory(way: Way) -> None:
    """Of the service: what it holds of one from its delivery until it runs."""
    keys = publish(THOUSAND)
    before = blocks()
    way.deliver(keys)
    way.write()
    held = (blocks() - before) / THOUSAND
    assert way.run() == THOUSAND
    assert held < 30


def test_a_thousand_tasks_take_little_memory_at_their_peak(way: Way) -> None:
    keys = publish(THOUSAND)
    gc.collect()
    tracemalloc.start()
    try:
        way.go(keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / THOUSAND < 5000
