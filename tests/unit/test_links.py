# SPDX-License-Identifier: Apache-2.0
"""Links of the pages lead to files and headings that are there; those to the web can be followed.

Nothing is fetched.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.pages import ALL_PAGES, TOP, label, without_blocks

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"\]\(([^)\s]+)\)")
#: Links by a name that stands elsewhere: none are used here, and nothing looks at them.
REFERENCE = re.compile(r"^\[[^\]]+\]:|\]\[", re.MULTILINE)
URL = re.compile(r"https?://[^\s`<>\"')\]}|]*")
HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
#: Folders of the repository, as texts name them.
PATH = re.compile(
    r"(?<![\w/.-])((?:benchmarks|changes|deploy|devtools|docs|example|systemd|tests|twisted"
    r"|carrot_twisted)/[\w./@-]*\w)"
)
RECIPES = sorted(p for p in (TOP / "deploy").rglob("*") if p.is_file())


def links(page: Path) -> list[str]:
    """Where the links of a page lead, within the repository."""
    text = re.sub(r"`[^`\n]*`", "", without_blocks(page))
    assert not REFERENCE.search(text)
    return [target for target in LINK.findall(text) if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """Of its headings, as the usual web pages for such files make them."""
    heads = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", ALL_PAGES, ids=label)
def test_its_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert other.resolve().is_relative_to(TOP), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("file", [*ALL_PAGES, *RECIPES], ids=label)
def test_addresses_on_the_web_have_the_form_of_such(file: Path) -> None:
    for url in URL.findall(file.read_text(encoding="utf-8")):
        parts = urlsplit(url)
        assert HOST.fullmatch(parts.hostname or ""), url
        assert parts.port is None or parts.port > 0, url
        assert url[-1] not in ".,;:", url


@pytest.mark.parametrize("file", [*ALL_PAGES, *RECIPES], ids=label)
def test_files_of_the_repository_that_it_names_are_there(file: Path) -> None:
    for path in PATH.findall(re.sub(r"\]\([^)]*\)", "", file.read_text(encoding="utf-8"))):
        assert (TOP / path).exists(), path
