# SPDX-License-Identifier: Apache-2.0
"""Which queues a message handler needs, as celery-message-consumer lays them out, but for retries.

::

    exchange --routing keys--> Q                 the work queue; the handler gets its messages
    copy of what failed     -> Q.retry.<n>ms     n milliseconds later the broker puts it back to Q
    copy of what has failed for good -> Q.archived

Copies go through the nameless exchange. There is one retry queue for each delay: in the original's
single ``Q.retry`` a short delay waits behind a long one, for the broker looks at the first message
only. Messages that the original has left in a ``Q.retry`` come back to Q by that queue's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from carrot_twisted import retry
from carrot_twisted.conf import TYPE_ARGUMENT
from carrot_twisted.kinds import MAX_NAME_BYTES
from carrot_twisted.topology import (
    DEAD_DELIVERY_LIMIT,
    DELIVERY_LIMIT,
    Step,
    look_for_exchange,
    look_for_queue,
    queue_step,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from carrot_twisted.handler_settings import ExchangeSettings

ARCHIVED_SUFFIX = ".archived"
#: The longest name of a work queue, in bytes: that of its longest retry queue must fit.
MAX_QUEUE_BYTES = MAX_NAME_BYTES - len(f".retry.{retry.LONGEST}ms")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The queues of one handler."""

    name: str
    """Of the work queue."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the work queue's declaration."""
    archive_arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: tuple[tuple[ExchangeSettings, str], ...] = ()
    """Exchanges and routing keys; empty: what is sent to the nameless exchange under its name."""
    _retries: dict[int, tuple[Step, ...]] = field(default_factory=dict, init=False, compare=False)

    @property
    def archive(self) -> str:
        """Name of the archive."""
        return f"{self.name}{ARCHIVED_SUFFIX}"

    def retry_queue(self, milliseconds: int) -> str:
        """Name of the retry queue of that delay."""
        return f"{self.name}.retry.{milliseconds}ms"

    def retry_steps(self, milliseconds: int) -> tuple[Step, ...]:
        """The declaration of the retry queue of that delay: the same object each time."""
        if milliseconds not in self._retries:
            self._retries[milliseconds] = self._retry_steps(milliseconds)
        return self._retries[milliseconds]

    def _retry_steps(self, milliseconds: int) -> tuple[Step, ...]:
        # No x-expires: a queue that expires takes its messages with it.
        arguments = {
            "x-message-ttl": milliseconds,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.name,
            **self._kind(DEAD_DELIVERY_LIMIT),
        }
        if self._is_quorum:
            # Else the broker would hand over without waiting for the other queue's answer.
            arguments |= {
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
        return (queue_step(self.retry_queue(milliseconds), True, arguments),)

    @cached_property
    def archive_steps(self) -> tuple[Step, ...]:
        """The declaration of the archive."""
        arguments = {**self._kind(DEAD_DELIVERY_LIMIT), **self.archive_arguments}
        if self._is_quorum:
            # The original's: lazy. RabbitMQ refuses it here.
            arguments.pop("x-queue-mode", None)
        return (queue_step(self.archive, True, arguments),)

    def work_steps(self) -> tuple[Step, ...]:
        """The declarations of exchanges, work queue and bindings."""
        arguments: dict[str, Any] = self._kind(DELIVERY_LIMIT)
        if self._is_quorum and "x-dead-letter-exchange" not in self.arguments:
            arguments |= {
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self.archive,
            }
        exchanges = dict.fromkeys(exchange for exchange, _ in self.bindings)
        return (
            *(_exchange(exchange) for exchange in exchanges),
            queue_step(self.name, True, {**arguments, **self.arguments}),
            *(
                Step(
                    method="queue_bind",
                    name=f"binding of queue {self.name!r} to exchange {exchange.name!r}",
                    arguments={
                        "queue": self.name,
                        "exchange": exchange.name,
                        "routing_key": routing_key,
                    },
                )
                for exchange, routing_key in self.bindings
            ),
        )

    def steps(self, milliseconds: Iterable[int]) -> tuple[Step, ...]:
        """All declarations, those that others lead to last.

        What copies go to is looked for, too: RabbitMQ refuses arguments that it does not like by
        the code that tells of a queue with other arguments.

        Args:
            milliseconds: delays that are known beforehand.
        """
        targets = [
            *self.archive_steps,
            *(step for one in milliseconds for step in self.retry_steps(one)),
        ]
        looked_for = (look_for_queue(step.arguments["queue"]) for step in targets)
        return (*targets, *looked_for, *self.work_steps())

    @property
    def _is_quorum(self) -> bool:
        return self.arguments.get(TYPE_ARGUMENT) == "quorum"

    def _kind(self, delivery_limit: int) -> dict[str, Any]:
        """All its queues are of the work queue's type."""
        if not self._is_quorum:
            return {}
        return {TYPE_ARGUMENT: "quorum", "x-delivery-limit": delivery_limit}


def _exchange(exchange: ExchangeSettings) -> Step:
    if exchange.passive:
        return look_for_exchange(exchange.name)
    return Step(
        method="exchange_declare",
        name=f"exchange {exchange.name!r}",
        arguments={
            "exchange": exchange.name,
            "exchange_type": exchange.type,
            "durable": exchange.durable,
            "auto_delete": exchange.auto_delete,
            "arguments": dict(exchange.arguments),
        },
    )
