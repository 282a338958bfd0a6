# SPDX-License-Identifier: Apache-2.0
"""One message on its way through a project's hooks, with a real database and a fake claim."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4, uuid5

import pika
import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connection, transaction

from carrot_twisted import execution, wire
from carrot_twisted.consumer import Consumer
from carrot_twisted.execution import Limits, Run
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import DefaultMessageSerializer
from carrot_twisted.outcomes import Kind
from carrot_twisted.service.delivery import Delivery, SafeChannel, Settler
from carrot_twisted.service.serving import Outcome, Served, Serving
from carrot_twisted.virtual_host import VirtualHost
from tests.unit.test_delivery import Channel, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db(transaction=True)
HERE = __name__
ran: list[tuple[tuple[Any, ...], dict[str, Any]]] = []


def work(*args: Any, **kwargs: Any) -> str:
    """The rows' task."""
    ran.append((args, kwargs))
    return "worked"


def paid(number: int) -> str:
    """The foreign messages' task."""
    ran.append(((number,), {}))
    return "paid"


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


def raise_lost() -> None:
    """As psycopg says that its connection is gone."""
    error = type("OperationalError", (Exception,), {"sqlstate": "08006"})
    raise OperationalError from error("the connection is lost")


class Table:
    """Serves messages, one after another, for one consumer."""

    def __init__(self, kind: type[Consumer]) -> None:
        self.consumer = kind(VirtualHost("amqp://u:p@h/v"), "q", logging.getLogger("carrot"), "c")
        self.channel = Channel()
        self.settler = Settler(self.channel)
        self.reactor = Reactor()
        self.safe = SafeChannel(cast("Any", self.channel), self.settler, self.reactor)
        self.claims: list[tuple[UUID, bool]] = []
        self.claim: Callable[[UUID, bool], Run | None] = self.grant

    def grant(self, key: UUID, ended: bool) -> Run | None:
        """As the writer does: the row is this thread's, if it waits."""
        self.claims.append((key, ended))
        assert not connection.in_atomic_block, "the writer would wait for this thread"
        rows = MessageLog.objects.filter(pk=key, status=MessageLog.PUBLISHED)
        if not rows.update(status=MessageLog.IN_PROGRESS):
            return None
        return run_of(MessageLog.objects.get(pk=key))

    def serve(
        self,
        body: bytes = b"{}",
        row: MessageLog | None = None,
        claimed: Run | None = None,
        **properties: Any,
    ) -> Served:
        self.channel.unacked.add(1)
        self.settler.delivered(1)
        given: dict[str, Any] = {"headers": {"type": f"{HERE}.work"}}
        if row is not None:
            given["message_id"] = str(row.pk)
        delivery = Delivery(
            self.settler, 1, pika.BasicProperties(**(given | properties)), body, "x", "key", True
        )
        serving = Serving(
            consumer=self.consumer,
            channel=self.safe,
            delivery=delivery,
            claim=lambda key, ended: self.claim(key, ended),
            claimed=claimed,
            limits=Limits(result=1000, log=1000),
        )
        served = serving.serve()
        self.reactor.turn()
        assert self.safe._watched == {}
        assert not execution.in_transaction("default")
        return served


def run_of(row: MessageLog) -> Run:
    return Run(
        uuid=row.pk,
        token=1,
        task=row.task,
        task_args=row.task_args,
        content=row.content,
        queue=row.queue,
        attempt=1,
        published=0.0,
        header=row.task,
        body=b"{}",
    )


def new_row(*args: Any, **fields: Any) -> MessageLog:
    values = {"task": f"{HERE}.work", "queue": "q", "task_args": json.dumps(args)}
    return MessageLog.objects.create(**(values | fields))


def failure(served: Served) -> str:
    """Why the task failed."""
    assert served.result is not None, served
    assert served.result.kind is Kind.FAILED
    return served.result.exception or ""


class Plain(Consumer):
    """Reads as the base does, on the way of the hooks."""

    def get_task_type(self, properties: Any, body: bytes) -> str:
        return super().get_task_type(properties, body)


