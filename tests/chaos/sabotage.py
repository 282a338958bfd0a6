# SPDX-License-Identifier: Apache-2.0
"""Services with a defect, to see that the oracle finds it. Each name is a promise that is broken.

A run with one of these has to fail; a check that cannot fail proves nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def ack_before_run() -> None:
    """The message is acknowledged when it comes, and nobody looks after rows of lost workers."""
    from carrot_twisted import records
    from carrot_twisted.service.dispatcher import Dispatcher
    from carrot_twisted.service.relay import Relay

    deliver = Dispatcher.deliver

    def acknowledged(self: Dispatcher, delivery: Any) -> None:
        delivery.ack()
        delivery.settler.flush()
        deliver(self, delivery)

    async def nothing(self: Relay) -> None:
        pass

    Dispatcher.deliver = acknowledged  # type: ignore[assignment, method-assign]
    Relay._ring = nothing  # type: ignore[method-assign]
    records.reap = lambda claimant, using: 0


def claim_anything() -> None:
    """Whatever state a row is in, its message runs it."""
    from django.db import connections

    from carrot_twisted import statements

    claim = statements.claim_rows

    def claim_all(
        table: str,
        ids: Any,
        token: int,
        worker: str,
        crashes: int,
        using: str,
        barred: Any = (),
        **more: Any,
    ) -> list[tuple[Any, ...]]:
        with connections[using].cursor() as cursor:
            sql = f"UPDATE {table} SET status = 'PUBLISHED' WHERE uuid = ANY(%s)"  # noqa: S608
            cursor.execute(sql, [list(ids)])
        return claim(table, ids, token, worker, crashes, using, barred, **more)

    statements.claim_rows = claim_all


def outage_is_failure() -> None:
    """A task that meets a database outage is FAILED, as if it were its own fault."""
    from carrot_twisted import execution

    execution.blames_database = lambda error: False


def skip_some() -> None:
    """One run of a hundred is said to be COMPLETED, and never was."""
    from carrot_twisted import execution

    from_message = execution.from_message
    count = 0

    def skip(run: Any) -> Any:
        nonlocal count
        count += 1
        return from_message(run) if count % 100 else ((lambda *_: None), (), {})

    execution.from_message = skip


def publish_at_once() -> None:
    """Tasks are published on a connection of their own: a rollback does not take them back."""
    from carrot_twisted import utilities

    publish = utilities.publish_message

    def published(*args: Any, **kwargs: Any) -> Any:
        from threading import Thread

        from django.db import connections

        made: list[Any] = []

        def elsewhere() -> None:
            made.append(publish(*args, **kwargs))
            connections.close_all()

        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
        return made[0]

    utilities.publish_message = published


def ignore_limits() -> None:
    """A task's limits let it start whatever runs."""
    from carrot_twisted.admission_decision import Slots, Window

    Slots.has_one_for = lambda self, uuid: True  # type: ignore[method-assign]
    Slots.free = Window.free = property(lambda _self: math.inf)  # type: ignore[method-assign,assignment]


def tell_password() -> None:
    """A log line has the broker's URL."""
    import logging

    from django.conf import settings

    logging.getLogger("carrot_twisted.publisher").warning(settings.CARROT["default_broker"])


KINDS: dict[str, Callable[[], None]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        ack_before_run,
        claim_anything,
        outage_is_failure,
        skip_some,
        publish_at_once,
        ignore_limits,
        tell_password,
    )
}
