# SPDX-License-Identifier: Apache-2.0
"""Deliveries that wait for their turn, and jobs that wait behind long ones."""

from __future__ import annotations

from dataclasses import dataclass

import pika
import pytest

from carrot_twisted.service.backlog import STUCK, Backlog, take_behind
from carrot_twisted.service.delivery import Delivery, Settler
from carrot_twisted.service.prefetch import Pace
from tests.unit.test_delivery import Channel


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def backlog(channel: Channel) -> Backlog:
    settler = Settler(channel)
    backlog = Backlog()
    for tag in (1, 2, 3):
        channel.unacked.add(tag)
        settler.delivered(tag)
        backlog.append(Delivery(settler, tag, pika.BasicProperties(), b"", "", "default"))
    return backlog


def tags(deliveries: list[Delivery] | Backlog) -> list[int]:
    return [delivery.tag for delivery in deliveries]


def test_all_go_back_in_their_order(backlog: Backlog, channel: Channel) -> None:
    backlog.give_back()
    assert [frame[:2] for frame in channel.frames] == [("nack", 1), ("nack", 2), ("nack", 3)]
    assert not backlog


def test_of_too_many_the_newest_go_back_first(backlog: Backlog, channel: Channel) -> None:
    backlog.give_back_beyond(1)
    assert [frame[:2] for frame in channel.frames] == [("nack", 3), ("nack", 2)]
    assert tags(backlog) == [1]


def test_those_of_a_closed_channel_are_dropped(backlog: Backlog, channel: Channel) -> None:
    other = Delivery(Settler(Channel()), 7, pika.BasicProperties(), b"", "", "default")
    backlog.append(other)
    channel.is_open = False
    backlog.forget_closed()
    assert list(backlog) == [other]


def test_they_are_overdue_from_the_first_look_on(backlog: Backlog) -> None:
    assert backlog.take_overdue(100.0, 60.0) == []
    newest = backlog.pop()
    assert tags(backlog.take_overdue(160.0, 60.0)) == [1, 2]
    newest.seen = None
    backlog.append(newest)
    assert backlog.take_overdue(160.0, 60.0) == []
    assert tags(backlog) == [3]


@dataclass(eq=False)
class Job:
    since: float


class Workers:
    """They begin nothing."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)

    def put(self, job: Job) -> None:
        self.jobs.append(job)

    def recall(self) -> list[Job]:
        jobs, self.jobs = self.jobs, []
        return jobs


def test_what_is_stuck_behind_long_jobs_is_taken_and_the_pace_learns_of_it() -> None:
    first, second = Job(100.0), Job(105.0)
    workers = Workers(first, second)
    pace = Pace(concurrency=1, fixed=None, seconds=0.05)
    assert take_behind(workers, pace, 100.0 + STUCK) == []
    assert (workers.jobs, pace.seconds) == ([first, second], 0.05)
    assert take_behind(workers, pace, 101.0 + STUCK) == [first, second]
    assert (workers.jobs, pace.seconds) == ([], 1.0 + STUCK)
