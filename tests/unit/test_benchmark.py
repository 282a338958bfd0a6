# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own logic: what it counts, compares and refuses. Nothing is measured here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from benchmarks import bench, charts, options, peers, tally
from benchmarks.catalogue import MEASURES
from benchmarks.consumers import CONSUMERS, RAW, _toml, check
from benchmarks.contestants import LACKS, SYSTEMS
from benchmarks.failure import BenchmarkFailed, attempted
from benchmarks.markdown import table
from benchmarks.measures import NO_DATABASE, Sample
from benchmarks.pages.report import verdict
from benchmarks.pages.timing import WARM_UP, Timing, timed
from benchmarks.peers import HUEY, NotHere, Peer
from benchmarks.preparation import left_out
from benchmarks.probe import pause
from benchmarks.processes import CpuTimes, Family
from benchmarks.redis import read
from benchmarks.report import Report, label_of, lacks_of
from benchmarks.systems import Deployment
from benchmarks.tables import text_of
from benchmarks.tally import Found, Tally
from benchmarks.targets import targets
from devtools.environment import TOP
from devtools.interpreters import find_python
from devtools.steps import StepFailed

if TYPE_CHECKING:
    from pathlib import Path


def sample(
    measure: str,
    system: str,
    number: int,
    rate: float,
    database: str = NO_DATABASE,
    *,
    cpu: float = 0.5,
) -> Sample:
    """One of 1,000 tasks or messages."""
    return Sample(
        system=system,
        database=database,
        measure=measure,
        round_number=number,
        tasks=1000,
        seconds=1000 / rate,
        cpu=cpu,
    )


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
        assert given.measures == tuple(MEASURES)
        assert given.of_tasks
        assert given.systems_of("consume") == ("carrot", "fedora", "raw")
        assert given.databases == ("postgres", "sqlite")

    def test_messages_need_no_database(self) -> None:
        given = options.parse(["--measure=handle", "--measure=consume"])
        assert given.measures == ("consume", "handle")
        assert not given.of_tasks
        assert given.taking_part == {"carrot", "fedora", "raw", "kombu", "kombu-tuned"}

    def test_some_systems_alone(self) -> None:
        given = options.parse(["--only=kombu", "--only=dramatiq"])
        assert given.systems_of("handle") == ("kombu",)
        assert given.systems_of("drain", "postgres") == ("dramatiq",)
        assert given.systems_of("drain", "sqlite") == ()

    def test_a_quick_run_is_smaller_and_can_be_told_otherwise(self) -> None:
        whole, quick = options.parse([]), options.parse(["--quick", "--peer-tasks=77"])
        assert (quick.rounds, quick.databases, quick.peer_tasks) == (1, ("postgres",), 77)
        assert quick.tasks < whole.tasks
        assert quick.measures == whole.measures

    def test_a_measure_may_have_its_own_number_of_threads(self) -> None:
        given = options.parse(["--concurrency=3"])
        assert [given.threads_of(m) for m in ("drain", "wait", "wait_128")] == [3, 16, 128]


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
        only = [f"--only={one}" for one in ("carrot", "celery", "procrastinate", "kombu")]
        given = options.parse(["--measure=drain", "--measure=handle", "--rounds=1", *only])
        assert [tuple(what) for _, what in bench._plan(given)] == [
            ("drain", "postgres", "carrot"),
            ("drain", "postgres", "celery"),
            ("drain", "postgres", "procrastinate"),
            ("drain", "sqlite", "carrot"),
            ("drain", "sqlite", "celery"),
            ("handle", "-", "carrot"),
            ("handle", "-", "kombu"),
        ]

    def test_slow_ones_have_smaller_backlogs(self) -> None:
        given = options.parse(["--messages=70", "--slow-messages=7", "--tasks=50"])
        assert [given.number_of("consume", s) for s in ("carrot", "fedora", "raw")] == [70, 7, 70]
        assert given.number_of("drain", "carrot") == given.number_of("drain", "raw") == 50
        assert given.number_of("drain", "carrot-workers") == 100
        assert given.number_of("calculate", "carrot") == 10
        assert given.number_of("drain", "celery") > given.number_of("drain", "celery-default")

    def test_everything_that_can_be_asked_for_is_there(self) -> None:
        for name, measure in MEASURES.items():
            for system in measure.systems:
                if measure.of_messages:
                    assert (name, system) in CONSUMERS
                else:
                    assert system in SYSTEMS or system == RAW.key
                assert label_of(system, options.parse([]), name)
                assert set(lacks_of(system, name)) <= set(LACKS)

    def test_who_fails_is_told_and_the_others_go_on(self) -> None:
        report = Report(options=options.parse([]), facts={})
        with attempted("one", report.failures):
            raise BenchmarkFailed("it is gone")
        with attempted("another", report.failures):
            raise ValueError("what?")
        assert report.failures == ["one: it is gone", "another: ValueError('what?')"]
        assert "FAILED:\none: it is gone" in text_of(report)

    def test_who_cannot_be_installed_is_left_out(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def prepare(peer: Peer, _log: Path) -> None:
            if peer.name == "dramatiq":
                raise StepFailed("no network")
            if peer.pythons:
                raise NotHere("it needs Python 3.8")

        monkeypatch.setattr(Peer, "prepare", prepare)
        facts: dict[str, str] = {}
        failures: list[str] = []
        missing = left_out(
            MEASURES["drain"].systems, log=tmp_path / "log", facts=facts, failures=failures
        )
        assert missing == {"dramatiq", "django-carrot"}
        # A Python that is not there is no failure.
        assert failures == ["dramatiq could not be installed: no network"]
        assert facts == {"without django-carrot": "it needs Python 3.8"}

    def test_huey_is_left_out_where_redis_cannot_be_had(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def prepare_machine(*, redis: bool, **_: object) -> None:
            assert redis
            raise StepFailed("no apt-get")

        monkeypatch.setattr(peers, "prepare_machine", prepare_machine)
        monkeypatch.setattr(peers, "prepare_peer", lambda *_, **__: pytest.fail("installed it"))
        facts: dict[str, str] = {}
        failures: list[str] = []
        missing = left_out(["carrot", "huey"], log=tmp_path / "l", facts=facts, failures=failures)
        assert (missing, failures) == ({"huey"}, [])
        assert facts == {"without huey": "huey needs Redis"}
        assert HUEY.redis

    @pytest.mark.parametrize("wrong", ["missing", "repeated", "unknown"])
    def test_a_number_with_a_loss_is_none(self, wrong: str) -> None:
        good = Found(begin=1.0, end=2.0, missing=0, repeated=0, unknown=0)
        check(good, 10)
        with pytest.raises(BenchmarkFailed, match="of 10 messages"):
            check(replace(good, **{wrong: 1}), 10)

    def test_ratios_are_of_the_same_round_and_have_their_targets(self) -> None:
        report = Report(options=options.parse([]), facts={})
        report.samples = [
            *(sample("consume", "carrot", 1, 900), sample("consume", "fedora", 1, 100)),
            *(sample("consume", "carrot", 2, 2400), sample("consume", "fedora", 2, 200)),
            # It failed in the second round.
            *(sample("consume", "raw", 1, 1800), sample("consume", "carrot", 3, 9_000_000)),
            *(sample("handle", "carrot", 1, 200), sample("handle", "kombu", 1, 100)),
            sample("handle", "kombu-tuned", 1, 160),
        ]
        told = {target.label: target for target in targets(report)}
        of_fedora = told["consume: carrot-twisted / fedora-messaging"]
        assert of_fedora.values == pytest.approx([9.0, 12.0])
        assert of_fedora.verdict == "target: at least 10: met"
        of_raw = told["consume: carrot-twisted / pika, ack only"]
        assert of_raw.values == pytest.approx([0.5])
        assert of_raw.verdict == ""
        of_kombu = told["handle: carrot-twisted / step of Celery's worker"]
        assert of_kombu.verdict == "target: at least 3: NOT MET"
        assert told["handle: carrot-twisted / step of Celery's worker, tuned"].verdict == ""
        assert "5.00" in text_of(report)

    def test_tasks_are_compared_with_the_best_of_the_others(self) -> None:
        report = Report(options=options.parse([]), facts={})
        report.samples = [
            sample("drain", "carrot", 1, 1200, "PostgreSQL", cpu=0.1),
            sample("drain", "carrot-workers", 1, 1900, "PostgreSQL", cpu=0.2),
            # As it comes: nobody is to be compared with that one.
            sample("drain", "celery-default", 1, 5000, "PostgreSQL", cpu=0.1),
            # It keeps no row: told, and no target.
            sample("drain", "huey", 1, 600, "PostgreSQL", cpu=0.1),
            sample("drain", "celery", 1, 80, "PostgreSQL", cpu=1.5),
            sample("drain", "dramatiq", 1, 100, "PostgreSQL", cpu=2.0),
            sample("drain", "raw", 1, 2400, "PostgreSQL"),
            sample("wait_128", "carrot", 1, 11_519, "PostgreSQL"),
            sample("wait_128", "carrot-workers", 1, 11_521, "PostgreSQL"),
            sample("wait", "carrot", 1, 1521, "PostgreSQL"),
        ]
        verdicts = {target.label: target.verdict for target in targets(report)}
        drain = "drain, PostgreSQL"
        fastest, least = "the fastest other (Dramatiq)", "the least other (Celery, threads)"
        assert verdicts == {
            f"{drain}: carrot-twisted / {fastest}": "target: at least 12: met",
            f"{drain}: carrot-twisted, 2 processes / {fastest}": "target: at least 20: NOT MET",
            f"{drain}: CPU for a task, carrot-twisted / {least}": "target: at most 0.0833: met",
            f"{drain}: CPU for a task, carrot-twisted, 2 processes / {least}": (
                "target: at most 0.0833: NOT MET"
            ),
            f"{drain}: carrot-twisted / huey (Redis)": "",
            f"{drain}: carrot-twisted / pika, ack only": "target: at least 0.4: met",
            f"{drain}: carrot-twisted, 2 processes / pika, ack only": "target: at least 0.4: met",
            "wait 10 ms, 16 threads, PostgreSQL: carrot-twisted": "target: at least 1,520/s: met",
            "wait 10 ms, 128 threads, PostgreSQL: carrot-twisted": (
                "target: at least 11,520/s: NOT MET"
            ),
            "wait 10 ms, 128 threads, PostgreSQL: carrot-twisted, 2 processes": (
                "target: at least 11,520/s: met"
            ),
        }
        # What does less is told beside its number.
        rows = text_of(report).splitlines()
        assert any("| Celery, as it comes" in row and "| abc " in row for row in rows)
        assert any("| huey" in row and "| ahi " in row for row in rows)
        assert f"  a  {LACKS['a']}" in rows

    @pytest.mark.parametrize(
        ("system", "in_all", "threads"),
        [("carrot", 128, 128), ("carrot-workers", 128, 64), ("carrot-workers", None, 4)],
    )
    def test_threads_that_a_measure_asks_for_are_those_of_all_processes(
        self, system: str, in_all: int | None, threads: int, tmp_path: Path
    ) -> None:
        deployment = Deployment(
            SYSTEMS[system],
            database="postgres://localhost/x",
            queues=SimpleNamespace(url="amqp://localhost/x"),  # type: ignore[arg-type]
            queue="x",
            concurrency=4,
            folder=tmp_path,
            workers=2,
        )
        assert deployment.threads(in_all) == threads

    def test_charts_show_each_system_with_its_number(self, tmp_path: Path) -> None:
        report = Report(options=options.parse([]), facts={})
        report.samples = [
            sample("drain", "carrot", 1, 9876, "PostgreSQL"),
            sample("drain", "celery", 1, 543, "PostgreSQL"),
            # Nothing to compare with.
            sample("wait_128", "carrot", 1, 11_000, "PostgreSQL"),
        ]
        files = list(charts.draw(report, tmp_path / "charts"))
        assert [file.name for file in files] == [
            "drain-postgresql-rate.svg",
            "drain-postgresql-cpu.svg",
        ]
        drawn = files[0].read_text()
        assert all(text in drawn for text in ("<svg", "carrot-twisted", "9,876", "543"))

    def test_the_configuration_of_fedora_messaging_is_toml(self) -> None:
        given = {"q.1": {"durable": True, "arguments": {}}, "keys": ['a"b', 1], "none": []}
        assert tomllib.loads(f"it = {_toml(given)}") == {"it": given}


def test_numbers_stand_on_the_right_of_a_table() -> None:
    assert table(("what", "how many"), [("one", "1"), ("another", "23")]).splitlines() == [
        "| what    | how many |",
        "| ------- | -------: |",
        "| one     |        1 |",
        "| another |       23 |",
    ]
    assert table(("what",), []) == ""


class TestProcesses:
    """Whose CPU time is counted."""

    def test_children_count_also_while_they_live(self) -> None:
        # A child that works, and says so when it has; its parent does nothing.
        child = (
            "import time; end = time.process_time() + 0.3\n"
            "while time.process_time() < end: pass\n"
            "print('done', flush=True); input()"
        )
        parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
        with subprocess.Popen(
            [sys.executable, "-c", parent, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            counted = Family(process.pid).cpu_seconds()
            process.communicate(b"\n")
        assert counted is not None
        assert counted >= 0.3
        assert Family(process.pid).cpu_seconds() is None

    def test_what_cannot_be_seen_is_not_told(self) -> None:
        times = CpuTimes(2**22 + 1)
        times.look()
        assert times.until(1.0) is None
        assert times.between(0.0, 1.0) is None
        ours = CpuTimes(os.getpid())
        begin = time.time()
        ours.look()
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        ours.look()
        assert (ours.between(begin, time.time()) or 0.0) >= 0.08, "to a tick at each end"

    def test_copies_end_with_the_worst_status_of_theirs(self) -> None:
        variables = {**os.environ, "DJANGO_SETTINGS_MODULE": "benchmarks.site_handlers.settings"}
        statuses = {
            command: subprocess.run(
                [sys.executable, "-m", "benchmarks.copies", "2", command],
                env=variables,
                cwd=TOP,
                capture_output=True,
                check=False,
            ).returncode
            for command in ("diffsettings", "no_such_command")
        }
        assert statuses == {"diffsettings": 0, "no_such_command": 1}


class TestPeers:
    """Where those are found who need an old Python."""

    def test_a_python_is_one_that_runs_and_has_that_version(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        ours = f"{sys.version_info.major}.{sys.version_info.minor}"
        folder = tmp_path / "versions" / f"{ours}.1" / "bin"
        folder.mkdir(parents=True)
        (folder / f"python{ours}").symlink_to(sys.executable)
        # As pyenv's, for a version that is not chosen.
        broken = tmp_path / f"python{ours}"
        broken.write_text("#!/bin/sh\nexit 127\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
        assert find_python(["0.9", ours]) == str(folder / f"python{ours}")
        assert find_python(["0.9"]) is None


class TestRedis:
    """What is understood of its protocol."""

    def test_replies(self) -> None:
        stream = BytesIO(b"+OK\r\n:7\r\n$4\r\na\r\nb\r\n$-1\r\n*2\r\n$3\r\ndir\r\n:1\r\n")
        assert [read(stream) for _ in range(5)] == ["OK", 7, "a\r\nb", None, ["dir", 1]]

    @pytest.mark.parametrize("answer", [b"-NOAUTH Authentication required.\r\n", b""])
    def test_a_refusal_and_an_end_are_no_replies(self, answer: bytes) -> None:
        with pytest.raises(ConnectionError):
            read(BytesIO(answer))


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


def test_who_has_waited_before_the_first_end_does_not_sleep_through_the_others() -> None:
    assert pause(0, 10_000, 20.0) == pytest.approx(0.1)
    assert pause(1, 10_000, 20.0) == pytest.approx(0.5)
    assert pause(1000, 10_000_000, 1.0) == pytest.approx(10.0)
    assert pause(9_999, 10_000, 1.0) == pytest.approx(0.01)
