# SPDX-License-Identifier: Apache-2.0
"""What the doctor makes of settings, database, clock and workers. Its brokers: integration."""

from __future__ import annotations

import inspect
import io
import json
import re
import time
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections
from django.db.migrations.executor import MigrationExecutor

from carrot_twisted import conf, doctor, status
from carrot_twisted.doctor import MAX_SKEW, Finding, Level
from carrot_twisted.models import MessageLog, PausedQueue, Worker
from carrot_twisted.service.worker_row import this_worker

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.CARROT = {"queues": [{"name": "default"}]}
    monkeypatch.setattr(doctor, "_brokers", list)


def worker(**changes: Any) -> Worker:
    one = this_worker([conf.current().queue("default")], 4)
    for name, value in changes.items():
        setattr(one, name, value)
    one.save(force_insert=True)
    return one


def told(level: Level | None = None) -> list[Finding]:
    return [one for one in doctor.examine("default") if level in (None, one.level)]


def test_a_project_that_is_well_has_no_error_and_says_what_it_is_made_of() -> None:
    worker()
    found = {one.about: one.text for one in told(Level.OK)}
    assert "pika 1." in found["versions"]
    assert "Twisted 2" in found["versions"]
    assert "migrated" in found["database default"]
    assert found["workers"] == "1 run, with 4 threads"
    assert found["work"] == "0 tasks wait, 0 run, all messages are sent"
    assert told(Level.ERROR) == []


def test_each_problem_of_the_status_comes_with_what_mends_it() -> None:
    source = inspect.getsource(status)
    assert [part for part in doctor.REMEDIES if part not in source] == []
    MessageLog.objects.create(task="shop.tasks.book", queue="default")
    missing, queue = told(Level.ERROR)
    assert queue.remedy == doctor.REMEDIES["has no worker"]
    assert missing.text == "No worker is running: start one with twistd carrot."
    assert missing.remedy == doctor.REMEDIES["No worker is running"]


def test_workers_of_another_version_are_told() -> None:
    worker(version="0.1")
    (found,) = (one for one in told(Level.WARNING) if one.about == "workers")
    assert found.text.startswith("some run version 0.1, and this is ")


def test_a_paused_queue_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker()
    PausedQueue.objects.create(name="default", by="ada", reason="repairs")
    (found,) = (one for one in told(Level.WARNING) if one.about == "work")
    assert "is paused by ada" in found.text
    assert found.remedy == "manage.py carrot_queue resume default"


def test_a_clock_that_goes_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 60)
    (found,) = (one for one in told(Level.WARNING) if one.about == "clock")
    assert re.fullmatch(r"the database's is 6\d\.\d s ahead of this host's", found.text)
    monkeypatch.setattr(time, "time", lambda: now - MAX_SKEW / 2)
    assert "clock" in {one.about for one in told(Level.OK)}


def test_a_database_that_does_not_answer_ends_what_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise OperationalError("no room")

    monkeypatch.setattr(connections["default"], "ensure_connection", refuse)
    found = told()
    (error,) = (one for one in found if one.level is Level.ERROR)
    assert error.text == "does not answer: no room"
    assert {"versions", "settings", "database default"} == {one.about for one in found}


def test_missing_migrations_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Executor(MigrationExecutor):
        def migration_plan(self, *_: Any, **__: Any) -> Any:
            return [(self.loader.get_migration("carrot_twisted", "0001_initial"), False)]

    monkeypatch.setattr(doctor, "MigrationExecutor", Executor)
    (error,) = told(Level.ERROR)
    assert (error.text, error.remedy) == (
        "lacks migrations: 0001_initial",
        "Run manage.py migrate.",
    )


def test_mistakes_in_the_settings_are_told_and_nothing_that_needs_them(settings: Any) -> None:
    settings.CARROT = {"queues": [{"name": "a", "concurrency": 0}]}
    found = told()
    (error,) = (one for one in found if one.level is Level.ERROR)
    assert error.about == "settings"
    assert error.text.startswith("carrot_twisted.E")
    assert error.remedy
    assert "work" not in {one.about for one in found}


def run(*arguments: str) -> tuple[str, Any]:
    out = io.StringIO()
    code: Any = 0
    try:
        call_command("carrot_doctor", *arguments, stdout=out)
    except SystemExit as end:
        code = end.code
    return out.getvalue(), code


def test_the_command_sums_up_by_its_exit_status() -> None:
    text, code = run()
    assert code == 1
    assert "ERROR   work: No worker is running" in text
    assert "        > Start one; " in text
    found = json.loads(run("--json")[0])
    assert found["ok"] is False
    assert {"about": "work", "level": "error"}.items() <= found["findings"][-1].items()
    worker()
    text, code = run("--json")
    assert (json.loads(text)["ok"], code) == (True, 0)
