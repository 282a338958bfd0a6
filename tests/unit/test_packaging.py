# SPDX-License-Identifier: Apache-2.0
"""What is released does not depend on when, where and by whom it is built."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from devtools.package import compare, settled
from devtools.steps import StepFailed

if TYPE_CHECKING:
    from pathlib import Path

MOMENT = 1_700_000_000
CONTENT = {"name-1/setup.py": b"setup()", "name-1/name/__init__.py": b"", "name-1/run": b"#!"}


def sdist(names: list[str], *, at: int, user: str, umask: int) -> bytes:
    """As somebody might have built it."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(CONTENT[name]), at
            member.uname = member.gname = user
            member.uid = member.gid = len(user)
            member.mode = (0o777 if name.endswith("run") else 0o666) & ~umask
            archive.addfile(member, io.BytesIO(CONTENT[name]))
    return result.getvalue()


def test_an_sdist_is_the_same_whoever_builds_it() -> None:
    one = settled(sdist([*CONTENT], at=1, user="ann", umask=0o022), MOMENT)
    other = settled(sdist([*reversed(CONTENT)], at=2, user="robert", umask=0o077), MOMENT)
    assert one == other
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        read = {name: file.read() for name, file in found.items() if file is not None}
        assert read == CONTENT
        members = {member.name: member for member in archive}
    assert {member.mtime for member in members.values()} == {MOMENT}
    assert members["name-1/run"].mode == 0o755
    assert members["name-1/setup.py"].mode == 0o644


def test_builds_that_differ_are_no_release(tmp_path: Path) -> None:
    files = []
    for folder, content in (("one", b"1"), ("other", b"2")):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "name-1.tar.gz")
        files[-1].write_bytes(content)
    compare(files[:1], files[:1])
    with pytest.raises(StepFailed, match=r"name-1\.tar\.gz .* differ"):
        compare(files[:1], files[1:])
