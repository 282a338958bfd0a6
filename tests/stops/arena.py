# SPDX-License-Identifier: Apache-2.0
"""Where services are stopped: servers, a fresh folder, and the questions asked afterwards."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connections

from carrot_twisted import publisher
from carrot_twisted.due import due_in
from carrot_twisted.models import MessageLog, ScheduledTask, Worker
from carrot_twisted.utilities import create_message, publish_many
from tests.conftest import Broker, same_servers
from tests.processes import ServiceProcess, wait_until
from tests.stops.holding import hold, hold_async

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from carrot_twisted.objects import Message
    from devtools.servers import PostgreSQL, RabbitMQ
    from tests.processes import Launch

#: Threads of each service.
THREADS = 4
#: Seconds that running tasks get.
TIMEOUT = 0.5
#: Seconds that the end may take beyond those.
GRACE = 14.0
#: A worker that has never been.
DEAD = "dead"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Arena:
    """Servers, and services in one folder.

    Args:
        folder: for logs and the ledger, empty.
        broker: that may be stopped, killed and frozen.
        postgres: the same of the database; None with SQLite.
        launch: starts services.
        chance: decides moments and signals.
        count: services in each state.
    """

    def __init__(
        self,
        *,
        folder: Path,
        broker: RabbitMQ,
        postgres: PostgreSQL | None,
        launch: Launch,
        chance: random.Random,
        count: int,
    ) -> None:
        self.folder = folder
        self.broker = broker
        self.postgres = postgres
        self.launch = launch
        self.chance = chance
        self.count = count
        self.gate = folder / "gate"
        self._services: list[ServiceProcess] = []

    def services(
        self, text: str, *options: str, launch: Launch | None = None, **environment: str
    ) -> list[ServiceProcess]:
        """Start ``count`` services; each has this text in its log when this returns."""
        services = [
            self._service(
                f"--shutdown-timeout={TIMEOUT:g}",
                *(options or ("--no-scheduler",)),
                launch=launch,
                **environment,
            )
            for _ in range(self.count)
        ]
        for service in services:
            service.wait_for(text)
        return services

    def _service(
        self, *options: str, launch: Launch | None = None, **environment: str
    ) -> ServiceProcess:
        service = ServiceProcess(
            self.folder / f"service-{len(self._services)}",
            options,
            {
                **same_servers(self.broker.url),
                "CARROT_TEST_LEDGER": str(self.folder / "ledger"),
                "CARROT_TEST_GATE": str(self.gate),
                "CARROT_TEST_CONCURRENCY": str(THREADS),
                **environment,
            },
            launch=launch or self.launch,
        )
        self._services.append(service)
        return service

    def publish(self, how: str, each: int = THREADS + 2) -> None:
        """Publish ``each`` tasks for each service, and wait until the broker has them."""
        publish_many(self._messages(how, each))
        assert publisher.flush(30)

    def leave_unsent(self, how: str, each: int, **fields: Any) -> None:
        """Rows of such tasks, with these fields, that the first relay will send."""
        rows = [message.row for message in self._messages(how, each)]
        for row in rows:
            for name, value in fields.items():
                setattr(row, name, value)
        MessageLog.objects.bulk_create(rows, batch_size=1000)
        MessageLog.objects.update(relay_at=due_in(-1))

    def _messages(self, how: str, each: int) -> Iterator[Message]:
        task = hold_async if how == "async" else hold
        for n in range(each * self.count):
            yield create_message(task, task_args=[str(n)] if how == "async" else [str(n), how])

    def ledger(self, word: str) -> Counter[str]:
        """How often each task began, or ended."""
        path = self.folder / "ledger"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(key for line in lines for w, _, key in [line.partition(" ")] if w == word)

    def wait_for_begun(self, count: int) -> None:
        """Wait until so many tasks for each service have begun."""
        wait_until(lambda: self.ledger("begin").total() >= count * self.count, 60)

    def kill_all(self) -> None:
        """kill -9 of what still runs."""
        for service in self._services:
            service.kill()

    def check_end(self, state: State) -> Iterator[str]:
        """What is wrong after the services have ended, in words; then bring all tasks to an end."""
        for service in self._services:
            if re.search("Traceback|Unhandled", service.log) and not state.traceback:
                yield f"a traceback in the log {service.log_path}"
        begun = self.ledger("begin")
        in_progress = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS).exclude(worker=DEAD)
        if not state.records_lost:
            if in_progress.exists():
                yield f"{in_progress.count()} rows were left IN_PROGRESS"
            if Worker.objects.exists():
                yield "a Worker's row was left"
        for row in MessageLog.objects.filter(
            status=MessageLog.PUBLISHED, attempts__gt=state.before
        ):
            if (row.positionals or [""])[0] not in begun:
                yield f"{row.pk} had not begun and has {row.attempts} attempts"
        self.gate.touch()
        try:
            yield from self._finish()
        except AssertionError as error:
            yield f"what was left did not come to its end: {error}"
        yield from self._check_rows(state)

    def _finish(self) -> Iterator[str]:
        """A service that comes later has to bring every task to its end."""
        left = MessageLog.objects.exclude(status=MessageLog.COMPLETED)
        client = Broker(self.broker.url)
        if left.exists() or Worker.objects.exists() or client.depth("default", missing=0):
            service = self._service("--no-scheduler", CARROT_TEST_CONCURRENCY="8")
            service.wait_for("Consuming queue default")
            wait_until(lambda: not left.exists(), 90, f"{list(left.values()[:3])}")
            wait_until(lambda: not client.depth("default"), 30, "messages in queue default")
            if service.stop() != 0:
                yield "the service after it did not end with status 0"
        for queue in ("default", "default.dead"):
            depth = client.depth(queue, missing=0)
            if depth:
                yield f"{depth} messages are left in {queue}"
        client.connection.close()

    def _check_rows(self, state: State) -> Iterator[str]:
        if Worker.objects.exists():
            yield "a Worker's row is left for good"
        ended = self.ledger("end")
        for row in MessageLog.objects.filter(task__startswith="tests.stops."):
            attempts = row.attempts - state.before
            if attempts > 2 or row.crashes > state.before + state.records_lost:
                yield f"{row.pk}: {row.attempts} attempts, {row.crashes} crashes"
            times = ended[str(row.positionals[0])]
            if not 1 <= times <= attempts:
                yield f"{row.pk} ended {times} times in {row.attempts} attempts"


@dataclass(frozen=True, kw_only=True)
class State:
    """What services are doing when they are told to stop."""

    name: str
    enter: Callable[[Arena], AbstractContextManager[Sequence[ServiceProcess]]]
    """Brings services there; at its end the servers are well again."""
    spread: float
    """The signal comes after a random time of up to so many seconds."""
    only: str | None
    """Kind of database, if it makes sense with one only."""
    once: bool
    """It does not depend on the database."""
    records_lost: bool
    """The database is not there to take the last word: others find the rows, a moment later."""
    before: int
    """Attempts and crashes that each row has had already."""
    traceback: bool
    """The log tells where the service was stuck."""
    statuses: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One service that was stopped."""

    seconds: float
    """From the first signal to the end."""
    status: int | None
    """None: it did not end in time."""


