# SPDX-License-Identifier: Apache-2.0
"""What a service counts: each end once, in the bucket of its minute, written as totals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from django.db import OperationalError
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from carrot_twisted import rollups
from carrot_twisted.rollups import ALL, OTHERS
from carrot_twisted.service import chore, counted, tally
from carrot_twisted.service.tally import INTERVAL, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.rollups import Key, Totals

#: The start of a day.
HOUR = 86_400 * 20_000


class Desk:
    """A tally; what it has written, and when it has sampled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.away = False
        self.answer: Callable[[], Deferred[Any]] = lambda: succeed(None)
        self.written: list[dict[Key, Totals]] = []
        self.sampled: list[float] = []
        monkeypatch.setattr(rollups, "write", lambda rows, *_: self.written.append(dict(rows)))
        monkeypatch.setattr(rollups, "sample", lambda _, now, using: self.sampled.append(now))
        self.tally = Tally(
            writer=cast("Any", self),
            worker="me",
            queues=["default"],
            using="default",
            reactor=self.clock,
            now=lambda: HOUR + self.clock.seconds(),
        )

    def call(self, function: Callable[[], Any]) -> Deferred[Any]:
        """The writer's."""
        answer = self.answer()
        if not isinstance(getattr(answer, "result", None), Failure):
            function()
        return answer

    def count(self, task: str = "t", **changes: Any) -> None:
        values = {"queue": "default", "completed": True, "wait": 0.001, "run": 1.0, **changes}
        self.tally.turn_minute()
        self.tally.count(task=task, **values)

    def write(self) -> dict[Key, Totals]:
        """What is written INTERVAL seconds later."""
        self.clock.advance(INTERVAL)
        return self.written.pop() if self.written else {}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(monkeypatch)
    desk.tally.start()
    return desk


def test_what_ends_is_counted_in_each_resolution_and_written_at_once(desk: Desk) -> None:
    desk.count()
    desk.count(completed=False, run=2.0)
    desk.count("u", queue="other")
    found = desk.write()
    assert {key[:2] for key in found} == {(60, HOUR), (600, HOUR), (3600, HOUR), (86_400, HOUR)}
    assert len(found) == 4 * (2 + 2 + 1)
    for resolution in (60, 600, 3600, 86_400):
        totals = found[resolution, HOUR, "default", "t"]
        assert (totals.completed, totals.failed) == (1, 1)
        assert totals.wait == {0: 2}
        assert totals.run == {40: 1, 44: 1}
        assert found[resolution, HOUR, "default", ALL] == totals
        assert found[resolution, HOUR, ALL, ALL].completed == 2


def test_totals_grow_and_are_written_when_they_have(desk: Desk) -> None:
    desk.count()
    desk.write()
    assert desk.write() == {}
    desk.count()
    found = desk.write()
    assert {totals.completed for totals in found.values()} == {2}


def test_an_end_belongs_to_its_minute_whenever_it_is_written(desk: Desk) -> None:
    desk.clock.advance(59.0)
    desk.written.clear()
    desk.count()
    desk.clock.advance(1.0)
    desk.count()
    desk.clock.advance(INTERVAL)
    found = {key: totals for one in desk.written for key, totals in one.items()}
    minutes = {key[1] - HOUR: one.completed for key, one in found.items() if key[0] == 60}
    assert minutes == {0: 1, 60: 1}
    assert found[600, HOUR, "default", "t"].completed == 2


def test_a_bucket_that_is_over_is_forgotten_when_it_is_written(desk: Desk) -> None:
    desk.count()
    desk.write()
    assert len(desk.tally._buckets) == 4 * 3
    desk.clock.advance(60)
    assert {key[0] for key in desk.tally._buckets} == {600, 3600, 86_400}
    desk.clock.advance(86_400)
    assert desk.tally._buckets == {}


def test_a_clock_that_is_put_back_begins_no_bucket_anew(desk: Desk) -> None:
    desk.clock.advance(120)
    desk.count()
    desk.write()
    desk.tally._now = lambda: HOUR + 5.0
    desk.count()
    desk.tally.stop()
    found = desk.written.pop()
    assert {key[1] - HOUR: one.completed for key, one in found.items() if key[0] == 60} == {120: 2}


