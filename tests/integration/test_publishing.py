# SPDX-License-Identifier: Apache-2.0
"""Publishing from any process, with a real broker that fails in all the ways brokers fail.

What must hold: the caller never waits for the broker, a committed row is never lost, and a row
that is not with the broker says why.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from django.db import connection, connections, transaction

from carrot_twisted import publisher, publishing
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many, publish_message
from devtools.ports import free_port
from tests.conftest import Broker, current_database_url
from tests.integration.test_service import finished
from tests.processes import REPOSITORY, ServiceProcess, as_published, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from carrot_twisted.objects import Message
    from devtools.servers import RabbitMQ

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]
RunScript = Callable[..., "subprocess.Popen[str]"]

#: What a caller may wait at most, whatever the broker does.
AT_ONCE = 1.25

PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
import django
django.setup()
from django.db import connections, transaction
from carrot_twisted import publisher
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many, publish_message
EFFECT = "tests.project.tasks.effect"

def wait_for(path):
    end = time.monotonic() + 30
    while not Path(path).exists():
        assert time.monotonic() < end
        time.sleep(0.02)
"""


@pytest.fixture(scope="session")
def broker_url(private_broker: RabbitMQ) -> str:
    """Every broker of these tests is one that they may break."""
    return private_broker.url


@pytest.fixture
def fragile(private_broker: RabbitMQ) -> Iterator[RabbitMQ]:
    """The broker, well again after the test."""
    yield private_broker
    private_broker.resume()
    private_broker.start()
    private_broker.ctl("set_vm_memory_high_watermark", "0.6")


