# SPDX-License-Identifier: Apache-2.0
"""The parts of a running service that its metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from carrot_twisted.histograms import Durations
    from carrot_twisted.retry import Action
    from carrot_twisted.service.connection import BrokerConnection
    from carrot_twisted.service.counted import Counted
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.posting import ReactorPublisher
    from carrot_twisted.service.relay import Relay
    from carrot_twisted.service.subscription import Subscription
    from carrot_twisted.service.working import Working


@dataclass(frozen=True)
class QueuePart:
    """One queue that is consumed."""

    name: str
    subscription: Subscription
    dispatcher: Working
    handler: str | None = None
    """Dotted path of the handler or callback; None: it is a queue of tasks."""
    decided: Mapping[Action, int] | None = None
    """What was decided about its messages; None: it is a queue of tasks."""


@dataclass(frozen=True, kw_only=True)
class TaskParts:
    """What a service of tasks has beside its queues."""

    writer: LogWriter
    publisher: ReactorPublisher
    relay: Relay
    lateness: Durations | None
    """Of schedules; None: it publishes none."""
    using: str
    """Database alias."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All of them."""

    queues: Sequence[QueuePart]
    connections: Sequence[BrokerConnection]
    counted: Counted
    tasks: TaskParts | None = None
    """None: a process with a callback."""
