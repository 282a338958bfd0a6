# SPDX-License-Identifier: Apache-2.0
"""Rows that wait for the broker: what is sent of them, and who sends it."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db.models import F
from django.db.models.functions import Now

from carrot_twisted import outbox, topology
from carrot_twisted.conf import current
from carrot_twisted.due import GRACE, due_in
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog
from carrot_twisted.virtual_host import VirtualHost

DEFAULT_HOST = VirtualHost("amqp://guest:guest@localhost:5672/")


def row(**fields: Any) -> MessageLog:
    return MessageLog(task="app.work", queue=fields.pop("queue", "default"), token=5, **fields)


def post_of(log: MessageLog) -> outbox.Post:
    ((post,),) = outbox.posts([log]).values()
    return post


# posts


def test_a_post_is_made_of_the_row_alone() -> None:
    log = row(task_args='[1, "é"]', content='{"a": null}', priority=7, routing_key="key")
    log.exchange = "x"
    post = post_of(log)
    assert (post.exchange, post.routing_key) == ("x", "key")
    assert post.message_id == post.properties.message_id == str(log.pk)
    assert post.token == 5
    assert json.loads(post.body) == {"args": [1, "é"], "kwargs": {"a": None}}
    assert post.properties.headers == {"type": "app.work"}
    assert (post.properties.priority, post.properties.delivery_mode) == (7, 2)
    assert not post.declared


def test_without_a_routing_key_it_is_the_queues_name() -> None:
    assert post_of(row(routing_key="")).routing_key == "default"


def test_the_queues_own_topology_is_declared_on_demand() -> None:
    steps = post_of(row(queue="other")).steps
    wanted = topology.work_queue(current().queue("other"))
    assert [(s.method, s.arguments) for s in steps] == [(s.method, s.arguments) for s in wanted]


def test_posts_are_grouped_by_broker_and_keep_their_order(settings: Any) -> None:
    two = VirtualHost("amqp://u:p@two/")
    settings.CARROT = {
        "queues": [
            {"name": "default", "host": "amqp://guest:guest@localhost/"},
            {"name": "same"},
            {"name": "mail", "host": "amqp://u:p@two/"},
        ]
    }
    rows = [row(queue=name) for name in ("default", "mail", "same", "mail", "default")]
    grouped = outbox.posts(rows)
    assert {host: [post.message_id for post in posts] for host, posts in grouped.items()} == {
        DEFAULT_HOST: [str(rows[0].pk), str(rows[2].pk), str(rows[4].pk)],
        two: [str(rows[1].pk), str(rows[3].pk)],
    }


def test_posts_of_one_queue_share_their_steps() -> None:
    """The session declares once for all that wait for the same steps."""
    ((one, two),) = outbox.posts([row(), row()]).values()
    assert one.steps is two.steps


def test_a_row_of_a_queue_that_left_the_settings_says_so() -> None:
    with pytest.raises(CarrotConfigException, match="gone"):
        outbox.posts([row(queue="gone")])


# In the database.

pytestmark = pytest.mark.django_db


def stored(seconds: float = 60.0, **fields: Any) -> MessageLog:
    """A row that has been in the outbox for so many seconds."""
    return MessageLog.objects.create(
        task="app.work",
        token=5,
        relay_at=Now() - timedelta(seconds=seconds),
        **{"queue": "default", **fields},
    )


def taken(limit: int = 10, queues: tuple[str, ...] = ("default",)) -> list[UUID]:
    return [log.pk for log in outbox.take_unsent(queues, limit, "default")]


def fields_of(log: MessageLog) -> dict[str, Any]:
    return dict(MessageLog.objects.filter(pk=log.pk).values().get())


class TestConfirms:
    def test_a_confirmed_row_has_left_the_outbox(self) -> None:
        log, other = stored(publish_error="no connection"), stored()
        outbox.note_confirmed([post_of(log)], "default")
        got = fields_of(log)
        assert got["confirmed_at"] is not None
        assert got["publish_error"] == ""
        assert taken() == [other.pk]

    def test_many_at_once(self) -> None:
        logs = [stored() for _ in range(5)]
        ((*posts,),) = outbox.posts(logs).values()
        outbox.note_confirmed(posts, "default")
        assert taken() == []

    def test_of_nothing_nothing_is_noted(self) -> None:
        log = stored()
        outbox.note_confirmed([], "default")
        assert taken() == [log.pk]

    @pytest.mark.parametrize("status", ["IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"])
    def test_a_row_that_a_worker_has_taken_needs_no_note(self, status: str) -> None:
        log = stored(status=status)
        before = fields_of(log)
        outbox.note_confirmed([post_of(log)], "default")
        assert fields_of(log) == before

    def test_the_confirm_of_an_older_message_says_nothing_of_the_newer(self) -> None:
        """The row was released meanwhile, and waits for its next message."""
        log = stored()
        post = post_of(log)
        MessageLog.objects.update(token=6)
        outbox.note_confirmed([post], "default")
        assert fields_of(log)["confirmed_at"] is None

    def test_a_confirm_is_noted_once(self) -> None:
        log = stored()
        outbox.note_confirmed([post_of(log)], "default")
        before = fields_of(log)
        outbox.note_confirmed([post_of(log)], "default")
        assert fields_of(log) == before

    def test_a_message_without_a_row_is_nothing_to_note(self) -> None:
        post = post_of(row())
        post.token = None
        post.message_id = "None"
        outbox.note_confirmed([post], "default")


class TestErrors:
    def test_the_reason_is_on_the_row_and_a_relay_waits(self) -> None:
        one, two, other = stored(), stored(), stored()
        outbox.note_errors({str(one.pk): "refused", str(two.pk): "no queue"}, "default", 30)
        assert fields_of(one)["publish_error"] == "refused"
        assert fields_of(two)["publish_error"] == "no queue"
        assert taken() == [other.pk]

    def test_without_delay_a_relay_takes_it_at_once(self) -> None:
        log = stored()
        outbox.note_errors({str(log.pk): "no connection"}, "default", delay=0)
        assert taken() == [log.pk]

    def test_a_row_that_left_the_outbox_is_not_touched(self) -> None:
        logs = [stored(confirmed_at=Now()), stored(status="IN_PROGRESS"), stored(status="FAILED")]
        before = [fields_of(log) for log in logs]
        outbox.note_errors({str(log.pk): "too late" for log in logs}, "default", 0)
        outbox.note_refused({str(log.pk): "too late" for log in logs}, "default")
        assert [fields_of(log) for log in logs] == before

    @pytest.mark.parametrize(
        ("age", "delay"), [(1, 5), (59, 5), (61, 30), (599, 30), (601, 180), (3700, 600)]
    )
    def test_the_longer_a_row_is_refused_the_rarer_it_is_tried(self, age: int, delay: int) -> None:
        log = stored(publish_time=Now() - timedelta(seconds=age), publish_error="unroutable")
        outbox.note_refused({str(log.pk): "unroutable"}, "default")
        assert fields_of(log)["publish_error"] == "unroutable"
        assert taken() == []
        rows = MessageLog.objects.filter(pk=log.pk)
        rows.update(relay_at=F("relay_at") - timedelta(seconds=delay - 3))
        assert taken() == []
        rows.update(relay_at=F("relay_at") - timedelta(seconds=4))
        assert taken() == [log.pk]

    @pytest.mark.parametrize("before", ["", "no connection to the broker"])
    def test_an_old_row_that_is_refused_for_the_first_time_is_tried_again_soon(
        self, before: str
    ) -> None:
        """The broker is back after an hour, and a quorum queue is still electing its leader."""
        log = stored(publish_time=Now() - timedelta(seconds=4000), publish_error=before)
        outbox.note_refused({str(log.pk): "basic.nack"}, "default")
        assert taken() == []
        MessageLog.objects.filter(pk=log.pk).update(relay_at=F("relay_at") - timedelta(seconds=6))
        assert taken() == [log.pk]

    def test_no_more_than_half_of_its_age_and_ten_minutes_pass_between_attempts(self) -> None:
        ages = [age for age, _ in outbox.REFUSED_RETRY]
        delays = [delay for _, delay in outbox.REFUSED_RETRY]
        assert ages == sorted(ages)
        assert [*delays, outbox.REFUSED_RETRY_LAST] == sorted([*delays, outbox.REFUSED_RETRY_LAST])
        for age, delay in zip(ages, [*delays[1:], outbox.REFUSED_RETRY_LAST], strict=True):
            assert delay <= age / 2
        assert outbox.REFUSED_RETRY_LAST <= 600

    def test_what_a_relay_took_and_could_not_send_is_due_again_at_once(self) -> None:
        stored()
        post = post_of(outbox.take_unsent(["default"], 10, "default")[0])
        assert taken() == []
        outbox.give_back([post], "default")
        assert taken() == [UUID(post.message_id)]
        # Another relay has it now.
        outbox.give_back([post], "default")
        assert taken() == []


class TestTaking:
    def test_oldest_first_and_no_more_than_asked_for(self) -> None:
        newer, oldest, middle = stored(60), stored(600), stored(300)
        assert taken(2) == [oldest.pk, middle.pk] or set(taken(0)) == set()
        assert taken() == [newer.pk]

    def test_what_was_taken_is_left_alone_by_other_relays(self) -> None:
        log = stored()
        assert taken() == [log.pk]
        assert taken() == []

    def test_after_a_while_another_relay_follows(self) -> None:
        """The one that took it may have died."""
        log = stored()
        taken()
        waited = timedelta(seconds=outbox.LEASE + 1)
        MessageLog.objects.update(relay_at=fields_of(log)["relay_at"] - waited)
        assert taken() == [log.pk]

    def test_a_new_row_is_its_publishers_for_a_moment(self) -> None:
        stored(GRACE - 1)
        assert taken() == []
        log = stored(GRACE + 1)
        assert taken() == [log.pk]

    def test_due_now_is_due_now(self) -> None:
        log = stored()
        for seconds, wanted in ((0.0, [log.pk]), (30.0, [])):
            MessageLog.objects.update(relay_at=due_in(seconds))
            assert taken() == wanted

    def test_only_rows_of_its_queues_that_are_published_and_unconfirmed(self) -> None:
        stored(queue="other")
        stored(confirmed_at=Now())
        for status in ("IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"):
            stored(status=status)
        assert taken() == []
        assert len(taken(queues=("default", "other"))) == 1

    def test_the_rows_carry_the_takers_token(self) -> None:
        """So a confirm of the first publisher, come late, says nothing of the second message."""
        log = stored()
        (got,) = outbox.take_unsent(["default"], 1, "default")
        assert got.token == fields_of(log)["token"] != 5


class TestRingingAgain:
    def waiting(self, confirmed: float | None = 120.0, **fields: Any) -> MessageLog:
        """A row whose message the broker confirmed so many seconds ago."""
        at = None if confirmed is None else Now() - timedelta(seconds=confirmed)
        return stored(confirmed_at=at, **fields)

    def test_rows_whose_message_did_not_come_are_sent_again(self) -> None:
        log = self.waiting()
        assert outbox.ring_again("default", 60, "default") == 1
        assert taken() == [log.pk]

    def test_fresh_and_other_rows_are_left_alone(self) -> None:
        logs = [
            self.waiting(30),
            self.waiting(queue="other"),
            self.waiting(status="IN_PROGRESS"),
            self.waiting(status="COMPLETED"),
        ]
        before = [fields_of(log) for log in logs]
        assert outbox.ring_again("default", 60, "default") == 0
        assert [fields_of(log) for log in logs] == before

    def test_no_more_than_a_batch_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox, "RING_BATCH", 2)
        for _ in range(5):
            self.waiting()
        counts = [outbox.ring_again("default", 60, "default") for _ in range(4)]
        assert counts == [2, 2, 1, 0]

    def test_of_a_queue_that_was_missing_what_was_confirmed_before_is_sent_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "RING_BATCH", 2)
        rows = {self.waiting(60).pk for _ in range(3)}
        self.waiting(0)
        since = time.monotonic() - 30
        counts = [outbox.queue_was_missing("default", since, "default") for _ in range(3)]
        assert counts == [2, 1, 0]
        assert set(taken()) == rows

    def test_of_a_deleted_queue_all_rows_are_sent_again_however_fresh(self) -> None:
        rows = {self.waiting(0).pk, self.waiting(None).pk}
        self.waiting(0, queue="other")
        assert outbox.queue_lost("default", "default") == 2
        assert set(taken()) == rows

    def test_a_late_note_of_a_lost_message_says_nothing(self) -> None:
        """It was confirmed by the queue that is deleted now."""
        log = self.waiting(None)
        post = post_of(log)
        outbox.queue_lost("default", "default")
        outbox.note_confirmed([post], "default")
        assert taken() == [log.pk]

    def test_batch_by_batch_it_comes_to_an_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox, "RING_BATCH", 2)
        for _ in range(5):
            self.waiting(0)
        assert [outbox.queue_lost("default", "default") for _ in range(4)] == [2, 2, 1, 0]


class TestRingingForAll:
    def test_every_waiting_row_gets_a_new_message_and_no_other(self) -> None:
        waiting = {
            stored(confirmed_at=Now()).pk,
            stored(confirmed_at=Now() - timedelta(days=9), publish_error="no").pk,
            stored(0).pk,
            stored(60, queue="other").pk,
        }
        others = [
            stored(confirmed_at=Now(), queue="gone"),
            *(stored(status=s) for s in (MessageLog.IN_PROGRESS, *MessageLog.FINAL)),
        ]
        before = [fields_of(log) for log in others]
        assert outbox.ring_for_all(["default", "other"], "default") == 4
        assert set(taken(queues=("default", "other"))) == waiting
        assert [fields_of(log) for log in others] == before

    def test_what_waits_for_a_later_time_keeps_it(self) -> None:
        """A task that was released because of the database, say, or is being sent just now."""
        before = fields_of(stored(-60))
        assert outbox.ring_for_all(["default"], "default") == 0
        assert list(MessageLog.objects.values()) == [before]

    def test_the_confirm_of_the_old_message_says_nothing(self) -> None:
        log = stored()
        post = post_of(log)
        outbox.ring_for_all(["default"], "default")
        outbox.note_confirmed([post], "default")
        assert taken() == [log.pk]

    def test_it_goes_in_chunks_and_ends_although_tasks_are_published(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "RING_BATCH", 2)
        rows = {stored(confirmed_at=Now()).pk for _ in range(5)}
        put_back = outbox._put_back

        def meanwhile(*given: Any) -> int:
            stored(confirmed_at=Now())
            return put_back(*given)

        monkeypatch.setattr(outbox, "_put_back", meanwhile)
        assert outbox.ring_for_all(["default"], "default") == 5
        assert set(taken()) == rows

    def test_of_nothing_nothing_comes(self) -> None:
        assert outbox.ring_for_all(["default"], "default") == 0
        stored(confirmed_at=Now())
        assert outbox.ring_for_all([], "default") == 0
