# SPDX-License-Identifier: Apache-2.0
"""Message handlers, and what is done to them: deaths, storms, lost queues, other programs."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from pika import BasicProperties

from carrot_twisted.models import BegunMessage, MessageLog
from tests.conftest import missing
from tests.integration.test_broker_outages import short_delivery_timeout
from tests.integration.test_handlers import (
    JSON,
    Ledger,
    StartService,
    archive,
    no_queues,
    queue,
    send,
    start,
)
from tests.processes import wait_until
from tests.settings import CARROT

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import RabbitMQ
    from tests.conftest import Broker

__all__ = ["no_queues", "start"]

pytestmark = pytest.mark.only("postgres")

EXCHANGE = "handled.exchange"


def test_a_handler_that_kills_its_process_does_so_a_few_times_and_others_pay_for_nothing(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    arguments = {"x-queue-type": "classic"}
    broker.channel.queue_declare(queue("deadly"), durable=True, arguments=arguments)
    for body in ("beside", "die", *range(40)):
        send(broker, "deadly", body)

    def service() -> Any:
        settings = {"max_crashes": 1}
        return start("deadly", wait=False, handlers={"concurrency": 2}, settings=settings)

    # The first is not counted, for its message had not been delivered before; then it may be the
    # fault of those beside it, twice.
    for _ in range(4):
        assert service().ends() == -signal.SIGSEGV
    running = service()
    wait_until(lambda: broker.depth(archive("deadly"), 0) == 1)
    wait_until(lambda: {f"survived {n}" for n in ("beside", *range(40))} <= set(ledger()))
    assert ledger().count("deadly die") == 4
    assert running.stop() == 0
    assert broker.depth(queue("deadly")) == 0
    found, body = broker.get(archive("deadly"))
    assert body == b'"die"'
    told = "worker lost 3 times"
    assert found.headers["x-carrot-exception"] == told
    assert broker.depth(archive("deadly")) == 0
    assert MessageLog.objects.get(queue=queue("deadly")).exception == told
    assert [one.losses for one in BegunMessage.objects.all()] == [2]


def test_restarts_cost_messages_nothing_that_had_not_begun_and_a_stop_costs_none(
    start: StartService, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    settings = {"max_crashes": 1, "shutdown_timeout": 0.2}
    arguments = {"x-queue-type": "classic"}
    broker.channel.queue_declare(queue("wait"), durable=True, arguments=arguments)
    for number in range(20):
        send(broker, "wait", number)
    for begun, stop in enumerate(("kill", "kill", "kill", "stop"), 1):
        service = start("wait", settings=settings, handlers={"prefetch_count": 20})
        wait_until(lambda begun=begun: len(ledger()) == begun)  # type: ignore[misc]
        getattr(service, stop)()
        wait_until(lambda: broker.depth(queue("wait")) == 20)
    (tmp_path / "ledger.go").touch()
    service = start("wait", settings=settings)
    wait_until(lambda: {f"end {number}" for number in range(20)} <= set(ledger()))
    assert service.stop() == 0
    assert broker.depth(queue("wait")) == broker.depth(archive("wait")) == 0
    assert not BegunMessage.objects.exists()


def test_a_handler_longer_than_the_brokers_delivery_timeout_is_told_and_runs_once(
    start: StartService,
    private_broker: RabbitMQ,
    broker: Broker,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    with short_delivery_timeout(private_broker, 1000):
        service = start("wait", handlers={"concurrency": 2}, CARROT_BROKER_URL=private_broker.url)
        send(broker, "wait", "long", message_id="1")
        service.wait_for("has kept a message for longer than the broker's consumer_timeout")
        assert "ack_deadline" not in service.log
        wait_until(lambda: service.log.count("Consuming queue handled.wait ") == 2)
        send(broker, "wait", "other", message_id="2")
        wait_until(lambda: "begin other" in ledger())
        (tmp_path / "ledger.go").touch()
        wait_until(lambda: {"end long", "end other"} <= set(ledger()))
        assert service.stop() == 0
    assert ledger().count("begin long") == 1
    assert broker.depth(queue("wait")) == 0


def test_a_storm_through_a_topic_exchange_is_retried_by_the_queue_that_failed(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    """Each message has a key of its own, and goes to two queues; one handler fails always."""
    start("storm", "shop", handlers={"max_retries": 1})
    numbers = range(40)
    for number in numbers:
        properties = BasicProperties(content_type=JSON, message_id=str(number))
        broker.channel.basic_publish(
            EXCHANGE, f"shop.key{number}", str(number).encode(), properties
        )
    wait_until(lambda: broker.depth(archive("storm")) == len(numbers))
    wait_until(lambda: len(ledger()) == 3 * len(numbers))
    handled = Counter(" ".join(line.split()[:2]) for line in ledger())
    assert handled == {"whole 0": 40, **{f"fail {number}": 2 for number in numbers}}
    assert broker.depth(queue("storm")) == broker.depth(queue("shop")) == 0
    assert broker.depth(archive("shop")) == 0


def test_a_queue_that_is_deleted_while_it_is_consumed_is_made_again_with_its_bindings(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start("shop", "wait")
    broker.channel.queue_delete(queue("shop"))
    service.wait_for("Queue handled.shop is not consumed: the broker cancelled the consumer")
    wait_until(lambda: service.log.count("Consuming queue handled.shop ") == 2)
    broker.channel.basic_publish(EXCHANGE, "shop.again", b"here")
    wait_until(lambda: len(ledger()) == 1)
    assert service.log.count("Consuming queue handled.wait ") == 1
    assert service.stop() == 0


def test_a_transaction_that_a_handler_leaves_aborted_is_not_the_next_ones(
    start: StartService, broker: Broker, ledger: Ledger
) -> None:
    """What the original has USE_DJANGO for."""
    start("disorder", handlers={"max_retries": 0})
    for body in ("break", 1, "break", 2):
        send(broker, "disorder", body)
    wait_until(lambda: len(ledger()) == 4)
    assert ledger() == ["disorder break", "disorder 1", "disorder break", "disorder 2"]
    wait_until(lambda: broker.depth(queue("disorder")) == 0)
    assert broker.depth(archive("disorder")) == 0


def test_handlers_that_publish_for_the_first_time_all_at_once(
    start: StartService, broker: Broker
) -> None:
    start("publish", handlers={"concurrency": 6})
    for number in range(24):
        send(broker, "publish", number)
    published = MessageLog.objects.filter(confirmed_at__isnull=False)
    wait_until(lambda: published.count() == 24)
    wait_until(lambda: broker.depth("default") == 24)


@pytest.fixture
def amqp_publish(broker_url: str) -> Any:
    """A program in C, which knows nothing of Python, kombu or us."""
    if shutil.which("amqp-publish") is None:
        missing("amqp-publish of Debian's amqp-tools is not installed")

    def publish(*arguments: str) -> None:
        subprocess.run(["amqp-publish", f"--url={broker_url}", *arguments], check=True, timeout=20)

    return publish


def test_messages_of_a_program_that_is_not_python(
    start: StartService,
    broker: Broker,
    ledger: Ledger,
    amqp_publish: Any,
    settings: Any,
    broker_url: str,
) -> None:
    """They have a body and nothing else: no content type, no id, no headers."""
    start("storm", "shop", "ok")
    amqp_publish(f"--exchange={EXCHANGE}", "--routing-key=shop.c", "--body=plain text")
    amqp_publish("--routing-key=handled.ok", "--body={}", f"--content-type={JSON}")
    wait_until(lambda: broker.depth(archive("storm")) == 1)
    failed = ["fail plain text"] * 3
    handled = [f"whole 0 {EXCHANGE!r} shop.c None None b'plain text'", "ok {}"]

    def told() -> list[str]:
        return sorted(line.rpartition(" ")[0] if "fail" in line else line for line in ledger())

    assert told() == sorted([*handled, *failed])
    settings.CARROT = {**CARROT, "default_broker": broker_url}
    call_command("carrot_archive", "replay", f"--queue={queue('storm')}")
    wait_until(lambda: len(ledger()) == len(handled) + 6)
    wait_until(lambda: broker.depth(archive("storm")) == 1)
    assert told() == sorted([*handled, *failed, *failed])
    found, body = broker.get(archive("storm"))
    assert (body, found.content_type, found.message_id) == (b"plain text", None, None)
    assert found.headers["x-carrot-routing-key"] == "shop.c"
    assert found.headers["x-carrot-exception"] == "ValueError: no good: plain text"
