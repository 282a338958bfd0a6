# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, and what stands in their cells."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table with columns of the same width; nothing without rows.

    Args:
        head: the names of the columns.
        rows: their cells.
        texts: how many columns are read from the left; those after them are numbers.
    """
    if not rows:
        return ""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    adjust = [str.ljust if column < texts else str.rjust for column in range(len(widths))]
    rule = [
        "-" * width if column < texts else f"{'-' * (width - 1)}:"
        for column, width in enumerate(widths)
    ]
    padded = (
        (to(cell, width) for to, cell, width in zip(adjust, row, widths, strict=True))
        for row in (head, rule, *rows)
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and in brackets the smallest and the largest value."""
    if not values:
        return "-"
    low, middle, high = (
        f"{value:,.{digits}f}" for value in (min(values), median(values), max(values))
    )
    return f"{middle} ({low}-{high})"
