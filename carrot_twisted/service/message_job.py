# SPDX-License-Identifier: Apache-2.0
"""A message that others publish, on its way through this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carrot_twisted.retry import Decision, Failure
    from carrot_twisted.service.delivery import Delivery


@dataclass(slots=True, eq=False)
class Job:
    """One message under way in this process."""

    delivery: Delivery
    arrived: float
    """Reactor time of its first call."""
    since: float = 0.0
    """Reactor time when it was given to the threads."""
    waits: int = 0
    """How often it was kept because of the database."""
    failure: Failure | None = None
    decision: Decision | None = None
    """What is to be done now that its handler has ended."""
    took: float = 0.0
    """Seconds that its handler has kept a thread."""
    alone: bool = False
    """Nothing else runs in this process, and nothing will until it has ended."""
    asking: bool = False
    """The database has not answered yet whether it may begin."""
    fingerprint: str | None = None
    """Under which it is noted that it has begun."""
    done: bool = False
    """It has come to its end here, and was acknowledged if its channel was open."""
    ended: float = 0.0
    """When it had ended, in seconds since the epoch."""
    span: Any = None
    """OpenTelemetry's, of the last call of its handler, where that is traced."""
