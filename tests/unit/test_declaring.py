# SPDX-License-Identifier: Apache-2.0
"""Declarations on a channel of their own: all that can be done is done, and the rest is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from carrot_twisted import conf, declaring, topology
from carrot_twisted.declaring import Refusal, declare
from carrot_twisted.testing.memory_broker import MemoryBroker, MemoryConnection
from carrot_twisted.topology import Step


@pytest.fixture
def connection() -> MemoryConnection:
    return MemoryConnection()


class Outcome:
    """What ``declare`` told, which it must do once."""

    def __init__(self) -> None:
        self.calls: list[list[Refusal]] = []

    def __call__(self, refusals: list[Refusal]) -> None:
        self.calls.append(refusals)

    @property
    def refusals(self) -> list[Refusal]:
        (refusals,) = self.calls
        return refusals


@pytest.fixture
def outcome() -> Outcome:
    return Outcome()


def settings(**changes: Any) -> conf.QueueSettings:
    return replace(conf.current().queue("default"), **changes)


def work_queue(**changes: Any) -> tuple[Step, ...]:
    return topology.work_queue(settings(**changes))


def test_exchange_queue_and_binding_are_made(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    declare(connection, work_queue(), outcome)
    assert outcome.calls == []
    connection.run()
    assert outcome.refusals == []
    made = {"type": "direct", "durable": True, "arguments": {}}
    assert connection.broker.exchanges["default"] == made
    assert connection.broker.queues == {
        "default": {"durable": True, "arguments": {"x-queue-type": "classic"}}
    }
    assert connection.broker.bindings == {("default", "default", "default")}


def test_arguments_of_the_settings_are_used(connection: MemoryConnection, outcome: Outcome) -> None:
    steps = work_queue(
        durable=False,
        queue_arguments={"x-queue-type": "classic", "x-max-length": 5},
        exchange_arguments={"exchange_type": "topic"},
    )
    declare(connection, steps, outcome)
    connection.run()
    assert connection.broker.queues["default"] == {
        "durable": False,
        "arguments": {"x-queue-type": "classic", "x-max-length": 5},
    }
    assert connection.broker.exchanges["default"]["type"] == "topic"


QUORUM = {"x-queue-type": "quorum"}


def test_a_quorum_queue_drops_no_message_in_silence(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    declare(connection, work_queue(queue_arguments=QUORUM), outcome)
    connection.run()
    assert connection.broker.queues["default"]["arguments"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "default.dead",
    }


def test_what_the_settings_say_of_a_quorum_queue_goes_before(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    arguments = {**QUORUM, "x-delivery-limit": 3, "x-dead-letter-exchange": "theirs"}
    declare(connection, work_queue(queue_arguments=arguments), outcome)
    connection.run()
    assert connection.broker.queues["default"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [({}, {"x-queue-type": "classic"}), (QUORUM, {**QUORUM, "x-delivery-limit": 1_000_000})],
    ids=["classic", "quorum"],
)
def test_the_dead_letter_queue_is_durable_and_of_the_type_of_its_queue(
    connection: MemoryConnection,
    outcome: Outcome,
    arguments: dict[str, Any],
    wanted: dict[str, Any],
) -> None:
    declare(connection, topology.dead_letter_steps(settings(queue_arguments=arguments)), outcome)
    connection.run()
    assert connection.broker.queues == {"default.dead": {"durable": True, "arguments": wanted}}


def test_a_broker_without_transient_queues_gets_a_durable_one_at_the_second_attempt(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It closes the connection over the first, and would do so for ever."""
    monkeypatch.setattr(declaring, "_durable_only", set())
    broker = MemoryBroker()
    broker.permits_transient_queues = False
    steps = [*work_queue(durable=False), *work_queue(name="other")]
    first, second = MemoryConnection(broker), MemoryConnection(broker)
    declare(first, steps, outcome)
    first.run()
    assert {refusal.code for refusal in outcome.refusals} == {0}
    declare(second, steps, again := Outcome())
    second.run()
    assert again.refusals == []
    assert {name: queue["durable"] for name, queue in broker.queues.items()} == {
        "default": True,
        "other": True,
    }
    assert "declared durable. Set 'durable': True for it" in caplog.text


