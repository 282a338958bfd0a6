# SPDX-License-Identifier: Apache-2.0
"""The folder of source files that is indexed: what is in it, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

from django.conf import settings

# Installed packages live inside the standard library's folder, but are not part of it.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}


def root() -> Path:
    """The folder itself, without symbolic links in its path."""
    return Path(settings.SOURCE_ROOT).resolve()


def files() -> list[str]:
    """Every Python file below the root, as a relative path, sorted. Symbolic links are left out."""
    top = root()
    found = []
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        found += [p.relative_to(top).as_posix() for p in paths if not p.is_symlink()]
    return sorted(found)


def read(relative_path: str) -> bytes:
    """The content of one file.

    Raises:
        ValueError: the path leads out of the source root.
    """
    path = (root() / relative_path).resolve()
    if not path.is_relative_to(root()):
        raise ValueError(f"{relative_path} is outside of the source root {root()}.")
    return path.read_bytes()
