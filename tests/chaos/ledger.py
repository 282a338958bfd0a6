# SPDX-License-Identifier: Apache-2.0
"""Ledgers: files with one JSON object a line, that outlive every process and the database.

Each record is one ``write`` to a file opened for appending, so records of many processes never
mix, and a process that is killed leaves a whole record or none.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def record(path: str | Path, *facts: dict[str, Any]) -> None:
    """Append records."""
    text = "".join(f"{json.dumps(one)}\n" for one in facts)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a ledger; none if nobody has written yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
