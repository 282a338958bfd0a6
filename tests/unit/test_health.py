# SPDX-License-Identifier: Apache-2.0
"""What watches over a service gets from it: live, ready, metrics. Real HTTP, without a socket."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from carrot_twisted import conf, rollups, standing, task_paths
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog, QueueStatistics, ScheduledTask
from carrot_twisted.retry import Action
from carrot_twisted.rollups import OTHERS
from carrot_twisted.service import metrics
from carrot_twisted.service.counted import Counted
from carrot_twisted.service.engine import Engine
from carrot_twisted.service.engine_options import ServiceOptions
from carrot_twisted.service.families import CATALOGUE
from carrot_twisted.service.health import Answers, Health, HealthServer
from carrot_twisted.service.listening import UnloggedSite
from carrot_twisted.service.metrics import Metrics
from carrot_twisted.service.parts import Parts, QueuePart
from tests.unit.test_log_writer import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK = "os.getpid"
#: In this order here.
LABELS = ("queue", "broker", "task", "handler", "purpose", "outcome", "le")


@dataclass
class Service:
    """What a service is to those who watch over it."""

    name: str = "me-1"
    consuming: bool = True
    problems: list[str] = field(default_factory=list)
    summary: str = "Consuming from all queues"
    parts: Parts = field(
        default_factory=lambda: Parts(queues=[], connections=[], counted=Counted())
    )


@dataclass
class Answer:
    status: int
    headers: str
    body: str


class Desk:
    """Somebody who asks a service."""

    def __init__(self, service: Any = None, reactor: Any = None) -> None:
        self.reactor: Any = reactor or Clock()
        self.service: Any = service or Service()
        self.health = Health(self.service, self.reactor)
        self.metrics = Metrics(self.service, self.reactor)
        self.root = Answers(self.health, self.metrics)

    def ask(self, path: str, method: str = "GET", accept: str = "*/*") -> Answer:
        channel: Any = UnloggedSite(self.root, reactor=MemoryReactorClock()).buildProtocol(
            cast("Any", None)
        )
        transport = StringTransport()
        channel.makeConnection(transport)
        request = f"{method} {path} HTTP/1.0\r\nAccept: {accept}\r\n\r\n"
        channel.dataReceived(request.encode())
        head, _, body = transport.value().decode().partition("\r\n\r\n")
        channel.connectionLost(None)
        return Answer(int(head.split()[1]), head.lower(), body)

    def numbers(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Samples of all metrics, by name, then by the texts of their labels."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.ask("/metrics").body):
            for sample in family.samples:
                key = tuple(sample.labels[name] for name in LABELS if name in sample.labels)
                found.setdefault(sample.name, {})[key] = sample.value
        return found


class TestLiveAndReady:
    def test_live_is_all_well_as_long_as_somebody_answers(self) -> None:
        desk = Desk(Service(consuming=False, problems=["the database is away"]))
        desk.reactor.advance(7)
        assert desk.ask("/live").status == 200
        assert desk.ask("/live").body == "live: me-1, for 7 s\n"
        found = json.loads(desk.ask("/live?format=json").body)
        assert (found["live"], found["worker"], found["seconds"]) == (True, "me-1", 7)

    def test_ready_says_what_it_does(self) -> None:
        answer = Desk().ask("/ready")
        assert (answer.status, answer.body) == (200, "ready: Consuming from all queues\n")
        assert "content-type: text/plain" in answer.headers
        assert "cache-control: no-store" in answer.headers
        assert "server: carrot" in answer.headers, "not that of the library, and its version"

    def test_or_each_reason_once(self) -> None:
        desk = Desk(Service(consuming=False, problems=["a is away", "b is", "a is away"]))
        answer = desk.ask("/ready")
        assert (answer.status, answer.body) == (503, "not ready\n- a is away\n- b is\n")

    @pytest.mark.parametrize(
        ("path", "accept", "as_json"),
        [
            ("/ready?format=json", "*/*", True),
            ("/ready", "application/json", True),
            ("/ready", "text/html, application/json;q=0.9", True),
            ("/ready?format=text", "application/json", False),
            ("/ready", "text/plain", False),
        ],
    )
    def test_as_json_for_those_who_ask(self, path: str, accept: str, as_json: bool) -> None:
        desk = Desk(Service(problems=['queue "a" is not consumed']))
        answer = desk.ask(path, accept=accept)
        assert answer.status == 503
        assert ("content-type: application/json" in answer.headers) is as_json
        if as_json:
            assert json.loads(answer.body) == {
                "ready": False,
                "worker": "me-1",
                "summary": "",
                "reasons": ['queue "a" is not consumed'],
            }

    def test_whoever_consumes_nothing_and_knows_not_why_is_not_ready(self) -> None:
        answer = Desk(Service(consuming=False)).ask("/ready")
        assert (answer.status, answer.body.count("not all queues")) == (503, 1)

    def test_nor_is_who_stops(self) -> None:
        desk = Desk()
        desk.health.stopping = True
        answer = desk.ask("/ready")
        assert (answer.status, answer.body) == (503, "not ready\n- the service is stopping\n")
        assert desk.ask("/live").status == 200

    @pytest.mark.parametrize("path", ["/", "/other", "/ready/", "/ready/x", "//ready", "/READY"])
    def test_there_is_nothing_else(self, path: str) -> None:
        assert Desk().ask(path).status == 404

    def test_nothing_can_be_changed(self) -> None:
        answer = Desk().ask("/ready", method="POST")
        assert (answer.status, "allow: get, head" in answer.headers) == (405, True)
        head = Desk(Service(problems=["x"])).ask("/ready", method="HEAD")
        assert (head.status, head.body) == (503, "")

    @pytest.mark.parametrize("endpoint", ["9090", "tcp:http", ""])
    def test_nonsense_is_refused_with_an_example(self, endpoint: str) -> None:
        with pytest.raises(CarrotConfigException) as caught:
            HealthServer(endpoint, cast("Any", Service()), MemoryReactorClock())
        assert str(caught.value).startswith(f"--http={endpoint} is no endpoint (")
        assert str(caught.value).endswith("--http=tcp:9090:interface=127.0.0.1")


def engine(reactor: Any) -> Engine:
    nobody: Any = lambda *_: None  # noqa: E731
    options = ServiceOptions(queues=("default",))
    return Engine(conf.current(), options, reactor, nobody, nobody, nobody, nobody)


def work(service: Engine, reactor: Reactor) -> None:
    """Let the writer do all that was submitted, then the reactor."""
    service._writer._inbox.put(None)
    service._writer._loop()
    reactor.run()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """With an engine that is not started."""
    reactor = Reactor()
    desk = Desk(engine(reactor), reactor)
    yield desk
    desk.metrics.stop()


@pytest.mark.django_db(transaction=True)
class TestMetrics:
    def test_each_of_the_catalogue_is_there_and_no_other(self, desk: Desk) -> None:
        rollups.sample(["default"], datetime.now(UTC).timestamp(), "default")
        desk.metrics.start()
        work(desk.service, desk.reactor)
        text = desk.ask("/metrics").body
        families = {f.name for f in text_string_to_metric_families(text)}
        assert {name for name in families if not name.startswith("process_")} == set(CATALOGUE)
        assert "process_resident_memory_bytes" in families

    def test_what_ends_is_counted_by_task_and_outcome(self, desk: Desk) -> None:
        task_paths.resolve_task(TASK)
        counted = desk.service._tally
        for run in (0.0005, 0.002, 0.003, 5000.0):
            counted.count("default", TASK, True, 0.25, run)
        counted.count("default", TASK, False, 0.25, 0.001)
        numbers = desk.numbers()
        finished = numbers["carrot_tasks_finished_total"]
        assert finished == {
            ("default", TASK, "completed"): 4,
            ("default", TASK, "failed"): 1,
        }
        buckets = numbers["carrot_task_run_seconds_bucket"]
        assert buckets["default", TASK, "0.001"] == 2
        assert buckets["default", TASK, "0.004"] == 4
        assert buckets["default", TASK, "2097.15"] == 4
        assert buckets["default", TASK, "+Inf"] == 5
        assert numbers["carrot_task_run_seconds_count"]["default", TASK] == 5
        assert numbers["carrot_task_run_seconds_sum"]["default", TASK] == pytest.approx(5000.0065)
        assert numbers["carrot_task_wait_seconds_sum"]["default",] == 1.25

    def test_only_known_tasks_have_a_label_and_not_too_many(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A row may name any task."""
        monkeypatch.setattr(metrics, "MAX_TASKS", 2)
        count = desk.service._tally.count
        count("default", "no.such", False, 0.1, 0.1)
        count("default", "a.a", True, 0.1, 0.1)
        assert {key[1] for key in desk.numbers()["carrot_tasks_finished_total"]} == {"a.a", OTHERS}
        count("default", "no.such", True, 0.1, 0.1)
        for name in "bc":
            count("default", f"b.{name}", True, 0.1, 0.1)
        desk.reactor.advance(metrics.FRESH)
        found = desk.numbers()["carrot_tasks_finished_total"]
        assert found == {
            ("default", "a.a", "completed"): 1,
            ("default", "a.a", "failed"): 0,
            ("default", "b.b", "completed"): 1,
            ("default", "b.b", "failed"): 0,
            ("default", OTHERS, "completed"): 2,
            ("default", OTHERS, "failed"): 1,
        }

    def test_a_text_of_this_moment_is_not_made_again(self, desk: Desk) -> None:
        first = desk.ask("/metrics").body
        desk.service._tally.count("default", TASK, True, 0.1, 0.1)
        assert desk.ask("/metrics").body == first
        desk.reactor.advance(metrics.FRESH)
        assert desk.ask("/metrics").body != first

    def test_however_often_somebody_asks_the_database_is_asked_now_and_then(
        self, desk: Desk
    ) -> None:
        desk.metrics.start()
        with CaptureQueriesContext(connection) as first:
            for _ in range(100):
                desk.ask("/metrics")
            work(desk.service, desk.reactor)
        assert len(first) <= 10
        with CaptureQueriesContext(connection) as second:
            for _ in range(28):
                desk.reactor.advance(0.5)
                desk.ask("/metrics")
            work(desk.service, desk.reactor)
        assert len(second) == 0
        desk.reactor.advance(1.0)
        assert desk.service._writer._inbox.qsize() == 1

    def test_what_the_writer_writes_is_counted_in_batches(self, desk: Desk) -> None:
        for _ in range(5):
            desk.service._writer.call(lambda: None)
        work(desk.service, desk.reactor)
        numbers = desk.numbers()
        buckets = numbers["carrot_write_operations_bucket"]
        assert [buckets[size,] for size in ("3.0", "7.0", "1023.0", "+Inf")] == [0, 1, 1, 1]
        assert numbers["carrot_write_operations_sum"] == {(): 5}

    def test_a_queue_that_is_not_consumed_is_told(self, desk: Desk) -> None:
        numbers = desk.numbers()
        assert numbers["carrot_queue_consumed"] == {("default",): 0}
        assert numbers["carrot_ready"] == {(): 0}
        assert numbers["carrot_problems"][()] >= 1
        assert set(numbers["carrot_connected"].values()) == {0}

    def test_no_password_is_among_the_labels(self, desk: Desk) -> None:
        assert "guest@" not in desk.ask("/metrics").body
        assert ":guest" not in desk.ask("/metrics").body


