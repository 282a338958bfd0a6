# SPDX-License-Identifier: Apache-2.0
"""Many rows of tasks: the questions that are asked of them, and the way into the outbox."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from django.db import router, transaction
from django.db.models import Case, Count, F, Max, Min, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from carrot_twisted import failpoints, signals, statements, tracing
from carrot_twisted.due import GRACE, is_due, since_due
from carrot_twisted.identities import new_token
from carrot_twisted.running import CancelRequest

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Sequence

    from carrot_twisted.message_log import MessageLog

#: States, see ``MessageLog``.
PUBLISHED, IN_PROGRESS, CANCELLED = "PUBLISHED", "IN_PROGRESS", "CANCELLED"
UNFINISHED = (PUBLISHED, IN_PROGRESS)
#: Rows per INSERT statement of ``enqueue``.
INSERT_BATCH = 2000
#: What a row says that was cancelled because it had not started in time.
EXPIRED = "expired"
#: Seconds that relays, which look every second, may be late before that is told.
OVERDUE = 5.0


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """Rows of one queue that should have been sent to the broker, and were not."""

    count: int
    seconds: float
    """For how long the oldest of them has been waiting."""
    reason: str
    """Why the broker has not taken one of them; "" if no reason is known."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The unfinished rows of one queue."""

    waiting: int
    oldest: float | None
    """Seconds since the oldest waiting one was published, or since it was due, if that came later.
    None: none waits, but for those that are due later, or limited."""
    limited: int
    """Of the waiting ones, those that wait for a limit of concurrency or rate to let them start."""
    running: int


