# SPDX-License-Identifier: Apache-2.0
"""A running service with tasks, and a broker that goes away in every way: before, during, after.

In each: no task is lost, none is FAILED for it, each has its effect once, and the service is back
at work by itself soon after the end.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pika
import pytest

from carrot_twisted import message_log_set, publisher
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import finished
from tests.processes import carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from devtools.servers import RabbitMQ
    from tests.conftest import Broker
    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]

# What is done about the broker does not depend on the database. PostgreSQL lets two services, this
# process and its relays write at the same time; and its run has the time.
pytestmark = pytest.mark.only("postgres")

#: Seconds after the end of an outage within which tasks run again: the longest pause between
#: attempts to connect, and time for a busy machine.
SOON = 20.0


@pytest.fixture(scope="module")
def broker_url(private_broker: RabbitMQ) -> str:
    """Of a broker that may be mistreated."""
    return private_broker.url


@pytest.fixture(autouse=True)
def _healthy(private_broker: RabbitMQ) -> Iterator[None]:
    """Whatever a test has left of the broker, the next one finds it at work."""
    yield
    private_broker.resume()
    private_broker.start()


def effects(*keys: object, pause: float = 0.0, **where: Any) -> list[MessageLog]:
    """Publish a task for each key."""
    return publish_many(
        [create_message(tasks.effect, task_args=[str(key), pause], **where) for key in keys]
    )


def all_ran_once(
    rows: Iterable[MessageLog], ledger: Ledger, seconds: float = 60.0
) -> list[MessageLog]:
    """Wait for the end of all these tasks; each was started once and had its effect once."""
    done = finished(rows, seconds)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert {(row.attempts, row.crashes) for row in done} == {(1, 0)}
    assert set(Counter(ledger()).values()) == {1}
    return done


def work_goes_on(since: float, ledger: Ledger, key: str) -> list[MessageLog]:
    """Publish a task, and wait for its effect: soon after the outage has ended."""
    rows = effects(key)
    wait_until(lambda: key in ledger(), since + SOON - time.monotonic(), f"{key} after the end")
    return rows


def late() -> int:
    """Messages of the queue "default" that should have been sent."""
    state = MessageLog.objects.outbox_state()
    return state["default"].count if state else 0


def resident(service: ServiceProcess) -> float:
    """Megabytes of memory."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Hole:
    """A way to the broker that can stop to carry anything, without a word to either end.

    Connections that stood then never carry anything again; new ones wait until it is mended.
    """

    def __init__(self, port: int) -> None:
        self._broker = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._carries = threading.Event()
        self._carries.set()
        self._lost = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def open(self) -> None:
        """Swallow everything."""
        self._carries.clear()
        self._lost.set()

    def mend(self) -> None:
        """Carry new connections."""
        self._lost = threading.Event()
        self._carries.set()

    def close(self) -> None:
        """End all connections."""
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                self._carries.wait()
                there = socket.create_connection(self._broker)
                self._sockets += [here, there]
                for source, target in ((here, there), (there, here)):
                    threading.Thread(
                        target=self._carry, args=(source, target, self._lost), daemon=True
                    ).start()

    def _carry(self, source: socket.socket, target: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not lost.is_set():
                    target.sendall(data)
            if not lost.is_set():
                target.shutdown(socket.SHUT_WR)


@pytest.fixture
def hole(private_broker: RabbitMQ) -> Iterator[Hole]:
    """A way to the broker with a hole in it."""
    way = Hole(private_broker.port)
    yield way
    way.close()


def test_what_was_published_while_the_broker_was_away_is_sent_once_by_two_services(
    private_broker: RabbitMQ,
    start_service: StartService,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = [start_service(), start_service()]
    with pika.BlockingConnection(pika.URLParameters(private_broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("tap", durable=True)
        channel.queue_purge("tap")
        channel.queue_bind("tap", "default", "default")
    rows = effects(*(f"before {n}" for n in range(20)))
    # In the middle of a task when the broker goes; it publishes others meanwhile, and ends.
    gate = tmp_path / "gate"
    running = publish_message(tasks.wait_for_file, str(gate))
    publishing = [publish_message(tasks.publish_when, str(gate), f"inner {n}") for n in range(3)]
    wait_until(lambda: MessageLog.objects.filter(status="IN_PROGRESS").count() == 4)
    wait_until(lambda: len(ledger()) == 20)
    # These are on their way just then.
    rows += effects(*(f"caught {n}" for n in range(100)), pause=0.05)
    wait_until(lambda: len(ledger()) > 24)

    private_broker.stop()
    gate.touch()
    # What runs ends, and its end is recorded, without a broker.
    outer = finished([running, *publishing])
    meanwhile = publish_many(
        [create_message(tasks.noop, exchange="default", routing_key="default") for _ in range(2000)]
    )
    meanwhile += effects(*(f"during {n}" for n in range(20)))
    # It counts as late some seconds after it should have been sent.
    monkeypatch.setattr(message_log_set, "OVERDUE", 0.5)
    wait_until(lambda: late() == 2023, what="all that was published meanwhile is known")
    unsent = MessageLog.objects.filter(pk=meanwhile[0].pk).get()
    assert "broker" in unsent.publish_error
    private_broker.start()
    back = time.monotonic()
    rows += work_goes_on(back, ledger, "after")
    inner = [MessageLog.objects.get(pk=row.output or "") for row in outer[1:]]
    done = all_ran_once([*rows, *outer, *meanwhile, *inner], ledger)

    assert time.monotonic() - back < 2 * SOON
    assert {row.publish_error for row in done} == {""}
    assert late() == 0
    with pika.BlockingConnection(pika.URLParameters(private_broker.url)) as connection:
        channel = connection.channel()
        assert channel.queue_declare("tap", passive=True).method.message_count == 2000
        channel.queue_delete("tap")
    for service in services:
        service.wait_for(", again after ")
        lines = [line for line in service.log.splitlines() if "connection" in line.lower()]
        assert len(lines) <= 10, lines
        assert service.stop() == 0


def test_a_broken_way_and_a_frozen_broker_are_noticed_and_what_runs_is_not_run_again(
    private_broker: RabbitMQ,
    start_service: StartService,
    hole: Hole,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    quick = carrot(heartbeat=1)
    url = urlsplit(private_broker.url)
    password = f"{url.username}:{url.password}"
    behind = start_service(
        **quick,
        CARROT_TEST_CONCURRENCY="8",
        CARROT_BROKER_URL=f"amqp://{password}@127.0.0.1:{hole.port}{url.path}",
    )
    gate = tmp_path / "gate"
    rows = [publish_message(tasks.wait_for_file, str(gate), 60) for _ in range(4)]
    running = MessageLog.objects.filter(status="IN_PROGRESS")
    wait_until(lambda: running.count() == 4)
    other = start_service(**quick)
    hole.open()
    # For the broker, one service is gone before long: the other one gets the messages of tasks
    # that run, and leaves them alone. What it has itself ends although the broker is frozen.
    rows += effects(*range(40), pause=0.05)
    wait_until(lambda: len(ledger()) > 4)
    with private_broker.frozen():
        for service in (behind, other):
            service.wait_for("Lost the connection", 30)
    hole.mend()
    back = time.monotonic()
    rows += work_goes_on(back, ledger, "after")
    gate.touch()
    for service in (behind, other):
        service.wait_for("threads, again after", SOON)
    done = finished(rows, 60)
    assert {(row.status, row.attempts, row.crashes) for row in done} == {("COMPLETED", 1, 0)}
    expected = Counter({**{str(n): 1 for n in range(40)}, "after": 1, "saw the file": 4})
    assert Counter(ledger()) == expected
    for service in (behind, other):
        assert service.stop() == 0


@contextmanager
def short_delivery_timeout(broker: RabbitMQ, milliseconds: int) -> Iterator[None]:
    """Have the broker close channels, opened from now on, that leave a message unacknowledged."""
    set_env = "application:set_env(rabbit, {}, {})"
    broker.ctl(
        "eval",
        f"{set_env.format('consumer_timeout', milliseconds)}, "
        f"{set_env.format('channel_tick_interval', 200)}.",
    )
    try:
        yield
    finally:
        broker.ctl(
            "eval",
            f"{set_env.format('consumer_timeout', 1800000)}, "
            f"{set_env.format('channel_tick_interval', 60000)}.",
        )


def test_tasks_longer_than_the_brokers_delivery_timeout_run_once_and_those_behind_them_too(
    private_broker: RabbitMQ, start_service: StartService, ledger: Ledger
) -> None:
    queues = [{"name": "default", "prefetch": 5}, {"name": "other", "prefetch": 5}]
    with short_delivery_timeout(private_broker, 1500):
        good = start_service("--queue=default", **carrot(queues=queues, ack_deadline=0.7))
        # Acknowledged too late, as if nobody had told the service of the broker's timeout.
        bad = start_service("--queue=other", wait=False, **carrot(queues=queues))
        bad.wait_for("Consuming queue other")
        rows = effects("long", pause=4.0) + effects("a", "b", "c", pause=0.1)
        rows += effects("other long", pause=4.0, queue="other")
        rows += effects("d", "e", queue="other")
        all_ran_once(rows, ledger)
        assert "timed out" not in good.log
        assert "delivery acknowledgement on channel" in bad.log
        assert "set that to half of it at most" in bad.log
        assert good.stop() == 0
        assert bad.stop() == 0


def test_in_a_memory_alarm_tasks_run_on_and_what_they_publish_waits_in_the_outbox(
    private_broker: RabbitMQ,
    start_service: StartService,
    broker: Broker,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    service = start_service("--queue=default")
    rows = effects("before")
    rows += [publish_message(tasks.publish_burst, 10, "other")]
    finished(rows)
    gate = tmp_path / "gate"
    rows += [publish_message(tasks.wait_for_file, str(gate), 60) for _ in range(4)]
    rows += effects(*range(40))
    burst = publish_message(tasks.publish_burst, 20_000, "other")
    assert publisher.flush(10)
    private_broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        before = resident(service)
        gate.touch()
        finished([*rows, burst], 60)
        service.wait_for("The broker takes no messages for now")
        waiting = MessageLog.objects.filter(queue="other", confirmed_at=None)
        wait_until(lambda: waiting.exclude(publish_error="").exists())
        assert waiting.count() > 15_000
        assert "takes no messages" in waiting.exclude(publish_error="")[0].publish_error
        # The rows themselves pass through; none of them stays.
        assert resident(service) - before < 120
    finally:
        private_broker.ctl("set_vm_memory_high_watermark", "0.6")
    back = time.monotonic()
    rows += work_goes_on(back, ledger, "after")
    wait_until(lambda: not waiting.exists(), 60)
    done = finished(rows)
    assert {(row.status, row.attempts) for row in done} == {("COMPLETED", 1)}
    assert Counter(ledger()) == Counter(
        {**{str(n): 1 for n in range(40)}, "before": 1, "after": 1, "saw the file": 4}
    )
    ids = set()
    for _, properties, _ in broker.channel.consume("other", auto_ack=True, inactivity_timeout=1):
        if properties is None:
            break
        ids.add(properties.message_id)
    assert len(ids) == 20_010
    assert service.log.count("The broker takes no messages for now") == 1
    assert service.stop() == 0


def test_a_password_and_permissions_that_are_taken_away_are_told_once_and_wanted_back(
    private_broker: RabbitMQ, start_service: StartService, ledger: Ledger, broker: Broker
) -> None:
    private_broker.ctl("add_user", "worker", "right")
    private_broker.ctl("set_permissions", "-p", private_broker.name, "worker", ".*", ".*", ".*")
    url = f"amqp://worker:right@127.0.0.1:{private_broker.port}/{private_broker.name}"
    backend = "rabbit_auth_backend_internal"
    drop = 'rabbit_networking:close_all_user_connections(<<"worker">>, <<"by the test">>)'
    try:
        service = start_service("--queue=default", CARROT_BROKER_URL=url)
        rows = effects("before")
        all_ran_once(rows, ledger)
        private_broker.ctl(
            "eval",
            f'{backend}:change_password(<<"worker">>, <<"other">>, <<"test">>), {drop}.',
        )
        service.wait_for("user 'worker' or its password is refused")
        rows += effects("without a password")
        private_broker.ctl("change_password", "worker", "right")
        rows += work_goes_on(time.monotonic(), ledger, "with it")
        all_ran_once(rows, ledger)

        # A channel is refused, the connection is not: 404, for it may not declare the queue.
        private_broker.ctl("set_permissions", "-p", "carrot", "worker", "^$", ".*", ".*")
        broker.channel.queue_delete("default")
        service.wait_for("NOT_FOUND - no queue 'default'")
        rows += effects("without a queue")
        # And 403: it may not even read.
        private_broker.ctl("set_permissions", "-p", "carrot", "worker", "^$", "^$", "^$")
        service.wait_for("ACCESS_REFUSED - access to queue 'default'")
        private_broker.ctl("set_permissions", "-p", "carrot", "worker", ".*", ".*", ".*")
        rows += work_goes_on(time.monotonic(), ledger, "with a queue")
        all_ran_once(rows, ledger)
        assert "right" not in service.log.replace("Copyright", "")
        assert service.log.count("password is refused") <= 2
        assert service.log.count("Queue default is not consumed") <= 4
        assert service.stop() == 0
    finally:
        private_broker.ctl("delete_user", "worker")


def test_a_queue_and_an_exchange_that_are_deleted_again_and_again_cost_no_task(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start_service("--queue=default", CARROT_TEST_CONCURRENCY="2")
    rows: list[MessageLog] = []
    for turn in range(3):
        rows += effects(*(f"{turn}.{n}" for n in range(30)), pause=0.02)
        rows += effects(f"by the exchange {turn}", exchange="default", routing_key="default")
        wait_until(lambda turn=turn: f"{turn}.3" in ledger())  # type: ignore[misc]
        broker.channel.queue_delete("default")
        broker.channel.exchange_delete("default")
        work = effects(f"after {turn}")
        wait_until(lambda key=f"after {turn}": key in ledger(), SOON)  # type: ignore[misc]
        rows += work
    rows += effects("by the exchange", exchange="default", routing_key="default")
    all_ran_once(rows, ledger)
    assert service.stop() == 0


def test_what_the_broker_refuses_says_why_and_goes_out_soon_after_that_is_mended(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    broker.channel.exchange_declare("lonely")
    broker.channel.queue_declare(
        "full",
        durable=True,
        arguments={"x-max-length": 0, "x-overflow": "reject-publish"},
    )
    broker.channel.exchange_declare("to the full")
    broker.channel.queue_bind("full", "to the full", "default")
    refused = {
        "unroutable": effects("lonely", exchange="lonely", routing_key="default"),
        "the broker refused it (basic.nack)": effects(
            "nacked", exchange="to the full", routing_key="default"
        ),
        "no exchange 'nowhere'": effects("nowhere", exchange="nowhere", routing_key="default"),
    }
    # As another program might write it: no byte of it can be sent.
    odd = create_message(tasks.effect, task_args=["odd"]).row
    odd.priority = 1000
    odd.save(force_insert=True)
    refused["it cannot be sent"] = [odd]
    try:
        service = start_service("--queue=default")
        good = effects("good")
        for reason, (row,) in refused.items():
            wait_until(
                lambda row=row, reason=reason: (  # type: ignore[misc]
                    reason in MessageLog.objects.get(pk=row.pk).publish_error
                ),
                what=reason,
            )
        all_ran_once(good, ledger)
        wait_until(lambda: late() == 4)
        assert "The broker refuses messages: " in service.log

        broker.channel.exchange_declare("nowhere")
        broker.channel.queue_unbind("full", "to the full", "default")
        for exchange in ("nowhere", "lonely", "to the full"):
            broker.channel.queue_bind("default", exchange, "default")
        MessageLog.objects.filter(pk=odd.pk).update(priority=0)
        rows = [row for (row,) in refused.values()]
        done = all_ran_once([*rows, *good], ledger, SOON)
        assert {row.publish_error for row in done} == {""}
        assert late() == 0
        assert service.stop() == 0
    finally:
        for exchange in ("nowhere", "lonely", "to the full"):
            broker.channel.exchange_delete(exchange)
        broker.channel.queue_delete("full")
