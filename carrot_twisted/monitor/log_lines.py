# SPDX-License-Identifier: Apache-2.0
"""The log of a task, read line by line: ``threadName time LEVEL:: message``, as django-carrot's.

A line without that head belongs to the message before it: a traceback keeps together, and has its
message's level.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Those of the filter, by name.
LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
}
#: As in django-carrot.
DEFAULT_LEVEL = "INFO"
#: ``task_logging.Transcript`` writes it where lines are missing.
CUT = "… (cut: "
_HEAD = re.compile(
    # With bounds: a line of a million spaces must not take seconds.
    r"(?P<thread>.{1,200}?) {1,20}(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) {1,20}"
    r"(?P<level>[A-Za-z][\w ]{0,30}):: ?(?P<message>.*)",
    re.DOTALL,
)
_NUMBERED = re.compile(r"Level (\d{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line."""

    number: int
    """In the whole log, from 1."""
    text: str
    """Without its head."""
    name: str = ""
    """Of its level; "" if it belongs to no message."""
    rank: int | None = None
    """Number of its level; None: it has none, or one that nobody knows: no filter hides it."""
    time: str = ""
    """With milliseconds; "" if it is not the first line of its message."""
    thread: str = ""

    @property
    def level(self) -> str:
        """The name of the filter's level that it counts for; "" if it has none."""
        if self.rank is None:
            return ""
        return next((n for n, at in reversed(LEVELS.items()) if self.rank >= at), "DEBUG")


def lines_of(log: str) -> list[Line]:
    """The lines of a log."""
    found: list[Line] = []
    name, rank = "", None
    # Only at line feeds: a message may hold other characters that end lines somewhere.
    for number, text in enumerate(log.removesuffix("\n").split("\n"), start=1) if log else ():
        head = _HEAD.fullmatch(text)
        if head is None:
            if text.startswith(CUT):
                name, rank = "", None
            found.append(Line(number=number, text=text, name=name, rank=rank))
            continue
        name = head["level"]
        rank = _rank(name)
        found.append(
            Line(
                number=number,
                text=head["message"],
                name=name,
                rank=rank,
                time=head["time"].partition(" ")[2],
                thread=head["thread"],
            )
        )
    return found


def _rank(name: str) -> int | None:
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        return int(numbered[1])
    return LEVELS.get(name.upper())


def counts(lines: Sequence[Line]) -> dict[str, int]:
    """How many lines each level of the filter would show."""
    return {
        name: sum(line.rank is None or line.rank >= rank for line in lines)
        for name, rank in LEVELS.items()
    }


def chosen(lines: Sequence[Line], level: str, text: str = "") -> list[Line]:
    """The lines of this level and above; with a text, those of them that contain it.

    Args:
        lines: of the log.
        level: one of LEVELS.
        text: in capitals or not.
    """
    at = LEVELS[level]
    wanted = text.casefold()
    return [
        line
        for line in lines
        if (line.rank is None or line.rank >= at) and wanted in line.text.casefold()
    ]
