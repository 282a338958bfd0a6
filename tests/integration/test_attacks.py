# SPDX-License-Identifier: Apache-2.0
"""What somebody can do who may publish to the broker, and what a task's texts can do: nothing.

Each attack meets a running service, a real broker, and good tasks beside it, which must run as if
nothing had happened.
"""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pika
import pytest
from django.db.models.functions import Now
from pika.data import encode_table

from carrot_twisted import publisher, wire
from carrot_twisted.due import due_in
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog
from carrot_twisted.signing import Seal
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_service import finished, run
from tests.processes import ServiceProcess, carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from tests.conftest import Broker

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

#: A secret key without spaces.
OLD = "the-key-of-yesterday"
ECHO = "tests.project.tasks.echo"
#: What a header, or a row's enemy, may name.
PATHS = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "pickle.loads",
    "tests.project.trap.spring",
    "tests.project.trap",
    "tests.project.tasks._private",
    "tests.project.tasks.os.system",
    "tests.project.tasks.Path",
    "tests.project.tasks.__builtins__",
    "tests.project.tasks.echo.__globals__",
    "tests.project.tasks:echo",
    "tests/project/tasks.echo",
    " tests.project.tasks.echo",
    "tests.project.tasks.echo\u200b",
    "tests.project.t\u0430sks.echo",  # a Cyrillic letter
    "tests.project.tasks.ECHO",
    "tests..project.tasks.echo",
    "..echo",
    ".",
    "",
    "a" * 10_000,
    "a." * 5_000 + "b",
    "os.system\x00",
    "__import__('os').system('id')",
]


def deep(text: str) -> bytes:
    return (text * 100_000).encode()


#: Bodies that are no arguments; each with a piece of the reason that its row would get.
BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "deep list": (deep("["), "not JSON"),
    "deep object": (deep('{"a":'), "not JSON"),
    "long number": (b'{"args": [' + b"9" * 5_000 + b"]}", "not JSON"),
    "not a number": (b'{"args": [NaN]}', "not JSON"),
    "infinity": (b'{"args": [-Infinity]}', "not JSON"),
    "pickle": (pickle.dumps({"args": [1]}), "not JSON"),
    "yaml": (b'!!python/object/apply:os.system ["id"]', "not JSON"),
    "no UTF-8": (b'{"args": ["\xff\xfe\xed\xa0\x80"]}', "not JSON"),
    "UTF-16": ('{"args": []}'.encode("utf-16"), "not JSON"),
    "NUL": (b"\x00" * 100, "not JSON"),
    "gzip": (gzip.compress(b'{"args": []}'), "not JSON"),
    "huge": (b'{"args": ["' + b"x" * 20_000_000 + b'"]}', "bytes, and the message of this row"),
    # Python reads it for half a minute, and lets nothing else run meanwhile.
    "huge list": (
        b'{"args": [' + b"[]," * 33_000_000 + b"1]}",
        "bytes, and the message of this row",
    ),
    "list": (b"[1]", "not a JSON object"),
    "args no list": (b'{"args": {"a": 1}}', "args must be a list"),
    "kwargs no object": (b'{"kwargs": [1]}', "kwargs an object"),
}
#: One of every kind that AMQP, or its dialect in pika, has.
HEADERS: dict[str, Any] = {
    "true": True,
    "byte": 127,
    "negative": -(2**31),
    "wide": 2**62,
    "widest": 2**63 - 1,
    "decimal": Decimal("3.14"),
    "time": datetime(2038, 1, 19, tzinfo=UTC),
    "bytes": b"\x00\xff" * 10,
    "table": {"a": {"b": {"c": [1, {"d": None}]}}},
    "array": [1, "two", [3, [None]], b"\xff"],
    "void": None,
    "empty": "",
    "long": "x" * 60_000,
    "n" * 255: "a long name",
    "x-death": [{"count": 10**9, "queue": "default", "reason": "expired"}],
    "x-first-death-queue": "default",
    "x-delivery-count": -1,
    "x-retry-count": "10" * 50,
    "x-carrot-reason": "nothing wrong",
    "x-carrot-queue": "other",
    "x-carrot-signature": {"no": "text"},
}


