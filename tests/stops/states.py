# SPDX-License-Identifier: Apache-2.0
"""All states in which a service is stopped. Each brings services there, and tidies up."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import create_message, create_scheduled_task, publish_many
from devtools.ports import free_port
from tests.processes import REPOSITORY, ServiceProcess, carrot, spawn, wait_until
from tests.project.tasks import noop
from tests.stops.arena import DEAD, THREADS, Arena, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Enter = Callable[[Arena], Iterator[Sequence[ServiceProcess]]]

STATES: dict[str, State] = {}

BEGUN = "carrot starts as worker"
CONSUMING = "Consuming queue default"
CLEAN = frozenset({0})


def state(
    name: str,
    *,
    spread: float = 0.3,
    only: str | None = None,
    once: bool = False,
    records_lost: bool = False,
    before: int = 0,
    traceback: bool = False,
    statuses: frozenset[int] = CLEAN,
) -> Callable[[Enter], Enter]:
    """Enter a generator function into STATES; see ``State`` for what is given."""

    def add(enter: Enter) -> Enter:
        STATES[name] = State(
            name=name,
            enter=contextmanager(enter),
            spread=spread,
            only=only,
            once=once,
            records_lost=records_lost,
            before=before,
            traceback=traceback,
            statuses=statuses,
        )
        return enter

    return add


# Starting


@state(
    "started just now",
    once=True,
    # Before Python has read our code, a signal does what it does to any program: it ends it, or
    # interrupts Python's own start, which is a fatal error to Python, and status 1.
    traceback=True,
    statuses=frozenset({0, 1, -1, -2, -15}),
)
def started_just_now(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    yield arena.services("", launch=spawn)


@state("Django is being set up", once=True)
def setting_up(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    module = arena.folder / "slow_settings.py"
    module.write_text(
        "import time\nfrom tests.settings import *\n"
        "print('setting up', flush=True)\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(arena.folder), str(REPOSITORY)])
    yield arena.services("setting up", "--settings=slow_settings", launch=spawn, PYTHONPATH=path)


@state("starting")
def starting(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    yield arena.services(BEGUN)


@state("idle")
def idle(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    yield arena.services(CONSUMING)


# The broker


@state("the broker says nothing", once=True)
def broker_silent(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        port = listener.getsockname()[1]
        yield arena.services(BEGUN, CARROT_BROKER_URL=f"amqp://u:p@127.0.0.1:{port}/")


@state("the broker's address is a black hole", once=True)
def broker_black_hole(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            # The queue is full then: the kernel answers nothing to further ones.
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        yield arena.services(BEGUN, CARROT_BROKER_URL=f"amqp://u:p@127.0.0.1:{port}/")


@state("the broker's name is looked up", once=True)
def broker_name(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    module = arena.folder / "slow_names.py"
    module.write_text(
        "import socket, time\nfrom tests.settings import *\n"
        "socket.getaddrinfo = lambda *_, **__: time.sleep(3600)\n"
    )
    path = os.pathsep.join([str(arena.folder), str(REPOSITORY)])
    yield arena.services(
        BEGUN,
        "--no-scheduler",
        "--settings=slow_names",
        launch=spawn,
        PYTHONPATH=path,
        CARROT_BROKER_URL="amqp://u:p@no.such.host/",
    )


@state("the broker is away from the start", once=True)
def broker_away(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    nobody = f"amqp://u:p@127.0.0.1:{free_port()}/"
    yield arena.services("No connection to", CARROT_BROKER_URL=nobody)


@state("the broker went away under tasks", once=True)
def broker_gone(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _busy(arena, "sleep") as services:
        arena.broker.kill()
        try:
            yield services
        finally:
            arena.broker.start()


@state("the broker is frozen under tasks", once=True)
def broker_frozen(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _busy(arena, "sleep") as services, arena.broker.frozen():
        yield services


@state("the broker is out of memory", once=True)
def broker_alarm(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _busy(arena, "publish") as services:
        arena.broker.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            yield services
        finally:
            arena.broker.ctl("set_vm_memory_high_watermark", "0.6")


# The database


@state("the database is away from the start", only="postgres")
def database_away(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    assert arena.postgres is not None
    connections.close_all()
    arena.postgres.stop("immediate")
    try:
        yield arena.services("The database cannot be reached")
    finally:
        arena.postgres.start()


@state("the database is frozen from the start", only="postgres", records_lost=True)
def database_frozen_at_start(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _frozen_database(arena):
        yield arena.services(BEGUN)


@state("the database went away under tasks", only="postgres", records_lost=True)
def database_gone(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    assert arena.postgres is not None
    with _busy(arena, "short") as services:
        connections.close_all()
        arena.postgres.stop("immediate")
        try:
            yield services
        finally:
            arena.postgres.start()


@state("the database is frozen under tasks", only="postgres", records_lost=True)
def database_frozen(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _busy(arena, "short") as services, _frozen_database(arena):
        yield services


@state("database and broker are frozen", only="postgres", records_lost=True)
def both_frozen(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _busy(arena, "sleep") as services, _frozen_database(arena), arena.broker.frozen():
        yield services


@state("somebody holds the rows locked", records_lost=True)
def rows_locked(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    with _busy(arena, "short", each=THREADS) as services, transaction.atomic():
        # With SQLite this locks the database for all who write.
        MessageLog.objects.update(priority=0)
        yield services


# Tasks


@contextmanager
def _busy(arena: Arena, how: str, each: int = THREADS + 2) -> Iterator[Sequence[ServiceProcess]]:
    services = arena.services(CONSUMING)
    arena.publish(how, each)
    arena.wait_for_begun(THREADS)
    yield services


@contextmanager
def _frozen_database(arena: Arena) -> Iterator[None]:
    assert arena.postgres is not None
    connections.close_all()
    with arena.postgres.frozen():
        yield


def _busy_state(name: str, how: str, **given: Any) -> None:
    @state(name, **given)
    def busy(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
        with _busy(arena, how) as services:
            yield services


_busy_state("tasks end by themselves", "short")
_busy_state("tasks sleep", "sleep")
_busy_state("tasks compute in Python", "spin", once=True)
_busy_state("tasks are stuck in C", "lock", once=True)
_busy_state("tasks compute in C and keep Python's lock", "regular expression", once=True)
_busy_state("tasks wait for the reactor", "reactor", once=True)
_busy_state("tasks publish tasks", "publish", once=True)
_busy_state("tasks are coroutines", "async", once=True)


@state("a deep backlog is prefetched", once=True)
def backlog(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    services = arena.services(CONSUMING)
    publish_many(create_message(noop) for _ in range(3000))
    arena.publish("sleep", 200)
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.COMPLETED).count() > 1000)
    yield services


@state("5,000 rows are being relayed")
def relaying(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    arena.leave_unsent("nothing", 5000 // arena.count)
    services = arena.services(BEGUN)
    # One of them may have taken all.
    wait_until(lambda: any("that were left in the outbox" in service.log for service in services))
    yield services


@state("schedules are being published")
def scheduling(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    for number in range(20):
        create_scheduled_task(noop, {"seconds": 1}, task_name=f"tick {number}")
    services = arena.services(CONSUMING, "--loglevel=info")
    wait_until(MessageLog.objects.exists)
    try:
        yield services
    finally:
        ScheduledTask.objects.all().delete()


@state("rows of a dead worker are being taken over", spread=0.1, before=1)
def taking_over(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    arena.publish("short", 20)
    MessageLog.objects.update(status=MessageLog.IN_PROGRESS, worker=DEAD, token=1, attempts=1)
    yield arena.services(CONSUMING, CARROT_FAILPOINT="in_take_over:sleep=0.05,in_reap:sleep=0.3:1")


@state("rows that cost workers run alone", once=True, spread=1.0, before=2)
def quarantined(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    arena.leave_unsent("short", 6, attempts=2, crashes=2)
    services = arena.services(CONSUMING)
    wait_until(lambda: arena.ledger("begin"))
    yield services


@state("messages of running tasks are acknowledged", once=True)
def in_custody(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    services = arena.services(CONSUMING, launch=None, **carrot(ack_deadline=0.2))
    arena.publish("sleep", THREADS)
    arena.wait_for_begun(THREADS)
    yield services


# Hooks of consumer classes


@state(
    "a hook never returns to the reactor",
    once=True,
    records_lost=True,
    traceback=True,
    statuses=frozenset({1}),
)
def stuck_in_reactor(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    yield arena.services(CONSUMING, CARROT_TEST_CONSUMER="tests.stops.holding.StuckInReactor")


@state("a hook's Deferred never fires", once=True)
def never_fires(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    yield arena.services(CONSUMING, CARROT_TEST_CONSUMER="tests.stops.holding.NeverFires")


@state("a hook never returns to its thread", once=True)
def stuck_in_thread(arena: Arena) -> Iterator[Sequence[ServiceProcess]]:
    services = arena.services(CONSUMING, CARROT_TEST_CONSUMER="tests.stops.holding.StuckInThread")
    arena.publish("short", THREADS)
    arena.wait_for_begun(THREADS)
    yield services
