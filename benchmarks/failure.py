# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a benchmark, and that the rest goes on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from devtools.steps import StepFailed, say

if TYPE_CHECKING:
    from collections.abc import Iterator


class BenchmarkFailed(Exception):
    """A number cannot be trusted, or there is none; the text says why."""


@contextmanager
def attempted(title: str, failures: list[str]) -> Iterator[None]:
    """Whatever fails in this block is told and noted, and the others go on."""
    try:
        yield
    except Exception as error:
        # The text of these says it all.
        what = str(error) if isinstance(error, (BenchmarkFailed, StepFailed)) else repr(error)
        failures.append(f"{title}: {what}")
        say(f"    FAILED: {what}")