class MessageLogQuerySet(QuerySet["MessageLog"]):
    """The questions that are asked of the rows, and the way into the outbox."""

    def enqueue(self, rows: Sequence[MessageLog]) -> list[MessageLog]:
        """Insert new rows in the caller's transaction; on its commit the broker is told.

        Args:
            rows: unsaved rows, PUBLISHED. All are inserted or none, but for those whose unique key
                another one holds.

        Returns:
            The rows; in the place of one that was not inserted the one that holds its key, which
            says of itself that it is a ``duplicate``.
        """
        # As save() does: an alias chosen with using(), or else the routers' choice for writing.
        using: str = self._db or router.db_for_write(self.model)  # type: ignore[attr-defined]
        token = new_token()
        for row in rows:
            row.token = token
        tracing.carry(rows)
        table = self.model._meta.db_table
        # In the order of their keys: two who publish the same never wait for each other.
        special = sorted(
            (row for row in rows if row.is_special), key=lambda row: row.unique_key or ""
        )
        holders: dict[uuid.UUID, MessageLog] = {}
        if len(rows) == 1 and not special:
            statements.insert_row(table, rows[0], using)
        else:
            plain = [row for row in rows if not row.is_special] if special else rows
            with transaction.atomic(using=using):
                for start in range(0, len(plain), INSERT_BATCH):
                    statements.insert_rows(table, plain[start : start + INSERT_BATCH], using)
                for start in range(0, len(special), INSERT_BATCH):
                    holders |= self._insert_special(special[start : start + INSERT_BATCH], using)
        inserted = [row for row in rows if row.pk not in holders] if holders else rows
        signals.rows_enqueued.send(sender=self.model, rows=inserted, using=using)
        failpoints.reached("before_insert_commit")
        # The others wait in the outbox for their time, or are not there at all.
        due = [row for row in inserted if row.run_after is None]
        if due:
            told = partial(signals.rows_committed.send_robust, sender=self.model, using=using)
            # robust: the commit has happened; nothing that fails now may tell the caller otherwise.
            transaction.on_commit(partial(told, rows=due), using=using, robust=True)
        return [holders.get(row.pk, row) for row in rows]

    def _insert_special(
        self, rows: Sequence[MessageLog], using: str
    ) -> dict[uuid.UUID, MessageLog]:
        """Insert rows that have a time, a unique key or a retention of their own.

        Returns:
            Of each that was not inserted the row that holds its key.
        """
        now = statements.now(using)
        for row in rows:
            row.set_times(now)
        holders: dict[uuid.UUID, MessageLog] = {}
        left = list(rows)
        while left:
            refused = statements.insert_special(self.model._meta.db_table, left, using)
            taken = {row.unique_key for row in refused}
            if not taken:
                break
            found = MessageLogQuerySet(self.model, using=using).holders(taken)
            held = {row.unique_key: row for row in found}
            for row in refused:
                if row.unique_key in held:
                    holders[row.pk] = held[row.unique_key]
                    holders[row.pk].duplicate = True
            # The holder has come to its end meanwhile.
            left = [row for row in refused if row.unique_key not in held]
        return holders

    def holders(self, keys: Collection[str | None]) -> MessageLogQuerySet:
        """The rows that hold these unique keys."""
        return self.filter(self.model.HOLDS_KEY, unique_key__in=keys)

    def unfinished(self) -> MessageLogQuerySet:
        """Rows that still have to come to an end."""
        return self.filter(status__in=UNFINISHED)

    def depths(self) -> dict[str, Depth]:
        """How many rows wait and run, by queue; of queues that have any.

        One query on the index of unfinished rows. It reads these rows: up to a second for a
        million of them.
        """
        waiting = Q(status=PUBLISHED)
        rows = (
            self.unfinished()
            .order_by()
            .values("queue")
            .annotate(
                waiting=Count("pk", filter=waiting),
                limited=Count("pk", filter=waiting & Q(waits_for__isnull=False)),
                running=Count("pk", filter=~waiting),
                # One that waits for a later time has not waited yet; nor for a worker one that its
                # limits do not let start.
                since=Min(since_due(), filter=waiting & is_due() & Q(waits_for__isnull=True)),
                now=Max(Now()),
            )
        )
        return {
            row["queue"]: Depth(
                waiting=row["waiting"],
                # A row may be written between the statement's clock and its look at the table.
                oldest=max(0.0, (row["now"] - row["since"]).total_seconds())
                if row["since"]
                else None,
                limited=row["limited"],
                running=row["running"],
            )
            for row in rows
        }

    def unsent(self) -> MessageLogQuerySet:
        """The outbox: committed rows that the broker has not confirmed."""
        return self.filter(status=PUBLISHED, confirmed_at__isnull=True)

    def cancel(self, by: str = "", reason: str = "", *, cooperative: bool = False) -> int:
        """CANCELLED for those that wait; of those that run it is asked. See ``MessageLog.cancel``.

        For many rows there is ``housekeeping.cancel_tasks``.

        Returns:
            How many rows that were. Those that have come to their end are left alone.
        """
        members = self.unfinished().filter(flow__isnull=False).order_by()
        flows = {flow for flow in members.values_list("flow", flat=True).distinct() if flow}
        if not flows:
            return self.cancel_alone(by, reason, cooperative=cooperative)
        with transaction.atomic(using=self.db):
            count = self.cancel_alone(by, reason, cooperative=cooperative)
            settle(flows, self.db)
        return count

    def cancel_alone(self, by: str, reason: str, *, cooperative: bool = False) -> int:
        """The same, without a look at the flows that they are parts of."""
        request = CancelRequest(
            by=by, reason=reason, cooperative=cooperative, at=timezone.now().isoformat()
        )
        waits = Q(status=PUBLISHED)
        # One statement: what waits now may run in the next moment, and the other way round.
        return self.unfinished().update(
            status=Case(When(waits, then=Value(CANCELLED)), default=F("status")),
            token=Case(When(waits, then=None), default=F("token")),
            completion_time=Case(When(waits, then=Now()), default=F("completion_time")),
            cancel_request=request.column,
        )

    def cancel_expired(self, limit: int) -> int:
        """CANCELLED for those that have not started in time. Call it in a transaction.

        Args:
            limit: of how many at most.

        Returns:
            How many rows that were. One that has started in time is brought to its end, however
            often it is tried again.
        """
        late = self.filter(status=PUBLISHED, attempts=0, expires_at__lte=Now())
        chosen = late.order_by("expires_at").select_for_update(skip_locked=True)
        found = dict(chosen.values_list("pk", "flow")[:limit])
        if not found:
            return 0
        count = late.filter(pk__in=found).update(
            status=CANCELLED, token=None, completion_time=Now(), exception=EXPIRED
        )
        settle({flow for flow in found.values() if flow is not None}, self.db)
        return count

    def overdue(self) -> MessageLogQuerySet:
        """Rows that should have been sent and were not.

        That is: rows that relays should have taken OVERDUE seconds ago, and rows that the broker
        has refused, whenever they are tried again. Not those that wait for a later time, as a retry
        does. ``publish_error`` says what is wrong with a row, where that is known.
        """
        late = Q(relay_at__lte=Now() - timedelta(seconds=GRACE + OVERDUE))
        return self.unsent().filter(late | ~Q(publish_error=""))

    def outbox_state(self) -> dict[str, Unsent]:
        """How many rows are overdue, and for how long, by queue; empty: all is well.

        One query on the index of unsent rows. It reads these rows: it costs next to nothing while
        all is well, and a tenth of a second or two for 100,000 of them.
        """
        # A row that ran before, or was due later, has not waited since it was published.
        since = Coalesce("run_after", "start_time", "publish_time")
        tried = When(~Q(publish_error=""), then=since)
        rows = (
            self.overdue()
            .order_by()
            .values("queue")
            .annotate(
                count=Count("pk"),
                since=Min(Case(tried, default="relay_at")),
                now=Max(Now()),
                reason=Max("publish_error"),
            )
        )
        return {
            row["queue"]: Unsent(
                count=row["count"],
                seconds=(row["now"] - row["since"]).total_seconds(),
                reason=row["reason"],
            )
            for row in rows
        }


def settle(flows: set[uuid.UUID], using: str) -> None:
    """Tasks of these flows have ended, or wait again."""
    if flows:
        # Not at the top: it imports this module.
        from carrot_twisted import flow_settling

        flow_settling.settle(flows, using)
