# SPDX-License-Identifier: Apache-2.0
"""The chaos run's report: what it counts, and that it does not hide a broken promise."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.chaos.evidence import Evidence, Rate, Row
from tests.chaos.injector import Done
from tests.chaos.oracle import Violation
from tests.chaos.report import Report
from tests.chaos.schedule import Fault, Plan

if TYPE_CHECKING:
    from pathlib import Path


def row(number: int, *, published: float, seconds: float | None) -> Row:
    return Row(
        uuid=str(number),
        key=f"key {number}",
        task="tests.chaos.tasks.work",
        status="PUBLISHED" if seconds is None else "COMPLETED",
        attempts=2,
        crashes=1,
        published=published,
        ended=None if seconds is None else published + seconds,
    )


def fault(kind: str, begin: float, end: float) -> Done:
    return Done(fault=Fault(at=begin, kind=kind), begin=begin, end=end)


REPORT = Report(
    plan=Plan(tasks=3, seed=7, services=2, publishers=1, seconds=60, lease=3),
    faults=[
        fault("cut", 10.0, 10.0),
        fault("cut", 30.0, 30.0),
        fault("kill-broker", 28.0, 34.0),
    ],
    evidence=Evidence(
        publishes=[
            {"key": "key 1", "kind": "plain", "outcome": "attempted"},
            {"key": "key 1", "kind": "plain", "outcome": "committed"},
            {"key": "key 2", "kind": "plain", "outcome": "attempted"},
        ],
        effects=[
            {"uuid": "1", "attempt": 1, "time": 12.0},
            {"uuid": "1", "attempt": 2, "time": 12.5},
        ],
        begins=[
            {"uuid": "1", "attempt": 1, "time": 11.0},
            {"uuid": "1", "attempt": 2, "time": 11.5},
        ],
        starts=[("1", "rate api", 11.0), ("1", "rate api", 11.5)],
        at_once={"shop": 2, "lonely": 1},
        rates={"api": Rate(limit=9, per=2.0)},
        rows=[
            replace(row(1, published=10.5, seconds=2.0), slot="slot shop a", rate="rate api"),
            row(2, published=33.0, seconds=9.0),
            row(3, published=50.0, seconds=None),
        ],
        queues={"default": (1, 2), "default.dead": (5, 0)},
        seconds_to_final=4.04,
    ),
    violations=[],
    seconds=61.0,
    sabotage="",
)


def test_it_counts_what_happened() -> None:
    numbers = REPORT.numbers()
    assert numbers["publishes committed"] == 1
    assert numbers["publishes with unknown outcome"] == 1
    assert numbers["rows"] == 3
    assert numbers["not final"] == 1
    assert numbers["repeated effects"] == 1
    assert numbers["attempts beyond the first"] == 3
    assert numbers["messages left"] == 3
    assert numbers["tasks under limits"] == 1
    assert numbers["tasks under limits that are not final"] == 0
    assert numbers["most at once of one shop, of 2 allowed"] == 2
    assert numbers["most at once of one lonely, of 1 allowed"] == 0
    assert numbers["most starts in 2 s of api, of 9 allowed"] == 2
    assert numbers["seconds from the last fault until all was final"] == 4.0
    assert numbers["seconds from publishing to the end, the slowest"] == 9.0


def test_each_fault_has_the_slowest_task_that_was_published_meanwhile() -> None:
    assert REPORT.slowest() == {"cut": [2.0, 0.0], "kill-broker": [9.0]}


def test_a_run_that_kept_all_promises_says_so() -> None:
    text = REPORT.text()
    assert "seed 7" in text
    assert "| all connections of a path are reset | 2 | 1.0 s, 2.0 s |" in text
    assert text.endswith("PASSED: every promise was kept")


def test_a_broken_promise_is_the_last_word() -> None:
    violation = Violation(invariant="INV4", text="1 rows are final and had no effect", ids=("1",))
    text = replace(REPORT, violations=[violation], sabotage="skip-some").text()
    assert "SABOTAGED: skip-some" in text
    assert "PASSED" not in text
    assert text.endswith("INV4: 1 rows are final and had no effect: 1")


def test_the_file_for_programs_has_the_same(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    REPORT.write_json(path)
    told = json.loads(path.read_text())
    assert told["passed"] is True
    assert told["numbers"] == REPORT.numbers()
    assert told["plan"]["seed"] == 7
    assert told["faults"][2]["fault"]["kind"] == "kill-broker"
