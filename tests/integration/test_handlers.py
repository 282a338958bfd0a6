# SPDX-License-Identifier: Apache-2.0
"""Message handlers in a running service: real broker, ``twistd`` as a process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pika import BasicProperties

from carrot_twisted import statistics
from carrot_twisted.models import MessageLog
from carrot_twisted.statistics import Span
from carrot_twisted.utilities import publish_message
from tests.conftest import Broker
from tests.integration.test_database_outages import Limited, no_connections
from tests.processes import ServiceProcess, constants, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import PostgreSQL, RabbitMQ

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]

NAMES = (
    *(
        "ok",
        "coroutine",
        "object",
        "partial",
        "publish",
        "whole",
        "fail",
        "leave",
        "refuse",
        "wait",
    ),
    *(
        "spoiled",
        "mixed",
        "slow",
        "count",
        "crowd",
        "delayed",
        "deadly",
        "disorder",
        "quorum",
        "shop",
        "storm",
    ),
)
SETTINGS = {
    "backoff_func": "tests.project.handlers.backoff",
    "max_retries": 2,
    "exchanges": {"shop": {"name": "handled.exchange", "type": "topic"}},
}
JSON = "application/json"
#: Milliseconds of all retry queues that are made here.
DELAYS = range(100, 801, 100)


#: Failpoints of handlers, and the copies in the archive when a service is killed there.
POINTS = {"handled_before_settle": 0, "copy_before_ack": 1}


def queue(name: str) -> str:
    return f"handled.{name}"


def archive(name: str) -> str:
    return f"handled.{name}.archived"


def delete_queues(url: str) -> None:
    broker = Broker(url)
    for name in NAMES:
        for suffix in ("", ".archived", ".retry", *(f".retry.{n}ms" for n in DELAYS)):
            broker.channel.queue_delete(f"handled.{name}{suffix}")
    broker.channel.exchange_delete("handled.exchange")
    broker.connection.close()


@pytest.fixture
def no_queues(broker_url: str) -> Iterator[None]:
    """None is left of another test, or for one."""
    delete_queues(broker_url)
    yield
    delete_queues(broker_url)


@pytest.fixture
def start(start_service: StartService, no_queues: None) -> StartService:
    """Start a service with some of the tests' handlers."""

    def started(*names: str, wait: bool = True, **environment: Any) -> ServiceProcess:
        handlers = {**SETTINGS, **environment.pop("handlers", {})}
        settings = {"handlers": handlers, **environment.pop("settings", {})}
        options = [f"--queue={queue(name)}" for name in names or NAMES]
        service = start_service(
            "--no-scheduler",
            *options,
            wait=False,
            **{
                "CARROT_TEST_HANDLERS": "1",
                "CARROT_TEST_SETTINGS": json.dumps(settings),
                **environment,
            },
        )
        if wait:
            for name in names or NAMES:
                service.wait_for(f"Consuming queue handled.{name} ")
        return service

    return started


def send(broker: Broker, name: str, content: Any, **properties: Any) -> None:
    body = json.dumps(content).encode()
    broker.send(queue(name), body, **{"content_type": JSON, **properties})


def test_every_kind_of_handler_gets_its_messages_beside_the_tasks(
    start_service: StartService, no_queues: None, broker: Broker, ledger: Ledger
) -> None:
    service = start_service(
        CARROT_TEST_HANDLERS="1",
        CARROT_TEST_SETTINGS=json.dumps({"handlers": SETTINGS}),
        OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider",
    )
    for name in NAMES:
        service.wait_for(f"Consuming queue handled.{name} ")
    publish_message(tasks.effect, "task")
    trace = {"traceparent": f"00-{0xABC:032x}-{0xDEF:016x}-01"}
    for name in ("ok", "coroutine", "object", "partial", "publish"):
        send(broker, name, {"n": 1}, headers=trace)
    broker.send(queue("ok"), b"a text")
    expected = [
        "coroutine {'n': 1} 0",
        "object {'n': 1}",
        "ok a text",
        "ok {'n': 1}",
        "partial {'n': 1}",
        "task",
        "task of {'n': 1}",
    ]
    wait_until(lambda: sorted(ledger()) == expected)
    assert service.stop() == 0
    assert {broker.depth(queue(name)) for name in NAMES} == {0}
    # What a handler publishes belongs to the trace of its message.
    traces = {row.positionals[0]: row.trace for row in MessageLog.objects.all()}
    assert traces["task"] is None
    assert f"00-{0xABC:032x}-" in (traces["task of {'n': 1}"] or "")
    # Those without a row are counted, too.
    counted = {one.queue: one.completed for one in statistics.tasks(Span.HOUR, "default")}
    assert counted == {
        "default": 2,
        queue("ok"): 2,
        **dict.fromkeys(map(queue, ("coroutine", "object", "partial", "publish")), 1),
    }