def test_no_channel_is_left_open(connection: MemoryConnection, outcome: Outcome) -> None:
    connection.broker.queues["default"] = {"durable": False}
    declare(connection, work_queue(), outcome)
    connection.run()
    assert connection.open_channels == []


def test_other_channels_are_not_put_at_risk(connection: MemoryConnection, outcome: Outcome) -> None:
    other = connection.channel(lambda channel: None)
    connection.broker.queues["default"] = {"durable": False}
    declare(connection, work_queue(), outcome)
    connection.run()
    assert connection.open_channels == [other]


def test_what_exists_differently_is_told_and_the_rest_is_declared(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    connection.broker.queues["default"] = {"durable": False}
    steps = work_queue()
    declare(connection, steps, outcome)
    connection.run()
    (refusal,) = outcome.refusals
    assert refusal.step is steps[1]
    assert (refusal.code, refusal.exists_differently) == (406, True)
    assert "inequivalent" in refusal.text
    assert connection.broker.bindings == {("default", "default", "default")}


def test_every_refusal_is_told(connection: MemoryConnection, outcome: Outcome) -> None:
    connection.broker.queues["default"] = connection.broker.exchanges["default"] = {}
    steps = work_queue()
    declare(connection, steps, outcome)
    connection.run()
    assert [refusal.step for refusal in outcome.refusals] == list(steps[:2])


def test_what_is_missing_is_no_difference(connection: MemoryConnection, outcome: Outcome) -> None:
    step = Step(
        method="exchange_declare",
        name="exchange 'x'",
        arguments={"exchange": "x", "passive": True},
    )
    declare(connection, [step], outcome)
    connection.run()
    (refusal,) = outcome.refusals
    assert (refusal.code, refusal.exists_differently) == (404, False)


def test_without_steps_there_is_nothing_to_refuse(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    declare(connection, [], outcome)
    connection.run()
    assert outcome.refusals == []


def test_a_connection_lost_meanwhile_refuses_what_is_left(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    steps = work_queue()
    declare(connection, steps, outcome)
    connection.lose()
    assert [refusal.step for refusal in outcome.refusals] == list(steps)
    assert {refusal.code for refusal in outcome.refusals} == {0}
    assert "the cable was cut" in outcome.refusals[0].text


def test_a_connection_that_is_closed_already_refuses_everything(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    connection.lose()
    declare(connection, work_queue(), outcome)
    assert len(outcome.refusals) == 3
    assert not any(refusal.exists_differently for refusal in outcome.refusals)


def test_the_callers_list_of_steps_is_not_used_up(
    connection: MemoryConnection, outcome: Outcome
) -> None:
    steps = list(work_queue())
    declare(connection, steps, outcome)
    connection.run()
    assert len(steps) == 3


class TestToldOfEach:
    def test_each_declaration_is_told_in_order_with_the_brokers_answer(
        self, connection: MemoryConnection, outcome: Outcome
    ) -> None:
        told: list[tuple[Step, Any]] = []
        steps = work_queue()
        declare(connection, steps, outcome, lambda step, frame: told.append((step, frame)))
        assert told == []
        connection.run()
        # The fake's answer is None.
        assert told == [(step, None) for step in steps]

    def test_what_is_refused_is_not_told(
        self, connection: MemoryConnection, outcome: Outcome
    ) -> None:
        told: list[str] = []
        connection.broker.queues["default"] = {"durable": False}
        steps = work_queue()
        declare(connection, steps, outcome, lambda step, _: told.append(step.method))
        connection.run()
        assert told == ["exchange_declare", "queue_bind"]
        assert [refusal.step for refusal in outcome.refusals] == [steps[1]]

    def test_it_is_told_before_the_next_one_is_asked_for(
        self, connection: MemoryConnection, outcome: Outcome
    ) -> None:
        declared: list[list[str]] = []
        known = connection.broker.declared
        declare(connection, work_queue(), outcome, lambda *_: declared.append(list(known)))
        connection.run()
        assert declared[0] == ["default"]
        assert len(declared) == 3

    def test_after_a_lost_connection_nothing_more_is_told(
        self, connection: MemoryConnection, outcome: Outcome
    ) -> None:
        declare(connection, work_queue(), outcome, lambda *_: pytest.fail("told"))
        connection.lose()
        connection.run()
        assert len(outcome.refusals) == 3
