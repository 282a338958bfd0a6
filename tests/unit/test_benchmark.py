# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own logic: what it counts, compares and refuses. Nothing is measured here."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import bench, options, tally
from benchmarks.consumers import CONSUMERS, _toml, check
from benchmarks.failure import BenchmarkFailed
from benchmarks.measures import NO_DATABASE, Sample
from benchmarks.pages.report import verdict
from benchmarks.pages.timing import WARM_UP, Timing, timed
from benchmarks.report import Report, comparisons, text_of
from benchmarks.tally import Found, Tally

if TYPE_CHECKING:
    from pathlib import Path


class TestTally:
    """The consumers' count."""

    def test_it_writes_when_all_have_come(self, tmp_path: Path) -> None:
        file = tmp_path / "numbers"
        counting = Tally(file, 3)
        for number in (2, 0):
            counting.handled(number)
        assert not file.exists()
        counting.handled(1)
        found = tally.read(file, 3)
        assert 0 < found.begin <= found.end
        assert (found.missing, found.repeated, found.unknown) == (0, 0, 0)

    def test_what_comes_twice_is_told_and_what_is_left_out(self, tmp_path: Path) -> None:
        file = tmp_path / "numbers"
        counting = Tally(file, 3)
        for number in (0, 0, 2):
            counting.handled(number)
        found = tally.read(file, 3)
        assert (found.missing, found.repeated, found.unknown) == (1, 1, 0)

    def test_what_comes_after_the_end_counts_too(self, tmp_path: Path) -> None:
        file = tmp_path / "numbers"
        counting = Tally(file, 2)
        for number in (0, 1, 1, 7):
            counting.handled(number)
        found = tally.read(file, 2)
        assert (found.missing, found.repeated, found.unknown) == (0, 1, 1)


class TestOptions:
    """The command line."""

    def test_everything_by_default(self) -> None:
        given = options.parse([])
        assert given.measures == tuple(options.MEASURES)
        assert given.of_tasks
        assert given.systems_of("consume") == ("carrot", "fedora", "raw")

    def test_messages_need_no_database(self) -> None:
        given = options.parse(["--measure=handle", "--measure=consume"])
        assert given.measures == ("consume", "handle")
        assert not given.of_tasks

    def test_one_system_alone(self) -> None:
        given = options.parse(["--only=kombu"])
        assert given.systems_of("handle") == ("kombu",)
        assert given.systems_of("drain") == ()


class TestRun:
    """What is run, and what is said of it."""

    def test_systems_take_turns_in_going_first(self) -> None:
        given = options.parse(["--measure=consume", "--rounds=2"])
        plan = [(number, what.system) for number, what in bench._plan(given)]
        assert plan == [
            *((1, "carrot"), (1, "fedora"), (1, "raw")),
            *((2, "raw"), (2, "fedora"), (2, "carrot")),
        ]

    def test_tasks_are_measured_on_each_database_and_messages_once(self) -> None:
        given = options.parse(["--measure=drain", "--measure=handle", "--rounds=1"])
        assert [tuple(what) for _, what in bench._plan(given)] == [
            ("drain", "postgres", "carrot"),
            ("drain", "postgres", "celery"),
            ("drain", "sqlite", "carrot"),
            ("drain", "sqlite", "celery"),
            ("handle", "-", "carrot"),
            ("handle", "-", "kombu"),
        ]

    def test_the_slow_one_has_the_smaller_backlog(self) -> None:
        given = options.parse(["--messages=70", "--slow-messages=7", "--tasks=5"])
        sizes = {what: bench._tasks(given, what) for _, what in bench._plan(given)}
        consumed = {what.system: n for what, n in sizes.items() if what.measure == "consume"}
        assert consumed == {"carrot": 70, "fedora": 7, "raw": 70}
        assert sizes[bench.What("drain", "sqlite", "carrot")] == 5

    def test_every_consumer_that_can_be_asked_for_is_there(self) -> None:
        wanted = {(m, system) for m in options.OF_MESSAGES for system in options.MEASURES[m]}
        assert set(CONSUMERS) == wanted

    @pytest.mark.parametrize("wrong", ["missing", "repeated", "unknown"])
    def test_a_number_with_a_loss_is_none(self, wrong: str) -> None:
        good = Found(begin=1.0, end=2.0, missing=0, repeated=0, unknown=0)
        check(good, 10)
        with pytest.raises(BenchmarkFailed, match="of 10 messages"):
            check(replace(good, **{wrong: 1}), 10)

    def test_ratios_are_of_the_same_round_and_have_their_targets(self) -> None:
        def sample(measure: str, system: str, number: int, rate: float) -> Sample:
            return Sample(
                system=system,
                database=NO_DATABASE,
                measure=measure,
                round_number=number,
                tasks=1000,
                seconds=1000 / rate,
                cpu=0.5,
            )

        report = Report(options=options.parse([]), facts={})
        report.samples = [
            *(sample("consume", "carrot", 1, 900), sample("consume", "fedora", 1, 100)),
            *(sample("consume", "carrot", 2, 2400), sample("consume", "fedora", 2, 200)),
            # It failed in the second round.
            *(sample("consume", "raw", 1, 1800), sample("consume", "carrot", 3, 9_000_000)),
            *(sample("handle", "carrot", 1, 200), sample("handle", "kombu", 1, 100)),
        ]
        told = {target.label: target for target in comparisons(report)}
        of_fedora = told["consume: per second, carrot-twisted / fedora-messaging"]
        assert of_fedora.values == pytest.approx([9.0, 12.0])
        assert of_fedora.verdict == "target: at least 10: met"
        of_raw = told["consume: per second, carrot-twisted / pika, ack only"]
        assert of_raw.values == pytest.approx([0.5])
        assert of_raw.verdict == ""
        of_kombu = told["handle: per second, carrot-twisted / step of Celery's worker"]
        assert of_kombu.verdict == "target: at least 3: NOT MET"
        assert "5.00" in text_of(report)

    def test_the_configuration_of_fedora_messaging_is_toml(self) -> None:
        given = {"q.1": {"durable": True, "arguments": {}}, "keys": ['a"b', 1], "none": []}
        assert tomllib.loads(f"it = {_toml(given)}") == {"it": given}


class TestPages:
    """What is said of a page's time."""

    @pytest.mark.parametrize(
        ("wall", "cpu", "server_cpu", "told"),
        [
            (90.0, 95.0, None, "100: met"),
            (150.0, 60.0, 30.0, "100: met by CPU"),
            (150.0, 60.0, 50.0, "100: NOT MET"),
            (150.0, 101.0, None, "100: NOT MET"),
        ],
    )
    def test_a_target_is_met_by_the_clock_or_by_the_processor(
        self, wall: float, cpu: float, server_cpu: float | None, told: str
    ) -> None:
        one = Timing(
            system="carrot-twisted",
            page="all",
            wall=wall,
            slowest=200.0,
            cpu=cpu,
            server_cpu=server_cpu,
            queries=7,
            target=100.0,
        )
        assert verdict(one) == told
        assert verdict(replace(one, target=None)) == ""

    def test_a_time_is_the_median_without_the_first_requests(self) -> None:
        asked: list[int] = []
        cpu = iter((1.0, 1.5))
        wall, slowest, _cpu, server = timed(lambda: asked.append(1), 5, lambda: next(cpu))
        assert len(asked) == 5 + WARM_UP
        assert 0 <= wall <= slowest
        assert server == 100.0
