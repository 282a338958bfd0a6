# SPDX-License-Identifier: Apache-2.0
"""What becomes of a message after its handler: decisions, delays, retry queues."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import retry
from carrot_twisted.retry import Action, Failure, Fault, Policy, decide

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY = Policy(max_retries=4, header="x-retry-count")


def failure(fault: Fault = Fault.HANDLER) -> Failure:
    return Failure(fault=fault, exception="ValueError: no", traceback="Traceback")


def decided(fault: Fault, retries: int = 0, waits: int = 0, policy: Policy = POLICY) -> Any:
    return decide(failure(fault), retries=retries, waits=waits, policy=policy)


def test_a_handler_that_returns_is_done_with_its_message() -> None:
    for retries in (0, 4, 100):
        assert decide(None, retries=retries, waits=0, policy=POLICY).action is Action.ACK


def test_there_are_five_attempts_with_growing_delays_then_the_archive() -> None:
    decisions = [decided(Fault.HANDLER, retries) for retries in range(6)]
    assert [d.action for d in decisions] == [Action.RETRY] * 4 + [Action.ARCHIVE] * 2
    assert [d.delay for d in decisions[:4]] == [0.2, 1, 60, 1800]
    assert decisions[4].reason == "it has failed 5 times"


def test_further_retries_have_the_last_delay() -> None:
    assert retry.default_backoff(4) == retry.default_backoff(1000) == 1800


def test_without_retries_the_first_failure_is_the_last() -> None:
    policy = Policy(max_retries=0, header="x")
    assert decided(Fault.HANDLER, policy=policy).action is Action.ARCHIVE


def test_a_permanent_failure_is_archived_at_once() -> None:
    assert decided(Fault.PERMANENT).action is Action.ARCHIVE


@pytest.mark.parametrize("retries", [0, 4, 5])
def test_the_databases_failures_do_not_count(retries: int) -> None:
    decisions = [decided(Fault.DATABASE, retries, waits) for waits in range(6)]
    assert {d.action for d in decisions} == {Action.WAIT}
    assert [d.delay for d in decisions] == [1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, 0),
        ({}, 0),
        ({"x-retry-count": 3}, 3),
        ({"x-retry-count": "3"}, 3),
        ({"x-retry-count": "three"}, 0),
        ({"x-retry-count": -1}, 0),
        ({"x-retry-count": None}, 0),
        ({"x-retry-count": [1]}, 0),
        ({"x-retry-count": float("inf")}, 0),
    ],
)
def test_the_header_counts_and_nonsense_in_it_is_no_trouble(headers: Any, expected: int) -> None:
    assert POLICY.retries(headers) == expected


def _raises(retries: int) -> float:
    raise ValueError


def _leaves(retries: int) -> float:
    raise SystemExit


@pytest.mark.parametrize("backoff", [_raises, _leaves, lambda _: None, lambda _: float("nan")])
def test_a_backoff_function_that_makes_no_sense_is_replaced(backoff: Callable[..., Any]) -> None:
    policy = Policy(max_retries=4, header="x", backoff=backoff)
    assert [retry.backoff_of(policy, n) for n in range(4)] == [0.2, 1, 60, 1800]


def test_the_projects_backoff_function_gets_the_retries_so_far() -> None:
    policy = Policy(max_retries=4, header="x", backoff=lambda retries: retries * 7 - 1)
    assert [decided(Fault.HANDLER, n, policy=policy).delay for n in range(3)] == [0, 6, 13]


class TestSteps:
    def test_a_functions_delays_have_queues_of_their_own(self) -> None:
        assert retry.own_steps(POLICY) == (200, 1_000, 60_000, 1_800_000)
        policy = Policy(max_retries=4, header="x", backoff=lambda n: 2.5**n + 0.001)
        own = retry.own_steps(policy)
        assert own == (1_001, 2_501, 6_251, 15_626)
        assert [retry.step_of(2.5**n + 0.001, own) for n in range(4)] == list(own)

    def test_there_are_not_ever_more_of_them(self) -> None:
        policy = Policy(max_retries=1000, header="x", backoff=float)
        assert len(retry.own_steps(policy)) == retry.MAX_OWN

    def test_a_function_that_is_never_the_same_has_none(self) -> None:
        chance = random.Random(1)
        policy = Policy(max_retries=4, header="x", backoff=lambda _: chance.uniform(1, 60))
        assert retry.own_steps(policy) == ()
        steps = {retry.step_of(chance.uniform(1, 60), ()) for _ in range(10_000)}
        assert len(steps) < 20

    def test_the_ladder_rises_by_half_at_most(self) -> None:
        for one, two in itertools.pairwise(retry.LADDER):
            assert one < two <= one * 1.5

    @given(st.floats(min_value=0, allow_nan=False, max_value=4_294_967))
    def test_no_delay_is_shorter_than_asked_for(self, delay: float) -> None:
        step = retry.step_of(delay, ())
        assert step >= delay * 1000 - 0.001
        assert step <= max(100, delay * 1500 + 2)

    def test_the_broker_takes_no_longer_delay(self) -> None:
        for delay in (1e7, 1e300, float("inf")):
            assert retry.step_of(delay, ()) == 2**32 - 1
