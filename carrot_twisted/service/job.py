# SPDX-License-Identifier: Apache-2.0
"""A task's message, or its row without one, on its way through this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from carrot_twisted.execution import Run
    from carrot_twisted.outcomes import Result
    from carrot_twisted.service.delivery import Delivery


@dataclass(slots=True, eq=False)
class Job:
    """One message id under way in this process."""

    uuid: UUID
    deliveries: list[Delivery]
    tries: int = 0
    """How often the row was looked up in vain."""
    run: Run | None = None
    since: float = 0.0
    """Reactor time of the claim."""
    result: Result | None = None
    custody: bool = field(default=False)
    """Acknowledged while running: the database alone has custody."""
    is_coroutine: bool = False
    """It needs no thread. As far as that is known."""
    has_place: bool = True
    """There is a thread for it, if its limits let it start."""

    @property
    def seconds(self) -> float:
        """How long it has kept a worker thread, or run as a coroutine."""
        assert self.result is not None
        return self.result.ended - self.result.started