def test_what_could_not_be_written_is_written_the_next_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(chore._log, "failure", lambda text, **values: lines.append(values["name"]))
    desk.count()
    desk.answer = lambda: fail(OperationalError("away"))
    assert desk.write() == {}
    desk.count("u")
    desk.answer = lambda: succeed(None)
    assert {key[3] for key in desk.write()} == {"t", "u", ALL}
    assert lines == ["The worker writes its statistics"]


def test_while_the_database_is_away_nothing_is_asked_and_all_is_kept(desk: Desk) -> None:
    desk.away = True
    for _ in range(3):
        desk.count()
        desk.clock.advance(60)
    desk.tally.stop()
    assert (desk.written, desk.sampled) == ([], [])
    desk.away = False
    desk.tally.stop()
    minutes = {key[1] - HOUR: one.completed for key, one in desk.written[0].items() if key[0] == 60}
    assert minutes == {0: 1, 60: 1, 120: 1}


def test_a_stop_writes_what_was_counted_last(desk: Desk) -> None:
    desk.count()
    done: list[object] = []
    desk.tally.stop().addCallback(done.append)
    assert done == [None]
    assert [one[60, HOUR, "default", "t"].completed for one in desk.written] == [1]
    desk.written.clear()
    desk.count()
    assert desk.write() == {}, "and the last loop has ended"


def test_tasks_beyond_the_bound_are_counted_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "MAX_TASKS", 2)
    for name in ("a", "b", "c", "d", "a"):
        desk.count(name)
    found = {key[3]: one.completed for key, one in desk.write().items() if key[0] == 60}
    assert found == {"a": 2, "b": 1, OTHERS: 2, ALL: 5}
    desk.count("e")
    totals = {key[1]: one.completed for key, one in desk.tally.totals().items()}
    assert totals == {"a": 2, "b": 1, OTHERS: 2, "e": 1}
    desk.write()
    totals = {key[1]: one.completed for key, one in desk.tally.totals().items()}
    assert totals == {"a": 2, "b": 1, OTHERS: 3}


def test_buckets_beyond_the_bound_as_well(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_BUCKETS", 12)
    for name in ("a", "b", "c"):
        desk.count(name)
        desk.write()
    assert {(key[0], key[3]) for key in desk.tally._buckets} == {
        (resolution, name) for resolution in rollups.KEPT for name in ("a", OTHERS, ALL)
    }
    desk.count("a")
    desk.count("d")
    found = {key[3]: one.completed for key, one in desk.write().items() if key[0] == 60}
    assert found == {"a": 2, OTHERS: 3, ALL: 5}


def test_totals_since_the_start_hold_what_is_written_and_what_is_not(desk: Desk) -> None:
    desk.count(wait=0.5, run=2.0)
    desk.write()
    desk.clock.advance(7200)
    desk.count(completed=False, wait=0.25, run=1.0)
    (totals,) = desk.tally.totals().values()
    assert (totals.completed, totals.failed) == (1, 1)
    assert (totals.wait_seconds, totals.run_seconds) == (0.75, 3.0)
    assert (totals.wait, totals.run) == ({36: 1, 32: 1}, {44: 1, 40: 1})
    totals.add(totals)
    (again,) = desk.tally.totals().values()
    assert again.completed == 1, "it was a copy"


def test_the_queues_are_sampled_once_a_minute(desk: Desk) -> None:
    for _ in range(12):
        desk.clock.advance(INTERVAL)
    assert [round(when - HOUR) for when in desk.sampled] == [10, 60, 120]


def test_a_message_with_a_handler_counts_as_one_of_its_handler(desk: Desk) -> None:
    queue = SimpleNamespace(name="mail", handler="app.handle")
    handled = SimpleNamespace(queue=queue, failure=None, arrived=1.0, started=1.5, ended=2.5)
    desk.tally.handled(cast("Any", handled))
    totals = desk.write()[60, HOUR, "mail", "app.handle"]
    assert (totals.completed, totals.failed) == (1, 0)
    assert (totals.wait, totals.run) == ({36: 1}, {40: 1})