class Raw(pika.BasicProperties):  # type: ignore[misc]
    """Properties whose bytes are made by hand: a table of headers, and whether more follows."""

    def __init__(self, table: bytes, flags: int = 0x2000) -> None:
        super().__init__()
        self._raw = struct.pack(">H", flags) + table

    def encode(self) -> list[bytes]:
        return [self._raw]


def entry(kind: bytes, value: bytes, name: bytes = b"type") -> bytes:
    """A table of one header, as on the wire."""
    one = bytes([len(name)]) + name + kind + value
    return struct.pack(">I", len(one)) + one


def long_string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def nested(depth: int) -> bytes:
    """An array in an array in an array."""
    data = b""
    for _ in range(depth):
        data = b"A" + long_string(data)
    return entry(data[:1], data[1:])


#: Tables that RabbitMQ lets pass (it hangs up on NaN, and on what ends too early), and that pika
#: reads badly or not at all.
TABLES = {
    "text that is no UTF-8": entry(b"S", long_string(b"\xff\xfe")),
    "name that is no UTF-8": entry(b"S", long_string(b"x"), b"\xff"),
    "names inside that are no UTF-8": entry(b"F", entry(b"t", b"\x01", b"\xfe")),
    "huge float": entry(b"d", struct.pack(">d", 1e308)),
    "small float": entry(b"f", struct.pack(">f", 1.5)),
    "small numbers": entry(b"b", b"\xff"),
    "short": entry(b"s", struct.pack(">h", -2)),
    "decimal": entry(b"D", b"\xff" + struct.pack(">i", 1)),
    "time beyond the calendar": entry(b"T", struct.pack(">Q", 2**63)),
    "byte array": entry(b"x", long_string(b"\x00\x01")),
    "arrays": nested(150),
    "deep arrays": nested(2_000),
}


@pytest.fixture
def service(start_service: StartService, broker: Broker) -> Iterator[ServiceProcess]:
    """A service that has met one of each, so that all it needs is imported; fails if it suffers."""
    service = start_service()
    broker.send("default", b"warm", message_id=str(uuid4()), app_id="carrot-twisted")
    row = new_row()
    broker.send("default", b"warm", message_id=str(row.pk), headers={"type": ECHO})
    run(row)
    run(publish_message(tasks.nasty, "raise"))
    wait_until(lambda: broker.depth("default.dead") == 1)
    broker.get("default.dead")
    yield service
    # A stop returns what is not settled, and a message is not before its dead letter is confirmed.
    # That has come with the confirm of a later message.
    publish_message(tasks.echo)
    assert publisher.flush(10)
    run(publish_message(tasks.echo))
    assert service.stop() == 0
    assert "Traceback" not in service.log
    assert broker.depth("default") == 0


def new_row(task: str = ECHO, **fields: Any) -> MessageLog:
    """A row whose message the attacker sends; no relay sends one of its own."""
    row = create_message(ECHO, task_args=["the row's"]).row
    row.task = task
    row.confirmed_at = Now()
    for name, value in fields.items():
        setattr(row, name, value)
    row.save(force_insert=True)
    return row


def send_unknown(broker: Broker, body: bytes, **properties: Any) -> None:
    """Send a message that has no row. Said to be ours: for others' the service waits longer."""
    given = {"message_id": str(uuid4()), "app_id": "carrot-twisted", **properties}
    broker.send("default", body, **given)


def modules() -> set[str]:
    output = run(publish_message(tasks.modules)).output
    return set(json.loads(output or "")["modules"])


def good_neighbours(count: int = 5) -> list[MessageLog]:
    return [publish_message(tasks.echo, n) for n in range(count)]


def assert_undisturbed(rows: list[MessageLog]) -> None:
    """They ran, and did not wait for the attack to be over."""
    for row in finished(rows):
        assert row.status == MessageLog.COMPLETED
        assert row.queue_wait is not None
        assert row.queue_wait < timedelta(seconds=5)


