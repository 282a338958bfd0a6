# SPDX-License-Identifier: Apache-2.0
"""The service's log as JSON, and the levels of its parts."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import signal
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from txaio.tx import make_logger

from carrot_twisted.service import json_log, log_levels
from tests.pages import DOCS, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = UUID(int=7)
PAGE = DOCS / "logs.md"
#: Of the service: of two the page says something, the other one is as all others.
PARTS = ("relay", "connection", "pool")


def event(text: str, **values: Any) -> dict[str, Any]:
    return {
        "log_time": 1_700_000_000.25,
        "log_level": LogLevel.warn,
        "log_namespace": "carrot_twisted.service.run_ends",
        "log_format": text,
        **values,
    }


def test_an_event_is_one_line_with_its_context_in_fields() -> None:
    text = json_log.line(
        event(
            "Task {task} ({uuid}) failed: {error}",
            **{"task": "app.t", "uuid": KEY, "error": 'a\nb "c"', "queue": "q", "attempt": 2},
        )
    )
    assert text.count("\n") == 1
    found = json.loads(text)
    assert isinstance(found.pop("pid"), int)
    assert found == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "warning",
        "logger": "carrot_twisted.service.run_ends",
        "message": f'Task app.t ({KEY}) failed: a\nb "c"',
        "task": "app.t",
        "id": str(KEY),
        "queue": "q",
        "attempt": 2,
    }


def test_other_values_of_an_event_are_in_its_message_only() -> None:
    found = json.loads(
        json_log.line(event("to {label}", label="h", password="s3cr3t", host="u:p@h"))
    )
    assert "s3cr3t" not in str(found)
    assert set(found) == {"time", "level", "logger", "pid", "message"}


def test_a_failure_has_its_traceback() -> None:
    try:
        raise ValueError("that \udcff one")
    except ValueError:
        failure = Failure()
    found = json.loads(json_log.line(event("It failed", log_failure=failure)))
    assert "ValueError: that" in found["traceback"]


def test_what_is_no_event_of_ours_is_a_line_as_well() -> None:
    found = json.loads(json_log.line({"log_time": 0.0, "log_text": "x"}))
    assert found["level"] == "info"


def test_lines_of_workers_keep_their_fields() -> None:
    inner = json_log.line(event("x", task="app.t")).rstrip()
    found = json.loads(json_log.line(event("[{name}] {line}", name="worker 2", line=inner)))
    assert (found["message"], found["task"], found["process"]) == ("x", "app.t", "worker 2")
    for other in (inner[:-5], "Traceback"):
        found = json.loads(json_log.line(event("[{name}] {line}", name="worker 2", line=other)))
        assert found["message"] == f"[worker 2] {other}"


def test_it_goes_to_a_file_or_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(json_log, "path", None)
    json_log.observer()(event("one"))
    assert json.loads(out.getvalue())["message"] == "one"
    monkeypatch.setattr(json_log, "path", str(tmp_path / "log"))
    monkeypatch.setattr(signal, "getsignal", lambda _: True)
    log = json_log.observer()
    log(event("two"))
    log._outFile.close()
    assert json.loads((tmp_path / "log").read_text())["message"] == "two"


class TestLevels:
    @pytest.fixture(autouse=True)
    def _levels(self) -> Iterator[None]:
        names = ("", ".service", ".service.relay", ".service.connection")
        yield
        for name in names:
            logging.getLogger(f"carrot_twisted{name}").setLevel(logging.NOTSET)

    def test_what_is_said_of_a_part_holds_for_all_of_it(self) -> None:
        assert log_levels.level_of("carrot_twisted.service.relay") is None
        logging.getLogger("carrot_twisted.service").setLevel("ERROR")
        assert log_levels.level_of("carrot_twisted.service.relay") == "error"
        logging.getLogger("carrot_twisted.service.relay").setLevel("DEBUG")
        assert log_levels.level_of("carrot_twisted.service.relay") == "debug"
        assert log_levels.level_of("carrot_twisted.service.pool") == "error"

    def test_the_settings_of_the_page_are_heeded(self) -> None:
        (text,) = (one for one in blocks(PAGE, "python") if "service.relay" in one)
        names: dict[str, Any] = {}
        exec(text, names)  # noqa: S102 - it is ours
        logging.config.dictConfig({**names["LOGGING"], "incremental": True})
        told = {part: log_levels.level_of(f"carrot_twisted.service.{part}") for part in PARTS}
        assert told == {"relay": "debug", "connection": "warn", "pool": "info"}

    def test_the_whole_package_is_the_command_lines(self) -> None:
        logging.getLogger("carrot_twisted").setLevel("CRITICAL")
        assert log_levels.level_of("carrot_twisted.service.relay") is None

    @pytest.mark.parametrize(
        ("level", "name"), [(5, "debug"), (20, "info"), (25, "warn"), (50, "critical")]
    )
    def test_levels_have_txaios_names(self, level: int, name: str) -> None:
        logging.getLogger("carrot_twisted.service").setLevel(level)
        assert log_levels.level_of("carrot_twisted.service") == name

    def test_loggers_get_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        heard: list[str] = []

        def observer(one: dict[str, Any]) -> None:
            heard.append(one["log_format"])

        teller: Any = make_logger(level="info", observer=observer)
        monkeypatch.setattr("carrot_twisted.service.relay._log", teller)
        teller.debug("not heard")
        logging.getLogger("carrot_twisted.service.relay").setLevel("DEBUG")
        log_levels.respect()
        teller.debug("heard")
        logging.getLogger("carrot_twisted.service.relay").setLevel("ERROR")
        log_levels.respect()
        teller.warn("not heard either")
        assert heard == ["heard"]


def test_fields_are_used_by_the_names_that_the_page_tells() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert told >= {*json_log.FIELDS.values(), "time", "level", "logger", "pid", "message"}
