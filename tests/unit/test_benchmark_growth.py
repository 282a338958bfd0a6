# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of the benchmark: what they count, compare and refuse. Nothing is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.contestants import LACKS, SYSTEMS
from benchmarks.failure import BenchmarkFailed
from benchmarks.growth.__main__ import _drains, compared, system
from benchmarks.growth.__main__ import _parse as parse_growth
from benchmarks.growth.drains import Drain
from benchmarks.idle.__main__ import Footprint
from benchmarks.idle.__main__ import _parse as parse_idle
from benchmarks.idle.__main__ import text_of as text_of_idle
from benchmarks.idle.footprint import Memory, precise_cpu_seconds
from benchmarks.latency.__main__ import Latencies, quantiles, starts, targets
from benchmarks.latency.__main__ import _parse as parse_latency
from benchmarks.latency.__main__ import text_of as text_of_latency
from benchmarks.processes import family

if TYPE_CHECKING:
    from collections.abc import Callable


class TestLatency:
    def test_it_is_the_time_from_publishing_to_the_start_in_order(self) -> None:
        assert starts("1 0 5000000\n-1 0 9\n0 1000000 2000000\n", 2) == [1.0, 5.0]

    @pytest.mark.parametrize("text", ["0 1 2\n", "0 1 2\n1 1 2\n1 1 2\n", "0 1 2\n7 1 2\n"])
    def test_a_task_that_is_missing_or_came_twice_is_a_failure(self, text: str) -> None:
        with pytest.raises(BenchmarkFailed):
            starts(text, 2)

    def test_quantiles(self) -> None:
        found = quantiles([float(n) for n in range(1000)])
        assert found == {"p50": 500.0, "p99": 990.0, "p99.9": 999.0}
        assert set(quantiles([3.0]).values()) == {3.0}

    def test_celery_is_the_target_and_huey_the_aim_rate_by_rate_and_round_by_round(self) -> None:
        def run(key: str, number: int, rate: float, milliseconds: float) -> Latencies:
            start = dict.fromkeys(("p50", "p99", "p99.9"), milliseconds)
            return Latencies(
                system=key,
                round_number=number,
                rate=rate,
                tasks=9,
                reached=rate,
                start=start,
                caller=start,
            )

        found = [
            *(run("carrot", 1, 50, 2.0), run("celery", 1, 50, 4.0), run("huey", 1, 50, 1.0)),
            *(run("carrot", 2, 50, 3.0), run("celery", 2, 50, 4.0)),
            *(run("carrot", 1, 500, 2.0), run("celery", 1, 500, 1.0)),
        ]
        told = {target.label: (target.values, target.verdict) for target in targets(found)}
        celery, kept = SYSTEMS["celery"].label, "target: at most 1: met"
        assert told == {
            f"50 a second, start p50: carrot-twisted / {celery}": ([0.5, 0.75], kept),
            f"50 a second, start p99: carrot-twisted / {celery}": ([0.5, 0.75], kept),
            "50 a second, start p50: carrot-twisted / huey (Redis)": (
                [2.0],
                "aim: at most 1: NOT MET",
            ),
            "50 a second, start p99: carrot-twisted / huey (Redis)": (
                [2.0],
                "aim: at most 1: NOT MET",
            ),
            **{
                f"500 a second, start {name}: carrot-twisted / {celery}": (
                    [2.0],
                    "target: at most 1: NOT MET",
                )
                for name in ("p50", "p99")
            },
        }
        text = text_of_latency(found)
        assert "| huey " in text
        assert f"  h  {LACKS['h']}" in text
        assert kept in text

    @pytest.mark.parametrize("parse", [parse_latency, parse_growth, parse_idle])
    def test_each_option_is_explained(
        self, parse: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            parse(["--help"])
        lines = capsys.readouterr().out.partition("options:\n")[2].splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("  -"):
                # Behind the option, or where there is no room for it below.
                assert "  " in line.strip() or following.startswith("      "), line


class TestIdle:
    def footprint(self, name: str, cpu: float, megabytes: float) -> Footprint:
        memory = Memory(rss=megabytes, pss=megabytes, threads=5)
        return Footprint(
            system=name,
            start=1.0,
            start_cpu=0.5,
            idle_cpu=cpu,
            database_cpu=0.0,
            transactions=100.0,
            idle=memory,
            loaded=memory,
        )

    @pytest.mark.parametrize(
        ("cpu", "megabytes", "kept"), [(0.1, 100.0, "met"), (0.3, 130.0, "NOT MET")]
    )
    def test_targets(self, cpu: float, megabytes: float, kept: str) -> None:
        text = text_of_idle(
            [
                self.footprint("carrot-twisted", cpu, megabytes),
                self.footprint(SYSTEMS["celery"].label, 0.0, 100.0),
            ]
        )
        assert f"target: at most 0.2 %: {kept}" in text
        assert text.count(f"target: at most 1.2: {kept}") == 2

    def test_a_process_is_seen_with_its_children(self) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            assert child.pid in family(os.getpid())
            child.communicate(b"\n")
        assert precise_cpu_seconds(os.getpid()) > 0
        memory = Memory.of(os.getpid())
        assert memory.rss >= memory.pss > 1
        assert memory.threads >= 1
        assert list(family(2**22 + 1)) == [2**22 + 1]


class TestGrowth:
    def test_the_service_is_that_of_the_other_measures(self) -> None:
        plain = system("--workers=2").service
        assert "--settings=benchmarks.site_growth.settings" in plain
        assert plain[-2:] == ("--no-scheduler", "--workers=2")
        assert "--no-scheduler" not in system(scheduler=True).service

    @pytest.mark.parametrize(
        ("ratio", "at_least", "kept"),
        [(0.91, True, "met"), (0.89, True, "NOT MET"), (1.09, False, "met"), (1.2, False, "NOT")],
    )
    def test_ten_percent(self, ratio: float, at_least: bool, kept: str) -> None:
        assert f": {kept}" in compared(ratio, at_least=at_least)

    def test_what_is_compared_is_measured_in_turns(self) -> None:
        given = parse_growth(["--rounds=2"])
        order = []

        def measure(count: int) -> Drain:
            order.append(count)
            slow = 2.0 if count else 1.0
            return Drain(
                tasks=100, seconds=slow, cpu=slow, database_cpu=slow, broker_cpu=0.1, memory=80.0
            )

        text = _drains("Rows", given, [0, 7], measure)
        assert order == [0, 7, 7, 0]
        row = " ".join(text.splitlines()[-1].split())
        assert row == (
            "| 7 | 50 (50-50) | 200.00 | 200.00 | 10.00 | 80 | 0.50: NOT MET | 2.00: NOT MET |"
        )
