# SPDX-License-Identifier: Apache-2.0
"""What operators want of queues and workers, as rows and commands have it."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models.functions import Now

from carrot_twisted import handlers, housekeeping, records, status
from carrot_twisted.exceptions import CarrotConfigException, UnknownWorker
from carrot_twisted.models import PausedQueue, Worker

pytestmark = pytest.mark.django_db

LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.CARROT = {"queues": [{"name": "default"}, {"name": "mail"}]}


def worker(name: str = "one", silent: float = 0.0, **fields: Any) -> Worker:
    values = {"host": "h", "pid": 7, "version": "1", "queues": "default\nmail", "threads": 2}
    return Worker.objects.create(
        name=name, heartbeat_at=Now() - timedelta(seconds=silent), **{**values, **fields}
    )


def printed(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


class TestQueues:
    def test_a_pause_says_who_since_when_and_why(self) -> None:
        housekeeping.pause_queue("mail", by="ada", reason="the server moves")
        PausedQueue.objects.update(since=LONG_AGO)
        assert str(PausedQueue.objects.get()) == (
            "Queue mail is paused by ada since 2026-01-02 03:04:05 UTC: the server moves"
        )

    def test_a_second_pause_changes_who_and_why_but_not_since_when(self) -> None:
        housekeeping.pause_queue("mail", by="ada", reason="the server moves")
        PausedQueue.objects.update(since=LONG_AGO)
        housekeeping.pause_queue("mail", by="bob")
        one = PausedQueue.objects.get()
        assert (one.by, one.reason, one.since) == ("bob", "", LONG_AGO)

    def test_a_queue_that_is_not_there_cannot_be_paused(self) -> None:
        with pytest.raises(
            CarrotConfigException, match=r"no queue 'male' to pause.* default, mail"
        ):
            housekeeping.pause_queue("male")
        assert not PausedQueue.objects.exists()

    def test_that_of_a_handler_can(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(handlers, "_registry", {})
        handlers.message_handler("orders")(lambda body: None)
        housekeeping.pause_queue("orders")
        assert [one.name for one in status.read("default").paused] == ["orders"]

    def test_resuming_tells_whether_it_was_paused(self) -> None:
        housekeeping.pause_queue("mail")
        assert housekeeping.resume_queue("mail")
        assert not housekeeping.resume_queue("mail")
        with pytest.raises(CarrotConfigException, match="no queue 'male' to resume"):
            housekeeping.resume_queue("male")

    def test_one_that_has_left_the_settings_can_be_resumed(self) -> None:
        PausedQueue.objects.create(name="old")
        assert housekeeping.resume_queue("old")
        assert not PausedQueue.objects.exists()

    def test_the_command_does_the_same(self) -> None:
        text = printed("carrot_queue", "pause", "mail", "--by=ada", "--reason=it moves")
        assert text.startswith("Queue mail is paused by ada since 20")
        assert text.endswith(" UTC: it moves.\n")
        assert printed("carrot_queue", "list") == text
        assert printed("carrot_queue", "resume", "mail") == "No queue is paused.\n"
        assert "Queue mail was not paused.\n" in printed("carrot_queue", "resume", "mail")
        with pytest.raises(CommandError, match="no queue 'male'"):
            printed("carrot_queue", "pause", "male")

    def test_it_is_told_and_is_no_problem(self) -> None:
        worker()
        housekeeping.pause_queue("mail", by="ada")
        found = status.read("default")
        assert found.problems == []
        assert found.paused[0].text.startswith("Queue mail is paused by ada since ")
        assert "Queue mail is paused by ada since " in printed("carrot_status")


class TestWorkers:
    def test_each_wish_is_heard_with_the_next_heartbeat(self) -> None:
        me = worker()
        heard = []
        for wish in (
            housekeeping.quiet_worker,
            housekeeping.stop_worker,
            housekeeping.unquiet_worker,
        ):
            wish("one")
            _, wishes = records.heartbeat(me, "default")
            heard.append(wishes.command)
        assert heard == ["quiet", "stop", ""]

    def test_and_so_is_each_pause(self) -> None:
        me = worker()
        housekeeping.pause_queue("mail")
        assert records.heartbeat(me, "default")[1].paused == {"mail"}

    def test_a_worker_that_others_forgot_keeps_to_what_it_was_told(self) -> None:
        me = worker()
        housekeeping.quiet_worker("one")
        records.heartbeat(me, "default")
        Worker.objects.all().delete()
        assert records.heartbeat(me, "default")[1].command == "quiet"

    def test_nobody_of_that_name(self) -> None:
        with pytest.raises(UnknownWorker, match="no worker 'two'"):
            housekeeping.stop_worker("two")

    def test_a_quiet_one_is_no_worker_of_its_queues(self) -> None:
        worker(state={"quiet": True}, command="quiet")
        found = status.read("default")
        assert (found.workers[0].quiet, found.workers[0].command) == (True, "quiet")
        assert "Queue mail has no worker; 0 tasks wait." in found.problems
        worker("two", queues="default\nmail")
        assert " s ago, quiet  2 " in printed("carrot_status")

    def test_the_command_tells_one_or_all_that_live(self) -> None:
        worker("one")
        worker("two")
        worker("dead", silent=100)
        assert printed("carrot_worker", "stop", "two") == "Worker two is to stop, as by SIGTERM.\n"
        assert printed("carrot_worker", "quiet", "--all").count("take nothing more") == 2
        commands = dict(Worker.objects.values_list("name", "command"))
        assert commands == {"one": "quiet", "two": "quiet", "dead": ""}
        printed("carrot_worker", "resume", "one")
        assert Worker.objects.get(name="one").command == ""
        with pytest.raises(CommandError, match="no worker 'three'"):
            printed("carrot_worker", "quiet", "three")
        Worker.objects.all().delete()
        assert printed("carrot_worker", "stop", "--all") == "No worker is running.\n"
