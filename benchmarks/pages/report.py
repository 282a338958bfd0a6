# SPDX-License-Identifier: Apache-2.0
"""The tables of the pages: a row for a page, and for each database what its requests took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.markdown import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.pages.timing import Timing

HEAD = ("system", "page", "queries", "wall ms: median (max)", "CPU ms", "database's", "target")
LEGEND = """\
Requests go through Django's client, with all middleware; Flower's over a local socket. Wall ms: the
median and the longest. CPU ms: of the process that answers, median, which is that of SQLite, too;
"database's": of PostgreSQL's process, on average. A target is met if the median of the wall time
is below it; "met by CPU": if only both CPU times together are, which is what the machine had to do
where others kept it busy."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """All pages with one number of rows in one database."""

    database: str
    rows: int
    timings: Sequence[Timing]


def text_of(parts: Sequence[Part], facts: Mapping[str, str]) -> str:
    """The tables, in Markdown."""
    texts = []
    for part in parts:
        texts.append(f"### {part.rows:,} rows, {part.database}\n")
        texts += [table(HEAD, [_cells(one) for one in part.timings], texts=2), ""]
    texts += [LEGEND, ""]
    texts += [f"{name}: {fact}" for name, fact in facts.items()]
    return "\n".join(texts)


def _cells(one: Timing) -> tuple[str, ...]:
    server = "" if one.server_cpu is None else f"{one.server_cpu:.0f}"
    queries = "" if one.queries is None else str(one.queries)
    wall = f"{one.wall:,.0f} ({one.slowest:,.0f})"
    return (one.system, one.page, queries, wall, f"{one.cpu:,.0f}", server, verdict(one))


def verdict(one: Timing) -> str:
    """Whether a promise is kept."""
    if one.target is None:
        return ""
    if one.wall <= one.target:
        kept = "met"
    elif one.cpu + (one.server_cpu or 0) <= one.target:
        kept = "met by CPU"
    else:
        kept = "NOT MET"
    return f"{one.target:,.0f}: {kept}"
