# SPDX-License-Identifier: Apache-2.0
"""Which exchanges, queues and bindings a queue needs: as values that any pika channel can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from carrot_twisted.conf import QueueSettings

DEAD_SUFFIX = ".dead"


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One declaration: the name of a method of a pika channel and its keyword arguments."""

    method: str
    name: str
    """What is declared, for log lines."""
    arguments: Mapping[str, Any]


def _queue(name: str, durable: bool, arguments: Mapping[str, Any]) -> Step:
    # x-queue-type is always said: a virtual host's default may turn a plain queue into a quorum
    # queue, which then refuses x-max-priority and other arguments.
    return Step(
        method="queue_declare",
        name=f"queue {name!r}",
        arguments={
            "queue": name,
            "durable": durable,
            "arguments": {"x-queue-type": "classic", **arguments},
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
        _queue(name, queue.durable, queue.queue_arguments),
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


def dead_letter_queue(name: str) -> str:
    """Where messages of queue ``name`` go that cannot run and have no row."""
    return f"{name}{DEAD_SUFFIX}"


def dead_letter_steps(name: str) -> tuple[Step, ...]:
    """The declaration of the dead-letter queue of queue ``name``."""
    return (_queue(dead_letter_queue(name), True, {}),)