def run(state: State, arena: Arena, signals: Sequence[int] = SIGNALS) -> tuple[list[Stop], str]:
    """Bring services into a state, stop each at a random moment, and ask what became of it all.

    Args:
        state: the state.
        arena: a fresh one.
        signals: one of these is sent.

    Returns:
        The stops, and what is wrong in words.
    """
    try:
        with state.enter(arena) as services:
            stops = _stop_all(state, arena, services, signals)
        wrong = [f"status {s.status}" for s in stops if s.status not in state.statuses]
        wrong += list(arena.check_end(state))
        return stops, "\n".join(dict.fromkeys(wrong))
    finally:
        arena.kill_all()


def _stop_all(
    state: State, arena: Arena, services: Sequence[ServiceProcess], signals: Sequence[int]
) -> list[Stop]:
    """Send each service its signal, and some a second one; wait for the end of all."""
    start = time.monotonic()
    plan: list[tuple[float, int, ServiceProcess, int]] = []
    for place, service in enumerate(services):
        at = start + arena.chance.uniform(0, state.spread)
        plan.append((at, place, service, arena.chance.choice(signals)))
        if len(services) > 1 and arena.chance.random() < 0.25:
            again = at + arena.chance.uniform(0, TIMEOUT)
            plan.append((again, place, service, signal.SIGTERM))
    plan.sort(key=lambda one: one[0], reverse=True)
    sent: dict[int, float] = {}
    stops: dict[int, Stop] = {}
    while len(stops) < len(services):
        now = time.monotonic()
        while plan and plan[-1][0] <= now:
            _, place, service, number = plan.pop()
            sent.setdefault(place, now)
            service.signal(number)
        for place in sent.keys() - stops.keys():
            seconds = now - sent[place]
            status = services[place].process.poll()
            if status is not None or seconds > TIMEOUT + GRACE:
                stops[place] = Stop(seconds=seconds, status=status)
        time.sleep(0.01)
    return [stops[place] for place in range(len(services))]


def forget_rows() -> None:
    """Empty the tables for the next state."""
    connections.close_all()
    for model in (MessageLog, Worker, ScheduledTask):
        model._default_manager.all().delete()