def dead_letters(broker: Broker, count: int) -> list[tuple[Any, bytes]]:
    wait_until(lambda: broker.depth("default.dead") >= count, 20, "dead letters")
    found = [broker.get("default.dead") for _ in range(count)]
    assert broker.depth("default.dead") == 0
    return found


@pytest.mark.once
def test_no_name_in_a_message_is_ever_imported(
    service: ServiceProcess, broker: Broker, ledger: Ledger
) -> None:
    before = modules()
    body = b'{"args": ["touch marker"]}'
    rows = [new_row() for _ in PATHS]
    for path, row in zip(PATHS, rows, strict=True):
        headers = {"type": path}
        send_unknown(broker, body, headers=headers)
        broker.send("default", body, message_id=str(row.pk), headers=headers)
    good = good_neighbours()

    for path, row in zip(PATHS, finished(rows), strict=True):
        assert row.status == MessageLog.FAILED
        assert f"The message names task {path!r}, its row {ECHO!r}"[:500] in (row.exception or "")
        assert row.output is None
    assert_undisturbed(good)
    kept = dead_letters(broker, len(PATHS))
    assert sorted(p.headers["type"] for p, _ in kept) == sorted(PATHS)
    assert {body for _, body in kept} == {body}
    assert ledger() == []
    assert modules() == before


@pytest.mark.once
def test_of_two_rows_a_message_cannot_run_one_as_the_other(
    service: ServiceProcess, broker: Broker, ledger: Ledger
) -> None:
    effect = new_row("tests.project.tasks.effect", task_args='["mine"]')
    echo = new_row()
    broker.send("default", b'{"args": ["x"]}', message_id=str(echo.pk), headers={"type": ECHO})
    broker.send(
        "default", b'{"args": ["x"]}', message_id=str(echo.pk), headers={"type": effect.task}
    )
    done = run(echo)
    assert json.loads(done.output or "")["args"] == ["the row's"]
    assert ledger() == []
    # The other row waits for its own message, which carries no argument of the attacker's.
    body = b'{"args": ["theirs"]}'
    broker.send("default", body, message_id=effect.pk.urn, headers={"type": effect.task})
    assert run(effect).status == MessageLog.COMPLETED
    assert ledger() == ["mine"]


@pytest.mark.once
def test_no_body_can_hurt(service: ServiceProcess, broker: Broker) -> None:
    before = modules()
    bodies = {**BODIES, "twice": (b'{"args": [1], "args": [2]}', "")}
    rows = {what: new_row() for what in bodies}
    kinds = ["application/json", "application/x-python-serialize", "text/yaml", None]
    for number, (what, (body, _)) in enumerate(bodies.items()):
        properties = {
            "headers": {"type": ECHO},
            "content_type": kinds[number % len(kinds)],
            "content_encoding": "gzip" if what == "gzip" else "utf-8",
        }
        send_unknown(broker, body, **properties)
        broker.send("default", body, message_id=str(rows[what].pk), **properties)
    good = good_neighbours()

    finished(rows.values())
    for what, (_, reason) in bodies.items():
        row = run(rows[what])
        if reason:
            assert (row.status, reason in (row.exception or "")) == (MessageLog.FAILED, True), what
        else:
            # A body that can be read is none the wiser: the row has the arguments.
            assert json.loads(row.output or "")["args"] == ["the row's"], what
    assert_undisturbed(good)
    kept = dead_letters(broker, len(bodies))
    assert sorted(body for _, body in kept) == sorted(body for body, _ in bodies.values())
    assert modules() == before


