# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes HTML of the documentation: the Markdown pages as they are, and docstrings.

``python3 run.py docs`` runs it. The source folder is the repository, so that links from docs/ to
the README and to other files lead to the same places as on a code host. A warning is an error: a
link or an anchor that leads nowhere, a page that the index does not name, a docstring that cannot
be read.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["DJANGO_SETTINGS_MODULE"] = "devtools.typed_settings"

import django

from carrot_twisted import __version__

django.setup()

project = "carrot-twisted"
copyright = "the authors of carrot-twisted, Apache-2.0"  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *("docs/*.md", "benchmarks/README.md", "example/README.md"),
]
#: Folders that are not looked into.
exclude_patterns = [".*", "build", "dist", "carrot_twisted", "tests", "devtools"]

#: Anchors as code hosts make them, for headings of all levels.
myst_heading_anchors = 6
#: A block without a language is what somebody types into a terminal.
highlight_language = "none"

autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"carrot-twisted {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

#: An entry of the index: the page that its link leads to.
_ENTRY = re.compile(r"^- \[[^\]]+\]\(([^)#:]+)\.md\)", re.MULTILINE)


def _add_contents(_app: Sphinx, name: str, source: list[str]) -> None:
    """Make the lists of the index the table of contents: nobody writes it twice."""
    if name != root_doc:
        return
    for chapter in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        title, _, text = chapter.partition("\n")
        pages = "\n".join(_ENTRY.findall(text))
        if pages:
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n"


def _keep_colons(
    _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """What stands before a colon there is no type, as napoleon would have it, but a sentence."""
    starts = [0] if what in ("attribute", "property") else []
    starts += [number for number, line in enumerate(lines, 1) if line.strip() == "Returns:"]
    for number in starts:
        lines[number] = lines[number].replace(": ", " \N{EN DASH} ")


def setup(app: Sphinx) -> None:
    """Sphinx's hook for what a configuration adds to it."""
    app.connect("source-read", _add_contents)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
