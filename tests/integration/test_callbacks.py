# SPDX-License-Identifier: Apache-2.0
"""Callbacks in a process of their own: real broker, ``twistd`` and scripts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pika
import pytest

import carrot_twisted
from carrot_twisted import publisher, sending
from carrot_twisted.callbacks import NACK_DELAY
from carrot_twisted.exceptions import PublishReturned, PublishTimeout
from carrot_twisted.outbox import Post
from carrot_twisted.virtual_host import VirtualHost
from tests.conftest import Broker
from tests.processes import REPOSITORY, ServiceProcess, constants, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import RabbitMQ
    from tests.nursery import Nursery
    from tests.processes import Launch

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

QUEUE, OTHER, TARGET = "called.queue", "called.other", "called.target"
ARCHIVE = f"{QUEUE}.archived"
EXCHANGE = "called.exchange"
OBEY = "--callback=tests.project.callbacks:obey"
CONSUMING = f"Consuming queue {QUEUE} "

pytestmark = pytest.mark.once


@pytest.fixture
def launch(nursery: Nursery) -> Launch:
    """There are many services here."""
    return nursery.start


def delete_queues(url: str) -> None:
    broker = Broker(url)
    for name in (QUEUE, OTHER, TARGET, ARCHIVE):
        broker.channel.queue_delete(name)
    broker.channel.exchange_delete(EXCHANGE)
    broker.connection.close()


@pytest.fixture
def no_queues(broker_url: str) -> Iterator[None]:
    """None is left of another test, or for one."""
    delete_queues(broker_url)
    yield
    delete_queues(broker_url)


@pytest.fixture
def start(no_queues: None, start_service: StartService) -> StartService:
    """Start a process with a callback."""

    def started(*options: str, wait: bool = True, **environment: str) -> ServiceProcess:
        service = start_service(
            *(options or (OBEY, f"--queue-name={QUEUE}")), wait=False, **environment
        )
        if wait:
            service.wait_for("Consuming queue ")
        return service

    return started


def send(broker: Broker, *texts: str, queue: str = QUEUE, **properties: Any) -> None:
    for text in texts:
        broker.send(queue, text.encode(), **properties)


def kill(server: RabbitMQ) -> None:
    """kill -9 of a broker that has written down which queues it has: it does so now and then."""
    server.ctl("eval", "mnesia:sync_log().")
    server.kill()


def test_messages_are_called_back_one_at_a_time_in_their_order(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start()
    texts = [f"n {number}" for number in range(50)]
    send(broker, *texts)
    wait_until(lambda: len(ledger()) == 100)
    assert ledger() == [f"{what} {text}" for text in texts for what in ("begin", "end")]
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 0


def test_concurrency_lets_several_run_at_once(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    start(OBEY, f"--queue-name={QUEUE}", "--concurrency=2")
    send(broker, "wait 1", "wait 2", "wait 3")
    wait_until(lambda: "2 at once" in ledger())
    time.sleep(0.2)
    assert "begin wait 3" not in ledger()
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: "end wait 3" in ledger())


def test_several_queues_and_bindings_share_the_callback_that_need_not_be_thread_safe(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    bindings = [
        {"exchange": EXCHANGE, "queue": QUEUE, "routing_keys": ["a.*", "b.#"]},
        {"exchange": EXCHANGE, "queue": OTHER, "routing_keys": ["c"]},
        {"exchange": "amq.topic", "queue": OTHER, "routing_keys": ["called.d"]},
    ]
    queues = {QUEUE: {"durable": True}, OTHER: {"auto_delete": True, "exclusive": True}}
    service = start(
        "--callback=tests.project.callbacks:obey",
        f"--bindings={json.dumps(bindings)}",
        f"--queues={json.dumps(queues)}",
        f"--exchanges={json.dumps({EXCHANGE: {'type': 'topic'}})}",
    )
    for name in (QUEUE, OTHER):
        service.wait_for(f"Consuming queue {name} ")
    for key in ("a.1", "b.2.3", "c", "nowhere"):
        broker.channel.basic_publish(EXCHANGE, key, f"wait {key}".encode())
    broker.channel.basic_publish("amq.topic", "called.d", b"wait called.d")
    wait_until(lambda: len(ledger()) == 1)
    time.sleep(0.2)
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: len(ledger()) == 8)
    assert {line for line in ledger() if line.startswith("end")} == {
        f"end wait {key}" for key in ("a.1", "b.2.3", "c", "called.d")
    }
    assert "2 at once" not in ledger()
    assert service.stop() == 0


def test_by_default_a_queue_that_the_broker_names_gets_what_amq_topic_gets(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start("--callback=tests.project.callbacks:tell")
    properties = pika.BasicProperties(content_type="application/json")
    broker.channel.basic_publish("amq.topic", "any.thing", b'{"n": 1}', properties)
    wait_until(lambda: ledger() == ["'amq.topic' any.thing {'n': 1}"])
    assert "Consuming queue amq.gen-" in service.log
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("callback", "expected"),
    [("coroutine", ["coroutine a", "coroutine b"]), ("Counting", ["made", "1 a", "2 b"])],
)
def test_a_callback_may_be_a_coroutine_function_or_a_class(
    start: StartService, broker: Broker, ledger: Ledger, callback: str, expected: list[str]
) -> None:
    start(f"--callback=tests.project.callbacks:{callback}", f"--queue-name={QUEUE}")
    send(broker, "a", "b")
    wait_until(lambda: len(ledger()) == len(expected))
    for line, start_of_line in zip(ledger(), expected, strict=True):
        assert line.startswith(start_of_line)


def test_nack_returns_a_message_and_drop_dead_letters_it(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    broker.channel.queue_declare(TARGET)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": TARGET}
    queues = {QUEUE: {"arguments": arguments}}
    service = start(OBEY, f"--queues={json.dumps(queues)}")
    send(broker, "nack once", "drop", "last")
    wait_until(lambda: "end nack once" in ledger() and "end last" in ledger())
    wait_until(lambda: broker.depth(TARGET) == 1)
    assert broker.get(TARGET)[1] == b"drop"
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 0


def test_a_message_that_is_never_wanted_costs_a_call_a_second_and_holds_up_no_other(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start()
    send(broker, "nack", "last")
    wait_until(lambda: ledger().count("begin nack") == 2)
    began = time.monotonic()
    wait_until(lambda: ledger().count("begin nack") == 3)
    assert time.monotonic() - began > NACK_DELAY - 0.2
    assert "end last" in ledger()
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 1


@pytest.mark.parametrize(
    ("text", "status", "left"),
    [
        ("halt 0", 0, ["next"]),
        ("halt 7 requeue", 7, ["halt 7 requeue", "next"]),
        ("fail", 13, ["fail", "next"]),
    ],
)
def test_what_ends_the_consumer_returns_what_was_prefetched_and_sets_the_status(
    start: StartService, broker: Broker, ledger: Ledger, text: str, status: int, left: list[str]
) -> None:
    service = start()
    # In one channel's order, so all are here when the first one is called back.
    send(broker, text, "next")
    assert service.ends() == status
    assert ledger() == [f"begin {text}"]
    wait_until(lambda: broker.depth(QUEUE) == len(left))
    assert [broker.get(QUEUE)[1].decode() for _ in left] == left
    if status == 13:
        assert "Traceback" in service.log
        assert "in _obey" in service.log
    else:
        assert "ends the consumer of queue called.queue: enough" in service.log


def test_with_on_error_archive_what_fails_is_kept_with_the_reason_and_the_next_one_follows(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start(OBEY, f"--queue-name={QUEUE}", "--on-error=archive")
    broker.channel.queue_delete(ARCHIVE)
    send(broker, "fail", "exit", "last", message_id="1")
    wait_until(lambda: "end last" in ledger())
    wait_until(lambda: broker.depth(ARCHIVE, 0) == 2)
    properties, body = broker.get(ARCHIVE)
    assert (body, properties.message_id) == (b"fail", "1")
    assert properties.headers["x-carrot-exception"] == "ValueError: fail"
    assert properties.headers["x-carrot-reason"] == "its callback has failed"
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 0


def test_a_body_that_cannot_be_read_goes_to_the_archive_and_ends_nothing(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    start()
    send(broker, "{no JSON", content_type="application/json")
    send(broker, "last")
    wait_until(lambda: "end last" in ledger())
    wait_until(lambda: broker.depth(ARCHIVE, 0) == 1)


def test_the_databases_trouble_ends_nothing(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start()
    send(broker, "database")
    wait_until(lambda: "end database" in ledger())
    service.wait_for("the database was in its way, it runs again in 1 s")


def test_kill_9_loses_no_message(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    service = start()
    send(broker, "wait 1", "wait 2", "wait 3")
    wait_until(lambda: ledger() == ["begin wait 1"])
    service.kill()
    wait_until(lambda: broker.depth(QUEUE) == 3)
    (tmp_path / "ledger.go").touch()
    start()
    wait_until(lambda: "end wait 3" in ledger())
    assert ledger().count("begin wait 1") == 2


def test_a_stop_lets_the_callback_end_and_returns_the_others(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    service = start()
    send(broker, "wait 1", "wait 2")
    wait_until(lambda: ledger() == ["begin wait 1"])
    service.signal()
    wait_until(lambda: broker.depth(QUEUE) == 1)
    (tmp_path / "ledger.go").touch()
    assert service.ends() == 0
    assert ledger() == ["begin wait 1", "end wait 1"]
    assert broker.depth(QUEUE) == 1


def test_a_callback_that_does_not_end_in_time_does_not_hold_up_the_stop(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start(OBEY, f"--queue-name={QUEUE}", "--shutdown-timeout=0.3")
    send(broker, "wait 1")
    wait_until(lambda: ledger() == ["begin wait 1"])
    assert service.stop(5) == 0
    wait_until(lambda: broker.depth(QUEUE) == 1)


def test_a_second_signal_does_not_wait_for_the_callback(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start()
    send(broker, "wait 1")
    wait_until(lambda: ledger() == ["begin wait 1"])
    service.signal()
    service.wait_for("1 callbacks are still running")
    service.signal(signal.SIGINT)
    assert service.ends(5) == 0
    wait_until(lambda: broker.depth(QUEUE) == 1)


def test_a_queue_that_is_deleted_is_declared_and_consumed_again(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start(
        OBEY, f"--queue-name={QUEUE}", "--exchange=amq.topic", "--routing-key=called.key"
    )
    broker.channel.queue_delete(QUEUE)
    wait_until(lambda: service.log.count(CONSUMING) == 2)
    broker.channel.basic_publish("amq.topic", "called.key", b"again")
    wait_until(lambda: "end again" in ledger())


def test_a_queue_that_the_broker_names_follows_one_that_is_gone(
    start: StartService, private_broker: RabbitMQ, ledger: Ledger
) -> None:
    """Its connection is lost, and with that the queue."""
    service = start("--callback=tests.project.callbacks:tell", CARROT_BROKER_URL=private_broker.url)
    private_broker.ctl("close_all_connections", "--global", "spring cleaning")
    wait_until(lambda: service.log.count("Consuming queue amq.gen-") == 2)
    first, second = re.findall(r"Consuming queue (\S+)", service.log)
    assert first != second
    broker = Broker(private_broker.url)
    broker.channel.basic_publish("amq.topic", "key", b"one")
    wait_until(lambda: ledger() == ["'amq.topic' key one"])
    broker.connection.close()


def test_an_exchange_that_is_missing_is_told_and_waited_for(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start(OBEY, f"--queue-name={QUEUE}", f"--exchange={EXCHANGE}", wait=False)
    service.wait_for("no exchange 'called.exchange'")
    assert "It has to be declared first" in service.log
    broker.channel.exchange_declare(EXCHANGE, "topic")
    service.wait_for(CONSUMING)
    broker.channel.basic_publish(EXCHANGE, "any", b"now")
    wait_until(lambda: "end now" in ledger())


def test_one_at_a_time_also_when_the_broker_is_killed_and_comes_back(
    start: StartService, private_broker: RabbitMQ, ledger: Ledger, tmp_path: Path
) -> None:
    service = start(CARROT_BROKER_URL=private_broker.url)
    before = Broker(private_broker.url)
    # Else they might not be on its disk yet.
    before.channel.confirm_delivery()
    for number in range(3):
        send(before, f"wait {number}", delivery_mode=2, message_id=str(number))
    wait_until(lambda: ledger() == ["begin wait 0"])
    before.connection.close()
    kill(private_broker)
    private_broker.start()
    wait_until(lambda: service.log.count(CONSUMING) == 2, 60)
    time.sleep(0.3)
    assert ledger() == ["begin wait 0"]
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: "end wait 2" in ledger())
    assert ledger() == [f"{what} wait {n}" for n in range(3) for what in ("begin", "end")]
    assert service.stop() == 0
    after = Broker(private_broker.url)
    assert after.depth(QUEUE) == 0
    after.connection.close()


def test_a_consumer_that_ends_while_the_broker_is_away_ends_its_process_and_loses_nothing(
    start: StartService, private_broker: RabbitMQ, ledger: Ledger, tmp_path: Path
) -> None:
    service = start(CARROT_BROKER_URL=private_broker.url)
    before = Broker(private_broker.url)
    before.channel.confirm_delivery()
    for text in ("wait halt 7", "next"):
        send(before, text, delivery_mode=2)
    wait_until(lambda: ledger() == ["begin wait halt 7"])
    before.connection.close()
    kill(private_broker)
    try:
        service.wait_for("Lost the connection")
        (tmp_path / "ledger.go").touch()
        assert service.ends(10) == 7
    finally:
        private_broker.start()
    after = Broker(private_broker.url)
    assert after.depth(QUEUE) == 2
    after.connection.close()


@pytest.mark.only("rabbitmq4")
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_rabbitmq_4_throws_no_message_away_that_comes_back_often(
    start: StartService, broker: Broker, ledger: Ledger, kind: str
) -> None:
    """By itself it would take one off a quorum queue that has come back 20 times."""
    queues = {QUEUE: {"arguments": {"x-queue-type": kind}}}
    service = start(
        *(OBEY, f"--queues={json.dumps(queues)}", "--on-error=archive"),
        **constants({"callbacks.NACK_DELAY": 0.02}),
    )
    send(broker, "nack", "fail", "last")
    wait_until(lambda: ledger().count("begin nack") > 30)
    assert "end last" in ledger()
    wait_until(lambda: broker.depth(ARCHIVE) == 1)
    assert broker.get(ARCHIVE)[1] == b"fail"
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 1


@pytest.mark.only("rabbitmq4")
def test_a_broker_that_permits_no_transient_queue_gets_a_durable_one(
    start: StartService, strict_broker: RabbitMQ, ledger: Ledger
) -> None:
    """The queue of fedora-messaging's own example."""
    queue = {"durable": False, "auto_delete": True, "exclusive": False, "arguments": {}}
    service = start(
        OBEY, f"--queues={json.dumps({QUEUE: queue})}", CARROT_BROKER_URL=strict_broker.url
    )
    assert "permits durable queues only" in service.log
    assert f"over queue '{QUEUE}'" in service.log
    assert "Set 'durable': True for it" in service.log
    broker = Broker(strict_broker.url)
    send(broker, "here")
    wait_until(lambda: "end here" in ledger())
    broker.connection.close()
    # One that is exclusive, or that the broker names, is not meant.
    other = start("--callback=tests.project.callbacks:tell", CARROT_BROKER_URL=strict_broker.url)
    assert "permits durable queues only" not in other.log
    assert (service.stop(), other.stop()) == (0, 0)