@pytest.mark.once
def test_no_header_can_hurt(service: ServiceProcess, broker: Broker) -> None:
    rows = []
    for value in HEADERS.values():
        send_unknown(broker, b"{}", headers={**HEADERS, "type": value})
        if not isinstance(value, str):
            rows.append(new_row())
            headers = {"type": value}
            broker.send("default", b"{}", message_id=str(rows[-1].pk), headers=headers)
    # RabbitMQ routes a message to the queues of this header, too: a dead letter that kept it would
    # come back again and again.
    headers = {"type": ECHO, "CC": ["default", "default.dead"]}
    send_unknown(broker, b"{}", headers=headers)
    # So many that there is no room for more of them in RabbitMQ's largest frame.
    send_unknown(broker, b"{}", headers={"n": "x" * 130_950})
    for table in TABLES.values():
        broker.channel.basic_publish("", "default", b"{}", Raw(table))
    good = good_neighbours()

    for row in finished(rows):
        assert row.status == MessageLog.FAILED
        assert "no header 'type'" in (row.exception or "")
    assert_undisturbed(good)
    kept = dead_letters(broker, len(HEADERS) + len(TABLES) + 3)
    # The copy that RabbitMQ has routed there by itself.
    ((direct, _),) = [one for one in kept if "x-carrot-reason" not in (one[0].headers or {})]
    assert direct.headers == headers
    kept = [one for one in kept if one[0] is not direct]
    for properties, body in kept:
        assert body == b"{}"
        # What the service says stands above what the message had said.
        assert "message_id" in properties.headers["x-carrot-reason"]
        assert properties.headers["x-carrot-queue"] == "default"
        assert "x-death" not in properties.headers
    assert sum("headers are left out" in p.headers["x-carrot-reason"] for p, _ in kept) == 1
    assert "Lost the connection" not in service.log
    whole = [p.headers for p, _ in kept if "decimal" in p.headers]
    assert len(whole) == len(HEADERS)
    for name in ("widest", "decimal", "time", "table", "void", "long"):
        assert all(headers[name] == whole[0][name] for headers in whole)


@pytest.mark.once
def test_no_property_can_hurt(service: ServiceProcess, broker: Broker) -> None:
    ids = ["", "x" * 255, "0", "None", "{}", "\x00" * 36, "é" * 100, str(uuid4()) + "0", "-" * 36]
    for message_id in ids:
        broker.send("default", b"{}", message_id=message_id, headers={"type": ECHO})
    odd: list[dict[str, Any]] = [
        {"reply_to": "default", "correlation_id": "\x00" * 255},
        {"reply_to": "other", "timestamp": 2**63 - 1},
        {"priority": 255, "type": "x" * 255},
        {"cluster_id": "x" * 255, "delivery_mode": 1},
        {"content_encoding": "zip-bomb", "content_type": "\x00"},
        {"expiration": "60000", "user_id": "carrot"},
    ]
    for properties in odd:
        send_unknown(broker, b"{}", **properties)
    row = new_row()
    # Every way to write the id is the same row, which runs once.
    for text in (row.pk.hex, row.pk.urn, f"{{{row.pk}}}", str(row.pk).upper()):
        broker.send("default", b"{}", message_id=text, headers={"type": ECHO}, expiration="60000")
    good = good_neighbours()

    assert run(row).attempts == 1
    assert_undisturbed(good)
    kept = dead_letters(broker, len(ids) + len(odd))
    assert not any(properties.expiration for properties, _ in kept)
    assert broker.channel.queue_declare("other", durable=True).method.message_count == 0


@pytest.mark.once
def test_messages_that_wait_for_rows_which_never_come_hold_up_nothing(
    start_service: StartService, broker: Broker, settings: Any
) -> None:
    """Where few messages are held at once, as with long tasks, these could be all of them."""
    changed = {"queues": [{"name": "default", "concurrency": 1, "prefetch": 1}]}
    settings.CARROT = {**settings.CARROT, **changed}
    start_service(CARROT_TEST_SETTINGS=json.dumps(changed))
    for number in range(40):
        broker.send("default", b"{}", message_id=str(uuid4()), headers={"type": ECHO})
        if number % 10 == 5:
            good = good_neighbours(1)
    good += good_neighbours()
    assert_undisturbed(good)
    # They have had their time.
    wait_until(lambda: broker.depth("default.dead") == 40, 30)


# What tasks say


