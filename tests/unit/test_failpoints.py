# SPDX-License-Identifier: Apache-2.0
"""What CARROT_FAILPOINT may say, and what it then does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from django.db.utils import OperationalError

from carrot_twisted import failpoints
from carrot_twisted.exceptions import CarrotConfigException

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = "after_claim_commit"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def raised(times: int, place: str = PLACE) -> list[bool]:
    """Whether the place raises, so many times."""
    result = []
    for _ in range(times):
        try:
            failpoints.reached(place)
        except OperationalError:
            result.append(True)
        else:
            result.append(False)
    return result


def test_without_the_variable_nothing_happens() -> None:
    failpoints.arm("")
    for place in failpoints.PLACES:
        failpoints.reached(place)


def test_an_action_without_a_number_is_done_each_time() -> None:
    failpoints.arm(f"{PLACE}:raise")
    assert raised(3) == [True] * 3
    assert raised(1, "in_reap") == [False]


def test_a_number_means_that_time_only() -> None:
    failpoints.arm(f"{PLACE}:raise:2")
    assert raised(4) == [False, True, False, False]


def test_a_probability_has_a_seed_and_is_the_same_in_every_run() -> None:
    failpoints.arm(f"{PLACE}:raise:0.5@7")
    first = raised(50)
    assert 10 < sum(first) < 40
    failpoints.arm(f"{PLACE}:raise:0.5@7")
    assert raised(50) == first
    failpoints.arm(f"{PLACE}:raise:0.5@8")
    assert raised(50) != first


def test_several_places_are_armed_together() -> None:
    failpoints.arm(f"{PLACE}:raise, in_reap:raise:1")
    assert raised(1) == [True]
    assert raised(2, "in_reap") == [True, False]


def test_sleep_stands_still_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    failpoints.arm(f"{PLACE}:sleep=2.5")
    assert raised(1) == [False]
    assert slept == [2.5]


def test_exit_is_a_kill_that_nothing_catches(monkeypatch: pytest.MonkeyPatch) -> None:
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda *given: kills.append(given))
    failpoints.arm(f"{PLACE}:exit")
    failpoints.reached(PLACE)
    assert kills == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("after_claim:exit", "there is no place 'after_claim'. Places: before_insert_commit"),
        (PLACE, "write place:action"),
        (f"{PLACE}:exit:1:2", "write place:action"),
        (f"{PLACE}:explode", "there is no action 'explode'. Actions: exit, raise, sleep=SECONDS"),
        (f"{PLACE}:sleep", "there is no action 'sleep'"),
        (f"{PLACE}:sleep=-1", "there is no action"),
        (f"{PLACE}:sleep=long", "there is no action"),
        (f"{PLACE}:exit:0", "a whole number from 1"),
        (f"{PLACE}:exit:-1", "a whole number from 1"),
        (f"{PLACE}:exit:0.5", "probability@seed"),
        (f"{PLACE}:exit:1.5@7", "probability@seed"),
        (f"{PLACE}:exit:0@7", "probability@seed"),
        (f"{PLACE}:exit:0.5@x", "probability@seed"),
        (f"{PLACE}:exit,", "there is no place ''"),
    ],
)
def test_a_mistake_is_told_and_arms_nothing(text: str, told: str) -> None:
    with pytest.raises(CarrotConfigException) as caught:
        failpoints.arm(text)
    assert "CARROT_FAILPOINT" in str(caught.value)
    assert told in str(caught.value)
    assert raised(1) == [False]


def test_a_process_with_a_mistake_in_its_environment_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import django; django.setup(); print('started')"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            failpoints.VARIABLE: "nowhere:exit",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "CARROT_FAILPOINT: 'nowhere:exit' makes no sense" in done.stderr.splitlines()[-1]
    assert "started" not in done.stdout