@pytest.fixture
def run_script(served: None, broker_url: str, tmp_path: Path) -> Iterator[RunScript]:
    """Start a Python script in a process of its own, as a management command would be."""
    running: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object, url: str = broker_url) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "CARROT_BROKER_URL": url,
                "CARROT_DATABASE_URL": current_database_url(),
                "CARROT_TEST_LEDGER": str(tmp_path / "ledger"),
                "PYTHONWARNINGS": "ignore",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def result(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for the end of a script; what it printed."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    return output


def publish_timed(task: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[MessageLog, float]:
    """Publish, and say how long the caller was held up."""
    start = time.monotonic()
    row = publish_message(task, *args, **kwargs)
    return row, time.monotonic() - start


def publishing_connections(broker: RabbitMQ) -> int:
    """How many connections of ours the broker has; fixture ``broker`` would count too."""
    lines = broker.ctl("list_connections", "pid", "client_properties").splitlines()
    return sum("carrot-twisted" in line for line in lines)


def delivered_ids(broker: Broker, queue: str = "default") -> list[UUID]:
    """The message ids in a queue, taken off it."""
    ids: list[UUID] = []
    while True:
        method, properties, _ = broker.channel.basic_get(queue, auto_ack=True)
        if method is None:
            return ids
        ids.append(UUID(properties.message_id))


def ids_in_default(server: RabbitMQ) -> list[UUID]:
    """The message ids in queue default, by a connection made for that."""
    client = Broker(server.url)
    try:
        return delivered_ids(client)
    finally:
        client.connection.close()


def unsent() -> int:
    return MessageLog.objects.unsent().count()


def all_completed(keys: Sequence[UUID], seconds: float = 60.0) -> None:
    """Wait until all these rows are COMPLETED."""
    done = finished(MessageLog.objects.filter(pk__in=keys), seconds)
    assert len(done) == len(keys)
    assert {row.status for row in done} <= {MessageLog.COMPLETED}, [row.exception for row in done]


class Load:
    """A thread that publishes tasks one after another, until it is told to stop."""

    def __init__(self, pause: float = 0.01) -> None:
        self.rows: list[MessageLog] = []
        self.slowest = 0.0
        self.error: BaseException | None = None
        self._pause = pause
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)
        assert self.error is None

    def _run(self) -> None:
        try:
            while not self._end.wait(self._pause):
                row, seconds = publish_timed(tasks.effect, str(len(self.rows)))
                self.rows.append(row)
                self.slowest = max(self.slowest, seconds)
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()

    @property
    def keys(self) -> list[UUID]:
        return [row.pk for row in self.rows]

    def more(self, count: int) -> None:
        """Wait until so many more have been published."""
        goal = len(self.rows) + count
        wait_until(lambda: self.error or len(self.rows) >= goal)


# One lasting connection per process


@pytest.mark.once
def test_many_threads_share_one_connection(served: None, private_broker: RabbitMQ) -> None:
    rows: list[MessageLog] = []

    def publish() -> None:
        try:
            rows.extend(publish_message(tasks.echo, n) for n in range(40))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert publisher.flush(20)

    assert len(rows) == 320
    assert publishing_connections(private_broker) == 1
    assert Counter(ids_in_default(private_broker)) == Counter(row.pk for row in rows)
    assert unsent() == 0


def test_parent_and_child_go_on_after_a_fork(
    run_script: RunScript, private_broker: RabbitMQ, tmp_path: Path
) -> None:
    script = """
folder = Path(sys.argv[1])
publish_message(EFFECT, "before")
assert publisher.flush(10)
# Handed over and not sent when the fork happens: the parent's business alone.
publish_many([create_message(EFFECT, task_args=[str(n)]) for n in range(1000)])
connections.close_all()
child = os.fork()
for n in range(20):
    publish_message(EFFECT, "child" if child == 0 else "parent")
assert publisher.flush(20)
(folder / f"ready-{child == 0}").touch()
wait_for(folder / "go")
publish_message(EFFECT, "last")
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    process = run_script(script, tmp_path)
    wait_until(lambda: process.poll() or len(list(tmp_path.glob("ready-*"))) == 2)
    assert process.poll() is None, process.communicate()
    assert publishing_connections(private_broker) == 2
    (tmp_path / "go").touch()
    result(process)

    ids = ids_in_default(private_broker)
    assert len(ids) == 1 + 1000 + 20 + 20 + 2
    assert set(ids) == set(MessageLog.objects.values_list("pk", flat=True))
    assert unsent() == 0


def test_a_process_that_ends_at_once_has_published(run_script: RunScript, broker: Broker) -> None:
    script = """
import atexit
# Registered before the publisher's own, this runs after it.
atexit._clear()
atexit.register(lambda: print(time.monotonic() - start))
atexit.register(publisher._at_exit)
start = time.monotonic()
publish_message(EFFECT, "once")
"""
    seconds = float(result(run_script(script)))
    assert seconds < AT_ONCE
    row = MessageLog.objects.get()
    assert delivered_ids(broker) == [row.pk]
    # Noted, too, unless the machine was too slow for it: then a relay sends it once more.
    assert row.confirmed_at is not None or seconds >= 2 * publisher.BUDGET


# What arrives


@pytest.mark.once
@pytest.mark.defect(2)
def test_the_message_is_that_of_django_carrot_and_persistent(served: None, broker: Broker) -> None:
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        ([], {}),
        ([1, "two", None, [3.5, {"a": True}]], {}),
        ([], {"key": "value"}),
        (["both"], {"n": -1}),
    ]
    for args, kwargs in cases:
        row = publish_message(tasks.echo, *args, **kwargs)
        assert publisher.flush(10)
        properties, body = broker.get("default")
        data = {name: value for name, value in (("args", args), ("kwargs", kwargs)) if value}
        assert body == json.dumps(data).encode()
        assert as_published(properties).headers == {"type": "tests.project.tasks.echo"}
        assert properties.content_type == "application/json"
        assert properties.type == "django-carrot message"
        assert properties.message_id == str(row.pk)
        assert properties.priority == 0
        assert properties.delivery_mode == 2
        assert properties.expiration is None
        assert properties.reply_to is None

    publish_message(tasks.echo, "žluťoučký 🥕", priority=7)
    assert publisher.flush(10)
    properties, body = broker.get("default")
    assert json.loads(body) == {"args": ["žluťoučký 🥕"]}
    assert properties.priority == 7


@pytest.mark.once
def test_a_queue_that_is_missing_is_declared_with_its_arguments(
    served: None, settings: Any, private_broker: RabbitMQ, broker: Broker
) -> None:
    settings.CARROT = {
        **settings.CARROT,
        "queues": [{"name": "default", "queue_arguments": {"x-max-priority": 5}}],
    }
    rows = [publish_message(tasks.echo, n, priority=n) for n in range(4)]
    assert publisher.flush(10)

    listed = private_broker.ctl(
        "list_queues", "-p", private_broker.name, "name", "durable", "arguments"
    )
    assert '["default", "true"' in listed or "default\ttrue\t" in listed
    assert '"x-queue-type"' in listed
    assert '"classic"' in listed
    assert '"x-max-priority"' in listed
    assert delivered_ids(broker) == [row.pk for row in reversed(rows)]
    # As with django-carrot there is an exchange of the queue's name, bound to it.
    broker.channel.confirm_delivery()
    broker.channel.basic_publish("default", "default", b"{}", mandatory=True)
    assert broker.depth("default") == 1


@pytest.mark.once
def test_a_queue_that_is_deleted_is_declared_again(served: None, broker: Broker) -> None:
    publish_message(tasks.echo)
    assert publisher.flush(10)
    broker.channel.queue_delete("default")
    again = publish_message(tasks.echo)
    assert publisher.flush(10)
    assert delivered_ids(broker) == [again.pk]


@pytest.fixture
def exchanges(broker: Broker) -> Iterator[None]:
    """A bound and an unbound exchange that the settings know nothing of."""
    broker.channel.exchange_declare("test.bound", "topic")
    broker.channel.exchange_declare("test.unbound", "direct")
    broker.channel.queue_declare("test.queue", durable=True)
    broker.channel.queue_bind("test.queue", "test.bound", "a.*")
    yield
    broker.channel.queue_delete("test.queue")
    broker.channel.exchange_delete("test.bound")
    broker.channel.exchange_delete("test.unbound")


@pytest.mark.once
def test_exchange_and_routing_key(served: None, exchanges: None, broker: Broker) -> None:
    bound = publish_message(tasks.echo, exchange="test.bound", routing_key="a.b")
    wrong_key = publish_message(tasks.echo, exchange="test.bound", routing_key="c")
    unbound = publish_message(tasks.echo, exchange="test.unbound")
    missing = publish_message(tasks.echo, exchange="test.missing")
    plain = publish_message(tasks.echo)
    assert publisher.flush(10)

    assert delivered_ids(broker, "test.queue") == [bound.pk]
    assert delivered_ids(broker) == [plain.pk]
    for row in (bound, wrong_key, unbound, missing, plain):
        row.refresh_from_db()
        assert row.status == MessageLog.PUBLISHED
    assert bound.confirmed_at
    assert plain.confirmed_at
    for row in (wrong_key, unbound):
        assert row.confirmed_at is None
        assert "unroutable" in row.publish_error
        assert "bound" in row.publish_error
    assert missing.confirmed_at is None
    assert "no exchange 'test.missing'" in missing.publish_error


def test_returns_among_hundreds_in_flight_meet_the_right_rows(
    served: None, exchanges: None, broker: Broker
) -> None:
    targets = ["", "test.unbound", "test.bound", "test.missing"]
    messages = [
        create_message(tasks.echo, exchange=exchange, routing_key="a.b" if exchange else None)
        for _ in range(200)
        for exchange in targets
    ]
    rows = publish_many(messages)
    assert publisher.flush(30)

    by_exchange = {t: {row.pk for row in rows if row.exchange == t} for t in targets}
    confirmed = MessageLog.objects.filter(confirmed_at__isnull=False).in_bulk()
    assert set(confirmed) == by_exchange[""] | by_exchange["test.bound"]
    refused = MessageLog.objects.unsent()
    unroutable = refused.filter(publish_error__startswith="unroutable").in_bulk()
    assert set(unroutable) == by_exchange["test.unbound"]
    absent = refused.filter(publish_error__contains="test.missing").in_bulk()
    assert set(absent) == by_exchange["test.missing"]
    assert set(delivered_ids(broker)) == by_exchange[""]
    assert set(delivered_ids(broker, "test.queue")) == by_exchange["test.bound"]


@pytest.mark.once
@pytest.mark.parametrize("forbidden", ["test.bound", "amq.default"])
def test_an_exchange_that_the_user_may_not_write_to_holds_up_no_other(
    served: None,
    settings: Any,
    exchanges: None,
    private_broker: RabbitMQ,
    broker: Broker,
    forbidden: str,
) -> None:
    """The broker closes the channel over it, and confirms nothing of what was sent with it."""
    vhost = private_broker.name
    private_broker.ctl("add_user", "web", "web")
    private_broker.ctl("set_permissions", "-p", vhost, "web", ".*", f"^(?!{forbidden}$)", ".*")
    url = f"amqp://web:web@127.0.0.1:{private_broker.port}/{vhost}"
    settings.CARROT = {**settings.CARROT, "default_broker": url}
    to_exchange: dict[str, Any] = {"exchange": "test.bound", "routing_key": "a.b"}
    try:
        rows = publish_many(
            create_message(tasks.echo, **(to_exchange if n % 50 == 7 else {})) for n in range(200)
        )
        assert publisher.flush(20)
    finally:
        private_broker.ctl("delete_user", "web")
    refused = {row.pk for row in rows if (row.exchange or "amq.default") == forbidden}
    fine = {row.pk for row in rows} - refused
    unsent = MessageLog.objects.unsent()
    assert set(unsent.values_list("pk", flat=True)) == refused
    told = set(unsent.values_list("publish_error", flat=True))
    assert {text.partition(": ")[0] for text in told} == {
        f"the user may not write to exchange '{forbidden}'"
    }
    queue = "default" if forbidden == "test.bound" else "test.queue"
    assert set(delivered_ids(broker, queue)) == fine


# Thousands


def test_publish_many_publishes_all(
    served: None, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer than the budget to make a quorum queue; the relay is not here.
    monkeypatch.setattr(publisher, "BUDGET", 10.0)
    rows = publish_many(create_message(tasks.echo, task_args=[n]) for n in range(5000))
    assert [row.positionals for row in rows] == [(n,) for n in range(5000)]
    assert publisher.flush(30)
    assert MessageLog.objects.filter(confirmed_at__isnull=False).count() == 5000
    # Not in order: the first ones came back, for the queue was declared on their demand.
    assert Counter(delivered_ids(broker)) == Counter(row.pk for row in rows)

    rows = publish_many(create_message(tasks.echo, task_args=[n]) for n in range(2500))
    assert publisher.flush(30)
    assert delivered_ids(broker) == [row.pk for row in rows]
    assert unsent() == 0


def test_what_is_too_much_for_the_memory_is_left_to_a_relay(
    served: None, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that go out are the first ones, whatever parts they are sent in."""
    # A busy machine may take longer than the budget to make a queue.
    monkeypatch.setattr(publisher, "BUDGET", 10.0)
    monkeypatch.setattr(publisher, "CHUNK", 50)
    monkeypatch.setattr(publisher, "MAX_WAITING", 120)
    publish_many(create_message(tasks.noop) for _ in range(200))
    assert publisher.flush(10)
    keys = list(MessageLog.objects.order_by("pk").values_list("pk", flat=True))
    unsent = list(MessageLog.objects.unsent().order_by("pk").values_list("pk", flat=True))
    assert unsent == keys[120:]
    assert broker.depth("default") == 120
    publish_many(create_message(tasks.noop) for _ in range(120))
    assert publisher.flush(10)
    assert broker.depth("default") == 240, "there is room again"


def test_publish_many_publishes_all_or_nothing(served: None, broker: Broker) -> None:
    def messages() -> Iterator[Message]:
        for n in range(10):
            yield create_message(tasks.echo, task_args=[n])
        yield create_message(tasks.echo, task_args=[object()])

    with pytest.raises(InvalidMessage):
        publish_many(messages())
    with transaction.atomic():
        publish_many([create_message(tasks.echo) for _ in range(10)])
        assert MessageLog.objects.count() == 10
        transaction.set_rollback(True)
    twice = create_message(tasks.echo)
    with pytest.raises(Exception, match=r"(?i)unique"):
        publish_many([create_message(tasks.echo), twice, twice])
    assert publish_many([]) == []
    assert MessageLog.objects.count() == 0

    with transaction.atomic():
        rows = publish_many([create_message(tasks.echo) for _ in range(2)])
        assert publisher.flush(10)
    assert publisher.flush(10)
    # Nothing of the above has gone out before, or comes now.
    assert delivered_ids(broker) == [row.pk for row in rows]


def test_large_messages_go_out_too(served: None, broker: Broker) -> None:
    text = "x" * 1_000_000
    rows = publish_many([create_message(tasks.echo, task_args=[text]) for _ in range(30)])
    assert publisher.flush(30)
    assert unsent() == 0
    for row in rows:
        properties, body = broker.get("default")
        assert json.loads(body) == {"args": [text]}
        assert properties.message_id in {str(row.pk) for row in rows}
    assert broker.depth("default") == 0


# Several servers


@pytest.mark.once
def test_a_broker_that_is_away_does_not_disturb_another(
    served: None, settings: Any, broker: Broker
) -> None:
    away = f"amqp://127.0.0.1:{free_port()}/"
    settings.CARROT = {
        **settings.CARROT,
        "queues": [{"name": "default"}, {"name": "other", "host": away}],
    }
    rows = publish_many(
        create_message(tasks.echo, queue=queue) for _ in range(50) for queue in ("default", "other")
    )
    assert publisher.flush(10)
    assert sorted(delivered_ids(broker)) == sorted(row.pk for row in rows[::2])
    left = MessageLog.objects.unsent().in_bulk()
    assert set(left) == {row.pk for row in rows[1::2]}
    assert all(row.publish_error for row in left.values())


@pytest.mark.once
def test_any_server_of_a_cluster_will_do(
    served: None, settings: Any, start_service: StartService, broker_url: str, broker: Broker
) -> None:
    credentials, _, rest = broker_url.rpartition("@")
    cluster = f"{credentials}@127.0.0.1:{free_port()},{rest}"
    settings.CARROT = {**settings.CARROT, "default_broker": cluster}
    row = publish_message(tasks.echo)
    assert publisher.flush(10)
    # A process that lives for this message only has no second chance.
    row.refresh_from_db()
    assert row.confirmed_at is not None
    assert broker.depth("default") == 1

    service = start_service(CARROT_BROKER_URL=cluster)
    all_completed([row.pk])
    assert service.stop() == 0


# A publisher that dies


#: The broker has confirmed, the row does not say so yet.
UNTIL_CONFIRMED = """
while not publisher.current()._note.confirmed:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("before", "arrived"), [("pass", False), (UNTIL_CONFIRMED, True)], ids=["unsent", "unnoted"]
)
def test_a_publisher_killed_after_its_commit_loses_no_task(
    run_script: RunScript,
    start_service: StartService,
    broker: Broker,
    ledger: Ledger,
    before: str,
    arrived: bool,
) -> None:
    script = f"""
publisher.NOTE_DELAY = 60
publish_message(EFFECT, "kept")
{before}
os.kill(os.getpid(), signal.SIGKILL)
"""
    broker.channel.queue_declare("default", durable=True, arguments={"x-queue-type": "classic"})
    result(run_script(script), -signal.SIGKILL)
    row = MessageLog.objects.get()
    # The moment of the kill is the one that is meant.
    assert row.confirmed_at is None
    assert (broker.depth("default") == 1) is arrived

    service = start_service()
    all_completed([row.pk])
    wait_until(lambda: broker.depth("default") == 0)
    assert service.stop() == 0
    row.refresh_from_db()
    assert row.attempts == 1
    assert ledger() == ["kept"]
    assert broker.depth("default") == 0


@pytest.mark.only("postgres")
def test_confirms_are_noted_again_after_the_database_ended_the_sessions(
    served: None, broker: Broker
) -> None:
    def noted(row: MessageLog) -> bool:
        row.refresh_from_db()
        return row.confirmed_at is not None

    first = publish_message(tasks.echo)
    assert publisher.flush(10)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    rows = [publish_message(tasks.echo)]
    assert publisher.flush(10)
    rows.append(publish_message(tasks.echo))
    assert publisher.flush(10)
    assert noted(first)
    assert noted(rows[1])
    assert delivered_ids(broker) == [row.pk for row in (first, *rows)]


# A broker that is away, silent or unkind


@pytest.mark.defect(40)
def test_with_the_broker_away_the_row_waits_for_a_service(
    served: None,
    settings: Any,
    start_service: StartService,
    ledger: Ledger,
    broker_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    settings.CARROT = {
        **settings.CARROT,
        "default_broker": f"amqp://someone:the-password@127.0.0.1:{port}/",
    }
    timed = [publish_timed(tasks.effect, str(n)) for n in range(20)]
    assert max(seconds for _, seconds in timed) < AT_ONCE
    start = time.monotonic()
    assert publisher.flush(10)
    assert time.monotonic() - start < 2.5
    for row, _ in timed:
        row.refresh_from_db()
        assert row.status == MessageLog.PUBLISHED
        assert row.confirmed_at is None
        assert row.publish_error
        assert "the-password" not in row.publish_error
    assert f"No connection to the broker 127.0.0.1:{port}/" in caplog.text
    assert "the-password" not in caplog.text

    settings.CARROT = {**settings.CARROT, "default_broker": broker_url}
    start_service()
    all_completed([row.pk for row, _ in timed])
    assert Counter(ledger()) == Counter(str(n) for n in range(20))


@pytest.mark.once
@pytest.mark.parametrize("state", ["away", "silent"])
def test_a_short_process_ends_soon_without_a_broker(
    run_script: RunScript, fragile: RabbitMQ, state: str
) -> None:
    url = fragile.url if state == "silent" else f"amqp://127.0.0.1:{free_port()}/"
    if state == "silent":
        fragile.pause()
    script = """
import atexit
atexit._clear()
atexit.register(lambda: print(time.monotonic() - returned))
atexit.register(publisher._at_exit)
start = time.monotonic()
publish_message(EFFECT, "kept")
returned = time.monotonic()
print(returned - start)
"""
    caller, at_exit = map(float, result(run_script(script, url=url)).split())
    assert caller < AT_ONCE
    assert at_exit < (2.0 if state == "away" else 3.0)
    assert unsent() == 1


def sent_at_last() -> list[UUID]:
    """Publish until a task goes out at once: a busy machine may take longer than the budget.

    Returns:
        The primary keys of all that were published for that.
    """
    keys: list[UUID] = []

    def sent() -> bool:
        keys.append(publish_message(tasks.echo).pk)
        assert publisher.flush(10)
        return MessageLog.objects.filter(pk=keys[-1], confirmed_at__isnull=False).exists()

    wait_until(sent)
    return keys


@pytest.mark.once
def test_a_broker_that_falls_silent_holds_up_nobody(
    served: None, fragile: RabbitMQ, broker: Broker
) -> None:
    first = sent_at_last()
    fragile.pause()
    timed = [publish_timed(tasks.echo) for _ in range(50)]
    assert max(seconds for _, seconds in timed) < AT_ONCE
    many = publish_many([create_message(tasks.echo) for _ in range(publishing.WINDOW + 1000)])
    assert not publisher.flush(0.2)
    # More than are in flight at once: the rest is left to the relay, and says so.
    wait_until(
        lambda: MessageLog.objects.unsent().filter(publish_error__contains="in time").count(), 10
    )
    fragile.resume()

    assert publisher.flush(20)
    last = sent_at_last()
    keys = [*first, *(row.pk for row, _ in timed), *(row.pk for row in many), *last]
    confirmed = set(
        MessageLog.objects.filter(confirmed_at__isnull=False).values_list("pk", flat=True)
    )
    # What is noted as sent is there, and nothing is there twice.
    ids = delivered_ids(broker)
    assert len(ids) == len(set(ids))
    assert confirmed <= set(ids) <= set(keys)
    assert len(confirmed) + unsent() == len(keys)


@pytest.mark.once
@pytest.mark.parametrize("wrong", ["password", "virtual host"])
def test_a_refused_login_is_told_without_the_password(
    served: None,
    settings: Any,
    private_broker: RabbitMQ,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    good = private_broker.url
    password = good.partition("@")[0].rpartition(":")[2]
    if wrong == "password":
        url = good.replace(password, "not-the-password")
        told = "ACCESS_REFUSED"
    else:
        url = good.removesuffix(private_broker.name) + "no-such-vhost"
        told = "no-such-vhost"
    settings.CARROT = {**settings.CARROT, "default_broker": url}
    row, seconds = publish_timed(tasks.echo)
    assert seconds < AT_ONCE
    assert publisher.flush(10)
    row.refresh_from_db()
    assert row.confirmed_at is None
    for text in (row.publish_error, caplog.text):
        assert told in text
        assert "not-the-password" not in text
        assert password not in text


@pytest.mark.once
def test_connections_closed_by_the_broker_are_made_again(
    served: None, start_service: StartService, fragile: RabbitMQ, ledger: Ledger
) -> None:
    first = publish_message(tasks.effect, "first")
    assert publisher.flush(10)
    fragile.ctl("close_all_connections", "--global", "while idle")

    def published_again() -> bool:
        row, seconds = publish_timed(tasks.effect, "again")
        assert seconds < AT_ONCE
        assert publisher.flush(10)
        row.refresh_from_db()
        return row.confirmed_at is not None

    # No service runs: it is this process that has a connection again.
    wait_until(published_again, 10)

    start_service()
    with Load() as load:
        for _ in range(2):
            load.more(50)
            fragile.ctl("close_all_connections", "--global", "under load")
        load.more(50)
    assert load.slowest < AT_ONCE
    everything = list(MessageLog.objects.values_list("pk", flat=True))
    assert {first.pk, *load.keys} <= set(everything)
    all_completed(everything)
    assert set(ledger()) == {"first", "again", *(str(n) for n in range(len(load.rows)))}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_restarted_under_load_loses_no_task(
    start_service: StartService, fragile: RabbitMQ, ledger: Ledger, how: str
) -> None:
    service = start_service()
    with Load() as load:
        load.more(50)
        fragile.sync()
        getattr(fragile, how)()
        load.more(50)
        fragile.start()
        load.more(50)
    assert load.slowest < AT_ONCE
    all_completed(load.keys, 90)
    assert set(ledger()) == {str(n) for n in range(len(load.rows))}
    assert service.stop() == 0


@pytest.mark.once
def test_a_memory_alarm_blocks_no_caller(
    run_script: RunScript, start_service: StartService, fragile: RabbitMQ, ledger: Ledger
) -> None:
    service = start_service()
    fragile.ctl("set_vm_memory_high_watermark", "0.00001")
    with Load() as load:
        load.more(100)
    assert load.slowest < AT_ONCE
    # A blocked publisher does not hold up the end of its process either.
    start = time.monotonic()
    result(run_script('publish_message(EFFECT, "script")'))
    assert time.monotonic() - start < 8
    wait_until(lambda: unsent() == len(load.rows) + 1, 10)
    assert ledger() == []

    fragile.ctl("set_vm_memory_high_watermark", "0.6")
    all_completed(list(MessageLog.objects.values_list("pk", flat=True)), 90)
    assert Counter(ledger()) == Counter(["script", *(str(n) for n in range(len(load.rows)))])
    assert service.stop() == 0


def test_a_deferred_commit_sends_nothing_early(served: None, broker: Broker) -> None:
    broker.channel.queue_declare("default", durable=True, arguments={"x-queue-type": "classic"})
    with transaction.atomic():
        with transaction.atomic():
            row = publish_message(tasks.echo)
        assert publisher.flush(5)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert broker.depth("default") == 0
    assert publisher.flush(10)
    assert delivered_ids(broker) == [row.pk]


@pytest.mark.once
def test_an_error_of_pikas_on_the_publishers_thread_costs_no_confirm_and_no_thread(
    served: None, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """As a peer causes it that resets a connection between connect() and the look at its end."""
    broker.channel.queue_declare("default", durable=True, arguments={"x-queue-type": "classic"})
    first = publish_message(tasks.noop)
    before = publisher.current()
    assert isinstance(before, publisher.ThreadPublisher)
    wait_until(lambda: broker.depth("default") == 1 and not before._using)

    def fall() -> None:
        raise OSError(107, "Transport endpoint is not connected")

    # The confirm has come, and is noted after a second only.
    before.ioloop.add_callback_threadsafe(fall)
    wait_until(lambda: not before.alive)
    wait_until(lambda: not before._noter.is_alive())
    assert "with the next task it starts anew" in caplog.text
    assert before.flush(0) is True
    before.close(1)
    first.refresh_from_db()
    assert first.confirmed_at is not None

    publish_message(tasks.noop)
    assert publisher.current() is not before
    assert publisher.flush(10)
    assert broker.depth("default") == 2