def test_arguments_arrive_exactly_or_are_refused_before_there_is_a_row(
    service: ServiceProcess,
) -> None:
    nasty: list[Any] = [tasks.NASTY, "\udc00\ud800", "\x00", {"\x00": "\udfff"}, 2**63, 1e-320]
    row = publish_message(tasks.echo, *nasty, text=tasks.NASTY)
    many = publish_many([create_message(tasks.echo, task_args=nasty) for _ in range(3)])
    for done in finished([row, *many]):
        assert done.status == MessageLog.COMPLETED
        assert list(done.positionals) == nasty
    assert run(row).keywords == {"text": tasks.NASTY}
    count = MessageLog.objects.count()
    for path in ("tests.project.tasks.e\x00", "tests.project.tasks.\ud800"):
        with pytest.raises(ImportError, match="is not of the form"):
            publish_message(path)
    with pytest.raises(InvalidMessage, match="characters that cannot be sent"):
        create_message(tasks.echo, routing_key="\ud800")
    # A pair of halves is one character in JSON, which is another text in Python.
    for value in (float("nan"), "\ud800\udc00"):
        with pytest.raises(InvalidMessage):
            publish_message(tasks.echo, value)
    assert MessageLog.objects.count() == count


def test_whatever_a_task_says_is_stored(service: ServiceProcess) -> None:
    returned, raised = finished([publish_message(tasks.nasty, how) for how in ("return", "raise")])
    shown = tasks.NASTY.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
    assert (returned.status, returned.output) == (MessageLog.COMPLETED, shown)
    assert (raised.status, raised.exception) == (MessageLog.FAILED, shown)
    for row in (returned, raised):
        assert f"logging {shown}" in (row.log or "")
    assert f"ValueError: {shown}" in (raised.traceback or "")


@pytest.mark.once
def test_a_tasks_words_make_no_lines_in_the_services_log(
    service: ServiceProcess, broker: Broker
) -> None:
    run(publish_message(tasks.fake_lines))
    named = new_row("tests.project.tasks.x\n2026-01-01T00:00:00+0000 fake line")
    broker.send("default", b"{}", message_id=str(named.pk), headers={"type": named.task})
    assert run(named).status == MessageLog.FAILED
    wait_until(lambda: "Task tests.project.tasks.x" in service.log, 10)
    # As bytes: text mode would show "\r" as an end of line.
    log = service.log_path.read_bytes()
    assert not set(b"\r\x1b\x00") & set(log)
    for line in log.decode().splitlines():
        assert line.startswith("20"), line
        assert not line.startswith("2026-01-01")


# With signatures


@pytest.mark.once
def test_with_signing_an_unsigned_message_touches_no_row(
    start_service: StartService, broker: Broker, settings: Any, ledger: Ledger
) -> None:
    settings.CARROT = {**settings.CARROT, "signing": True}
    service = start_service(CARROT_TEST_PERIODIC="1", **carrot(signing=True))
    body = b'{"args": ["the row\'s"]}'
    victim = new_row()

    def signed(row: MessageLog, **changes: Any) -> dict[str, Any]:
        properties = Seal().sign(wire.properties(row.task, str(row.pk), 0), body)
        return {**properties, **changes}

    other = new_row()
    attacks: list[tuple[bytes, dict[str, Any]]] = [
        (body, {"message_id": str(victim.pk), "headers": {"type": "os.system"}}),
        (body, {"message_id": str(victim.pk), "headers": {"type": ECHO}}),
        (body, {"message_id": str(victim.pk)}),
        (b"\xff", {**signed(victim)}),
        (body, signed(other, message_id=str(victim.pk))),
        (body, {**signed(victim), "headers": {**signed(victim)["headers"], "type": "os.system"}}),
        (body, {"message_id": "no id", "headers": {}}),
    ]
    for data, properties in attacks:
        broker.send("default", data, **properties)
    good = [*good_neighbours(), *publish_many([create_message(tasks.echo) for _ in range(3)])]
    nested = publish_message(tasks.publish_another, "by a task")
    relayed = new_row(confirmed_at=None, relay_at=due_in(0))
    assert_undisturbed(good)
    assert run(relayed).status == MessageLog.COMPLETED
    assert run(MessageLog.objects.get(pk=run(nested).output or "")).output == "did by a task"
    wait_until(lambda: "periodic" in ledger(), 20)

    kept = dead_letters(broker, len(attacks))
    reasons = [properties.headers["x-carrot-reason"] for properties, _ in kept]
    assert sum("no signature" in reason for reason in reasons) == 4
    assert sum("signature is wrong" in reason for reason in reasons) == 3
    victim.refresh_from_db()
    assert (victim.status, victim.attempts) == (MessageLog.PUBLISHED, 0)

    # Its own message runs it; the same one again, as often as somebody likes, does nothing.
    for _ in range(3):
        broker.send("default", body, **signed(victim))
    assert run(victim).attempts == 1
    assert json.loads(run(victim).output or "")["args"] == ["the row's"]

    # A dead letter that is put back has its signature still.
    late = create_message(ECHO, task_args=["the row's"]).row
    broker.send("default", body, **signed(late))
    ((properties, data),) = dead_letters(broker, 1)
    assert "no MessageLog" in properties.headers["x-carrot-reason"]
    late.confirmed_at = Now()
    late.save(force_insert=True)
    broker.channel.basic_publish("", "default", data, properties)
    assert run(late).status == MessageLog.COMPLETED
    assert service.stop() == 0
    assert "Traceback" not in service.log


