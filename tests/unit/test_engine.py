# SPDX-License-Identifier: Apache-2.0
"""The engine's own loops: they outlive errors, and a lease is renewed only when it is committed.

The writer's loop runs in the test's own thread, as in ``test_log_writer``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import transaction

from carrot_twisted import conf, housekeeping
from carrot_twisted.models import Worker
from carrot_twisted.service import chore, custody
from carrot_twisted.service.engine import Engine
from carrot_twisted.service.engine_options import ServiceOptions
from tests.unit.test_log_writer import Reactor

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

pytestmark = pytest.mark.django_db(transaction=True)


class Running:
    """An engine of which the tests start single loops."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.told: list[Any] = []
        self.engine = Engine(
            conf.current(),
            ServiceOptions(queues=("default",)),
            self.reactor,
            on_fatal=self.told.append,
            on_crash=self.told.append,
            on_recycle=self.told.append,
            on_stop=lambda: self.told.append("stop"),
        )
        self.lease = conf.current().lease

    def work(self) -> None:
        """Let the writer do all that was submitted, then the reactor."""
        writer = self.engine._writer
        writer._inbox.put(None)
        writer._loop()
        self.reactor.run()

    def beat(self) -> None:
        self.engine._lease.beat()
        self.work()


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose failures are logged."""
    found: list[str] = []
    monkeypatch.setattr(chore._log, "failure", lambda _, **values: found.append(values["name"]))
    return found


def test_an_error_does_not_end_the_look_after_long_tasks(
    running: Running, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker would close the channel of a task that nobody takes into custody."""
    calls = []

    def fail(deadline: float) -> None:
        calls.append(deadline)
        raise RuntimeError

    monkeypatch.setattr(running.engine._dispatchers[0], "take_custody", fail)
    running.engine._custody.start()
    running.reactor.pump([custody.INTERVAL] * 3)
    assert len(calls) == 3
    assert failures == ["The worker looks after long tasks"]


def test_nor_the_heartbeats(
    running: Running, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(running.engine._lease, "_state", lambda: 1 / 0)
        running.engine._lease.start()
        running.reactor.pump([running.lease] * 3)
    assert failures == ["The worker renews its lease"]
    running.reactor.advance(running.lease)
    running.work()
    assert Worker.objects.get().name == running.engine.worker.name


def test_what_the_database_would_refuse_does_not_cost_the_lease(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = f"no file /tmp/\udcff\x00 {'x' * 10_000}"
    monkeypatch.setattr(Engine, "problems", [problem])
    running.beat()
    (text,) = Worker.objects.get().state["problems"]
    assert text.startswith("no file /tmp/\\udcff\\x00 xxx")
    assert len(text) < 1000


def test_a_lease_that_was_not_committed_is_renewed_with_the_next_claim(running: Running) -> None:
    running.beat()
    running.reactor.advance(running.lease)

    def renews(rollback: bool) -> bool:
        """Whether a claim renews the lease."""
        Worker.objects.update(heartbeat_at=LONG_AGO)
        with transaction.atomic():
            running.engine._lease.claimant()
            transaction.set_rollback(rollback)
        return Worker.objects.get().heartbeat_at > LONG_AGO

    assert [renews(True), renews(False), renews(False)] == [False, True, False]


class TestWishes:
    @pytest.fixture
    def calls(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What the queue's parts are told, in order."""
        found: list[Any] = []
        engine = running.engine
        (subscription,), (dispatcher,) = engine._subscriptions, engine._dispatchers
        monkeypatch.setattr(subscription, "want", lambda *given: found.append(given))
        for name in ("pause", "resume", "recall"):
            monkeypatch.setattr(dispatcher, name, lambda name=name: found.append(name))
        return found

    def test_a_paused_queue_is_consumed_no_more_and_what_was_not_begun_goes_back(
        self, running: Running, calls: list[Any]
    ) -> None:
        running.beat()
        assert calls == []
        housekeeping.pause_queue("default")
        running.beat()
        # The consumer is cancelled first: what goes back must not come again.
        assert calls == [(True, True), "pause", "recall"]
        assert running.engine.summary == "Consuming; paused: default"
        running.beat()
        assert calls[3:] == []
        housekeeping.resume_queue("default")
        running.beat()
        assert calls[3:] == ["resume", (True, False)]
        assert running.engine.summary == "Consuming from all queues"

    def test_another_service_s_queue_is_no_matter(self, running: Running, calls: list[Any]) -> None:
        housekeeping.pause_queue("other")
        running.beat()
        assert set(calls) <= {"resume", (True, False)}

    def test_a_database_that_comes_back_does_not_resume_it(
        self, running: Running, calls: list[Any]
    ) -> None:
        housekeeping.pause_queue("default")
        running.beat()
        calls.clear()
        running.engine._writer._availability._outage.failed("away")
        running.engine._database_away("away")
        assert calls == [(False, True), "pause"]
        running.engine._writer._availability._outage.over()
        running.engine._regulation.database_back()
        assert calls[2:] == [(True, True), "pause", "recall"]

    def test_a_quiet_worker_takes_nothing_and_says_so(
        self, running: Running, calls: list[Any]
    ) -> None:
        running.beat()
        housekeeping.quiet_worker(running.engine.name)
        running.beat()
        running.work()
        assert calls == [(True, True), "pause", "recall"]
        assert Worker.objects.get().state["quiet"]
        assert running.engine.summary == "Quiet: it takes nothing more"
        housekeeping.unquiet_worker(running.engine.name)
        running.beat()
        running.work()
        assert calls[3:] == ["resume", (True, False)]
        assert not Worker.objects.get().state["quiet"]

    def test_the_wish_to_stop_is_told_once(self, running: Running) -> None:
        running.beat()
        housekeeping.stop_worker(running.engine.name)
        running.beat()
        running.beat()
        assert running.told == ["stop"]
