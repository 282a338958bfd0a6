# SPDX-License-Identifier: Apache-2.0
"""What a shell script would run, by a real shell that runs nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

#: Called for each program, as none is found: notes how many words it is called with, and these.
NOTE = r"""
command_not_found_handle() { printf '%s\0' "$#" "$@" >> "$NOTES"; }
PATH=/nowhere
"""


def commands(script: str, **variables: str) -> list[list[str]]:
    """The programs that a script for bash calls, with their arguments, in no certain order.

    What is built into the shell is done, in an empty folder.

    Args:
        script: its text.
        variables: of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        inside = Path(folder) / "inside"
        inside.mkdir()
        done = subprocess.run(
            ["bash", "-c", f"{NOTE}\n{script}"],
            cwd=inside,
            env={"NOTES": str(notes), "PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert "syntax error" not in done.stderr, done.stderr
        words = notes.read_text().split("\0")[:-1]
    found = []
    while words:
        length = int(words[0])
        found.append(words[1 : length + 1])
        del words[: length + 1]
    return found