def test_messages_count_for_their_handler_and_by_what_was_decided() -> None:
    counted = Counted()
    part = QueuePart(
        "mail",
        cast("Any", SimpleNamespace(ready=True)),
        cast("Any", SimpleNamespace(threads=list, started=3)),
        "app.handle",
        {Action.ACK: 2, Action.RETRY: 1},
    )
    desk = Desk(Service(parts=Parts(queues=[part], connections=[], counted=counted)))
    queue = SimpleNamespace(name="mail", handler="app.handle")
    counted.handled(
        cast(
            "Any",
            SimpleNamespace(queue=queue, failure=None, arrived=1.0, started=1.5, ended=2.5),
        )
    )
    numbers = desk.numbers()
    assert numbers["carrot_messages_decided_total"] == {
        ("mail", "app.handle", "ack"): 2,
        ("mail", "app.handle", "retry"): 1,
    }
    assert numbers["carrot_message_run_seconds_sum"] == {("mail", "app.handle"): 1}
    assert numbers["carrot_started_total"] == {("mail",): 3}
    assert "carrot_tasks_finished_total" not in numbers

    assert "carrot_database_away" not in numbers


def test_connections_of_several_users_to_one_broker_are_told_together() -> None:
    """The name of a broker has no user: two samples would have the same labels."""

    def connection(made: int, is_open: bool) -> Any:
        return SimpleNamespace(broker="h/v", purpose="consuming", made=made, is_open=is_open)

    connections = [connection(3, True), connection(0, False), connection(2, True)]
    parts = Parts(queues=[], connections=connections, counted=Counted())
    numbers = Desk(Service(parts=parts)).numbers()
    assert numbers["carrot_connected"] == {("h/v", "consuming"): 0}
    assert numbers["carrot_reconnects_total"] == {("h/v", "consuming"): 3}


