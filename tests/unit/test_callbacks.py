# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what is given to consume, and what becomes of a message whose callback has ended."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
from django.db import connections
from django.db.utils import ConnectionHandler, OperationalError

import carrot_twisted
from carrot_twisted import callbacks, conf, handling
from carrot_twisted.callbacks import CallbackQueue, decide, load, prepared, queues_of
from carrot_twisted.exceptions import (
    Drop,
    HaltConsumer,
    InvalidCallback,
    Nack,
    PermanentFailure,
)
from carrot_twisted.retry import Action, Decision
from carrot_twisted.virtual_host import VirtualHost
from tests.processes import REPOSITORY
from tests.project import callbacks as project

QUORUM: dict[str, Any] = {"arguments": {"x-queue-type": "quorum"}}
LOCKED = OperationalError("database is locked")
LOCKED.__cause__ = type("Locked", (Exception,), {"sqlite_errorcode": 5})()


def callback(message: Any) -> None: ...


async def coroutine(message: Any) -> None: ...


class Made:
    def __call__(self, message: Any) -> None: ...

    def method(self, message: Any) -> None: ...


class NotCallable: ...


def queues(*args: Any, **kwargs: Any) -> list[CallbackQueue]:
    return queues_of(callback, *args, **kwargs)


def declared(queue: CallbackQueue) -> list[tuple[str, dict[str, Any]]]:
    return [(step.method, dict(step.arguments)) for step in queue.steps]


class TestCallback:
    @pytest.mark.parametrize(
        "given",
        [callback, coroutine, Made(), Made().method, functools.partial(callback), print],
    )
    def test_what_can_be_called_with_a_message_is_taken_as_it_is(self, given: Any) -> None:
        assert prepared(given) is given

    def test_of_a_class_one_object_is_made(self) -> None:
        assert isinstance(prepared(Made), Made)

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (7, "7 is not"),
            (NotCallable, "needs a __call__"),
            (project.Demanding, "Demanding without arguments"),
            (project.takes_two, "takes_two takes others"),
            (lambda: None, "takes others"),
        ],
    )
    def test_what_cannot_be_called_with_one_is_told(self, given: Any, text: str) -> None:
        with pytest.raises(InvalidCallback, match=text):
            prepared(given)

    def test_what_a_class_raises_by_itself_comes_out(self) -> None:
        class Failing:
            def __init__(self) -> None:
                raise OSError("no such file")

        with pytest.raises(OSError, match="no such file"):
            prepared(Failing)

    def test_it_is_loaded_by_its_path(self) -> None:
        assert load("tests.project.callbacks:obey") is project.obey
        assert load("tests.project.callbacks:Counting.__call__") is project.Counting.__call__

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("tests.project.callbacks.obey", "package.module:object"),
            (":obey", "package.module:object"),
            ("tests.project.callbacks:nothing", "has no 'nothing'"),
            ("tests.project.nothing:obey", "no module 'tests.project.nothing'"),
            ("nothing.at_all:obey", "no module 'nothing.at_all'.*PYTHONPATH"),
        ],
    )
    def test_a_path_to_nothing_is_told(self, path: str, text: str) -> None:
        with pytest.raises(InvalidCallback, match=text):
            load(path)


