# SPDX-License-Identifier: Apache-2.0
"""Transactions that do not wait for others' locks without end."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How long PostgreSQL waits for others' locks here, where the project leaves that without limit:
#: one row that somebody has locked must cost neither the heartbeats nor all others.
LOCK_TIMEOUT = "1s"


class BoundedTransactions:
    """Those of one thread's connection; on that thread.

    Args:
        using: database alias.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        #: The driver's connection of the last transaction, and whether locks are waited for on it
        #: without limit.
        self._driver: Any = None
        self._waits_for_ever = False

    @contextmanager
    def begin(self) -> Iterator[None]:
        """One transaction, committed at its end."""
        with transaction.atomic(using=self._using):
            for name, value in self._bounds().items():
                with connections[self._using].cursor() as cursor:
                    cursor.execute(f"SET LOCAL {name} = '{value}'")
            yield

    @contextmanager
    def each(self) -> Iterator[None]:
        """Each statement inside is a transaction of its own.

        With PostgreSQL its parameters travel with it: neither BEGIN nor SET LOCAL go before it, nor
        COMMIT after it. What is sent together like this is one transaction, and the parameters are
        set before the next statement asks for the table's lock.

        Elsewhere all of them are one transaction: what is a statement with arrays there is one for
        each row here, and each of these would wait for the disk.
        """
        connection: Any = connections[self._using]
        bounds = self._bounds()
        if connection.vendor != "postgresql":
            with self.begin():
                yield
        elif not bounds:
            yield
        elif connection.features.uses_server_side_binding:
            # Such statements have to travel one by one.
            with self.begin():
                yield
        else:
            sets = ", ".join(f"set_config('{k}', '{v}', true)" for k, v in bounds.items())
            with connection.execute_wrapper(partial(_together, f"SELECT {sets}; ")):
                yield

    def _bounds(self) -> dict[str, str]:
        """Parameters that keep a transaction from waiting for others' locks without end.

        For one transaction only: a pooler gives the connection to others, too.
        """
        connection = connections[self._using]
        if connection.vendor != "postgresql":
            return {}
        if connection.connection is None or connection.connection is not self._driver:
            with connection.cursor() as cursor:
                cursor.execute("SHOW lock_timeout")
                self._waits_for_ever = cursor.fetchone() == ("0",)
            self._driver = connection.connection
        return {"lock_timeout": LOCK_TIMEOUT} if self._waits_for_ever else {}


def _together(
    first: str, execute: Callable[..., Any], sql: str, values: Any, many: bool, context: Any
) -> Any:
    """For ``execute_wrapper``: send ``first`` with a statement, whose result counts."""
    result = execute(first + sql, values, many, context)
    if context["connection"].Database.__name__ == "psycopg":
        # Of psycopg2 it is the last one that counts anyway.
        context["cursor"].nextset()
    return result
