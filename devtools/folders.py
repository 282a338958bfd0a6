# SPDX-License-Identifier: Apache-2.0
"""A temporary folder that servers of another user can reach."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_to_all(folder: Path) -> bool:
    """True if any user may pass through this folder to what lies in it."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


@contextmanager
def temporary_folder(prefix: str = "carrot-") -> Iterator[Path]:
    """Give a folder of its own to this run, and delete it in the end.

    PostgreSQL refuses to run as root and must be another user then. That user has to reach its
    data, so the folder can be passed through (not listed), unlike those of `tempfile` and pytest.
    """
    parents = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    parent = next((each for each in parents if each.is_dir() and open_to_all(each)), parents[0])
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        yield folder
