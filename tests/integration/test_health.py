# SPDX-License-Identifier: Apache-2.0
"""Health and metrics of a real service: ready, cut off, ready again, stopping."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.utilities import create_message, publish_many, publish_message
from devtools.ports import free_port
from tests.integration.test_service import finished
from tests.processes import ServiceProcess, constants, wait_until
from tests.project import optioned, tasks
from tests.unit.spans import Spans

if TYPE_CHECKING:
    from devtools.servers import RabbitMQ

pytestmark = pytest.mark.once
StartService = Callable[..., ServiceProcess]

HTTP = "--http=tcp:0:interface=127.0.0.1"
#: Not through a proxy of this machine's.
_OPENER = build_opener(ProxyHandler({}))


class Watcher:
    """Somebody who watches over a service."""

    def __init__(self, service: ServiceProcess) -> None:
        found = r"Health and metrics are served at 127.0.0.1, port (\d+)"
        wait_until(lambda: re.search(found, service.log), what=service.log)
        (port,) = re.findall(found, service.log)
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with _OPENER.open(f"{self.address}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def is_ready(self) -> bool:
        return self.get("/ready")[0] == 200

    def reasons(self) -> list[str]:
        found: dict[str, Any] = json.loads(self.get("/ready?format=json")[1])
        return list(found["reasons"])

    def number(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def test_a_service_tells_how_it_fares(
    start_service: StartService, private_broker: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = constants({"service.metrics.LOOK": 0.2, "service.metrics.FRESH": 0.0})
    service = start_service(
        HTTP,
        "--log-format=json",
        CARROT_BROKER_URL=private_broker.url,
        OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider",
        **quick,
    )
    watcher = Watcher(service)
    wait_until(watcher.is_ready)
    assert watcher.get("/ready") == (200, "ready: Consuming from all queues\n")
    rows = [publish_message(tasks.noop) for _ in range(20)]
    rows.append(publish_message(tasks.fail, "on purpose"))
    finished(rows)
    noop, fail = (f"tests.project.tasks.{name}" for name in ("noop", "fail"))
    assert watcher.number("carrot_tasks_finished_total", task=noop, outcome="completed") == 20
    assert watcher.number("carrot_tasks_finished_total", task=fail, outcome="failed") == 1
    assert watcher.number("carrot_task_run_seconds_count", task=noop) == 20
    assert watcher.number("carrot_started_total", queue="default") >= 21
    assert watcher.number("carrot_write_operations_sum") >= 21
    assert watcher.number("carrot_ready") == 1
    ScheduledTask.objects.create(task=noop, task_name="often", interval_count=1)
    wait_until(lambda: watcher.number("carrot_schedule_lateness_seconds_count") > 0)
    wait_until(lambda: watcher.number("carrot_messages_confirmed_total") > 0)

    # What publishes tasks and what they do are one trace, also later, and at a second attempt.
    spans = Spans(monkeypatch)
    with spans.tracer.start_as_current_span("request") as request:
        traced = publish_many([create_message(tasks.trace) for _ in range(2)])
        traced.append(publish_message(optioned.traced))
        traced.append(optioned.traced.options(run_after=0.1).publish())
    wanted = f"{request.get_span_context().trace_id:x}"
    assert [row.output for row in finished(traced)] == [wanted] * 4

    # Cut off, and back.
    private_broker.ctl("close_all_connections", "--global", "spring cleaning")
    wait_until(lambda: watcher.number("carrot_reconnects_total", purpose="consuming") == 1)
    wait_until(watcher.is_ready)

    # A stop waits for what runs, and says so.
    last = publish_message(tasks.effect, "last", 3.0)
    wait_until(lambda: MessageLog.objects.get(pk=last.pk).status == MessageLog.IN_PROGRESS)
    assert watcher.number("carrot_threads_busy") >= 1
    service.signal()
    wait_until(lambda: watcher.reasons() == ["the service is stopping"])
    assert watcher.get("/live")[0] == 200
    assert service.ends() == 0
    assert MessageLog.objects.get(pk=last.pk).status == MessageLog.COMPLETED
    assert "Traceback" not in service.log

    # All that it has said is JSON, and tells what it is about.
    lines = [json.loads(line) for line in service.log.splitlines()]
    (told,) = (line for line in lines if "failed: " in line["message"])
    assert (told["task"], told["id"], told["queue"]) == (fail, str(rows[-1].pk), "default")
    assert (told["attempt"], told["level"]) == (1, "warning")


def test_a_process_with_a_callback_says_why_it_is_not_ready(start_service: StartService) -> None:
    port = free_port()
    service = start_service(
        "--callback=tests.project.callbacks:obey",
        "--queue-name=nobody",
        HTTP,
        wait=False,
        CARROT_BROKER_URL=f"amqp://hard:s3cr3t-word@127.0.0.1:{port}/x",
    )
    watcher = Watcher(service)
    wait_until(lambda: "ConnectionRefused" in "".join(watcher.reasons()))
    assert watcher.get("/live")[0] == 200
    told = "".join(
        text for path in ("/ready", "/metrics", "/live") for text in watcher.get(path)[1]
    )
    assert "s3cr3t" not in told
    assert watcher.number("carrot_queue_consumed", queue="nobody") == 0
    assert watcher.number("carrot_connected", purpose="consuming") == 0
    assert service.stop() == 0
