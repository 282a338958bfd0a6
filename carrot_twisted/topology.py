# SPDX-License-Identifier: Apache-2.0
"""Which exchanges, queues and bindings a queue needs: as values that any pika channel can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carrot_twisted.conf import TYPE_ARGUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from carrot_twisted.conf import QueueSettings

DEAD_SUFFIX = ".dead"
#: How often a message of a quorum queue may come back before the broker takes it off the queue.
#: RabbitMQ 4 would do so after 20 times, which a service that is killed again and again reaches.
#: The same for all versions: arguments of a queue cannot be changed when its broker is upgraded.
DELIVERY_LIMIT = 1000
#: The same for dead letters, which nothing may throw away: people look at them and put them back.
DEAD_DELIVERY_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One declaration: the name of a method of a pika channel and its keyword arguments."""

    method: str
    name: str
    """What is declared, for log lines."""
    arguments: Mapping[str, Any]

    @property
    def is_quorum_queue(self) -> bool:
        """Whether it declares a quorum queue."""
        further = self.arguments.get("arguments") or {}
        return self.method == "queue_declare" and further.get(TYPE_ARGUMENT) == "quorum"


def queue_step(name: str, durable: bool, arguments: Mapping[str, Any]) -> Step:
    """The declaration of a queue."""
    # x-queue-type is always said: a virtual host's default may turn a plain queue into a quorum
    # queue, which then refuses x-max-priority and other arguments.
    return Step(
        method="queue_declare",
        name=f"queue {name!r}",
        arguments={
            "queue": name,
            "durable": durable,
            "arguments": {TYPE_ARGUMENT: "classic", **arguments},
        },
    )


def work_queue(queue: QueueSettings) -> tuple[Step, ...]:
    """The exchange of the queue's name, the queue, and the binding between them.

    As in django-carrot, but durable: both survive a restart of the broker.
    """
    name = queue.name
    return (
        Step(
            method="exchange_declare",
            name=f"exchange {name!r}",
            arguments={"exchange": name, "durable": True, **queue.exchange_arguments},
        ),
        queue_step(name, queue.durable, {**_safety(queue), **queue.queue_arguments}),
        Step(
            method="queue_bind",
            name=f"binding of queue {name!r}",
            arguments={"queue": name, "exchange": name, "routing_key": name},
        ),
    )


def look_for_queue(name: str) -> Step:
    """Asks whether a queue is there; refused if it is not."""
    arguments = {"queue": name, "passive": True}
    return Step(method="queue_declare", name=f"queue {name!r}", arguments=arguments)


def look_for_exchange(name: str) -> Step:
    """Asks whether an exchange is there; refused if it is not."""
    arguments = {"exchange": name, "passive": True}
    return Step(method="exchange_declare", name=f"exchange {name!r}", arguments=arguments)


def dead_letter_queue(name: str) -> str:
    """Where messages of queue ``name`` go that cannot run and have no row."""
    return f"{name}{DEAD_SUFFIX}"


def dead_letter_steps(queue: QueueSettings) -> tuple[Step, ...]:
    """The declaration of the dead-letter queue of a queue: of its type.

    In a cluster a classic one would be away with its node, when it is needed most.
    """
    arguments = {"x-delivery-limit": DEAD_DELIVERY_LIMIT} if queue.is_quorum else {}
    name = dead_letter_queue(queue.name)
    return (queue_step(name, True, {TYPE_ARGUMENT: queue.type, **arguments}),)


def _safety(queue: QueueSettings) -> dict[str, Any]:
    """What a quorum queue needs so that the broker drops no message in silence."""
    if not queue.is_quorum:
        return {}
    safety: dict[str, Any] = {"x-delivery-limit": DELIVERY_LIMIT}
    if "x-dead-letter-exchange" not in queue.queue_arguments:
        safety["x-dead-letter-exchange"] = ""
        safety["x-dead-letter-routing-key"] = dead_letter_queue(queue.name)
    return safety
