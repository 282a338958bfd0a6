# SPDX-License-Identifier: Apache-2.0
"""What ``carrot_twisted.status`` and ``manage.py carrot_status`` tell of rows and workers."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError
from django.db.models.functions import Now

from carrot_twisted import processes, status
from carrot_twisted.models import MessageLog, Worker

pytestmark = pytest.mark.django_db

BUSY = {
    "thread": "default-1",
    "task": "app.tasks.mail",
    "uuid": "0198",
    "seconds": 90.0,
    "stuck": False,
}


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.CARROT = {
        "queues": [{"name": "default"}, {"name": "mail"}, {"name": "far", "consumable": False}],
    }


def worker(name: str = "one", silent: float = 0.0, **fields: Any) -> Worker:
    """A worker on another machine whose last heartbeat was ``silent`` seconds ago."""
    values = {"host": "h", "pid": 7, "version": "1", "queues": "default\nmail", "threads": 2}
    return Worker.objects.create(
        name=name, heartbeat_at=Now() - timedelta(seconds=silent), **{**values, **fields}
    )


def row(queue: str = "default", ago: float = 0.0, **fields: Any) -> MessageLog:
    """A row that was published ``ago`` seconds ago and sent at once."""
    published = Now() - timedelta(seconds=ago)
    values = {"confirmed_at": published, "relay_at": published, **fields}
    return MessageLog.objects.create(
        task="app.tasks.mail", queue=queue, publish_time=published, **values
    )


def problems() -> list[str]:
    return status.read("default").problems


def printed(*options: str) -> tuple[str, int]:
    """What the command prints, and its exit status."""
    out = io.StringIO()
    code: Any = 0
    try:
        call_command("carrot_status", *options, stdout=out)
    except SystemExit as end:
        code = end.code
    return out.getvalue(), code


def test_all_is_well_where_workers_live_and_messages_are_sent() -> None:
    worker(state={"running": [BUSY], "problems": []})
    row(ago=100)
    row(status="IN_PROGRESS", worker="one")
    found = status.read("default")
    assert found.problems == []
    (one,) = found.workers
    assert (one.alive, one.threads, one.queues) == (True, 2, ["default", "mail"])
    assert one.running == [BUSY]
    default, mail, far = found.queues
    assert (default.waiting, default.running, default.unsent, default.workers) == (1, 1, 0, 1)
    assert default.oldest == pytest.approx(100, abs=20)
    assert (mail.waiting, mail.oldest, mail.workers) == (0, None, 1)
    # Somebody else's service consumes it.
    assert (far.consumable, far.workers) == (False, 0)


def test_without_a_worker_the_queues_where_something_waits_are_named() -> None:
    row("mail")
    assert problems() == [
        "No worker is running: start one with twistd carrot.",
        "Queue mail has no worker; 1 tasks wait.",
    ]


def test_a_queue_that_no_living_worker_consumes_is_named_before_anything_waits_there() -> None:
    worker(queues="mail")
    assert problems() == ["Queue default has no worker; 0 tasks wait."]


def test_what_keeps_a_worker_from_working_is_told_in_its_own_words() -> None:
    worker(state={"running": [{**BUSY, "stuck": True}], "problems": ["queue mail is closed"]})
    assert problems() == [
        "Worker one: queue mail is closed",
        "Worker one: stuck in tasks over their time limit: 1 threads.",
    ]


def test_a_worker_that_says_nothing_is_told_from_a_dead_one() -> None:
    worker("gone", silent=100)
    here = processes.machine()
    if here:
        # Its process is there: it stands still, or cannot reach the database.
        worker("silent", 100, machine=here, pid=1, process_start=processes.start_of(1))
    found = problems()
    assert "Worker gone has died; a living one takes over its tasks." in found
    if here:
        (text,) = [text for text in found if "silent" in text]
        assert text.startswith("Worker silent has had no heartbeat for 1")


def test_a_queue_that_left_the_settings_is_told_as_long_as_it_has_tasks() -> None:
    worker()
    row("old")
    assert problems() == ["Queue old is not in CARROT['queues']: nobody runs its 1 tasks."]


class TestUnsent:
    def test_a_moment_is_no_problem(self) -> None:
        worker()
        row(ago=10, confirmed_at=None)
        (default, *_) = status.read("default").queues
        assert (default.unsent, problems()) == (1, [])

    def test_long_unsent_messages_are_told_with_their_reason(self) -> None:
        worker()
        row(ago=90, confirmed_at=None, publish_error="unroutable: NO_ROUTE")
        row(ago=20, confirmed_at=None)
        (text,) = problems()
        assert text.startswith("Queue default: 2 messages are not sent, the oldest for 9")
        assert text.endswith("unroutable: NO_ROUTE.")

    def test_what_waits_for_its_time_is_not_overdue(self) -> None:
        later = Now() + timedelta(seconds=60)
        row(ago=90, confirmed_at=None, relay_at=later)
        row("mail", ago=90, confirmed_at=None, relay_at=later, publish_error="refused")
        state = MessageLog.objects.outbox_state()
        assert {queue: one.count for queue, one in state.items()} == {"mail": 1}
        assert state["mail"].reason == "refused"

    def test_what_was_published_this_moment_is_its_publishers_business(self) -> None:
        row(confirmed_at=None)
        assert MessageLog.objects.outbox_state() == {}


class TestCommand:
    def test_a_person_sees_problems_queues_workers_and_threads(self) -> None:
        worker(state={"running": [BUSY], "problems": ["queue mail is closed"]})
        row(ago=240)
        text, code = printed()
        assert code == 1
        lines = [line.split() for line in text.splitlines()]
        assert lines[0] == ["1", "problem"]
        assert lines[1] == ["Worker", "one:", "queue", "mail", "is", "closed"]
        assert ["default", "1", "4", "min", "0", "0", "-", "1"] in lines
        assert ["one", "h", "7", "0", "s", "ago", "2", "1", "0", "default,", "mail"] in lines
        assert ["default-1", "app.tasks.mail", "90.0", "s", "0198"] in lines

    def test_nothing_wrong_is_status_0(self) -> None:
        worker()
        text, code = printed()
        assert (text.splitlines()[0], code) == ("No problems", 0)

    def test_a_program_gets_the_same_as_json(self) -> None:
        worker(state={"running": [BUSY], "problems": []})
        text, code = printed("--json")
        found = json.loads(text)
        assert (found["problems"], code) == ([], 0)
        assert found["workers"][0]["running"] == [BUSY]
        assert [queue["name"] for queue in found["queues"]] == ["default", "mail", "far"]

    def test_without_the_database_nothing_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(_using: str) -> None:
            raise OperationalError("connection refused")

        monkeypatch.setattr(status, "read", away)
        with pytest.raises(CommandError, match="nothing is known: connection refused") as caught:
            call_command("carrot_status")
        assert caught.value.returncode == 4

    def test_with_wrong_settings_they_are_told(self, settings: Any) -> None:
        settings.CARROT = {"lease": "long"}
        with pytest.raises(CommandError, match=r"nothing is known:\n.*CARROT\['lease'\]") as caught:
            call_command("carrot_status")
        assert caught.value.returncode == 4


def test_what_is_due_later_does_not_wait_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MANY", 3)
    worker()
    row(ago=500, run_after=Now() + timedelta(hours=1))
    assert status.read("default").queues[0].oldest is None
    row(ago=400, run_after=Now() - timedelta(seconds=20))
    row(ago=50)
    default = status.read("default").queues[0]
    assert default.waiting == 3
    assert default.oldest == pytest.approx(50, abs=5)


def test_many_rows_are_not_counted_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MANY", 3)
    worker()
    for ago in (30, 20, 10):
        row(ago=ago)
    row(status="IN_PROGRESS", ago=40)
    row("mail", confirmed_at=None, relay_at=Now() - timedelta(seconds=100))
    (default, mail, _far) = status.read("default").queues
    assert (default.waiting, default.waiting_is_exact, default.running) == (3, True, 1)
    assert default.oldest == pytest.approx(30, abs=5)
    assert (mail.unsent, mail.unsent_is_exact) == (1, True)
    row()
    for _ in range(4):
        row("mail", confirmed_at=None, relay_at=Now() - timedelta(seconds=90))
    (default, mail, _far) = status.read("default").queues
    assert (default.waiting, default.waiting_is_exact) == (3, False)
    assert (mail.unsent, mail.unsent_is_exact) == (3, False)
    text, _code = printed()
    assert [line.split()[1] for line in text.splitlines() if line[:7] == "default"] == ["3+"]
