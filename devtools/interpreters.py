# SPDX-License-Identifier: Apache-2.0
"""Finds another Python on this machine: on the PATH, or among those that pyenv keeps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def find_python(versions: Sequence[str]) -> str | None:
    """A program that is Python of one of these versions.

    Args:
        versions: such as "3.8"; the first one that is there is taken.
    """
    found = (
        program
        for version in versions
        for program in _candidates(version)
        if _is_python(program, version)
    )
    return next(found, None)


def _candidates(version: str) -> Iterator[str]:
    name = f"python{version}"
    on_path = shutil.which(name)
    if on_path:
        yield on_path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for program in sorted(root.glob(f"versions/{version}.*/bin/{name}"), reverse=True):
        yield str(program)


def _is_python(program: str, version: str) -> bool:
    """Whether it runs: what pyenv puts on the PATH need not."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [program, "-c", code], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version
