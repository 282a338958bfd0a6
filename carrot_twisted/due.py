# SPDX-License-Identifier: Apache-2.0
"""When a row is due, and that it is in some state: expressions for queries of MessageLogs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.db.models import BooleanField, Case, Q, Value, When
from django.db.models.functions import Coalesce, Now

if TYPE_CHECKING:
    from django.db.models.expressions import CombinedExpression

#: A new row is its publisher's business for so many seconds, then any relay's.
GRACE = 3.0


def due_in(seconds: float) -> CombinedExpression:
    """A value for ``relay_at``: relays take the row ``seconds`` from now (database's clock)."""
    return Now() + timedelta(seconds=seconds - GRACE)


def since_due() -> Coalesce:
    """From when on a row has waited: when it was published, or may run for the first or next time.

    ``run_after`` is never before ``publish_time``.
    """
    return Coalesce("run_after", "publish_time")


def is_due() -> Q:
    """Rows that do not wait for a later time."""
    return Q(run_after__isnull=True) | Q(run_after__lte=Now())


def in_state(state: str, *also: Q) -> Case:
    """That a row is in this state, for queries that know the rows' keys.

    See ``statements``: by the plain condition PostgreSQL might walk through all of a backlog.
    """
    return Case(
        When(Q(*also, status=state), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )
