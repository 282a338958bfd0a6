# SPDX-License-Identifier: Apache-2.0
"""The chaos run in its short form. ``run.py chaos --long`` is the real thing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.schedule import KINDS
from tests.processes import run_to_end

if TYPE_CHECKING:
    from pathlib import Path

#: Patience for a busy machine; an idle one needs a third of it.
SECONDS = 240


def chaos(*arguments: str) -> tuple[int, str]:
    """A chaos run in a process of its own: exit status, and what it says."""
    done = run_to_end([sys.executable, "-m", "tests.chaos", *arguments], {}, seconds=SECONDS)
    return done.returncode, done.stdout


@pytest.mark.only("postgres")
def test_nothing_is_lost_and_nothing_done_twice_without_reason_under_faults_of_every_kind(
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.json"
    status, said = chaos("--short", "--seed=1", f"--json={report}")
    assert status == 0, said
    told = json.loads(report.read_text())
    assert told["passed"] is True
    assert told["violations"] == []
    numbers = told["numbers"]
    assert numbers["publishes committed"] >= 2000
    assert numbers["COMPLETED"] + numbers["FAILED on purpose"] == numbers["rows"]
    assert numbers["effects"] == numbers["rows"] + numbers["repeated effects"]
    assert numbers["tasks under limits"] > 50
    assert numbers["most at once of one shop, of 2 allowed"] > 0
    assert {one["fault"]["kind"] for one in told["faults"]} == set(KINDS)