class TestQueues:
    def test_by_default_the_broker_names_one_that_gets_all_of_amq_topic(self) -> None:
        (queue,) = queues()
        assert queue.name == ""
        assert (queue.concurrency, queue.prefetch, queue.host) == (
            1,
            None,
            conf.current().default_broker,
        )
        assert declared(queue) == [
            (
                "queue_declare",
                {
                    "queue": "",
                    "durable": False,
                    "auto_delete": True,
                    "exclusive": True,
                    "arguments": {"x-queue-type": "classic"},
                },
            ),
            ("queue_bind", {"queue": "", "exchange": "amq.topic", "routing_key": "#"}),
        ]

    def test_the_dictionaries_of_fedora_messagings_own_example_are_taken(self) -> None:
        given = {
            "demo": {"durable": False, "auto_delete": True, "exclusive": False, "arguments": {}}
        }
        binding = {"exchange": "amq.topic", "queue": "demo", "routing_keys": ["a", "b.#"]}
        (queue,) = queues(binding, given)
        assert declared(queue) == [
            (
                "queue_declare",
                {
                    "queue": "demo",
                    "durable": False,
                    "auto_delete": True,
                    "exclusive": False,
                    "arguments": {"x-queue-type": "classic"},
                },
            ),
            ("queue_bind", {"queue": "demo", "exchange": "amq.topic", "routing_key": "a"}),
            ("queue_bind", {"queue": "demo", "exchange": "amq.topic", "routing_key": "b.#"}),
        ]

    def test_each_queue_gets_its_own_bindings_and_declares_the_exchanges_it_uses(self) -> None:
        one, other = queues(
            [
                {"exchange": "mine", "queue": "one", "routing_keys": ["a"]},
                {"exchange": "theirs", "queue": "other", "routing_keys": ["b"]},
            ],
            {"one": {}, "other": {}},
            exchanges={"mine": {"type": "direct"}, "unused": {}},
        )
        assert [method for method, _ in declared(one)] == [
            "exchange_declare",
            "queue_declare",
            "queue_bind",
        ]
        assert declared(one)[0][1] == {
            "exchange": "mine",
            "exchange_type": "direct",
            "durable": True,
            "auto_delete": False,
            "arguments": {},
        }
        assert [method for method, _ in declared(other)] == ["queue_declare", "queue_bind"]

    def test_queues_alone_are_bound_to_nothing(self) -> None:
        (queue,) = queues(queues={"mine": {}})
        assert [method for method, _ in declared(queue)] == ["queue_declare"]
        assert declared(queue)[0][1]["durable"] is True

    def test_bindings_alone_name_the_queues(self) -> None:
        given = [{"exchange": "e", "queue": name, "routing_keys": ["k"]} for name in "aab"]
        assert [queue.name for queue in queues(given)] == ["a", "b"]

    def test_a_binding_without_a_queue_is_that_of_the_only_one(self) -> None:
        (queue,) = queues({"exchange": "e", "routing_keys": ["k"]}, {"mine": {}})
        assert declared(queue)[1][1]["queue"] == "mine"

    def test_the_archive_is_declared_where_failures_go_there(self) -> None:
        (queue,) = queues(queues={"mine": {}}, on_error="archive")
        assert declared(queue)[0][1]["queue"] == "mine.archived"

    def test_a_quorum_queue_throws_nothing_away(self) -> None:
        arguments = {"x-queue-type": "quorum"}
        (queue,) = queues(queues={"mine": {"arguments": arguments}})
        assert declared(queue)[0][1]["arguments"] == {**arguments, "x-delivery-limit": 1_000_000}

    def test_a_broker_may_be_named(self) -> None:
        host = VirtualHost("amqp://u:p@elsewhere/")
        assert queues(broker="amqp://u:p@elsewhere/")[0].host == host
        assert queues(broker=host)[0].host is host

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"bindings": 7}, "bindings is a dictionary, or a list"),
            ({"bindings": [7]}, "A binding is a dictionary, not 7"),
            ({"bindings": {"exchange": "e", "queue": 7}}, "'queue' of a binding is its name"),
            ({"bindings": {"exchange": "", "routing_keys": ["#"]}}, "'amq.topic'"),
            ({"bindings": {"exchange": "e", "routing_keys": "#"}}, "a list of texts"),
            ({"bindings": {"exchange": "e", "routing_keys": []}}, "a list of texts"),
            ({"bindings": {"exchange": "e", "routing_key": "#"}}, "unknown keys: 'routing_key'"),
            ({"bindings": {"exchange": "e", "queue": "b"}, "queues": {"a": {}}}, "names the queue"),
            ({"bindings": {"exchange": "e"}, "queues": {"a": {}, "b": {}}}, "of a, b"),
            ({"queues": {}}, "queues is a dictionary"),
            ({"queues": ["a"]}, "queues is a dictionary"),
            ({"queues": {"a": None}}, "described by a dictionary"),
            ({"queues": {7: {}}}, "a text of 236 bytes"),
            ({"queues": {"a" * 250: {}}}, "a text of 236 bytes"),
            ({"queues": {"a": {"durabel": True}}}, "unknown keys: 'durabel'"),
            ({"queues": {"a": {"durable": 1}}}, "'durable' is True or False, not 1"),
            ({"queues": {"a": {"arguments": {"x": object}}}}, "values that AMQP knows"),
            ({"queues": {"a": {"arguments": {"x-queue-type": "stream"}}}}, "not 'stream'"),
            ({"queues": {"a": {**QUORUM, "durable": False}}}, "a quorum queue is durable"),
            ({"queues": {"a": {**QUORUM, "exclusive": True}}}, "a quorum queue is durable"),
            ({"queues": {"a": {**QUORUM, "auto_delete": True}}}, "a quorum queue is durable"),
            ({"queues": {"": {"auto_delete": False}}}, "Give it a name"),
            ({"queues": {"": {}}, "on_error": "archive"}, "needs a queue with a name"),
            ({"exchanges": ["e"]}, "exchanges is a dictionary"),
            ({"exchanges": {"e": {"type": 7}}}, "a type of exchanges"),
            ({"on_error": "ignore"}, "'halt' or 'archive', not 'ignore'"),
            ({"log": "some"}, "log is one of all, failures, none, not 'some'"),
            ({"log": True}, "log is one of all, failures, none, not True"),
            ({"concurrency": 0}, "concurrency is a whole number"),
            ({"prefetch_count": 0}, "prefetch_count is a whole number"),
            ({"prefetch_count": 2, "concurrency": 3}, "prefetch_count of 2, 3 callbacks never"),
            ({"broker": "http://x/"}, "broker cannot be understood"),
            ({"broker": 7}, "broker cannot be understood"),
        ],
    )
    def test_what_makes_no_sense_is_told(self, given: dict[str, Any], text: str) -> None:
        with pytest.raises(InvalidCallback, match=text):
            queues(**given)


