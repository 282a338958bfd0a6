# SPDX-License-Identifier: Apache-2.0
"""What docs/callbacks.md tells to copy works as it stands there, without a Django project."""

from __future__ import annotations

import inspect
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import load_command_class

import carrot_twisted
from carrot_twisted.callback_options import OF_CALLBACKS
from carrot_twisted.service.consumption import EXIT_CALLBACK
from tests.conftest import Broker
from tests.processes import REPOSITORY, TWISTD, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., "subprocess.Popen[str]"]

PAGE = (REPOSITORY / "docs" / "callbacks.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
(COMMAND,) = re.findall(r"^twistd -n (carrot --callback=.*)$", PAGE, flags=re.MULTILINE)
COMMANDS = re.findall(
    r"^(?:echo .* )?carrot (?:publish|consume|record|replay) .*$", PAGE, re.MULTILINE
)
QUEUES = ("demo", "orders", "orders.archived", "billing", "audit", "bounded", "bounded.archived")

#: Ends a program with the coroutine ``work`` of the page.
IN_REACTOR = """
from twisted.internet import defer, reactor
reactor.callWhenRunning(lambda: defer.ensureDeferred(work()).addBoth(lambda _: reactor.stop()))
reactor.run()
"""

pytestmark = pytest.mark.once


def block(text: str) -> str:
    """The page's code block that holds a text."""
    return next(str(one) for one in BLOCKS if text in one)


@pytest.fixture
def no_queues(broker_url: str) -> Iterator[None]:
    """None is left of another test, or for one."""

    def delete() -> None:
        broker = Broker(broker_url)
        for queue in QUEUES:
            broker.channel.queue_delete(queue)
        broker.channel.exchange_delete("shop.events")
        broker.connection.close()

    delete()
    yield
    delete()


@pytest.fixture
def start(no_queues: None, broker_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a program in a folder with the page's modules."""
    for text in ("# consumer.py", "# send.py", "# saving.py"):
        (tmp_path / text[2:]).write_text(block(text))
    running: list[Any] = []

    def started(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={"PYTHONPATH": str(REPOSITORY), "CARROT_BROKER": broker_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield started
    for process in running:
        process.kill()
        process.communicate()


def consumers(broker: Broker, queue: str) -> int:
    """How many consumers a queue has; -1 if there is no such queue."""
    if broker.depth(queue, -1) == -1:
        return -1
    return int(broker.channel.queue_declare(queue, passive=True).method.consumer_count)


def test_a_newcomer_gets_from_the_page_to_a_message_and_ends_the_consumer(
    start: Start, broker: Broker
) -> None:
    consumer = start(sys.executable, "consumer.py")
    wait_until(lambda: consumers(broker, "demo") == 1)
    assert start(sys.executable, "send.py").wait(20) == 0
    assert consumer.stdout is not None
    lines = iter(consumer.stdout.readline, "")
    assert "shop.order.paid {'number': 7}\n" in lines
    consumer.send_signal(signal.SIGINT)
    assert consumer.wait(20) == 0


def test_the_service_of_the_page_saves_orders_and_ends_as_its_callback_says(
    start: Start, broker: Broker, broker_url: str, tmp_path: Path
) -> None:
    service = start(str(TWISTD), "-n", "--pidfile=", *shlex.split(COMMAND))
    wait_until(lambda: consumers(broker, "orders") == 1)
    for number in (5, -1):
        carrot_twisted.publish(
            {"number": number}, "amq.topic", "shop.order.paid", broker=broker_url
        )
    output, _ = service.communicate(timeout=20)
    assert service.returncode == 3, output
    assert "orders have gone mad" in output
    assert (tmp_path / "orders.txt").read_text() == "5\n"
    wait_until(lambda: broker.depth("orders") == 1)


def test_a_script_says_its_own_exit_status(start: Start, broker: Broker) -> None:
    script = start(sys.executable, "-c", block("sys.exit(halt.exit_code)"))
    wait_until(lambda: consumers(broker, "demo") == 1)
    broker.send("demo", b"text")
    assert script.wait(20) == 3


def test_several_queues_and_bindings_are_those_of_the_page(
    start: Start, broker: Broker, broker_url: str
) -> None:
    script = start(sys.executable, "-c", block("shop.events"))
    wait_until(lambda: [consumers(broker, queue) for queue in ("billing", "audit")] == [1, 1])
    script.terminate()
    assert script.wait(20) == 0
    for key in ("order.paid", "refund.of.order"):
        carrot_twisted.publish({}, "shop.events", key, broker=broker_url)
    wait_until(lambda: broker.depth("billing") == 2)
    assert broker.depth("audit") == 0


def test_a_program_with_a_reactor_consumes_as_on_the_page(start: Start, broker: Broker) -> None:
    text = block("twisted_consume")
    assert "(message): ...\n" in text
    text = text.replace("(message): ...", "(message):\n    raise HaltConsumer(reason='enough')")
    script = start(sys.executable, "-u", "-c", text + IN_REACTOR)
    assert script.stdout is not None
    assert script.stdout.readline() == "demo True None\n"
    broker.send("demo", b"text")
    told, _ = script.communicate(timeout=20)
    assert (script.returncode, told) == (0, "halted: enough\n")


def test_a_program_hears_what_became_of_its_message(start: Start, broker: Broker) -> None:
    publish = (sys.executable, "-c", block("PublishReturned"))
    told, _ = start(*publish).communicate(timeout=20)
    assert told.startswith("nobody gets it: ")
    broker.channel.queue_declare("orders", durable=True)
    broker.channel.queue_bind("orders", "amq.topic", "shop.#")
    told, _ = start(*publish).communicate(timeout=20)
    assert told == ""
    properties, body = broker.get("orders")
    assert body == b'{"number": 8}'
    assert (properties.headers["source"], properties.priority) == ("till 3", 1)


def test_a_message_that_kills_its_process_is_put_away_after_the_limit(
    start: Start, broker: Broker
) -> None:
    deadly = block("# bounded.py").replace("print(message.content, flush=True)", "os._exit(9)")
    script = ("import os\n" + deadly).replace('"x-delivery-limit": 5', '"x-delivery-limit": 1')
    first = start(sys.executable, "-c", script)
    wait_until(lambda: consumers(broker, "bounded") == 1)
    broker.send("bounded", b"deadly")
    assert first.wait(20) == 9
    assert start(sys.executable, "-c", script).wait(20) == 9
    wait_until(lambda: broker.depth("bounded.archived") == 1)


def test_the_commands_of_the_page_do_what_it_says(
    start: Start, broker: Broker, tmp_path: Path
) -> None:
    publish, _, record, replay, replay_queue = COMMANDS
    script = str(TWISTD.with_name("carrot"))
    recording = start("sh", "-c", record.replace("carrot", script).replace("100", "1"))
    # Until it consumes, nobody gets the message, and publish says so.
    wait_until(lambda: start("sh", "-c", publish.replace("carrot", script)).wait(20) == 0)
    assert recording.wait(20) == 0
    broker.channel.queue_declare("orders", durable=True)
    broker.channel.queue_bind("orders", "amq.topic", "shop.#")
    assert start("sh", "-c", replay.replace("carrot", script)).wait(20) == 0
    properties, body = broker.get("orders")
    assert (body, properties.content_type) == (b'{"number": 9}\n', "application/json")
    broker.channel.queue_declare("orders.archived", durable=True)
    broker.send("orders.archived", b"back", headers={"x-carrot-queue": "orders"})
    assert start("sh", "-c", replay_queue.replace("carrot", script)).wait(20) == 0
    assert broker.get("orders")[1] == b"back"


def test_its_tables_have_every_argument_every_option_and_the_status() -> None:
    for argument in inspect.signature(carrot_twisted.consume).parameters:
        assert argument == "callback" or f"`{argument}`" in PAGE, argument
    for option in OF_CALLBACKS.values():
        assert f"`--{option}`" in PAGE, option
    assert f"| {EXIT_CALLBACK} |" in PAGE


def test_its_commands_for_the_archive_are_understood() -> None:
    parser = load_command_class("carrot_twisted", "carrot_archive").create_parser("manage.py", "")
    lines = re.findall(r"^python manage\.py carrot_archive (.*)$", PAGE, flags=re.MULTILINE)
    options = [parser.parse_args(line.split()) for line in lines]
    assert [one.action for one in options] == ["list", "show", "replay", "delete"]
    assert all(one.queue == ["orders"] for one in options)
