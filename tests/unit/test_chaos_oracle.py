# SPDX-License-Identifier: Apache-2.0
"""The chaos run's oracle finds each broken promise. A check that cannot fail proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos import ledger, oracle
from tests.chaos.collecting import tracebacks
from tests.chaos.evidence import Evidence, Rate, Row, ServiceFacts
from tests.chaos.oracle import judge
from tests.chaos.sabotage import KINDS as SABOTAGES

if TYPE_CHECKING:
    from pathlib import Path


def published(key: str, kind: str = "plain", outcome: str = "committed") -> dict[str, Any]:
    return {"key": key, "kind": kind, "outcome": outcome}


def effect(key: str, attempt: int = 1, time: float = 1.0) -> dict[str, Any]:
    return {"uuid": f"id of {key}", "key": key, "attempt": attempt, "pid": 1, "time": time}


def row(key: str, status: str = "COMPLETED", task: str = "work", **more: Any) -> Row:
    given = {"attempts": 1, "crashes": 0, **more}
    return Row(
        uuid=f"id of {key}", key=key, task=f"tests.chaos.tasks.{task}", status=status, **given
    )


SLOT, RATE = "slot shop north", "rate api"
SERVICE = ServiceFacts(
    name="0-1",
    threads=10,
    threads_at_start=10,
    files=20,
    files_at_start=20,
    memory=10**8,
    memory_at_start=10**8,
    exit_status=0,
    connections=2,
)
#: A run in which everything is as it should be, with one of each case.
GOOD = Evidence(
    publishes=[
        published("plain", outcome="attempted"),
        published("plain"),
        published("atomic", "atomic"),
        published("rolled back", "rolled_back", "rolled back"),
        published("savepoint", "savepoint", "rolled back"),
        published("unknown, there", "late", "unknown"),
        published("unknown, not there", "late", "unknown"),
        published("killed, there", outcome="attempted"),
        published("killed, not there", outcome="attempted"),
        published("fails"),
        published("repeated"),
        *map(published, ["first", "second", "third", "frozen"]),
    ],
    effects=[
        *map(effect, ["plain", "atomic", "unknown, there", "killed, there", "fails", "repeated"]),
        effect("repeated", 2),
        *(effect(key, time=2.2) for key in ("first", "second")),
        effect("third", time=3.0),
        effect("frozen", time=9.0),
        effect("frozen", 2, time=4.0),
    ],
    begins=[
        *(effect(key, time=1.0) for key in ("first", "second", "frozen")),
        effect("third", time=2.0),
        effect("frozen", 2, time=3.0),
    ],
    lost={("id of frozen", 1): 2.0},
    starts=[("id of first", RATE, 1.0), ("id of third", RATE, 2.0), ("id of second", RATE, 2.96)],
    at_once={"shop": 3},
    rates={"api": Rate(limit=2, per=2.0)},
    rows=[
        row("plain"),
        row("atomic"),
        row("unknown, there"),
        row("killed, there"),
        row("fails", "FAILED", "fail", exception="on purpose: fails"),
        row("repeated", attempts=2, crashes=1),
        *(row(key, slot=SLOT, rate=RATE) for key in ("first", "second", "third")),
        row("frozen", attempts=2, crashes=1, slot=SLOT),
    ],
    notes=frozenset({"atomic", "unknown, there"}),
    queues={"default": (0, 0), "other": (0, 0), "other.dead": (1, 0)},
    dead=["poison-1", "poison-1"],
    poison=["poison-1"],
    services=[SERVICE],
    seconds_to_final=1.5,
    interrupting=1,
)


def broken(evidence: Evidence) -> set[str]:
    """Invariants that the evidence shows to be broken."""
    return {violation.invariant for violation in judge(evidence)}


def changed(key: str, **fields: Any) -> list[Row]:
    """The good rows, one of them changed."""
    return [replace(one, **fields) if one.key == key else one for one in GOOD.rows]


def without(records: Any, key: str) -> list[Any]:
    """Records of the good run, but for one key."""
    return [one for one in records if (one["key"] if isinstance(one, dict) else one.key) != key]


def test_a_good_run_breaks_nothing() -> None:
    assert judge(GOOD) == []


BROKEN: dict[str, tuple[str, Evidence]] = {
    "a committed row is lost": (
        "INV1",
        replace(GOOD, rows=without(GOOD.rows, "plain"), effects=without(GOOD.effects, "plain")),
    ),
    "a rolled-back publish has a row": (
        "INV1",
        replace(
            GOOD,
            rows=[*GOOD.rows, row("rolled back")],
            effects=[*GOOD.effects, effect("rolled back")],
            notes=GOOD.notes,
        ),
    ),
    "a savepoint's publish has a row": (
        "INV1",
        replace(
            GOOD,
            rows=[*GOOD.rows, row("savepoint")],
            effects=[*GOOD.effects, effect("savepoint")],
        ),
    ),
    "a rolled-back publish had an effect": (
        "INV1",
        replace(GOOD, effects=[*GOOD.effects, effect("rolled back")]),
    ),
    "a publish of unknown outcome had an effect without a row": (
        "INV1",
        replace(GOOD, effects=[*GOOD.effects, effect("killed, not there")]),
    ),
    "a rolling-back publisher was killed and its row is there": (
        "INV1",
        replace(
            GOOD,
            publishes=[*GOOD.publishes, published("late", "rolled_back", "attempted")],
            rows=[*GOOD.rows, row("late")],
            effects=[*GOOD.effects, effect("late")],
        ),
    ),
    "a row comes from nowhere": (
        "INV1",
        replace(GOOD, rows=[*GOOD.rows, row("?")], effects=[*GOOD.effects, effect("?")]),
    ),
    "a key has two rows": (
        "INV1",
        replace(
            GOOD,
            rows=[*GOOD.rows, replace(GOOD.rows[0], uuid="another")],
            effects=[*GOOD.effects, {**effect("plain"), "uuid": "another"}],
        ),
    ),
    "a row is there without its transaction's note": (
        "INV1",
        replace(GOOD, notes=frozenset({"atomic"})),
    ),
    "a note is there without its transaction's row": (
        "INV1",
        replace(GOOD, notes=GOOD.notes | {"unknown, not there"}),
    ),
    "a row waits for ever": ("INV2", replace(GOOD, rows=changed("plain", status="PUBLISHED"))),
    "a row is in progress for ever": (
        "INV2",
        replace(GOOD, rows=changed("plain", status="IN_PROGRESS")),
    ),
    "the last row was late": ("INV2", replace(GOOD, seconds_to_final=None)),
    "an outage failed a task": (
        "INV3",
        replace(GOOD, rows=changed("plain", status="FAILED", exception="server closed")),
    ),
    "lost workers failed a task": (
        "INV3",
        replace(GOOD, rows=changed("plain", status="FAILED", exception="worker lost 5 times")),
    ),
    "a task that had to fail failed by an outage": (
        "INV3",
        replace(GOOD, rows=changed("fails", exception="server closed the connection")),
    ),
    "a task that had to fail did not": (
        "INV3",
        replace(GOOD, rows=changed("fails", status="COMPLETED")),
    ),
    "a row is cancelled": ("INV3", replace(GOOD, rows=changed("plain", status="CANCELLED"))),
    "a completed task had no effect": (
        "INV4",
        replace(GOOD, effects=without(GOOD.effects, "plain")),
    ),
    "a failed task never ran": ("INV4", replace(GOOD, effects=without(GOOD.effects, "fails"))),
    "an effect was repeated without a lost attempt": (
        "INV5",
        replace(
            GOOD,
            effects=[*GOOD.effects, effect("plain", 2)],
            rows=changed("plain", attempts=2),
        ),
    ),
    "a message that came twice ran twice": (
        "INV5",
        replace(GOOD, effects=[*GOOD.effects, effect("plain")]),
    ),
    "there were more effects than attempts": (
        "INV5",
        replace(GOOD, rows=changed("repeated", attempts=1)),
    ),
    "one attempt ran twice": (
        "INV5",
        replace(
            GOOD,
            effects=[*without(GOOD.effects, "repeated"), effect("repeated"), effect("repeated")],
        ),
    ),
    "workers were lost in a run in which none was": ("INV5", replace(GOOD, interrupting=0)),
    "a final row was changed": ("INV6", replace(GOOD, illegal=["id COMPLETED PUBLISHED"])),
    "a message is left": ("INV7", replace(GOOD, queues={"default": (1, 0)})),
    "a message is not acknowledged": ("INV7", replace(GOOD, queues={"other": (0, 1)})),
    "a good message was put aside": ("INV7", replace(GOOD, dead=["poison-1", "{}"])),
    "poison was dropped": ("INV7", replace(GOOD, dead=[])),
    "a service ended by itself": ("INV8", replace(GOOD, unexpected_ends=["service 0-1"])),
    "a log has a traceback": ("INV8", replace(GOOD, tracebacks=["log: KeyError"])),
    "threads leak": ("INV8", replace(GOOD, services=[replace(SERVICE, threads=50)])),
    "files leak": ("INV8", replace(GOOD, services=[replace(SERVICE, files=90)])),
    "memory leaks": ("INV8", replace(GOOD, services=[replace(SERVICE, memory=10**9)])),
    "connections leak": ("INV8", replace(GOOD, services=[replace(SERVICE, connections=3)])),
    "a stop was not clean": ("INV8", replace(GOOD, services=[replace(SERVICE, exit_status=1)])),
    "more run at once than may": ("INV9", replace(GOOD, at_once={"shop": 2})),
    "one that begins as another ends makes no more, one a moment before does": (
        "INV9",
        replace(
            GOOD,
            begins=[one if one["key"] != "third" else {**one, "time": 1.99} for one in GOOD.begins],
        ),
    ),
    "who stood still holds its slot until it is taken for dead": (
        "INV9",
        replace(GOOD, lost={("id of frozen", 1): 2.5}),
    ),
    "more start in a period than may": ("INV9", replace(GOOD, rates={"api": Rate(limit=1, per=2)})),
    "a start comes before its time": (
        "INV9",
        replace(GOOD, starts=[*GOOD.starts[:2], ("id of second", RATE, 2.94)]),
    ),
    "a start is not counted": ("INV9", replace(GOOD, starts=[("id of first", RATE, None)])),
    "a limit is not in the row": (
        "INV9",
        replace(GOOD, rows=changed("third", slot=None, rate=None)),
    ),
    "a log has a password": ("INV10", replace(GOOD, secrets=["service-0-1/log"])),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_finds(what: str) -> None:
    invariant, evidence = BROKEN[what]
    assert broken(evidence) == {invariant}
    ids = [str(violation) for violation in judge(evidence)]
    assert ids
    assert all(text.startswith(f"{invariant}: ") for text in ids)


def test_every_invariant_is_shown_to_fail() -> None:
    assert {invariant for invariant, _ in BROKEN.values()} == {
        (function.__doc__ or "").partition(":")[0] for function in oracle.INVARIANTS
    }


def test_a_violation_names_the_ids_and_says_how_many_more() -> None:
    effects = [effect(f"key {number:02}") for number in range(30)]
    (violation,) = judge(Evidence(effects=effects))
    assert "30 effects belong to no row" in str(violation)
    assert str(violation).endswith("and 10 more")
    assert len(violation.ids) == 30


def test_repeats_are_counted_beyond_the_first_effect() -> None:
    assert oracle.repeats(GOOD) == {"id of repeated": 1, "id of frozen": 1}
    assert oracle.unexplained(GOOD) == []


class TestTracebacks:
    def test_each_is_told_by_its_last_line(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(
            "2026-01-01T00:00:00 fine\n"
            "2026-01-01T00:00:01 bad\n\tTraceback (most recent call last):\n"
            "\t  File ...\n\tKeyError: 'x'\n\t\n"
            "2026-01-01T00:00:02 fine again\n"
        )
        assert [text.partition(": ")[2].strip() for text in tracebacks([log])] == ["KeyError: 'x'"]

    def test_a_quiet_log_has_none(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("2026-01-01T00:00:00 fine\n")
        assert list(tracebacks([log])) == []


def test_a_ledger_keeps_whole_records_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert ledger.read(path) == []
    ledger.record(path, {"key": "one\ntwo"}, {"key": "three"})
    ledger.record(path, {"key": "four"})
    assert [one["key"] for one in ledger.read(path)] == ["one\ntwo", "three", "four"]


def test_every_defect_to_be_found_says_what_it_breaks() -> None:
    assert len(SABOTAGES) >= 6
    assert all(function.__doc__ for function in SABOTAGES.values())
