# SPDX-License-Identifier: Apache-2.0
"""The pieces of a task's page: lines of a log, frames of a traceback, steps of a life."""

from __future__ import annotations

import logging
import time
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import task_logging
from carrot_twisted.due import GRACE
from carrot_twisted.models import Attempt, MessageLog
from carrot_twisted.monitor import log_lines, time_line, traceback_lines

HEAD = "Thread-3   2026-01-31 08:00:00,250"
LOG = f"""{HEAD} DEBUG:: looking
{HEAD} INFO:: found
{HEAD} ERROR:: no address
Traceback (most recent call last):
  ValueError: no address

{HEAD} WARNING:: tired
{task_logging.Transcript.__name__} is no head
… (cut: 3 lines, 80 characters)
what is left of one
{HEAD} CRITICAL:: the end"""


def test_what_the_service_writes_is_read() -> None:
    record = logging.LogRecord("carrot", logging.WARNING, __file__, 1, "a\nb", (), None)
    record.threadName = "carrot 3 of default"
    written = logging.Formatter(task_logging.LOGGING_FORMAT).format(record)
    first, second = log_lines.lines_of(written)
    assert (first.name, first.rank, first.text) == ("WARNING", logging.WARNING, "a")
    assert first.thread == "carrot 3 of default"
    assert first.time == written.split("WARNING", maxsplit=1)[0].split()[-1]
    assert (second.text, second.name, second.time) == ("b", "WARNING", "")


def test_the_lines_of_a_message_have_its_level() -> None:
    lines = log_lines.lines_of(LOG)
    assert [line.number for line in lines] == list(range(1, 12))
    assert [line.name for line in lines] == [
        *("DEBUG", "INFO", "ERROR", "ERROR", "ERROR", "ERROR", "WARNING", "WARNING"),
        *("", "", "CRITICAL"),
    ]


@pytest.mark.parametrize(
    ("level", "numbers"),
    [
        ("DEBUG", range(1, 12)),
        ("INFO", range(2, 12)),
        ("WARNING", range(3, 12)),
        ("ERROR", [3, 4, 5, 6, 9, 10, 11]),
        ("CRITICAL", [9, 10, 11]),
    ],
)
def test_a_level_shows_itself_those_above_and_what_has_none(level: str, numbers: Any) -> None:
    lines = log_lines.lines_of(LOG)
    assert [line.number for line in log_lines.chosen(lines, level)] == list(numbers)
    assert log_lines.counts(lines)[level] == len(numbers)


def test_a_search_minds_no_capitals() -> None:
    lines = log_lines.lines_of(LOG)
    assert [line.number for line in log_lines.chosen(lines, "DEBUG", "NO address")] == [3, 5]


@pytest.mark.parametrize(
    ("name", "rank", "level"),
    [
        ("Level 35", 35, "WARNING"),
        ("Level 5", 5, "DEBUG"),
        ("NOTICE", None, ""),
        ("info", 20, "INFO"),
    ],
)
def test_levels_of_other_names(name: str, rank: int | None, level: str) -> None:
    (line,) = log_lines.lines_of(f"{HEAD} {name}:: x")
    assert (line.rank, line.level, line.name) == (rank, level, name)
    assert bool(log_lines.chosen([line], "CRITICAL")) is (rank is None)


@given(st.lists(st.text(alphabet="ab:\r\u2028\x0b <", max_size=6), min_size=1, max_size=6))
def test_no_line_is_lost(texts: list[str]) -> None:
    log = "\n".join(texts)
    assert [line.text for line in log_lines.lines_of(log)] == (
        log.removesuffix("\n").split("\n") if log else []
    )


def test_hostile_lines_take_no_time() -> None:
    began = time.process_time()
    for line in (" " * 500_000, "a " * 250_000, "2026-01-31 " * 50_000, f"{HEAD} A" + " a" * 9999):
        assert len(log_lines.lines_of(line)) == 1
        assert len(traceback_lines.lines_of(line)) == 1
        assert len(traceback_lines.lines_of('  File "' + line)) == 1
    assert time.process_time() - began < 1


def kinds_of(text: str) -> list[tuple[str, str]]:
    return [(line.text.strip(" |"), line.kind) for line in traceback_lines.lines_of(text)]


