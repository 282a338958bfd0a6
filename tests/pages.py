# SPDX-License-Identifier: Apache-2.0
"""The pages that users and contributors read, and the code blocks in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parents[1]
DOCS = TOP / "docs"
#: The README and what is in docs/: those that users read.
PAGES = [TOP / "README.md", *sorted(DOCS.glob("*.md"))]
#: Those, and what other folders tell.
ALL_PAGES = [
    *(*PAGES, *(TOP / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))),
    *sorted(
        p
        for folder in ("benchmarks", "changes", "deploy", "example")
        for p in (TOP / folder).rglob("*.md")
    ),
]
FENCE = re.compile(r"^([ ]*)(```+)([^`\n]*)\n(.*?)^\1\2[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    """Its path from the top of the repository."""
    line: int
    """Where it begins."""
    language: str
    """The word behind its fence; "" for commands of a terminal."""
    text: str

    def __str__(self) -> str:
        """Where an editor finds it."""
        return f"{self.page}:{self.line}"


def all_blocks(page: Path) -> Iterator[Block]:
    """All of a page."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        _, _, language, code = found.groups()
        path = page.relative_to(TOP).as_posix()
        yield Block(path, line, language.strip(), textwrap.dedent(code))


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code blocks of one language."""
    for block in all_blocks(page):
        if block.language == language:
            yield block.text


def without_blocks(page: Path) -> str:
    """What a page says outside of them."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def label(page: Path) -> str:
    """For the ids of tests."""
    return page.relative_to(TOP).as_posix().removeprefix("docs/")
