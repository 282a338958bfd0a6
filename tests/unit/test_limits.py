# SPDX-License-Identifier: Apache-2.0
"""``@time_limit`` above a task's function."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest

from carrot_twisted.limits import limit_of, time_limit


def plain() -> None:
    """A task without a word about time."""


def test_a_task_without_one_has_the_default() -> None:
    assert limit_of(plain, None) is None
    assert limit_of(plain, 30) == 30


@pytest.mark.parametrize("seconds", [0.5, 30, 10**9])
def test_a_limit_goes_before_the_default(seconds: float) -> None:
    @time_limit(seconds)
    def task() -> str:
        return "itself"

    assert limit_of(task, 7) == limit_of(task, None) == seconds
    assert task() == "itself"


def test_none_means_no_limit_whatever_the_default_is() -> None:
    @time_limit(None)
    def task() -> None:
        pass

    assert limit_of(task, 30) is None


def test_it_may_stand_below_decorators_that_know_functools() -> None:
    def decorator(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper() -> None:
            function()

        return wrapper

    @decorator
    @time_limit(5)
    def task() -> None:
        pass

    assert limit_of(task, None) == 5


@pytest.mark.parametrize(
    "wrong",
    [0, -1, float("inf"), float("nan"), 10**400, "30", True, plain],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_limit_is_told_at_once(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a number of seconds above 0, or None"):
        time_limit(wrong)


def test_a_project_imports_it_without_models_and_reactor() -> None:
    code = (
        "import sys, carrot_twisted.limits, carrot_twisted.exceptions; "
        "assert not {'django', 'twisted', 'pika'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
