# SPDX-License-Identifier: Apache-2.0
"""A traceback, read line by line, so that a page can bring out the project's own code."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Where a frame stands. Those of exception groups have a frame of bars around them.
_FRAME = re.compile(r'(?P<indent>[ |]*)File "(?P<file>[^"\n]*)", line \d+')
#: Folders of code that others have written.
_LIBRARIES = re.compile(
    r"[/\\](site-packages|dist-packages|python3?\.?\d*[/\\]lib|lib(64)?[/\\]python3\.\d+)[/\\]|^<|"
    r"[/\\](carrot_twisted|twisted)[/\\]",
    re.IGNORECASE,
)

#: Kinds of lines.
OWN, LIBRARY, EXCEPTION = "own", "library", "exception"


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    text: str
    kind: str
    """OWN and LIBRARY: of a frame. EXCEPTION: what was raised, and what stands between."""


def lines_of(traceback: str) -> list[Line]:
    """The lines of a traceback."""
    found: list[Line] = []
    kind, depth = EXCEPTION, 0
    for text in traceback.removesuffix("\n").split("\n"):
        frame = _FRAME.match(text)
        if frame is not None:
            kind = LIBRARY if _LIBRARIES.search(frame["file"]) else OWN
            depth = len(frame["indent"])
        elif kind != EXCEPTION and _depth(text) <= depth:
            kind = EXCEPTION
        found.append(Line(text, kind))
    return found


def _depth(text: str) -> int:
    return len(text) - len(text.lstrip(" |"))
