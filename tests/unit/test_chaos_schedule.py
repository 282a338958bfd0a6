# SPDX-License-Identifier: Apache-2.0
"""The chaos run's schedule: made of its seed alone, and of nothing that a run could not do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.chaos.options import LONG, SHORT, parse
from tests.chaos.schedule import INTERRUPTING, KINDS, MEANING, PATHS, Plan, schedule

PLAN = Plan(
    tasks=1000,
    seed=1,
    services=3,
    publishers=2,
    seconds=60.0,
    lease=3.0,
    counts=dict.fromkeys(KINDS, 4),
)


def test_the_same_seed_makes_the_same_schedule_and_another_seed_another() -> None:
    assert schedule(PLAN) == schedule(PLAN)
    assert schedule(PLAN) != schedule(replace(PLAN, seed=2))


def test_one_kind_more_changes_no_other_lane() -> None:
    more = schedule(replace(PLAN, counts={**PLAN.counts, "kill-broker": 5}))
    others = [fault for fault in more if fault.lane != "broker"]
    assert others == [fault for fault in schedule(PLAN) if fault.lane != "broker"]


@pytest.mark.parametrize("seed", range(20))
def test_each_kind_comes_as_often_as_planned_in_time_and_order(seed: int) -> None:
    faults = schedule(replace(PLAN, seed=seed))
    assert Counter(fault.kind for fault in faults) == PLAN.counts
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    for fault in faults:
        assert 0 <= fault.at <= PLAN.seconds
        assert str(fault).strip().startswith(f"{fault.at:.1f} s  {fault.kind}")


@pytest.mark.parametrize("seed", range(20))
def test_faults_name_a_place_or_a_path_that_is_there(seed: int) -> None:
    for fault in schedule(replace(PLAN, seed=seed)):
        match fault.lane:
            case "services":
                assert int(fault.target) in range(3)
            case "publishers":
                assert int(fault.target) in range(2)
            case "network":
                path, _, place = fault.target.partition(":")
                assert path in PATHS
                assert place in (["0", "1", "2", "*"] if path.startswith("service") else [""])
            case _:
                assert not fault.target or fault.kind == "delete-queue"
        assert (fault.way in ("up", "down")) == (fault.kind in ("one-way", "torn-frame"))


def test_four_faults_of_a_kind_meet_all_four_paths() -> None:
    faults = schedule(PLAN)
    for kind in (kind for kind, lane in KINDS.items() if lane == "network"):
        paths = {fault.target.partition(":")[0] for fault in faults if fault.kind == kind}
        assert paths == set(PATHS), kind


def test_a_frozen_service_sleeps_longer_than_its_lease() -> None:
    frozen = [fault for fault in schedule(PLAN) if fault.kind == "freeze-service"]
    assert all(fault.seconds > PLAN.lease + 4 for fault in frozen)


def test_without_counts_nothing_happens() -> None:
    assert schedule(replace(PLAN, counts={})) == []


def test_every_kind_has_a_meaning_and_both_forms_use_each() -> None:
    assert set(MEANING) == set(KINDS)
    assert set(KINDS) >= INTERRUPTING
    for preset in (SHORT, LONG):
        assert set(preset["counts"]) == set(KINDS)
        assert min(preset["counts"].values()) > 0


class TestOptions:
    def test_the_short_form_is_the_default(self) -> None:
        assert parse([]).plan.tasks == parse(["--short"]).plan.tasks == 2000

    def test_the_long_form_kills_as_often_as_it_says(self) -> None:
        plan = parse(["--long", "--seed", "5"]).plan
        assert (plan.tasks, plan.seed, plan.lease) == (100_000, 5, 10.0)
        assert plan.counts["kill-service"] == 20
        assert plan.counts["kill-broker"] + plan.counts["restart-broker"] == 5
        assert plan.counts["crash-database"] + plan.counts["restart-database"] == 5

    def test_calm_leaves_only_what_is_named(self) -> None:
        counts = parse(["--calm", "--kill-service", "7"]).plan.counts
        assert {kind: n for kind, n in counts.items() if n} == {"kill-service": 7}

    def test_seed_zero_is_a_seed(self) -> None:
        assert parse(["--seed", "0"]).plan.seed == 0
