# SPDX-License-Identifier: Apache-2.0
"""Records of messages whose handlers have begun: what they count, and what they do not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from carrot_twisted import begun_message
from carrot_twisted.begun_message import BegunMessage, Losses

pytestmark = pytest.mark.django_db


def losses(worker: str) -> Losses:
    return Losses(worker=worker, limit=3, using="default")


def test_each_worker_that_left_its_record_is_counted_once() -> None:
    assert losses("one").begin("message", alone=False) == 0
    # Its connection was lost, and the message came again.
    assert losses("one").begin("message", alone=False) == 0
    assert losses("two").begin("message", alone=True) == 1
    assert losses("two").begin("message", alone=True) == 1
    assert losses("three").begin("message", alone=True) == 2
    assert losses("four").begin("message", alone=True) == 3
    assert losses("five").begin("other", alone=True) == 0


def test_what_must_run_alone_first_or_never_is_not_noted_as_begun() -> None:
    losses("one").begin("message", alone=False)
    assert [losses("two").begin("message", alone=False) for _ in range(5)] == [1] * 5
    for worker in ("two", "three", "four", "five", "six"):
        losses(worker).begin("message", alone=True)
    assert losses("seven").begin("message", alone=True) == 3
    assert BegunMessage.objects.get().worker == "three"


def test_a_handler_that_has_ended_clears_its_message() -> None:
    losses("one").begin("message", alone=False)
    losses("two").begin("message", alone=True)
    losses("two").end("message")
    assert losses("three").begin("message", alone=False) == 0


def test_a_stop_in_order_is_no_loss() -> None:
    losses("one").begin("message", alone=False)
    losses("other").begin("other", alone=False)
    losses("one").leave()
    assert losses("two").begin("message", alone=False) == 0
    assert losses("two").begin("other", alone=False) == 1


def test_records_that_nobody_asks_for_go_in_the_end() -> None:
    losses("one").begin("old", alone=False)
    losses("one").begin("new", alone=False)
    old = BegunMessage.objects.filter(pk="old")
    old.update(begun_at=Now() - begun_message.KEPT - timedelta(hours=1))
    begun_message.forget_old("default")
    assert [str(one) for one in BegunMessage.objects.all()] == ["new"]