class TestLog:
    """Which messages get a row."""

    def test_failures_by_default_in_a_project_with_a_database(self) -> None:
        assert [queue.log for queue in queues(queues={"a": {}, "b": {}})] == ["failures"] * 2

    @pytest.mark.parametrize("log", ["all", "failures", "none"])
    def test_what_is_asked_for(self, log: str) -> None:
        assert queues(log=log)[0].log == log

    def test_none_without_a_database_and_what_asks_for_rows_is_told_the_remedy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As Django has it where DATABASES is missing.
        without = ConnectionHandler({}).settings
        monkeypatch.setattr(connections, "settings", without)
        assert queues()[0].log == queues(log="none")[0].log == "none"
        for log in ("all", "failures"):
            with pytest.raises(InvalidCallback, match=rf"log='{log}'.*--settings or DJANGO_SETT"):
                queues(log=log)

    def test_without_a_project_nothing_of_a_database_is_loaded(self) -> None:
        program = (
            "import sys\n"
            "from carrot_twisted import callbacks, conf\n"
            "conf.set_up()\n"
            "from carrot_twisted.service.consumption import Consumption\n"
            "from twisted.internet.task import Clock\n"
            "made = callbacks.queues_of(print, queues={'mine': {}})\n"
            "one = Consumption(made, Clock())\n"
            "print(made[0].log, one.silence)\n"
            "print([m for m in sys.modules if m.startswith(('psycopg', 'sqlite3', 'MySQL'))])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["none 0.0", "[]"]


class TestFailure:
    """What the row of a message tells."""

    @pytest.mark.parametrize(
        ("error", "counts"),
        [
            (None, False),
            (Nack(), False),
            (HaltConsumer(), False),
            (HaltConsumer(requeue=True), False),
            (HaltConsumer(3), True),
            (HaltConsumer(3, requeue=True), True),
            (Drop(), True),
            (ValueError(), True),
            (SystemExit(0), True),
            (PermanentFailure(), True),
        ],
    )
    def test_what_counts_as_one(self, error: BaseException | None, counts: bool) -> None:
        def call() -> None:
            if error is not None:
                raise error

        failure = handling.handle(call)
        assert callbacks.failure_of(failure) == (failure if counts else None)


class TestDecide:
    def decide(
        self,
        error: BaseException | None,
        name: str = "mine",
        redelivered: bool = False,
        on_error: str = "halt",
    ) -> Decision:
        def call() -> None:
            if error is not None:
                raise error

        (queue,) = queues(queues={name: {}}, on_error=on_error)
        return decide(handling.handle(call), redelivered=redelivered, waits=0, queue=queue)

    @pytest.mark.parametrize(
        ("error", "action", "halt"),
        [
            (None, Action.ACK, False),
            (Nack(), Action.REQUEUE, False),
            (Drop(), Action.REJECT, False),
            (HaltConsumer(), Action.ACK, True),
            (HaltConsumer(3, "enough", requeue=True), Action.REQUEUE, True),
            (ValueError(), Action.REQUEUE, True),
            (SystemExit(), Action.REQUEUE, True),
            (PermanentFailure(), Action.ARCHIVE, False),
            (LOCKED, Action.WAIT, False),
        ],
    )
    def test_the_exception_says_what_becomes_of_the_message(
        self, error: BaseException | None, action: Action, halt: bool
    ) -> None:
        decision = self.decide(error)
        assert (decision.action, decision.halt) == (action, halt)

    def test_on_request_failures_go_to_the_archive_but_what_halts_does_so(self) -> None:
        assert self.decide(ValueError(), on_error="archive").action is Action.ARCHIVE
        assert self.decide(HaltConsumer(), on_error="archive").halt
        assert self.decide(Nack(), on_error="archive").action is Action.REQUEUE

    def test_a_message_that_was_back_before_rests(self) -> None:
        assert self.decide(Nack()).delay == 0
        assert self.decide(Nack(), redelivered=True).delay == callbacks.NACK_DELAY

    def test_a_queue_that_the_broker_names_has_no_archive(self) -> None:
        assert self.decide(PermanentFailure(), name="").action is Action.REJECT


def test_halt_consumer_tells_why() -> None:
    halt = HaltConsumer(3, "enough", requeue=True)
    assert (halt.exit_code, halt.reason, halt.requeue, str(halt)) == (3, "enough", True, "enough")
    assert (HaltConsumer().exit_code, HaltConsumer().requeue) == (0, False)
    assert "exit code 4" in str(HaltConsumer(4))
    for nonsense in (256, -1, "x", None):
        with pytest.raises(ValueError, match="from 0 to 255"):
            HaltConsumer(nonsense)  # type: ignore[arg-type]


def test_the_package_has_the_functions_and_no_others() -> None:
    for name in carrot_twisted.__all__:
        assert getattr(carrot_twisted, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = carrot_twisted.nothing


def test_tests_of_others_may_put_a_mock_in_the_place_of_publish() -> None:
    with mock.patch("carrot_twisted.publish") as publish:
        carrot_twisted.publish({"number": 8}, "amq.topic", "shop.order.paid")
    publish.assert_called_once_with({"number": 8}, "amq.topic", "shop.order.paid")
    assert carrot_twisted.publish.__module__ == "carrot_twisted.messaging"


@pytest.mark.parametrize("function", [carrot_twisted.consume, carrot_twisted.twisted_consume])
@pytest.mark.parametrize("options", [{"shutdown_timeout": 0}, {"queues": {}}])
def test_what_cannot_work_is_told_before_anything_is_consumed(
    function: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from twisted.internet import reactor

    monkeypatch.setattr(reactor, "running", False)
    with pytest.raises(InvalidCallback):
        function(callback, **options)
