# SPDX-License-Identifier: Apache-2.0
"""Records of messages whose handlers have begun: what they count, and what they do not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from carrot_twisted import begun_message
from carrot_twisted.begun_message import BegunMessage, Losses

pytestmark = pytest.mark.django_db


def losses(worker: str, limit: int = 5) -> Losses:
    return Losses(worker=worker, limit=limit, using="default")


def lost(worker: str, key: str = "message", *, alone: bool = True) -> int:
    return losses(worker).begin([key], alone=alone)[key]


def test_each_worker_that_left_its_record_is_counted_once() -> None:
    assert lost("one") == 0
    # Its connection was lost, and the message came again.
    assert lost("one") == 0
    assert lost("two") == 1
    assert lost("two") == 1
    assert [lost(name) for name in ("three", "four", "five", "six", "seven")] == [2, 3, 4, 5, 5]
    assert lost("seven", "other") == 0


def test_many_are_noted_at_once() -> None:
    lost("one", "first")
    with CaptureQueriesContext(connection) as queries:
        found = losses("two").begin(["first", "second", "third", "third"], alone=False)
    assert found == {"first": 1, "second": 0, "third": 0}
    assert [query["sql"].split()[0] for query in queries][:3] == ["SELECT", "INSERT", "UPDATE"]
    assert BegunMessage.objects.filter(worker="two").count() == 3
    losses("two").end(["first", "second"])
    assert losses("three").begin(["first", "third"], alone=False) == {"first": 0, "third": 1}


def test_what_must_run_alone_first_is_not_noted_as_begun() -> None:
    for worker in ("one", "two", "three"):
        lost(worker)
    assert [lost("four", alone=False) for _ in range(5)] == [3] * 5
    assert BegunMessage.objects.get().worker == "three"


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_none_is_given_up_that_has_not_cost_a_process_while_it_was_alone(limit: int) -> None:
    one = losses("one", limit)
    begins = [(one.may_begin(n, alone=False), one.may_begin(n, alone=True)) for n in range(4)]
    assert begins == [(True, True), (True, True), (False, True), (False, limit > 3)]
    assert [one.is_too_much(n) for n in range(6)].index(True) == max(limit, 3)


def test_a_handler_that_has_ended_clears_its_message() -> None:
    lost("one")
    lost("two")
    losses("two").end(["message"])
    assert lost("three") == 0


def test_a_stop_in_order_is_no_loss() -> None:
    lost("one")
    lost("other", "other")
    losses("one").leave()
    assert lost("two") == 0
    assert lost("two", "other") == 1


def test_records_that_nobody_asks_for_go_in_the_end() -> None:
    losses("one").begin(["old", "new"], alone=False)
    old = BegunMessage.objects.filter(pk="old")
    old.update(begun_at=Now() - begun_message.KEPT - timedelta(hours=1))
    begun_message.forget_old("default")
    assert [str(one) for one in BegunMessage.objects.all()] == ["new"]
