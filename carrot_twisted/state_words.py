# SPDX-License-Identifier: Apache-2.0
"""Says of which states rows are in the one way by which every database finds a partial index."""

from __future__ import annotations

from typing import Any

from django.db.models import Q, Value


class _Constant(Value):
    """A word in the SQL itself: SQLite finds a partial index for a list of words only so."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[()]]:
        return f"'{self.value}'", ()


def of_states(states: tuple[str, ...]) -> Q:
    """Rows of these states: constants of ``MessageLog``."""
    if len(states) == 1:
        return Q(status=_Constant(states[0]))
    return Q(status__in=[_Constant(state) for state in states])