@pytest.mark.only("rabbitmq4.3")
def test_a_consumer_that_is_cancelled_for_its_slowness_comes_back_and_the_callback_runs_on(
    start: StartService, strict_broker: RabbitMQ, ledger: Ledger, tmp_path: Path
) -> None:
    queues = {QUEUE: {"arguments": {"x-queue-type": "quorum"}}}
    service = start(OBEY, f"--queues={json.dumps(queues)}", CARROT_BROKER_URL=strict_broker.url)
    broker = Broker(strict_broker.url)
    send(broker, "wait 1", message_id="1")
    service.wait_for(f"Queue {QUEUE} is not consumed: the broker cancelled the consumer")
    wait_until(lambda: service.log.count(CONSUMING) == 2)
    (tmp_path / "ledger.go").touch()
    send(broker, "last", message_id="2")
    wait_until(lambda: "end last" in ledger())
    assert ledger() == ["begin wait 1", "end wait 1", "begin last", "end last"]
    assert service.stop() == 0
    assert broker.depth(QUEUE) == 0
    broker.connection.close()


@pytest.mark.parametrize("how", ["publish", "twisted"])
def test_a_callback_publishes_and_calls_the_reactor(
    start: StartService, broker: Broker, ledger: Ledger, how: str
) -> None:
    broker.channel.queue_declare(TARGET)
    service = start()
    send(broker, f"{how} {TARGET}")
    wait_until(lambda: f"end {how} {TARGET}" in ledger())
    properties, body = broker.get(TARGET)
    assert (body, properties.delivery_mode, properties.content_type) == (
        b"published",
        2,
        "text/plain",
    )
    # Nobody gets this one: the callback fails, and says why.
    send(broker, f"{how} called.nowhere")
    assert service.ends() == 13
    assert "PublishReturned" in service.log
    assert "is there such a queue?" in service.log


@pytest.mark.usefixtures("served", "no_queues")
class TestPublish:
    def test_it_returns_when_the_broker_has_the_message(self, broker: Broker) -> None:
        broker.channel.queue_declare(TARGET)
        carrot_twisted.publish({"n": 1}, routing_key=TARGET, headers={"h": 1}, priority=3)
        assert broker.depth(TARGET) == 1
        properties, body = broker.get(TARGET)
        assert json.loads(body) == {"n": 1}
        assert properties.content_type == "application/json"
        assert (properties.headers, properties.priority) == ({"h": 1}, 3)

    def test_a_message_that_nobody_gets_is_told_at_once(self, broker: Broker) -> None:
        broker.channel.exchange_declare(EXCHANGE, "topic")
        began = time.monotonic()
        with pytest.raises(PublishReturned, match=r"is a queue bound to this exchange\?"):
            carrot_twisted.publish("text", EXCHANGE, "key")
        with pytest.raises(PublishReturned, match=r"is there such a queue\?"):
            carrot_twisted.publish(b"bytes", routing_key="called.nowhere")
        assert time.monotonic() - began < 5

    def test_an_exchange_that_is_missing_is_told_at_once_and_costs_others_nothing(
        self, broker: Broker
    ) -> None:
        began = time.monotonic()
        with pytest.raises(
            PublishReturned, match=r"no exchange 'called\.exchange'.*declared first"
        ):
            carrot_twisted.publish("text", EXCHANGE, "key")
        assert time.monotonic() - began < 5
        broker.channel.queue_declare(TARGET)
        carrot_twisted.publish("text", routing_key=TARGET)

    def test_a_broker_that_is_away_is_waited_for_until_the_time_is_over(self) -> None:
        nobody = "amqp://guest:guest@localhost:1/"
        with pytest.raises(PublishTimeout, match=r"localhost:1/.*no connection to the broker"):
            carrot_twisted.publish("text", routing_key=TARGET, broker=nobody, timeout=1)

    def test_a_publisher_that_has_ended_says_so(self, broker_url: str) -> None:
        thread = publisher.ThreadPublisher()
        told: list[str | None] = []
        host = VirtualHost(broker_url)
        message = sending.outgoing("text", "", TARGET, headers=None, host=host)
        post = Post(
            message_id="",
            token=None,
            exchange="",
            routing_key=TARGET,
            body=b"",
            properties=message.properties,
            steps=(),
        )
        thread.ioloop.add_callback_threadsafe(thread.ioloop.stop)
        wait_until(lambda: not thread.alive)
        thread.submit_post(host, post, told.append)
        assert told == [publisher.OVER]


SCRIPT = """
import signal, sys, carrot_twisted
from carrot_twisted.exceptions import HaltConsumer

def callback(message):
    print(message.content, flush=True)
    if message.content.startswith("halt"):
        raise HaltConsumer(5)
    if message.content == "fail":
        raise ValueError("no good")

try:
    carrot_twisted.consume(callback, queues={"called.queue": {}})
except HaltConsumer as halt:
    sys.exit(halt.exit_code)
print("stopped", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
carrot_twisted.consume(callback)
"""


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        ("halt", 5, ""),
        ("fail", 1, "ValueError: no good"),
        # It returns, and cannot be called again.
        ("", 1, "stopped True\n"),
    ],
)
def test_a_script_without_a_django_project_consumes(
    no_queues: None, broker: Broker, broker_url: str, text: str, status: int, told: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd="/",
        env={"PYTHONPATH": str(REPOSITORY), "CARROT_BROKER": broker_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: broker.depth(QUEUE, -1) == 0)
        send(broker, "first", *([text] if text else []))
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        if not text:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == status, output
    assert told in output
    assert text or "The reactor has run in this process and cannot run again" in output
    wait_until(lambda: broker.depth(QUEUE) == (text == "fail"))


TWISTED = """
import carrot_twisted
from carrot_twisted.exceptions import HaltConsumer
from twisted.internet import defer, task

seen = []

def callback(message):
    seen.append(message.content)
    if message.content == "halt":
        raise HaltConsumer(5, "enough")

async def main(reactor):
    consumers = await carrot_twisted.twisted_consume(
        callback, queues={"called.queue": {}, "called.other": {}}
    )
    first, other = consumers
    try:
        carrot_twisted.consume(callback)
    except RuntimeError as error:
        print(error)
    print([one.queue for one in consumers], [one.running for one in consumers])
    await carrot_twisted.twisted_publish("halt", routing_key="called.queue")
    try:
        await first.result
    except HaltConsumer as halt:
        print("halted:", halt)
    await carrot_twisted.twisted_publish("still there", routing_key="called.other")
    while "still there" not in seen:
        await task.deferLater(reactor, 0.01)
    await other.cancel()
    print("cancelled", await other.result is other, other.problem)

task.react(lambda reactor: defer.Deferred.fromCoroutine(main(reactor)))
"""


def test_in_a_running_reactor_each_queue_has_a_consumer_of_its_own(
    no_queues: None, broker: Broker, broker_url: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWISTED],
        env={"PYTHONPATH": str(REPOSITORY), "CARROT_BROKER": broker_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines() == [
        "The reactor runs already: use carrot_twisted.twisted_consume.",
        f"['{QUEUE}', '{OTHER}'] [True, True]",
        "halted: enough",
        f"cancelled True queue {OTHER} is not consumed: the service stops",
    ]
    assert (broker.depth(QUEUE), broker.depth(OTHER)) == (0, 0)