def test_the_projects_own_frames_are_known() -> None:
    text = """Traceback (most recent call last):
  File "/srv/venv/lib/python3.13/site-packages/carrot_twisted/execution.py", line 90, in run
    value = task(*args, **kwargs)
            ^^^^^
  File "/srv/shop/tasks.py", line 4, in send
    smtp.send()
  File "/usr/lib/python3.13/smtplib.py", line 900, in send
    raise Refused
  File "<frozen importlib._bootstrap>", line 488, in _call
smtplib.Refused: no
more words
"""
    kinds = [kind for _, kind in kinds_of(text)]
    frames = [*["library"] * 3, *["own"] * 2, *["library"] * 3]
    assert kinds == ["exception", *frames, "exception", "exception"]


def test_real_tracebacks_are_read_also_those_of_groups() -> None:
    def fail() -> None:
        raise ExceptionGroup("two", [ValueError("first"), TypeError("second")])

    try:
        fail()
    except ExceptionGroup as error:
        text = "".join(traceback.format_exception(error))
    kinds = dict(kinds_of(text))
    assert kinds["fail()"] == "own"
    assert kinds["ValueError: first"] == "exception"
    assert "".join(f"{line.text}\n" for line in traceback_lines.lines_of(text)) == text


@given(st.text(max_size=40))
def test_any_text_is_a_traceback(text: str) -> None:
    lines = traceback_lines.lines_of(text)
    assert "\n".join(line.text for line in lines) == text.removesuffix("\n")


START = datetime(2026, 1, 31, 8, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def life(**given: Any) -> list[str]:
    """The steps of a row, each in a line."""
    earlier = given.pop("earlier", ())
    fields = {"publish_time": START, "relay_at": START, "queue": "mail", "task": "a.b"}
    row = MessageLog(**{**fields, **given})
    found = []
    for step in time_line.steps_of(row, earlier):
        when = "" if step.when is None else f" at {(step.when - START).total_seconds():g}"
        after = "" if step.after is None else f" +{step.after.total_seconds():g}"
        found.append(f"{step.kind}: {' '.join(f'{step.title} {step.text}'.split())}{when}{after}")
    return found


def test_the_life_of_a_task_that_waits() -> None:
    assert life() == ["done: Published at 0", "waiting: Waiting to be sent to the broker"]
    assert life(confirmed_at=at(1)) == [
        "done: Published at 0",
        "done: Sent to the broker at 1 +1",
        "waiting: Waiting for a worker in queue mail",
    ]


def test_the_life_of_a_task_that_came_to_its_end() -> None:
    done = {"start_time": at(2), "attempts": 1, "worker": "w:1"}
    assert life(status="COMPLETED", confirmed_at=at(1), completion_time=at(5), **done) == [
        "done: Published at 0",
        "done: Sent to the broker at 1 +1",
        "done: Started by worker w:1 at 2 +1",
        "good: Completed at 5 +3",
    ]
    # The broker's confirm came after the task had started.
    assert life(status="FAILED", confirmed_at=at(3), failure_time=at(1), **done) == [
        "done: Published at 0",
        "done: Started by worker w:1 at 2 +2",
        "bad: Failed at 1",
    ]
    assert life(status="IN_PROGRESS", **done)[-1] == "running: Running"
    assert life(status="CANCELLED") == ["done: Published at 0", "off: Cancelled"]


def test_the_life_of_a_task_that_is_tried_again() -> None:
    first = Attempt(
        number=1, worker="w:1", started=at(1), ended=at(4), outcome=Attempt.LOST, exception="no"
    )
    told = [
        "done: Published at 0",
        "done: Started by worker w:1 at 1 +1",
        "bad: Attempt 1 came to nothing Worker lost: no at 4 +3",
    ]
    again = {"attempts": 1, "start_time": at(1), "relay_at": at(60 - GRACE)}
    assert life(earlier=[first], **again) == [*told, "waiting: Next try due at 60"]
    assert life(**again) == [
        "done: Published at 0",
        "done: Started at 1 +1",
        "waiting: Next try due at 60",
    ]
    running = {"status": "IN_PROGRESS", "attempts": 2, "start_time": at(60), "worker": "w:2"}
    assert life(earlier=[first], confirmed_at=at(59), **running) == [
        *told,
        "done: Sent to the broker at 59 +55",
        "done: Started, attempt 2 by worker w:2 at 60 +1",
        "running: Running",
    ]


def test_the_life_of_a_message() -> None:
    given = {"task_args": "{}", "start_time": at(1), "worker": "w", "failure_time": at(2)}
    assert life(status="FAILED", **given) == [
        "done: Arrived at 0",
        "done: Started by worker w at 1 +1",
        "bad: Failed at 2 +1",
    ]
