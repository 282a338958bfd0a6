# SPDX-License-Identifier: Apache-2.0
"""A cluster of three nodes loses one after the other, by kill -9 and under load."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.publisher import ThreadPublisher
from carrot_twisted.utilities import publish_message
from devtools.cluster import Cluster
from devtools.servers import RabbitMQ, temporary_folder
from tests.conftest import root_of_rabbitmq, running
from tests.integration.test_service import Ledger, StartService, finished
from tests.processes import ServiceProcess, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from carrot_twisted.outbox import Post

pytestmark = pytest.mark.once

#: Seconds without a confirm, or without a finished task, that a lost node may cost. An election
#: takes less than one, a new connection two or three; the rest is for a busy machine.
LONGEST_GAP = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes."""
    with temporary_folder() as folder, running(Cluster(folder, root=root_of_rabbitmq())) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def broker_url(cluster: Cluster) -> str:
    """URL of the cluster, with all its hosts, in place of the other tests' broker."""
    return cluster.url


class Publishing:
    """A thread that publishes tasks until it is told to stop."""

    def __init__(self) -> None:
        self.rows: list[MessageLog] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.01):
            self.rows.append(publish_message(tasks.effect, str(len(self.rows))))

    def stop(self) -> list[MessageLog]:
        """No more; all that were published."""
        self._stopped.set()
        self._thread.join()
        return self.rows


@pytest.fixture
def confirms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the cluster confirmed each message to this process."""
    times: list[float] = []
    settled = ThreadPublisher.settled

    def noted(self: ThreadPublisher, post: Post, error: str | None) -> None:
        if error is None:
            times.append(time.time())
        settled(self, post, error)

    monkeypatch.setattr(ThreadPublisher, "settled", noted)
    return times


def longest_gap(times: list[float]) -> float:
    """Seconds between two that follow each other."""
    return max(later - earlier for earlier, later in pairwise(sorted(times)))


def consumed_node(cluster: Cluster, service: ServiceProcess) -> RabbitMQ:
    """The node that the service takes its messages from."""
    port = re.findall(r"Connected to 127\.0\.0\.1:(\d+), .* for consuming", service.log)[-1]
    return next(node for node in cluster.nodes if node.port == int(port))


def whole(cluster: Cluster) -> bool:
    """Whether each queue has all its replicas, so that the next node may be lost."""
    listed = cluster.nodes[0].ctl("list_queues", "-p", cluster.nodes[0].name, "online")
    return [line.count("node") for line in listed.splitlines()[1:]] == [3, 3, 3, 3]


def go_on(confirms: list[float], ledger: Ledger) -> None:
    """Wait until a hundred more messages are confirmed, and a hundred more tasks have run."""
    confirmed, done = len(confirms) + 100, len(ledger()) + 100
    what = "messages are confirmed and tasks run"
    wait_until(lambda: len(confirms) > confirmed and len(ledger()) > done, LONGEST_GAP + 20, what)


def test_a_node_that_is_killed_under_load_costs_seconds_and_no_task(
    settings: Any,
    cluster: Cluster,
    confirms: list[float],
    start_service: StartService,
    ledger: Ledger,
    record_property: Callable[[str, object], None],
) -> None:
    """First the leader of the queue, then the node that the service is connected to."""
    queues = [
        {**queue, "queue_arguments": {"x-queue-type": "quorum"}}
        for queue in settings.CARROT["queues"]
    ]
    settings.CARROT = {**settings.CARROT, "queues": queues}
    service = start_service(CARROT_TEST_QUEUE_TYPE="quorum")
    service.wait_for("Consuming queue other")
    publishing = Publishing()
    try:
        for victim in (
            lambda: cluster.leader("default"),
            lambda: consumed_node(cluster, service),
        ):
            # Whoever was lost before comes back; who is lost last need not.
            for node in cluster.nodes:
                node.start()
            wait_until(lambda: whole(cluster), 60, "three replicas of each queue", every=1.0)
            go_on(confirms, ledger)
            victim().kill()
            go_on(confirms, ledger)
    finally:
        rows = publishing.stop()
    results = finished(rows, 60)

    assert {row.status for row in results} == {MessageLog.COMPLETED}
    assert {row.attempts for row in results} == {1}
    assert Counter(ledger()) == Counter(str(number) for number in range(len(rows)))
    ends = [row.completion_time.timestamp() for row in results if row.completion_time]
    gaps = {"confirms": longest_gap(confirms), "finished tasks": longest_gap(ends)}
    for name, gap in gaps.items():
        record_property(f"longest gap of {name}", f"{gap:.2f}")
    record_property("tasks", len(rows))
    assert max(gaps.values()) < LONGEST_GAP
    assert "Lost the connection" in service.log
    assert service.stop() == 0
    assert "Traceback" not in service.log