@pytest.mark.django_db(transaction=True)
class TestStanding:
    def test_nothing_is_there_yet(self) -> None:
        found = standing.read("default")
        assert (found.queues, found.age, found.unsent, found.overdue) == ([], None, {}, 0)

    def test_the_last_sample_and_what_is_late(self, desk: Desk) -> None:
        now = datetime.now(UTC)
        ago = now - timedelta(seconds=100)
        MessageLog.objects.create(task=TASK, queue="a", relay_at=ago, publish_time=ago)
        # It waits for a limit: not for a worker, and longer than all others.
        MessageLog.objects.create(
            task=TASK,
            queue="a",
            publish_time=ago - timedelta(hours=1),
            confirmed_at=ago,
            waits_for="slot app.tasks.one",
        )
        for slot in (ago, now + timedelta(hours=1)):
            ScheduledTask.objects.create(
                task=TASK, task_name=f"at {slot}", interval_count=1, next_run_time=slot
            )
        for seconds in (-60, 0):
            rollups.sample(["default"], now.timestamp() + seconds, "default")
        found = standing.read("default")
        assert [(one.queue, one.waiting, one.unsent) for one in found.queues] == [
            ("a", 2, 1),
            ("default", 0, 0),
        ]
        assert found.age is not None
        assert 0 <= found.age < 65
        assert 99 < found.overdue < 160
        desk.metrics.start()
        work(desk.service, desk.reactor)
        numbers = desk.numbers()
        assert numbers["carrot_queue_waiting"] == {("a",): 2, ("default",): 0}
        assert numbers["carrot_queue_limited"] == {("a",): 1, ("default",): 0}
        assert 90 < numbers["carrot_queue_unsent_oldest_seconds"]["a",] < 160
        assert numbers["carrot_queue_unsent_oldest_seconds"]["default",] == 0
        assert 99 < numbers["carrot_queue_oldest_seconds"]["a",] < 160

    def test_of_a_sample_that_an_older_service_has_taken_it_is_not_known(self, desk: Desk) -> None:
        rollups.sample(["default"], datetime.now(UTC).timestamp(), "default")
        QueueStatistics.objects.update(limited=None)
        desk.metrics.start()
        work(desk.service, desk.reactor)
        numbers = desk.numbers()
        assert ("carrot_queue_limited" in numbers, "carrot_queue_waiting" in numbers) == (
            False,
            True,
        )