class TestTheWay:
    def test_the_row_says_what_runs_and_with_which_arguments(self) -> None:
        row = new_row(1, content='{"a": 2}')
        table = Table(Plain)
        served = table.serve(b'{"args": [3]}', row)
        assert served.result is not None
        assert (served.result.kind, served.result.output) == (Kind.COMPLETED, "worked")
        assert ran == [((1,), {"a": 2})]
        assert table.claims == [(row.pk, False)]

    def test_a_row_without_arguments_says_so_too(self) -> None:
        """Who may only publish to the broker runs no task with arguments of his own."""
        table = Table(Plain)
        table.serve(b'{"args": ["forged"], "kwargs": {"also": "this"}}', new_row())
        assert ran == [((), {})]

    def test_the_hook_gets_the_message_with_its_frame(self) -> None:
        seen: list[Any] = []

        class Looks(Consumer):
            def on_message(
                self, channel: Any, method_frame: Any, properties: Any, body: bytes
            ) -> None:
                seen.extend((channel, method_frame, properties, body))
                super().on_message(channel, method_frame, properties, body)

        table = Table(Looks)
        table.serve(b"{}", new_row())
        channel, frame, properties, body = seen
        assert channel is table.safe
        assert (frame.delivery_tag, frame.redelivered) == (1, True)
        assert (frame.exchange, frame.routing_key) == ("x", "key")
        assert (properties.headers, body) == ({"type": f"{HERE}.work"}, b"{}")

    def test_without_a_row_it_is_missing(self) -> None:
        for message_id in (str(uuid4()), "no id", None):
            assert Table(Plain).serve(message_id=message_id) == Served(Outcome.MISSING)

    def test_a_row_that_is_not_ours_runs_nothing(self) -> None:
        row = new_row(status=MessageLog.COMPLETED)
        assert Table(Plain).serve(row=row) == Served(Outcome.ELSEWHERE)
        assert ran == []

    def test_a_message_that_names_another_task_fails(self) -> None:
        served = Table(Plain).serve(row=new_row(), headers={"type": "os.getcwd"})
        assert "names task 'os.getcwd', its row" in failure(served)
        assert ran == []

    def test_a_message_that_names_none_fails_in_django_carrots_words(self) -> None:
        served = Table(Plain).serve(row=new_row(), headers=None)
        assert failure(served) == (
            "Unable to identify the task type because a key was not found in the message header: "
            "'type'"
        )

    def test_a_run_leaves_no_variable_for_the_next(self) -> None:
        table = Table(Plain)
        table.serve(row=new_row())
        with pytest.raises(RuntimeError, match="called by the service"):
            table.consumer.on_message(table.safe, None, pika.BasicProperties(), b"")


