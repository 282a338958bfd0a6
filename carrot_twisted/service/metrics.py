# SPDX-License-Identifier: Apache-2.0
"""What a service tells Prometheus: made of what its parts know, at the moment somebody asks.

Nothing is measured for it: the parts count what they do, a number each, and the charts of the
monitor are made of the same counts (``counted``). How the queues stand comes from the tables, by a
look each LOOK seconds on the writer's thread, however often somebody asks. The registry is this
module's own; prometheus-client's global one is not touched.

Texts of labels are names of queues, brokers (without credentials), tasks, handlers and workers.
A row may name any task; only those that this process has found, MAX_TASKS of them, have a label.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

from carrot_twisted import __version__, standing, task_paths
from carrot_twisted.rollups import OTHERS, Totals
from carrot_twisted.service.chore import Chore
from carrot_twisted.service.families import durations, family, histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from carrot_twisted.service.connection import BrokerConnection
    from carrot_twisted.service.health import Served
    from carrot_twisted.service.parts import Parts, TaskParts
    from carrot_twisted.standing import Standing

#: Seconds between looks at the tables.
LOOK = 15.0
#: Seconds for which a text is given to whoever asks for it: it takes the reactor some milliseconds.
FRESH = 1.0
#: Tasks, and handlers, that have a label of their own.
MAX_TASKS = 100


class Watch:
    """Looks at the tables now and then.

    Args:
        tasks: with the way to the database.
        reactor: Twisted's reactor.
    """

    def __init__(self, tasks: TaskParts, reactor: Any) -> None:
        self._tasks = tasks
        self._seconds = reactor.seconds
        self._chore = Chore("The worker looks how the queues stand", reactor.seconds)
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor
        self._seen: tuple[float, Standing] | None = None

    def start(self) -> None:
        """Begin, with a look at once."""
        self._loop.start(LOOK)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    @property
    def seen(self) -> tuple[float, Standing] | None:
        """How many seconds ago it has last seen something, and what."""
        if self._seen is None:
            return None
        when, found = self._seen
        return self._seconds() - when, found

    def _look(self) -> Deferred[None]:
        if self._tasks.writer.away:
            return succeed(None)

        def found(answer: Standing) -> None:
            self._seen = self._seconds(), answer
            self._chore.succeeded()

        asked = self._tasks.writer.call(partial(standing.read, self._tasks.using))
        return asked.addCallbacks(found, self._chore.failed)


class Metrics:
    """A service's metrics in Prometheus' text form. Used in the reactor only.

    Args:
        served: the engine.
        reactor: Twisted's reactor.
    """

    def __init__(self, served: Served, reactor: Any) -> None:
        self._served = served
        self._parts: Parts = served.parts
        self._seconds = reactor.seconds
        tasks = self._parts.tasks
        self._watch = None if tasks is None else Watch(tasks, reactor)
        #: Labels of queues' tasks, given for good: a counter never loses what it had.
        self._labels: dict[tuple[str, str], str] = {}
        self._text = b""
        self._made: float | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def start(self) -> None:
        """Begin to look at the tables."""
        if self._watch is not None:
            self._watch.start()

    def stop(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.stop()

    def text(self) -> bytes:
        """All of them, at most FRESH seconds old."""
        now = self._seconds()
        if self._made is None or now - self._made >= FRESH:
            self._text = generate_latest(self._registry)
            self._made = now
        return self._text

    def describe(self) -> Iterable[Metric]:
        """Nothing: prometheus-client would ask for all of them when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client."""
        served, parts = self._served, self._parts
        yield family("carrot_service", [((served.name, __version__), 1)])
        problems = served.problems
        yield family("carrot_ready", [((), served.consuming and not problems)])
        yield family("carrot_problems", [((), len(problems))])
        yield from self._of_queues()
        yield from self._of_work()
        yield from self._of_connections()
        if parts.tasks is not None:
            yield from _of_tasks(parts.tasks)
        if self._watch is not None and self._watch.seen is not None:
            yield from _of_database(*self._watch.seen)

    def _of_connections(self) -> Iterator[Metric]:
        # More than one where queues of one broker have users of their own.
        found: dict[tuple[str, str], list[BrokerConnection]] = {}
        for one in self._parts.connections:
            found.setdefault((one.broker, one.purpose), []).append(one)
        yield family(
            "carrot_connected",
            [(key, all(one.is_open for one in some)) for key, some in found.items()],
        )
        yield family(
            "carrot_reconnects",
            [(key, sum(max(0, one.made - 1) for one in some)) for key, some in found.items()],
        )

    def _of_queues(self) -> Iterator[Metric]:
        queues = self._parts.queues
        yield family(
            "carrot_queue_consumed", [((one.name,), one.subscription.ready) for one in queues]
        )
        reports = {one.name: one.dispatcher.threads() for one in queues}
        coroutines = {name: sum(one.coroutine for one in found) for name, found in reports.items()}
        yield family("carrot_coroutines", [((name,), n) for name, n in coroutines.items()])
        threads = {
            name: [one for one in found if not one.coroutine] for name, found in reports.items()
        }
        yield family("carrot_threads", [((name,), len(found)) for name, found in threads.items()])
        busy = {
            name: sum(one.task is not None or one.seconds > 0 for one in found)
            for name, found in threads.items()
        }
        yield family("carrot_threads_busy", [((name,), count) for name, count in busy.items()])
        yield family(
            "carrot_threads_stuck",
            [((name,), sum(one.stuck for one in found)) for name, found in threads.items()],
        )
        yield family("carrot_started", [((one.name,), one.dispatcher.started) for one in queues])
        yield family(
            "carrot_messages_decided",
            [
                ((one.name, one.handler, action.name.lower()), count)
                for one in queues
                if one.handler is not None and one.decided is not None
                for action, count in one.decided.items()
            ],
        )

    def _of_work(self) -> Iterator[Metric]:
        handlers = {one.name for one in self._parts.queues if one.handler is not None}
        tasks: dict[tuple[str, str], Totals] = {}
        messages: dict[tuple[str, str], Totals] = {}
        waits: dict[str, Totals] = {}
        for (queue, task), totals in self._parts.counted.totals().items():
            of_handler = queue in handlers
            label = self._label(queue, task, of_handler or bool(totals.completed))
            (messages if of_handler else tasks).setdefault((queue, label), Totals()).add(totals)
            if not of_handler:
                waits.setdefault(queue, Totals()).add(totals)
        yield family(
            "carrot_tasks_finished",
            [
                ((*key, outcome), count)
                for key, one in tasks.items()
                for outcome, count in (("completed", one.completed), ("failed", one.failed))
            ],
        )
        yield durations(
            "carrot_task_run_seconds",
            [(key, one.run, one.run_seconds) for key, one in tasks.items()],
        )
        yield durations(
            "carrot_task_wait_seconds",
            [((queue,), one.wait, one.wait_seconds) for queue, one in waits.items()],
        )
        yield durations(
            "carrot_message_run_seconds",
            [(key, one.run, one.run_seconds) for key, one in messages.items()],
        )

    def _label(self, queue: str, task: str, known: bool) -> str:
        label = self._labels.get((queue, task))
        if label is None:
            named = sum(given != OTHERS for given in self._labels.values())
            known = known or task_paths.is_resolved(task)
            label = self._labels[queue, task] = task if known and named < MAX_TASKS else OTHERS
        return label


def _of_tasks(tasks: TaskParts) -> Iterator[Metric]:
    publisher, writer = tasks.publisher, tasks.writer
    yield family("carrot_messages_published", [((), publisher.sent)])
    yield family("carrot_messages_confirmed", [((), publisher.confirmed)])
    yield family("carrot_messages_not_taken", [((), publisher.failed)])
    yield family("carrot_messages_unconfirmed", [((), publisher.unconfirmed)])
    yield family("carrot_database_away", [((), writer.away)])
    # Its last bucket holds what no batch exceeds.
    ends = [*(str(float(2**bits - 1)) for bits in range(1, len(writer.batches) - 1)), "+Inf"]
    yield histogram("carrot_write_operations", [((), ends, writer.batches[1:], writer.operations)])
    yield family("carrot_tasks_recovered", [((), tasks.relay.recovered)])
    if tasks.lateness is not None:
        late = tasks.lateness
        yield durations(
            "carrot_schedule_lateness_seconds", [((), dict(late.histogram), late.seconds)]
        )


def _of_database(age: float, found: Standing) -> Iterator[Metric]:
    yield family("carrot_schedule_overdue_seconds", [((), found.overdue)])
    queues = found.queues
    yield family("carrot_queue_waiting", [((one.queue,), one.waiting) for one in queues])
    yield family("carrot_queue_running", [((one.queue,), one.running) for one in queues])
    yield family(
        "carrot_queue_limited",
        # A service of the version before this column may have taken the sample.
        [((one.queue,), one.limited) for one in queues if one.limited is not None],
    )
    yield family("carrot_queue_oldest_seconds", [((one.queue,), one.oldest or 0) for one in queues])
    yield family("carrot_queue_unsent", [((one.queue,), one.unsent) for one in queues])
    names = sorted({*(one.queue for one in queues), *found.unsent})
    yield family(
        "carrot_queue_unsent_oldest_seconds",
        [((name,), found.unsent.get(name, 0)) for name in names],
    )
    if found.age is not None:
        yield family("carrot_sample_age_seconds", [((), found.age + age)])
