# SPDX-License-Identifier: Apache-2.0
"""What the broker itself says of the queues: messages that are ready, and who consumes.

The page of the queues shows what the tables tell, at once, and loads this behind it: a broker that
is away, or says nothing, holds up nobody. Messages with a handler have no rows before they are
handled: only the broker knows how many wait. Queues of callbacks are known to their processes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from django.utils import timezone
from django.utils.translation import gettext as _

from carrot_twisted import blocking, conf, handlers, housekeeping
from carrot_twisted.exceptions import BrokerError
from carrot_twisted.handler_topology import ARCHIVED_SUFFIX
from carrot_twisted.monitor.page import Page
from carrot_twisted.topology import DEAD_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from django.http import HttpRequest

    from carrot_twisted.conf import QueueSettings

#: Seconds that a broker gets to say anything.
PATIENCE = 2


@dataclass(frozen=True, kw_only=True)
class AtBroker:
    """One queue."""

    name: str
    use: str
    """What is in it, for people."""
    is_known: bool = False
    """Whether the broker has said anything of it."""
    ready: int = 0
    consumers: int = 0
    archived: int | None = None
    """Messages that could not be handled; None: there is no such queue, or nobody knows."""


class BrokerLook(Page):
    """All queues of the settings and of handlers."""

    template: ClassVar[str] = "broker_look.html"
    section: ClassVar[str] = "carrot-queues"
    live: ClassVar[bool] = False

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Ask each broker once."""
        settings = conf.current()
        # Imports the modules of handlers.
        housekeeping.known_queues()
        queues: list[QueueSettings] = [*settings.queues.values(), *handlers.queues(settings)]
        found: dict[str, AtBroker] = {}
        problems: list[str] = []
        for _host, some in groupby(sorted(queues, key=_broker), key=_broker):
            here = list(some)
            try:
                found |= {one.name: one for one in _asked(here, set(settings.queues))}
            except BrokerError as error:
                problems.append(str(error))
        return {
            "queues": [
                found.get(one.name) or AtBroker(name=one.name, use=_use(one, settings.queues))
                for one in queues
            ],
            "problems": problems,
            "asked_at": timezone.now(),
        }


def _broker(queue: QueueSettings) -> str:
    return str(queue.host)


def _use(queue: QueueSettings, tasks: Any) -> str:
    return _("tasks") if queue.name in tasks else _("messages with a handler")


def _asked(queues: Sequence[QueueSettings], tasks: set[str]) -> Iterator[AtBroker]:
    """What the broker of these queues says of them.

    Raises:
        BrokerError: it does not let us in, or goes away.
    """
    connection = blocking.connect(queues[0].host, PATIENCE)
    try:
        for queue in queues:
            suffix = DEAD_SUFFIX if queue.name in tasks else ARCHIVED_SUFFIX
            there = blocking.look(connection, queue.name)
            archive = blocking.look(connection, f"{queue.name}{suffix}")
            ready, consumers = there or (0, 0)
            yield AtBroker(
                name=queue.name,
                use=_use(queue, tasks),
                is_known=there is not None,
                ready=ready,
                consumers=consumers,
                archived=archive and archive[0],
            )
    finally:
        blocking.close(connection)
