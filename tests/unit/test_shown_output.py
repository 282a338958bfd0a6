# SPDX-License-Identifier: Apache-2.0
"""Output that pages show has the form that the code gives it: it is made anew and compared."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml
from django.utils import timezone
from twisted.logger import LogLevel

from carrot_twisted import changes
from carrot_twisted.doctor import PACKAGES, Finding, Level
from carrot_twisted.management.commands import carrot_doctor, carrot_status
from carrot_twisted.models import MessageLog
from carrot_twisted.service import json_log
from carrot_twisted.service.events import Client
from carrot_twisted.status import QueueStatus, Status, WorkerStatus
from tests.pages import DOCS, blocks
from tests.unit.test_deploy import RULES
from tests.unit.test_health import Desk, Service
from tests.unit.test_reference import said

if TYPE_CHECKING:
    import pytest

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def shown(page: str, language: str, beginning: str) -> str:
    """The block of a page that begins so."""
    (text,) = (one for one in blocks(DOCS / page, language) if one.startswith(beginning))
    return text


def table(text: str) -> list[list[str]]:
    """Cells of the rows of a table of carrot_status."""
    return [re.split(r"  +", line) for line in text.splitlines()[1:]]


def seconds(cell: str) -> float | None:
    if cell == "-":
        return None
    number, unit = cell.split()[:2]
    return float(number) * UNITS[unit]


def test_carrot_status() -> None:
    """commands.md has its tables; what stands in their cells is read, and written again."""
    text = shown("commands.md", "text", "1 problem")
    told, queues, workers, threads = text.split("\n\n")
    running = [
        {"thread": thread, "task": task, "seconds": seconds(age), "uuid": key, "stuck": False}
        for thread, task, age, key in table(threads)
    ]
    status = Status(
        queues=[
            QueueStatus(
                name=name,
                configured=True,
                consumable=True,
                workers=int(workers_of_it),
                waiting=int(waiting),
                waiting_is_exact=True,
                limited=int(limited),
                limited_is_exact=True,
                oldest=seconds(oldest),
                running=int(busy),
                unsent=int(unsent),
                unsent_is_exact=True,
                unsent_age=seconds(age),
                unsent_reason="",
            )
            for name, waiting, limited, oldest, busy, unsent, age, workers_of_it in table(queues)
        ],
        workers=[
            WorkerStatus(
                name=name,
                host=host,
                pid=int(pid),
                version="1",
                queues=names.split(", "),
                threads=int(number),
                started_at=timezone.now(),
                heartbeat_age=float(age.split()[0]),
                alive=True,
                running=running,
                busy=int(busy),
                coroutines=int(coroutines),
                problems=[],
                quiet=False,
                command="",
            )
            for name, host, pid, age, number, busy, coroutines, names in table(workers)
        ],
        paused=[],
        problems=[line.strip() for line in told.splitlines()[1:]],
    )
    assert "\n".join(carrot_status._lines(status)) == text.rstrip()


def test_carrot_doctor() -> None:
    """In commands.md: its findings and what mends them are texts of the code."""
    text = shown("commands.md", "text", "OK  ")
    findings = []
    for level, about, told, _, remedy in re.findall(
        r"^([A-Z]+) +([^:\n]+?(?::\d+\S*)?): (.*)(\n        > (.*))?$", text, re.MULTILINE
    ):
        findings.append(Finding(about=about, level=Level(level.lower()), text=told, remedy=remedy))
    assert "\n".join(carrot_doctor._lines(findings)) == text.rstrip()
    patterns = [
        re.escape(line).replace("…", ".*") for line in said().splitlines() if len(line) > 10
    ]
    versions, *others = findings
    assert all(f", {name} " in versions.text for name in PACKAGES)
    for words in (word for one in others for word in (one.text, one.remedy) if word):
        words = words.replace("...", "").strip()
        assert any(re.match(one, words) for one in patterns), words


def test_events_of_the_monitor() -> None:
    """In commands.md: the first one, which names everything."""
    request: Any = SimpleNamespace(write=lambda text: written.append(text.decode()))
    written: list[str] = []
    client = Client.__new__(Client)
    client.request = request
    client.tell(changes.TABLES)
    assert written == [shown("commands.md", "text", "event: ") + "\n"]


def test_states_of_a_task() -> None:
    """In delivery.md."""
    text = shown("delivery.md", "text", "PUBLISHED")
    states = {name for name, _ in MessageLog.STATUS_CHOICES}
    assert set(re.findall(r"\b[A-Z_]{2,}\b", text)) == states


def test_ready() -> None:
    """In health.md, as text and as JSON."""
    as_text, as_json = blocks(DOCS / "health.md", "console")
    path, status, body = re.fullmatch(  # type: ignore[union-attr]
        r"\$ curl -i http://[\d.:]+(\S+)\nHTTP/1\.1 (.*)\n\n(.*)", as_text, re.DOTALL
    ).groups()
    reasons = re.findall(r"^- (.*)$", body, re.MULTILINE)
    answer = Desk(Service(consuming=False, problems=reasons)).ask(path)
    assert answer.body == body
    assert f"{answer.status} {HTTPStatus(answer.status).phrase}" == status
    path, body = re.fullmatch(r"\$ curl http://[\d.:]+(\S+)\n(.*)", as_json, re.DOTALL).groups()  # type: ignore[union-attr]
    found = json.loads(body)
    answer = Desk(Service(name=found["worker"])).ask(path)
    assert (answer.status, answer.body) == (200, body)


def test_a_line_of_the_log_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """In logs.md."""
    text = shown("logs.md", "json", "{")
    found = json.loads(text)
    monkeypatch.setattr(os, "getpid", lambda: found["pid"])
    event = {
        "log_time": datetime.fromisoformat(found["time"]).timestamp(),
        "log_level": LogLevel.warn,
        "log_namespace": found["logger"],
        "log_format": "Task {task} ({uuid}) failed: {error}",
        "uuid": found["id"],
        "error": found["message"].partition("failed: ")[2],
        **{name: found[name] for name in ("task", "queue", "attempt")},
    }
    assert json_log.line(event) == text
    assert "Task … (…) failed: …" in said()


def test_what_prometheus_asks() -> None:
    """In health.md: the port of the command there, the job of our alerts, and their file."""
    config = yaml.safe_load(shown("health.md", "yaml", "# prometheus.yml"))
    (job,) = config["scrape_configs"]
    (alert,) = re.findall(r'job=~"([^"]+)"', json.dumps(RULES).replace("\\", ""))
    assert re.fullmatch(alert, job["job_name"])
    (command,) = (one for one in blocks(DOCS / "health.md", "") if "--http" in one)
    (port,) = re.findall(r"--http=tcp:(\d+)", command)
    assert job["static_configs"] == [{"targets": [f"localhost:{port}"]}]
    assert config["rule_files"] == ["alerts.yml"]