class TestOnMessage:
    """What an override of it means for the message and its row."""

    def kind(self, do: Callable[..., Any]) -> type[Consumer]:
        class Mine(Consumer):
            def on_message(
                self, channel: Any, method_frame: Any, properties: Any, body: bytes
            ) -> None:
                def base() -> None:
                    Consumer.on_message(self, channel, method_frame, properties, body)

                return do(channel, method_frame.delivery_tag, base)  # type: ignore[no-any-return]

        return Mine

    def test_one_that_calls_nothing_completes_the_row(self) -> None:
        row = new_row()
        table = Table(self.kind(lambda *_: None))
        served = table.serve(row=row)
        assert served.result is not None
        assert (served.result.kind, served.result.output, ran) == (Kind.COMPLETED, None, [])
        assert table.claims == [(row.pk, True)], "nothing is left to run: also in a stop"

    def test_one_that_calls_nothing_has_handled_a_message_without_a_row(self) -> None:
        assert Table(self.kind(lambda *_: None)).serve() == Served(Outcome.HANDLED)

    def test_one_that_raises_fails_the_row(self) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("broken")

        row = new_row()
        served = Table(self.kind(broken)).serve(row=row)
        assert failure(served) == "broken"
        assert "in broken" in ((served.result and served.result.traceback) or "")

    def test_one_that_raises_without_a_row_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken(*_: Any) -> None:
            raise SystemExit("leaving")

        served = Table(self.kind(broken)).serve()
        assert served.outcome is Outcome.BROKEN
        assert isinstance(served.error, SystemExit)
        assert "there is no row to say so" in caplog.text
        assert "in broken" in caplog.text

    def test_one_that_raises_after_the_task_changes_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def late(_channel: Any, _tag: int, base: Callable[[], None]) -> None:
            base()
            raise RuntimeError("too late")

        served = Table(self.kind(late)).serve(row=new_row())
        assert served.result is not None
        assert served.result.kind is Kind.COMPLETED
        assert "too late" in caplog.text

    @pytest.mark.parametrize("how", [{"requeue": True}, {"requeue": False}])
    def test_one_that_gives_the_message_back_leaves_the_row_alone(
        self, how: dict[str, bool]
    ) -> None:
        row = new_row()
        table = Table(self.kind(lambda channel, tag, _: channel.basic_nack(tag, **how)))
        assert table.serve(row=row) == Served(Outcome.GIVEN_BACK)
        assert table.claims == []
        assert table.channel.requeued | table.channel.rejected == {1}

    def test_one_that_gives_the_message_back_and_raises_makes_no_dead_letter(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It would make one at each return, for ever."""

        def careful(channel: Any, tag: int, _: Any) -> None:
            channel.basic_nack(tag)
            raise RuntimeError("told all the same")

        assert Table(self.kind(careful)).serve() == Served(Outcome.GIVEN_BACK)
        assert "told all the same" in caplog.text

    def test_one_that_gives_a_message_without_a_row_back_does_not_wait_for_the_row(self) -> None:
        def both(channel: Any, tag: int, base: Callable[[], None]) -> None:
            base()
            channel.basic_nack(tag)

        assert Table(self.kind(both)).serve() == Served(Outcome.GIVEN_BACK)

    def test_one_that_acknowledges_before_the_task_is_no_handling(self) -> None:
        def early(channel: Any, tag: int, base: Callable[[], None]) -> None:
            channel.basic_ack(tag)
            base()

        table = Table(self.kind(early))
        served = table.serve(row=new_row())
        assert served.result is not None
        assert served.result.output == "worked"

    def test_one_that_calls_its_base_twice_runs_the_task_once(self) -> None:
        def twice(_channel: Any, _tag: int, base: Callable[[], None]) -> None:
            base()
            base()

        served = Table(self.kind(twice)).serve(row=new_row())
        assert served.result is not None
        assert len(ran) == 1
        table = Table(self.kind(twice))
        assert table.serve(row=new_row(status=MessageLog.FAILED)) == Served(Outcome.ELSEWHERE)
        assert len(table.claims) == 1

    def test_one_that_waits_for_the_row_by_itself_may_call_its_base_again(self) -> None:
        key = uuid4()

        def patient(_channel: Any, _tag: int, base: Callable[[], None]) -> None:
            base()
            new_row(pk=key)
            base()

        served = Table(self.kind(patient)).serve(message_id=str(key))
        assert served.result is not None
        assert served.result.output == "worked"

    def test_a_failure_in_the_base_counts_also_where_it_is_caught(self) -> None:
        """A message whose hook has failed is not done with."""

        class Catches(Consumer):
            def on_message(self, *message: Any) -> None:
                try:
                    super().on_message(*message)
                except Exception:
                    self.logger.warning("caught")

            def get_message_log(self, properties: Any, body: bytes) -> MessageLog | None:
                raise LookupError("where is it?")

        served = Table(Catches).serve()
        assert served.outcome is Outcome.BROKEN
        assert str(served.error) == "where is it?"
        assert failure(Table(Catches).serve(row=new_row())) == "where is it?"

    def test_a_database_that_is_away_counts_also_where_it_is_caught(self) -> None:
        class Catches(Consumer):
            def on_message(self, *message: Any) -> None:
                try:
                    super().on_message(*message)
                except Exception:
                    self.logger.warning("caught")

            def get_message_log(self, properties: Any, body: bytes) -> MessageLog | None:
                raise_lost()
                return None

        row = new_row()
        table = Table(Catches)
        assert table.serve(row=row).outcome is Outcome.AWAY
        assert table.claims == []

    def test_a_coroutine_is_awaited(self) -> None:
        class Asynchronous(Consumer):
            async def on_message(self, *message: Any) -> None:  # type: ignore[override]
                await sync_to_async(super().on_message)(*message)

        served = Table(Asynchronous).serve(row=new_row())
        assert served.result is not None
        assert served.result.output == "worked"

    def test_in_a_transaction_the_base_refuses_to_run(self) -> None:
        """The claim, on the writer's connection, would wait for it, and it for the claim."""

        def wrapped(_channel: Any, _tag: int, base: Callable[[], None]) -> None:
            with transaction.atomic():
                base()

        row = new_row()
        assert "has a transaction open" in failure(Table(self.kind(wrapped)).serve(row=row))
        assert ran == []
        assert Table(self.kind(wrapped)).serve().outcome is Outcome.BROKEN

    def test_a_transaction_that_it_leaves_open_holds_up_nobody(self) -> None:
        def leaking(*_: Any) -> None:
            transaction.atomic().__enter__()
            MessageLog.objects.count()

        served = Table(self.kind(leaking)).serve(row=new_row())
        assert served.result is not None
        assert served.result.kind is Kind.COMPLETED


NAMESPACE = uuid4()


class ShopSerializer(DefaultMessageSerializer):
    @classmethod
    def get_task(cls, properties: Any, body: bytes) -> Callable[..., Any]:
        return {"paid": paid}[json.loads(body)["event"]]

    @classmethod
    def serialize_arguments(cls, body: str) -> tuple[list[Any], dict[str, Any]]:
        return json.loads(body)["args"], {}


class Shop(Consumer):
    """Makes rows for foreign messages."""

    serializer = ShopSerializer

    def get_message_log(self, properties: Any, body: bytes) -> MessageLog | None:
        if properties.app_id != "shop":
            return super().get_message_log(properties, body)
        log, _ = MessageLog.objects.get_or_create(
            # As text, as people do.
            pk=str(uuid5(NAMESPACE, properties.correlation_id)),
            defaults={"task": f"{HERE}.paid", "queue": self.queue},
        )
        return log

    def get_task_type(self, properties: Any, body: bytes) -> str:
        return "not used"


ORDER: dict[str, Any] = {
    "body": b'{"event": "paid", "args": [7]}',
    "app_id": "shop",
    "correlation_id": "a",
}


class TestForeignMessages:
    def test_a_row_is_made_and_its_task_run_with_the_messages_arguments(self) -> None:
        table = Table(Shop)
        served = table.serve(**ORDER)
        assert served.result is not None
        assert served.result.output == "paid"
        row = MessageLog.objects.get()
        assert row.positionals == (7,)
        assert row.confirmed_at is not None, "a relay would send it, too"
        assert table.claims == [(uuid5(NAMESPACE, "a"), False)]
        assert isinstance(table.claims[0][0], UUID), "the writer takes no text for a key"

    def test_the_same_message_again_finds_its_row(self) -> None:
        Table(Shop).serve(**ORDER)
        assert Table(Shop).serve(**ORDER) == Served(Outcome.ELSEWHERE)
        assert len(ran) == 1

    @pytest.mark.parametrize("attempts", [0, 1])
    def test_a_relays_message_for_such_a_row_runs_from_the_row(self, attempts: int) -> None:
        """It has not the form that these hooks read."""
        Table(Shop).serve(**ORDER)
        rows = MessageLog.objects.all()
        rows.update(status=MessageLog.PUBLISHED, attempts=attempts)
        row = rows.get()
        served = Table(Shop).serve(
            b'{"args": [7]}', row, **wire.properties(row.task, str(row.pk), 0)
        )
        assert served.result is not None
        assert (served.result.output, len(ran)) == ("paid", 2)

    def test_one_that_nobody_can_read_fails_with_its_row(self) -> None:
        served = Table(Shop).serve(**{**ORDER, "body": b"\xff"})
        assert "can't decode byte 0xff" in failure(served)
        assert MessageLog.objects.get().task == f"{HERE}.paid"

    @pytest.mark.parametrize(
        ("junk", "text"),
        [
            ("a text", "must return a MessageLog or None, not 'a text'"),
            (MessageLog(task="x"), "is not in the database"),
            ([MessageLog()], "must return a MessageLog or None"),
        ],
    )
    def test_what_is_no_row_is_told_with_the_remedy(self, junk: Any, text: str) -> None:
        class Junk(Consumer):
            def get_message_log(self, properties: Any, body: bytes) -> MessageLog | None:
                return junk  # type: ignore[no-any-return]

        table = Table(Junk)
        served = table.serve()
        assert served.outcome is Outcome.BROKEN
        assert text in str(served.error)
        assert text in failure(table.serve(row=new_row()))
        assert [ended for _, ended in table.claims] == [True]

    def test_a_row_of_any_state_is_the_claims_affair(self) -> None:
        for status in MessageLog.FINAL:
            row = new_row(status=status)

            class Old(Consumer):
                def get_message_log(
                    self, properties: Any, body: bytes, row: MessageLog = row
                ) -> MessageLog | None:
                    return row

            assert Table(Old).serve() == Served(Outcome.ELSEWHERE)

    def test_a_hook_that_leaves_a_transaction_open_holds_up_nobody(self) -> None:
        class Leaks(Consumer):
            def get_message_log(self, properties: Any, body: bytes) -> MessageLog | None:
                transaction.atomic().__enter__()
                return super().get_message_log(properties, body)

        served = Table(Leaks).serve(row=new_row())
        assert "A hook must end its own" in failure(served)
        assert ran == []

    def test_what_a_failed_hook_has_written_is_undone(self) -> None:
        class Half(Consumer):
            def get_message_log(self, properties: Any, body: bytes) -> MessageLog | None:
                new_row()
                raise ValueError("half way")

        assert Table(Half).serve().outcome is Outcome.BROKEN
        assert not MessageLog.objects.exists()

    def test_a_coroutine_is_awaited(self) -> None:
        class Asynchronous(Consumer):
            async def get_message_log(  # type: ignore[override]
                self, properties: Any, body: bytes
            ) -> MessageLog | None:
                return await MessageLog.objects.aget(pk=properties.message_id)

        served = Table(Asynchronous).serve(row=new_row())
        assert served.result is not None
        assert served.result.output == "worked"


class TestSuspects:
    """A row that has cost workers is claimed before its message is read."""

    def serve(self, kind: type[Consumer], row: MessageLog, **message: Any) -> Served:
        MessageLog.objects.filter(pk=row.pk).update(status=MessageLog.IN_PROGRESS, attempts=3)
        table = Table(kind)
        served = table.serve(row=row, claimed=run_of(row), **message)
        assert table.claims == []
        return served

    def test_it_is_read_by_the_hooks_like_any_other(self) -> None:
        row = new_row(task="the shop's word for it")
        served = self.serve(Shop, row, body=b'{"event": "paid", "args": [1]}')
        assert served.result is not None
        assert served.result.output == "paid"

    def test_what_they_cannot_read_is_run_from_the_row(self) -> None:
        served = self.serve(Shop, new_row(5))
        assert served.result is not None
        assert ran == [((5,), {})]

    @pytest.mark.parametrize("where", ["on_message", "get_task_type"])
    def test_a_database_that_is_away_releases_it(self, where: str) -> None:
        """Otherwise its row would stay claimed: one more worker lost, for the next who looks."""

        def lost(self: Consumer, *_: Any) -> None:
            raise_lost()

        served = self.serve(type("Lost", (Consumer,), {where: lost}), new_row())
        assert served.result is not None
        assert served.result.kind is Kind.RELEASED

    def test_one_that_is_given_back_is_released(self) -> None:
        class Refuses(Consumer):
            def on_message(
                self, channel: Any, method_frame: Any, properties: Any, body: bytes
            ) -> None:
                channel.basic_nack(method_frame.delivery_tag)

        served = self.serve(Refuses, new_row())
        assert served.result is not None
        assert served.result.kind is Kind.RELEASED


def test_a_claim_that_fails_is_asked_again_later() -> None:
    class Away(Table):
        def grant(self, key: UUID, ended: bool) -> Run | None:
            raise_lost()
            return None

    assert Away(Plain).serve(row=new_row()).outcome is Outcome.AWAY
