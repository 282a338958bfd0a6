# SPDX-License-Identifier: Apache-2.0
"""The command ``carrot`` with a real broker, without a Django project."""

from __future__ import annotations

import json
import signal
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted import recording
from tests.conftest import Broker
from tests.processes import REPOSITORY, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Carrot = Callable[..., "subprocess.Popen[str]"]

CARROT = Path(sysconfig.get_path("scripts"), "carrot")
QUEUE, ARCHIVE, OTHER = "commanded.queue", "commanded.queue.archived", "commanded.other"

pytestmark = pytest.mark.once


@pytest.fixture
def no_queues(broker_url: str) -> Iterator[None]:
    """None is left of another test, or for one."""

    def delete() -> None:
        broker = Broker(broker_url)
        for queue in (QUEUE, ARCHIVE, OTHER):
            broker.channel.queue_delete(queue)
        broker.connection.close()

    delete()
    yield
    delete()


@pytest.fixture
def carrot(no_queues: None, broker_url: str, tmp_path: Path) -> Iterator[Carrot]:
    """Start the command in a folder of its own."""
    running: list[Any] = []

    def start(*arguments: str, body: str | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(CARROT), *arguments],
            cwd=tmp_path,
            env={"CARROT_BROKER": broker_url, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(body or "")
        process.stdin.close()
        process.stdin = None
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output."""
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def consumers(broker: Broker, queue: str) -> int:
    if broker.depth(queue, -1) == -1:
        return -1
    return int(broker.channel.queue_declare(queue, passive=True).method.consumer_count)


def test_publish_tells_what_became_of_the_message(carrot: Carrot, broker: Broker) -> None:
    broker.channel.queue_declare(QUEUE)
    arguments = ("--content-type=application/json", "--header=h=1", f"--routing-key={QUEUE}")
    assert ended(carrot("publish", "-", *arguments, body='{"n": 1}')) == (0, "published\n")
    properties, body = broker.get(QUEUE)
    assert body == b'{"n": 1}'
    assert (properties.content_type, properties.headers) == ("application/json", {"h": "1"})
    status, output = ended(carrot("publish", "-", f"--routing-key={OTHER}"))
    assert status == 1
    assert output.startswith("carrot publish: The message to exchange ''")
    assert "is there such a queue?" in output


def test_consume_calls_back_and_ends_as_the_callback_says(
    carrot: Carrot, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from carrot_twisted.exceptions import HaltConsumer\n"
        "def call(message):\n"
        "    raise HaltConsumer(int(message.content))\n"
    )
    process = carrot("consume", "--callback=mine:call", f"--queue-name={QUEUE}")
    wait_until(lambda: consumers(broker, QUEUE) == 1)
    broker.send(QUEUE, b"9")
    status, output = ended(process)
    assert status == 9, output
    status, output = ended(carrot("consume", "--callback=mine:nothing"))
    assert status == 78
    assert "Module 'mine' has no 'nothing'" in output


def test_a_recording_is_replayed_as_it_was(carrot: Carrot, broker: Broker, tmp_path: Path) -> None:
    broker.channel.queue_declare(QUEUE, durable=True)
    sent = {"content_type": "text/plain", "priority": 2, "message_id": "m", "type": "t"}
    bodies = [b"one", b"\x00\xff", b"three", b"four"]
    for body in bodies:
        broker.send(QUEUE, body, headers={"h": [1, b"\xff"]}, **sent)
    # Killed with half a line: that message was not acknowledged.
    file = tmp_path / "recording"
    file.write_text('{"exchange": "", "rout')
    process = carrot("record", "recording", f"--queue-name={QUEUE}", "--limit=3")
    assert ended(process) == (0, "3 messages are recorded in recording\n")
    wait_until(lambda: broker.depth(QUEUE) == 1)
    assert broker.get(QUEUE)[1] == b"four"

    assert ended(carrot("replay", "recording")) == (
        0,
        "3 messages of recording were published\n",
    )
    for body in bodies[:3]:
        properties, again = broker.get(QUEUE)
        assert again == body
        assert properties.headers == {"h": [1, b"\xff"]}
        assert {key: getattr(properties, key) for key in sent} == sent
    broker.channel.queue_declare(OTHER)
    with file.open("a") as stream:
        stream.write("nonsense\n")
    status, output = ended(carrot("replay", "recording", f"--to={OTHER}"))
    assert status == 1
    assert "recording, line 4: no recorded message" in output
    assert "3 messages before it were published" in output
    assert broker.depth(OTHER) == 3


def test_by_default_copies_are_recorded_until_a_signal(
    carrot: Carrot, broker: Broker, tmp_path: Path
) -> None:
    process = carrot("record", "recording", "--routing-key=commanded.*")
    file = tmp_path / "recording"

    def lines() -> list[str]:
        for key in ("commanded.key", "other"):
            broker.channel.basic_publish("amq.topic", key, json.dumps({"n": 1}).encode())
        return file.read_text().splitlines() if file.exists() else []

    wait_until(lines)
    process.send_signal(signal.SIGTERM)
    status, output = ended(process)
    assert status == 0
    messages = [recording.from_line(line) for line in file.read_text().splitlines()]
    assert output == f"{len(messages)} messages are recorded in recording\n"
    assert {(one.exchange, one.routing_key, one.body) for one in messages} == {
        ("amq.topic", "commanded.key", b'{"n": 1}')
    }


def test_an_archive_goes_back_to_where_its_messages_come_from(
    carrot: Carrot, broker: Broker
) -> None:
    broker.channel.queue_declare(ARCHIVE)
    kept = {"x-carrot-queue": QUEUE, "x-carrot-exchange": "e", "x-own": "kept"}
    gone = {"x-carrot-reason": "r", "x-carrot-traceback": "t", "x-retry-count": 4}
    for number in range(3):
        broker.send(ARCHIVE, str(number).encode(), message_id="m", headers={**kept, **gone})
    # There is no such queue: the message stays in the archive.
    status, output = ended(carrot("replay", f"--queue={ARCHIVE}"))
    assert (status, "is there such a queue?" in output) == (1, True)
    wait_until(lambda: broker.depth(ARCHIVE) == 3)
    broker.channel.queue_declare(QUEUE)
    assert ended(carrot("replay", f"--queue={ARCHIVE}", "--limit=2")) == (
        0,
        f"2 messages of {ARCHIVE} were put back\n",
    )
    for number in range(2):
        properties, body = broker.get(QUEUE)
        assert (body, properties.message_id) == (str(number).encode(), "m")
        assert properties.headers == kept
    assert broker.depth(ARCHIVE) == 1


def test_a_message_that_does_not_say_where_it_comes_from_needs_a_target(
    carrot: Carrot, broker: Broker
) -> None:
    broker.channel.queue_declare(ARCHIVE)
    broker.channel.queue_declare(OTHER)
    broker.send(ARCHIVE, b"foreign")
    status, output = ended(carrot("replay", f"--queue={ARCHIVE}"))
    assert (status, "Say where it is to go: --to=QUEUE" in output) == (1, True)
    wait_until(lambda: broker.depth(ARCHIVE) == 1)
    assert ended(carrot("replay", f"--queue={ARCHIVE}", f"--to={OTHER}"))[0] == 0
    assert broker.get(OTHER)[1] == b"foreign"
    status, output = ended(carrot("replay", "--queue=commanded.nothing"))
    assert status == 1
    assert "no queue 'commanded.nothing'" in output