@pytest.mark.once
@pytest.mark.parametrize(
    "consumer", ["carrot_twisted.consumer.Consumer", "tests.project.consumers.Guard"]
)
def test_a_queue_without_signatures_opens_no_row_of_one_with_them(
    start_service: StartService, broker: Broker, settings: Any, consumer: str
) -> None:
    """Others publish to one queue; that must not let them at the rows of all queues."""
    changed = {
        "signing": True,
        "queues": [
            {"name": "default"},
            {"name": "other", "signing": False, "consumer_class": consumer},
        ],
    }
    settings.CARROT = {**settings.CARROT, **changed}
    service = start_service(CARROT_TEST_SETTINGS=json.dumps(changed))
    service.wait_for("Consuming queue other")
    victims = [new_row() for _ in range(4)]
    dead = [new_row(status=MessageLog.IN_PROGRESS, worker="gone", token=1, attempts=1)]
    for row in (*victims, *dead):
        known: dict[str, Any] = {"message_id": str(row.pk), "app_id": "carrot-twisted"}
        for task, wish in (("os.system", ""), (ECHO, ""), ("", ""), (ECHO, "fail")):
            broker.send("other", b"{}", headers={"type": task, "x-wish": wish}, **known)
    # A hook that takes no notice of a row, whose end would be written all the same.
    swallowed = new_row()
    headers = {"type": ECHO, "x-wish": "swallow"}
    broker.send("other", b"{}", message_id=str(swallowed.pk), headers=headers)
    good = publish_message(tasks.echo, queue="other")
    assert run(good).status == MessageLog.COMPLETED
    # Each is looked for again, once.
    time.sleep(3)
    for row in (*victims, swallowed):
        row.refresh_from_db()
        assert (row.status, row.attempts) == (MessageLog.PUBLISHED, 0)
    # It was taken over, by the service itself, and has run.
    assert run(*dead).status == MessageLog.COMPLETED
    # All but what the hook has swallowed, and those of a row whose hook was told to fail it.
    assert broker.depth("other.dead") >= 3 * len(victims)
    assert service.stop() == 0


@pytest.mark.once
def test_a_key_can_be_changed_while_messages_wait(
    start_service: StartService, settings: Any, broker: Broker
) -> None:
    settings.CARROT = {**settings.CARROT, "signing": True}
    settings.SECRET_KEY = OLD
    row = publish_message(tasks.echo)
    assert publisher.flush(10)
    start_service(CARROT_TEST_FALLBACK=OLD, **carrot(signing=True))
    assert run(row).status == MessageLog.COMPLETED


@pytest.mark.once
def test_the_tables_are_what_rabbitmq_takes() -> None:
    """What is made by hand here is what pika makes of the same header."""
    pieces: list[bytes] = []
    encode_table(pieces, {"type": "x"})
    assert b"".join(pieces) == entry(b"S", long_string(b"x"))
