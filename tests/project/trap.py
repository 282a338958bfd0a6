# SPDX-License-Identifier: Apache-2.0
"""Nobody imports this: a message that has it imported leaves a line in the ledger."""

from __future__ import annotations

from tests.project.tasks import ledger

ledger("the trap was imported")


def spring(*_: object) -> None:
    """Leave another line."""
    ledger("the trap was called")
