# SPDX-License-Identifier: Apache-2.0
"""Limits of concurrency and rate: what is said is checked, and what is decided at one moment."""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.checks import run_checks

from carrot_twisted import Concurrency, Rate, admission_decision, task, task_options
from carrot_twisted.admission_decision import Candidate, Decision, Slots, Window, decide
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.task_limits import words_of
from carrot_twisted.task_options import Declared, TaskOptions

SLOT, RATE = "slot app.work a", "rate app.work"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Concurrency(0), "limit of Concurrency is 0. It must be a whole number from 1"),
        (lambda: Concurrency(True), "limit of Concurrency is True"),
        (lambda: Concurrency(1, key=7), "key of Concurrency is 7"),  # type: ignore[arg-type]
        (lambda: Concurrency(1, key=""), "key of Concurrency is ''"),
        (lambda: Concurrency(1, group="my shop"), "It must be a name without spaces"),
        (lambda: Rate(1.5), "limit of Rate is 1.5"),  # type: ignore[arg-type]
        (lambda: Rate(1, per=0), "per of Rate is 0. It must be a number of seconds above 0"),
        (lambda: Rate(1, per=timedelta(days=8)), "a week at most"),
        (lambda: TaskOptions(concurrency=3), "concurrency is 3. It must be a Concurrency, such as"),  # type: ignore[arg-type]
        (lambda: TaskOptions(rate="10/s"), "rate is '10/s'. It must be a Rate, such as"),  # type: ignore[arg-type]
        (
            lambda: declared(concurrency=Concurrency(1, key="{nobody}")),
            "key of Concurrency of app.work is '{nobody}', and the task has no parameter 'nobody'",
        ),
        (lambda: declared(rate=Rate(1, key="{0}")), "key of Rate is '{0}': name parameters"),
        (lambda: declared(rate=Rate(1, key="{a")), "key of Rate is '{a', which is no format"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(make: Any, told: str) -> None:
    with pytest.raises(InvalidMessage, match=re.escape(told)):
        make()


def work(account: int, password: str = "", *rest: Any) -> None:
    """A task."""


def declared(**options: Any) -> Declared:
    return Declared(path="app.work", function=work, options=TaskOptions(**options))


def names(concurrency: Any = None, rate: Any = None, *args: Any) -> tuple[str | None, str | None]:
    return declared(concurrency=concurrency, rate=rate).limit_names(args or [7], {}, ["password"])


def test_a_name_is_made_of_the_task_or_its_group_and_of_the_arguments() -> None:
    assert names(Concurrency(1)) == ("slot app.work", None)
    assert names(None, Rate(1, key="account:{account}")) == (None, "rate app.work account:7")
    assert names(Concurrency(1, key="fixed", group="shop")) == ("slot shop fixed", None)
    by_function = names(Concurrency(1, key=lambda account, *_: f"a{account}"), Rate(2))
    assert by_function == ("slot app.work a7", "rate app.work")
    with pytest.raises(
        InvalidMessage, match=r"key of Concurrency of app\.work is to return a text"
    ):
        names(Concurrency(1, key=lambda account: account))
    with pytest.raises(InvalidMessage, match=r"app\.work does not take these arguments"):
        declared(concurrency=Concurrency(1, key="{account}")).limit_names([], {})


def test_a_key_that_is_long_or_secret_is_told_by_a_digest() -> None:
    for key, args in (("{account}", ["x" * 100]), ("{password}", [1, "secret"])):
        (name, _) = names(Concurrency(1, key=key), None, *args)
        assert name is not None
        assert name.startswith("slot app.work text ")
        assert "secret" not in name
        assert len(name) < 200


def test_what_people_read() -> None:
    assert words_of("slot app.work account:7") == "a slot of account:7"
    assert words_of("slot app.work") == "a slot of app.work"
    assert words_of("rate shop a b") == "the rate of a b"


SHARED = Rate(5, per=timedelta(minutes=1), group="test_limits")


@task(rate=SHARED)
def one(name: str) -> None:
    """A task."""


# Django 6.1 asks the database what it can do.
@pytest.mark.django_db
def test_tasks_of_a_group_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[str]:
        return [m.msg for m in run_checks() if m.id == "carrot_twisted.E017"]

    monkeypatch.setattr(task_options, "_declared", dict(task_options._declared))
    monkeypatch.setattr(task_options, "_limits", dict(task_options._limits))
    task_options.declare(Declared(path="app.same", function=work, options=TaskOptions(rate=SHARED)))
    assert found() == []
    assert task_options.limit_named("rate test_limits a key") == SHARED
    assert task_options.limit_named("slot test_limits a key") is None
    options = TaskOptions(rate=Rate(6, per=60, group="test_limits"))
    task_options.declare(Declared(path="app.other", function=work, options=options))
    (text,) = found()
    assert "app.other and " in text
    assert text.endswith("share the Rate of group 'test_limits', and give it different numbers.")


class TestWindow:
    def test_after_a_burst_the_next_starts_when_the_first_is_a_period_old(self) -> None:
        window = Window.of("", 3, 60, now=1000.0)
        for _ in range(3):
            assert window.free > 0
            window.take()
        assert window.free == 0
        assert 1060 <= window.next <= 1060.6
        later = Window.of(window.text, 3, 60, now=window.next + 0.001)
        assert later.free == 3
        assert Window.of(window.text, 3, 60, now=1059.9).free == 0

    def test_no_period_has_more_than_the_limit_and_little_is_kept(self) -> None:
        """However the starts are spread; and the rate is used, but for a hundredth."""
        text, starts, now = "", [], 5000.0
        while now < 5100:
            window = Window.of(text, 20, 7.0, now)
            if window.free > 0:
                window.take()
                starts.append(now)
            text = window.text
            assert len(window.starts) <= admission_decision.PARTS + 1
            now += 0.013
        gaps = [b - a for a, b in zip(starts, starts[20:], strict=False)]
        assert min(gaps) >= 7.0
        assert len(starts) >= 20 * (100 // 7.2)

    def test_a_clock_that_was_set_back_bars_nobody_for_longer_than_a_period(self) -> None:
        window = Window.of("", 1, 10, now=9000.0)
        window.take()
        back = Window.of(window.text, 1, 10, now=100.0)
        assert back.free == 0
        assert back.next <= 110.2


_count = itertools.count()


def row(**given: Any) -> Candidate:
    values = {"queue": "default", "priority": 0, "slot": SLOT, "rate": None, "waits_for": SLOT}
    return Candidate(
        **{"uuid": uuid4(), "task": "app.work", "since": float(next(_count)), **values, **given}
    )


def delivered(**given: Any) -> Candidate:
    return row(delivered=True, waits_for=None, **given)


def slots(limit: int, running: int = 0) -> dict[str, Any]:
    return {SLOT: Slots(limit, running, now=1000.0)}


def keys(rows: list[Candidate]) -> list[UUID]:
    return [one.uuid for one in rows]


class TestDecide:
    def test_so_many_start_as_there_are_slots_by_priority_and_age(self) -> None:
        rows = [delivered(), delivered(priority=5), delivered(), delivered(priority=5)]
        made = decide(rows, slots(4, running=1), {})
        assert keys(made.start) == [rows[n].uuid for n in (1, 3, 0)]
        assert made.wait == {rows[2].uuid: SLOT}
        assert made.left == {SLOT}

    def test_who_waits_longer_gets_the_slot_and_the_thread_of_who_comes(self) -> None:
        old, new = row(), delivered()
        made = decide([new, old], slots(1), {"default": 0})
        assert keys(made.start) == [old.uuid]
        assert made.wait == {new.uuid: SLOT}

    def test_without_a_place_here_it_stays_until_that_has_lasted(self) -> None:
        old = row()
        assert decide([old], slots(1), {"default": 0}) == Decision(left={SLOT})
        states = slots(1)
        made = decide([old], states, {"default": 0}, frozenset({SLOT}))
        assert keys(made.ring) == [old.uuid]
        # Its slot is kept for it until its message is there, and for nobody else.
        assert keys(decide([delivered()], states, {}).start) == []
        again = delivered(uuid=old.uuid)
        assert keys(decide([again], states, {}).start) == [old.uuid]
        assert Slots.of(states[SLOT].text, 1, 1, now=1000.0).free == 0

    def test_a_message_without_a_thread_has_its_row_wait_though_it_might_start(self) -> None:
        rows = [row(waits_for=None) for _ in range(3)]
        made = decide(rows, slots(2), {"default": 1})
        assert keys(made.start) == [rows[0].uuid]
        assert made.wait == {rows[1].uuid: SLOT, rows[2].uuid: SLOT}
        assert made.left == {SLOT}

    def test_a_slot_that_is_kept_in_vain_is_free_after_a_while(self) -> None:
        states = slots(1)
        decide([row(queue="other")], states, {"default": 1})
        text = states[SLOT].text
        assert Slots.of(text, 1, 0, now=1009.0).free == 0
        assert Slots.of(text, 1, 0, now=1011.0).free == 1

    def test_rows_of_other_queues_and_those_that_have_cost_workers_get_messages(self) -> None:
        other, suspect, mine = row(queue="other"), row(apart=True), row()
        made = decide([other, suspect, mine], slots(3), {"default": 5})
        assert keys(made.ring) == [other.uuid, suspect.uuid]
        assert keys(made.start) == [mine.uuid]

    def test_both_limits_have_to_let_it_start(self) -> None:
        states = slots(2) | {RATE: Window.of("", 1, 60, now=1000.0)}
        rows = [delivered(rate=RATE) for _ in range(3)]
        made = decide(rows, states, {})
        assert keys(made.start) == [rows[0].uuid]
        assert made.wait == {rows[1].uuid: RATE, rows[2].uuid: RATE}
        # What has no rate takes the other slot; then it is that which is lacking.
        late = [delivered(), delivered(rate=RATE)]
        made = decide(late, states, {})
        assert keys(made.start) == [late[0].uuid]
        assert made.wait == {late[1].uuid: SLOT}

    def test_of_what_waits_already_nothing_is_written(self) -> None:
        made = decide([row(), row()], slots(1, running=1), {"default": 3})
        assert made == Decision(left={SLOT})

    def test_a_limit_that_nobody_knows_any_more_is_none(self) -> None:
        rows = [delivered() for _ in range(3)]
        assert len(decide(rows, {}, {}).start) == 3