@pytest.mark.once
def test_a_retried_message_keeps_what_it_came_with(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start("shop")
    sent = BasicProperties(
        content_type="application/x-other",
        content_encoding="gzip",
        headers={"x-own": "kept", "x-fail": 5, "CC": ["handled.ok"]},
        priority=3,
        correlation_id="correlation",
        reply_to="reply",
        expiration="60000",
        message_id="message",
        timestamp=1_700_000_000,
        type="type",
        app_id="app",
    )
    body = b"\x00\xff not read"
    broker.channel.basic_publish("handled.exchange", "shop.paid.now", body, sent)
    wait_until(lambda: broker.depth(archive("shop")) == 1)

    assert ledger() == [
        f"whole {n} 'handled.exchange' shop.paid.now message kept {body!r}" for n in range(3)
    ]
    found, kept = broker.get(archive("shop"))
    assert kept == body
    for name in ("content_type", "content_encoding", "priority", "correlation_id", "reply_to"):
        assert getattr(found, name) == getattr(sent, name)
    for name in ("message_id", "timestamp", "type", "app_id"):
        assert getattr(found, name) == getattr(sent, name)
    assert (found.delivery_mode, found.expiration) == (2, None)
    headers = found.headers
    assert headers["x-own"] == "kept"
    assert headers["x-retry-count"] == 2
    assert headers["x-carrot-exception"] == "ValueError: not yet"
    assert 'raise ValueError("not yet")' in headers["x-carrot-traceback"]
    assert headers["x-carrot-reason"] == "it has failed 3 times"
    assert headers["x-carrot-routing-key"] == "shop.paid.now"
    assert headers["x-carrot-exchange"] == "handled.exchange"
    assert headers["x-carrot-queue"] == "handled.shop"
    assert headers["x-carrot-expiration"] == "60000"
    assert headers["x-carrot-host"]
    assert not {"CC", "x-death"} & set(headers)
    first = datetime.fromisoformat(headers["x-carrot-first-failure"])
    last = datetime.fromisoformat(headers["x-carrot-last-failure"])
    assert timedelta(seconds=0.4) <= last - first < timedelta(seconds=5)
    assert datetime.now(UTC) - last < timedelta(minutes=1)
    assert service.stop() == 0
    assert broker.depth(queue("shop")) == 0
    assert "tried again in 0.3 s" in service.log
    assert "it goes to handled.shop.archived" in service.log


@pytest.mark.once
def test_a_handler_of_all_messages_gets_no_copies(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    """Also where handlers have given the nameless exchange's place to that exchange."""
    exchange = {"name": "handled.exchange", "type": "topic"}
    start("storm", "ok", handlers={"exchanges": {"shop": exchange, "default": exchange}})
    properties = BasicProperties(content_type=JSON)
    broker.channel.basic_publish("handled.exchange", "handled.ok", b'"all"', properties)
    wait_until(lambda: broker.depth(archive("storm")) == 1)
    assert sorted(line.split()[0] for line in ledger()) == ["fail", "fail", "fail", "ok"]
    assert broker.depth(archive("storm")) == 1


@pytest.mark.once
def test_a_long_handler_does_not_cost_the_connection(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    """The broker gives up a client that does not answer for two heartbeats."""
    service = start("wait", "ok", settings={"heartbeat": 1})
    send(broker, "wait", 1)
    wait_until(lambda: ledger() == ["begin 1"])
    time.sleep(3.5)
    send(broker, "ok", 2)
    wait_until(lambda: ledger() == ["begin 1", "ok 2"])
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: "end 1" in ledger())
    assert "Lost the connection" not in service.log
    assert service.stop() == 0
    assert broker.depth(queue("wait")) == 0


@pytest.mark.once
def test_what_no_retry_can_help_is_archived_at_once_and_nothing_stops_the_service(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start("ok", "refuse", "leave")
    send(broker, "refuse", 1)
    broker.send(queue("ok"), b"{no JSON", content_type=JSON)
    broker.send(queue("ok"), b"\xff", content_type="application/x-python-serialize")
    broker.send(queue("ok"), b"\xff")
    send(broker, "ok", 1, headers={"x-retry-count": "nonsense"})
    send(broker, "leave", 1)
    wait_until(lambda: ledger() == ["ok 1"])
    wait_until(lambda: broker.depth(archive("ok")) == 3)
    wait_until(lambda: broker.depth(archive("refuse")) == broker.depth(archive("leave")) == 1)
    reasons = [broker.get(archive("ok"))[0].headers["x-carrot-exception"] for _ in range(3)]
    assert all(reason.startswith("UnreadableBody: ") for reason in reasons)
    left = broker.get(archive("leave"))[0].headers
    assert (left["x-carrot-exception"], left["x-retry-count"]) == ("SystemExit: 3", 2)
    assert broker.get(archive("refuse"))[0].headers.get("x-retry-count", 0) == 0
    assert service.stop() == 0


@pytest.mark.once
@pytest.mark.parametrize("point", POINTS)
def test_kill_9_repeats_a_message_and_loses_none(
    start: StartService, broker: Broker, ledger: Ledger, point: str
) -> None:
    service = start("refuse", wait=False, CARROT_FAILPOINT=f"{point}:exit")
    wait_until(lambda: broker.depth(queue("refuse"), -1) == 0)
    send(broker, "refuse", 1)
    service.ends()
    wait_until(lambda: broker.depth(queue("refuse")) == 1)
    assert broker.depth(archive("refuse")) == POINTS[point]
    start("refuse")
    wait_until(lambda: broker.depth(archive("refuse")) == POINTS[point] + 1)
    wait_until(lambda: broker.depth(queue("refuse")) == 0)


@pytest.mark.once
def test_kill_9_in_the_middle_of_600_messages_loses_none(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    numbers = range(600)
    broker.channel.queue_declare(
        queue("mixed"), durable=True, arguments={"x-queue-type": "classic"}
    )
    for number in numbers:
        send(broker, "mixed", number, message_id=str(number))
    service = start("mixed", handlers={"concurrency": 2})
    for killed_after in (100, 250, 400):
        wait_until(lambda after=killed_after: len(ledger()) >= after)  # type: ignore[misc]
        service.kill()
        service = start("mixed", handlers={"concurrency": 2})
    bad = {number for number in numbers if number % 50 == 7}
    good = {f"mixed {number}" for number in numbers} - {f"mixed {number}" for number in bad}
    wait_until(lambda: set(ledger()) == good)
    wait_until(lambda: broker.depth(archive("mixed")) >= len(bad))
    assert service.stop() == 0
    assert broker.depth(queue("mixed")) == 0
    kept = {broker.get(archive("mixed"))[1] for _ in range(broker.depth(archive("mixed")))}
    assert kept == {str(number).encode() for number in bad}
    # What two threads had in hand, each time, and had not acknowledged.
    assert len(ledger()) - len(good) <= 3 * 50


@pytest.mark.once
def test_retries_of_many_delays_do_not_wait_behind_each_other(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    """The first message has the longest delay."""
    backoff = "tests.project.handlers.falling_backoff"
    start("delayed", handlers={"backoff_func": backoff, "max_retries": 8})
    numbers = range(7)
    for number in numbers:
        send(broker, "delayed", number, headers={"x-retry-count": number})
    wait_until(lambda: len(ledger()) == 14)
    at = {(int(n), int(retries)): float(when) for _, n, retries, when in map(str.split, ledger())}
    for number in numbers:
        asked = 0.8 - 0.1 * number
        assert asked - 0.01 <= at[number, number + 1] - at[number, number] < asked + 0.35
    assert [line.split()[1] for line in ledger()[7:]] == [str(n) for n in reversed(numbers)]


@pytest.mark.once
def test_a_stop_waits_for_handlers_and_returns_what_waits(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    service = start("wait")
    for number in range(3):
        send(broker, "wait", number)
    wait_until(lambda: ledger() == ["begin 0"])
    service.signal()
    wait_until(lambda: broker.depth(queue("wait")) == 2)
    (tmp_path / "ledger.go").touch()
    assert service.ends() == 0
    assert ledger() == ["begin 0", "end 0"]
    assert broker.depth(queue("wait")) == 2


@pytest.mark.once
def test_a_handler_that_does_not_end_in_time_runs_again_elsewhere(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start("wait", settings={"shutdown_timeout": 0.5})
    send(broker, "wait", 1)
    wait_until(lambda: ledger() == ["begin 1"])
    assert service.stop() == 0
    assert broker.depth(queue("wait")) == 1


@pytest.mark.once
def test_the_queues_of_the_original_are_used_as_they_are(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    broker.channel.queue_declare("handled.fail", durable=True, arguments={"x-max-length": 1000})
    broker.channel.queue_declare(
        "handled.fail.archived",
        durable=True,
        arguments={
            "x-message-ttl": 2_073_600_000,
            "x-max-length": 1_000_000,
            "x-overflow": "drop-head",
        },
    )
    broker.channel.queue_declare(
        "handled.fail.retry",
        durable=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "handled.fail"},
    )
    # One that the original has left there: its last attempt follows.
    broker.send(
        "handled.fail.retry",
        b'"old"',
        content_type=JSON,
        expiration="100",
        headers={"x-retry-count": 2},
    )
    service = start("fail")
    assert "queue 'handled.fail' exists with other arguments and is used as it is" in service.log
    assert "queue 'handled.fail.archived' exists with other arguments" in service.log
    send(broker, "fail", "new")
    wait_until(lambda: broker.depth(archive("fail")) == 2)
    assert sorted(line.split()[1] for line in ledger()) == ["new"] * 3 + ["old"]


@pytest.mark.once
def test_retry_and_archive_queues_that_are_deleted_are_made_again(
    start: StartService, broker: Broker
) -> None:
    start("fail")
    broker.channel.queue_delete("handled.fail.retry.100ms")
    broker.channel.queue_delete(archive("fail"))
    send(broker, "fail", 1)
    wait_until(lambda: broker.depth(archive("fail"), 0) == 1)


@pytest.mark.once
def test_an_archive_that_cannot_be_made_is_told_and_nothing_is_taken(
    start: StartService, broker: Broker
) -> None:
    """RabbitMQ gives the same code as for a queue that is there with other arguments."""
    arguments = {"x-overflow": "no such thing"}
    service = start("fail", wait=False, handlers={"archive_queue_args": arguments})
    service.wait_for("Queue handled.fail is not consumed: queue 'handled.fail.archived' could not")
    assert service.stop() == 0


def test_the_databases_trouble_costs_no_retry(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    start("spoiled", handlers={"max_retries": 0})
    send(broker, "spoiled", 1)
    wait_until(lambda: len(ledger()) == 3)
    wait_until(lambda: broker.depth(queue("spoiled")) == 0)
    assert broker.depth(archive("spoiled")) == 0


@pytest.mark.once
def test_a_handler_that_takes_too_long_has_failed_and_holds_up_nobody(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    soon = constants({"service.time_keeper.STUCK_AFTER": 0.5})
    service = start("slow", handlers={"max_retries": 0}, **soon)
    for content in ("loop", "stuck", "next"):
        send(broker, "slow", content)
    wait_until(lambda: ledger() == ["slow next"])
    wait_until(lambda: broker.depth(archive("slow")) == 2)
    reasons = [broker.get(archive("slow"))[0].headers["x-carrot-exception"] for _ in range(2)]
    assert reasons[0] == "TimeLimitExceeded: time limit of 0.3 s exceeded"
    assert "the thread is stuck in slow" in reasons[1]
    assert "is stuck in handler tests.project.handlers.slow" in service.log
    assert service.stop() == 0
    assert broker.depth(queue("slow")) == 0


@pytest.mark.once
def test_handlers_have_threads_of_their_own(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    start("crowd", handlers={"concurrency": 3})
    for number in range(6):
        send(broker, "crowd", number)
    wait_until(lambda: len(ledger()) == 12)
    assert [line.split()[0] for line in ledger()][:3] == ["in"] * 3
    assert len({line.split()[1] for line in ledger()}) == 3


@pytest.mark.once
def test_the_queues_of_a_quorum_queue_are_quorum_queues(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    start("quorum")
    send(broker, "quorum", 1)
    wait_until(lambda: broker.depth(archive("quorum")) == 1)
    assert len(ledger()) == 3
    quorum = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    limits = {"x-message-ttl": 2_073_600_000, "x-max-length": 1_000_000}
    broker.channel.queue_declare(archive("quorum"), durable=True, arguments={**quorum, **limits})


@pytest.mark.once
def test_in_a_memory_alarm_what_fails_stays_and_what_succeeds_is_done(
    start: StartService, broker: Broker, private_broker: RabbitMQ, ledger: Ledger, tmp_path: Path
) -> None:
    environment = {"CARROT_BROKER_URL": private_broker.url}
    soon = constants({"service.message_copies.LAST_COPIES": 0.5})
    service = start("wait", handlers={"max_retries": 0, "concurrency": 2}, **environment, **soon)
    for content in ("fail", "other", "third"):
        send(broker, "wait", content)
    wait_until(lambda: len(ledger()) == 2)
    private_broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        (tmp_path / "ledger.go").touch()
        service.wait_for("The broker takes no messages for now")
        wait_until(lambda: "end third" in ledger())
        # A stop does not wait for the end of the alarm.
        assert service.stop(10) == 0
        assert broker.depth(queue("wait")) == 1
    finally:
        private_broker.ctl("set_vm_memory_high_watermark", "0.6")
    start("wait", handlers={"max_retries": 0}, **environment)
    # The copy that was on its way may have come, too.
    wait_until(lambda: broker.depth(archive("wait")) >= 1)
    wait_until(lambda: ledger().count("end fail") == 2)
    assert broker.depth(queue("wait")) == 0


@pytest.mark.only("postgres")
def test_a_database_that_is_away_costs_no_retry(
    start: StartService, postgres: PostgreSQL, broker: Broker, ledger: Ledger
) -> None:
    user = Limited(postgres)
    service = start("count", handlers={"max_retries": 0}, CARROT_DATABASE_URL=user.url)
    send(broker, "count", 0)
    wait_until(lambda: len(ledger()) == 1)
    no_connections(user)
    for number in range(1, 20):
        send(broker, "count", number)
    service.wait_for("The database is away")
    wait_until(lambda: broker.depth(queue("count")) == 19)
    user.alter("CONNECTION LIMIT -1")
    wait_until(lambda: len(ledger()) == 20)
    assert sorted(ledger()) == sorted(f"count {number} 0" for number in range(20))
    assert broker.depth(archive("count")) == 0
    assert service.stop() == 0


@pytest.mark.once
def test_a_broker_that_is_killed_costs_no_message(
    start: StartService, private_broker: RabbitMQ, ledger: Ledger, tmp_path: Path
) -> None:
    service = start("wait", "fail", CARROT_BROKER_URL=private_broker.url)
    before = Broker(private_broker.url)
    before.channel.confirm_delivery()
    for name in ("wait", "fail"):
        for number in range(3):
            send(before, name, number, delivery_mode=2, message_id=str(number))
    wait_until(lambda: "begin 0" in ledger())
    wait_until(lambda: before.depth(archive("fail")) == 3)
    assert before.depth(queue("fail")) == 0
    before.connection.close()
    private_broker.kill()
    private_broker.start()
    wait_until(lambda: service.log.count("Consuming queue handled") == 2 * 2, 60)
    (tmp_path / "ledger.go").touch()
    wait_until(lambda: {"end 0", "end 1", "end 2"} <= set(ledger()))
    # The one that was being handled is not handled a second time.
    begun = [line for line in ledger() if line.startswith("begin")]
    assert sorted(begun) == ["begin 0", "begin 1", "begin 2"]
    assert service.stop() == 0
    after = Broker(private_broker.url)
    assert after.depth(queue("wait")) == 0
    # A broker that is killed may forget acknowledgements: then it brings messages again.
    kept = [after.get(archive("fail"))[1] for _ in range(after.depth(archive("fail")))]
    assert set(kept) == {b"0", b"1", b"2"}
    after.connection.close()
