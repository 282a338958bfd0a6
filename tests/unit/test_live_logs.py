# SPDX-License-Identifier: Apache-2.0
"""Whose log is written while it runs, how often, and what that costs: nothing where it is short."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
from twisted.internet.task import Clock

from carrot_twisted.running import Progress
from carrot_twisted.service.live_logs import INTERVAL, LONG, LiveLogs
from carrot_twisted.task_logging import Transcript

if TYPE_CHECKING:
    from carrot_twisted.service.operations import Lines


class Desk:
    """Two tasks that run, and a writer that keeps what it is to do."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.away = False
        self.submitted: list[Lines] = []
        self.asked: list[float] = []
        self.long: list[float] = []
        self.runs = [
            SimpleNamespace(
                uuid=uuid4(), token=n, transcript=Transcript(1000), progress=None, told=None
            )
            for n in (1, 2)
        ]
        self.live = LiveLogs(
            dispatchers=cast("Any", [self]),
            writer=cast("Any", self),
            limit=1000,
            on_long=lambda: self.long.append(self.clock.seconds()),
            reactor=self.clock,
        )
        self.live.start()

    def submit(self, lines: Lines) -> None:
        self.submitted.append(lines)

    def long_runs(self, seconds: float) -> list[Any]:
        self.asked.append(seconds)
        return self.runs

    def look(self) -> list[Lines]:
        """What is to be written after the next look."""
        self.clock.advance(INTERVAL)
        taken, self.submitted = self.submitted, []
        return taken


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_is_new_is_written_and_only_that(desk: Desk) -> None:
    one, other = desk.runs
    assert desk.look() == []
    one.transcript.add("a")
    (lines,) = desk.look()
    assert (lines.uuid, lines.token, lines.text()) == (one.uuid, 1, "a")
    lines.done(True)
    assert desk.look() == []
    one.transcript.add("b")
    other.transcript.add("c")
    assert [lines.text() for lines in desk.look()] == ["a\nb", "c"]
    assert set(desk.asked) == {LONG}


def test_what_the_writer_has_not_written_yet_is_not_given_to_it_again(desk: Desk) -> None:
    one, _ = desk.runs
    one.transcript.add("a")
    (lines,) = desk.look()
    one.transcript.add("b")
    assert desk.look() == []
    assert lines.text() == "a\nb", "as it is when it is written"
    lines.done(True)
    assert [lines.text() for lines in desk.look()] == ["a\nb"]


def test_what_was_not_written_is_tried_again(desk: Desk) -> None:
    desk.runs[0].transcript.add("a")
    (lines,) = desk.look()
    lines.done(False)
    assert len(desk.look()) == 1


def test_progress_is_written_where_it_is_new(desk: Desk) -> None:
    one, _ = desk.runs
    one.progress = Progress(1, 3)
    (lines,) = desk.look()
    assert json.loads(lines.progress or "") == {"done": 1, "total": 3, "text": ""}
    one.progress = Progress(2, 3)
    assert desk.look() == [], "not twice at once"
    lines.done(True)
    (lines,) = desk.look()
    assert json.loads(lines.progress or "")["done"] == 2
    lines.done(True)
    assert desk.look() == []
    one.transcript.add("a")
    (lines,) = desk.look()
    assert json.loads(lines.progress or "")["done"] == 2, "it goes with what is written"


def test_somebody_is_told_of_long_tasks_and_of_no_others(desk: Desk) -> None:
    desk.look()
    desk.runs.clear()
    desk.look()
    assert desk.long == [1.0]


def test_a_run_that_has_not_begun_to_log_is_passed_over(desk: Desk) -> None:
    """Its thread is about to make its transcript."""
    desk.runs[0].transcript = None
    assert desk.look() == []


def test_a_database_that_is_away_is_left_alone(desk: Desk) -> None:
    desk.away = True
    desk.runs[0].transcript.add("a")
    assert desk.look() == []
    desk.away = False
    assert len(desk.look()) == 1


def test_after_the_end_nobody_looks(desk: Desk) -> None:
    desk.live.stop()
    desk.runs[0].transcript.add("a")
    assert desk.look() == []
