# SPDX-License-Identifier: Apache-2.0
"""How one queue's deliveries wait for their turn, whatever is done with them then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from carrot_twisted.service.backlog import Backlog
from carrot_twisted.service.prefetch import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.service.delivery import Delivery

Job = TypeVar("Job")


class BaseDispatcher(ABC, Generic[Job]):
    """Lets deliveries wait until the pace, the service and its quarantine allow them to begin.

    What its methods mean to the service is said by ``working.Working``.

    Args:
        concurrency: number of threads.
        prefetch: from the settings; None follows the measurement.
        reactor: Twisted's reactor.
    """

    def __init__(self, *, concurrency: int, prefetch: int | None, reactor: Any) -> None:
        self.pace = Pace(concurrency=concurrency, fixed=prefetch)
        self._reactor = reactor
        self._waiting = Backlog()
        #: Work under which processes were lost: it waits until nothing else runs in this one.
        self._suspects: deque[Job] = deque()
        self._pump_due = False
        #: Begin nothing: a suspect runs, or is about to.
        self._held = False
        self._paused = False
        self._stopping = False
        self.finished = 0
        """What came to its end here."""
        self.on_settled: Callable[[], None] = lambda: None
        self.on_suspect: Callable[[], None] = lambda: None
        self.on_finished: Callable[[], None] = lambda: None
        self.on_stuck: Callable[[], None] = lambda: None

    @property
    def suspects(self) -> int:
        """What waits to run alone."""
        return len(self._suspects)

    def deliver(self, delivery: Delivery) -> None:
        """A message arrived."""
        if delivery.redelivered and self._adopt_running(delivery):
            return
        self._waiting.append(delivery)
        if not self._pump_due:
            self._pump_due = True
            # One read of the socket brings many messages: they begin together.
            self._reactor.callLater(0, self._pump)

    @abstractmethod
    def _adopt_running(self, delivery: Delivery) -> bool:
        """Take over a message whose channel was lost while it was worked on, if it is one."""

    @abstractmethod
    def _pump(self) -> None:
        """Let what waits begin, as far as that is allowed."""

    @abstractmethod
    def _give_back_waiting(self) -> None:
        """Give back what waits, suspects too."""

    def pause(self) -> None:
        """Begin nothing for now and give back what waits. What runs goes on."""
        self._paused = True
        self._give_back_waiting()

    def resume(self) -> None:
        """Begin again."""
        self._paused = False
        self._pump()

    def hold(self) -> None:
        """Begin nothing more, keep what waits; what runs goes on."""
        self._held = True

    def unhold(self) -> None:
        """Begin again."""
        self._held = False
        self._pump()

    def forget_closed(self) -> None:
        """Drop waiting deliveries of a channel that is closed: the broker has them again."""
        self._waiting.forget_closed()

    def return_surplus(self, keep: int) -> None:
        """Give back waiting messages beyond ``keep``, the newest first."""
        self._waiting.give_back_beyond(keep)
