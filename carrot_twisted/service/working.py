# SPDX-License-Identifier: Apache-2.0
"""What the service asks of those who work on a queue's messages, tasks or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.service.prefetch import Pace
    from carrot_twisted.service.thread_report import ThreadReport


class Working(Protocol):
    """Takes one queue's messages, has them worked on in threads, and settles them."""

    pace: Pace
    timeout_hint: str
    """What to do where the broker's ``consumer_timeout`` is too short for this work."""
    finished: int
    """What came to an end here."""
    on_settled: Callable[[], None]
    on_suspect: Callable[[], None]
    on_finished: Callable[[], None]
    on_stuck: Callable[[], None]

    @property
    def suspects(self) -> int:
        """What waits until nothing else runs in this process: others were lost under it."""

    @property
    def started(self) -> int:
        """What the worker threads have begun since the start of this process."""

    @property
    def running(self) -> int:
        """What is under way."""

    @property
    def begun(self) -> int:
        """What of that somebody may wait for, even if the database does not answer."""

    def threads(self) -> Sequence[ThreadReport]:
        """What each of the worker threads does at this moment. From any thread."""

    def runs(self, key: UUID, token: int | None) -> bool:
        """Whether a row is claimed here under this token. From any thread."""

    def start(self) -> None:
        """Start the worker threads."""

    def deliver(self, delivery: Delivery) -> None:
        """A message arrived."""

    def pause(self) -> None:
        """Begin nothing for now and give back what waits."""

    def resume(self) -> None:
        """Begin again."""

    def recall(self) -> None:
        """Give back what is on its way to the threads and was not begun."""

    def hold(self) -> None:
        """Begin nothing more, keep what waits."""

    def unhold(self) -> None:
        """Begin again."""

    def claim_suspect(self) -> None:
        """Begin one suspect; the caller knows that nothing else runs in this process."""

    def forget_closed(self) -> None:
        """Drop waiting deliveries of a channel that is closed: the broker has them again."""

    def return_surplus(self, keep: int) -> None:
        """Give back waiting messages beyond ``keep``, the newest first."""

    def take_custody(self, deadline: float) -> None:
        """Acknowledge what runs for more than ``deadline`` seconds, if the database has it."""

    def free_waiting(self, deadline: float) -> None:
        """Give back what waits in vain, for ``deadline`` seconds or behind long work."""

    def stop_claiming(self) -> None:
        """Give back what has not begun."""

    def release_running(self) -> int:
        """The deadline of a stop has come: give back what still runs; returns how many."""

    def stop_threads(self) -> None:
        """Let the threads end that are free."""
