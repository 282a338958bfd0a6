# SPDX-License-Identifier: Apache-2.0
"""Builds what is released, the sdist and the wheel, twice: both times the same bytes must come out.

Each time from another folder, of what is committed, with the commit's time. So anybody who has the
commit can build the files again, and compare them with those that were released.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from devtools.environment import PYTHON, TOP
from devtools.steps import StepFailed, run_quietly, say, step

DIST = TOP / "dist"


def release(log: Path) -> None:
    """Build, check, and leave the files in ``dist/``.

    Args:
        log: of the programs that are run.

    Raises:
        StepFailed: one of them failed, or two builds differ.
    """
    moment = _output("git", "log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        with step("Building what is committed"):
            files = built(Path(first), moment, log)
        with step("Building it again, elsewhere"):
            again = built(Path(second) / "deeper", moment, log)
        compare(files, again)
        with step("Checking what they say about themselves"):
            check = [str(PYTHON), "-m", "twine", "check", "--strict"]
            run_quietly([*check, *map(str, files)], log=log)
        DIST.mkdir(exist_ok=True)
        for file in files:
            content = file.read_bytes()
            (DIST / file.name).write_bytes(content)
            say(f"{hashlib.sha256(content).hexdigest()}  dist/{file.name}")


def built(folder: Path, moment: str, log: Path) -> list[Path]:
    """The sdist of what is committed, and the wheel that is made of that.

    Args:
        folder: to work in.
        moment: seconds since 1970 that all files in them are said to be of.
        log: of the programs that are run.
    """
    sources, output = folder / "sources", folder / "output"
    sources.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=TOP, stdout=subprocess.PIPE, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as committed:
        committed.extractall(sources, filter="data")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": moment}
    build = [str(PYTHON), "-m", "build", "--no-isolation", "--outdir", str(output)]
    run_quietly([*build, str(sources)], log=log, environment=environment)
    (sdist,) = output.glob("*.tar.gz")
    sdist.write_bytes(settled(sdist.read_bytes(), int(moment)))
    (wheel,) = output.glob("*.whl")
    return [sdist, wheel]


def settled(sdist: bytes, moment: int) -> bytes:
    """An sdist without what differs from build to build: times, owners, the order of files.

    setuptools heeds SOURCE_DATE_EPOCH in wheels only.
    """
    result = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as old,
        gzip.GzipFile(fileobj=result, mode="wb", mtime=moment, filename="") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.pax_headers = moment, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return result.getvalue()


def compare(files: list[Path], again: list[Path]) -> None:
    """Raise unless both builds made the same.

    Raises:
        StepFailed: they did not.
    """
    for one, other in zip(files, again, strict=True):
        if (one.name, one.read_bytes()) != (other.name, other.read_bytes()):
            raise StepFailed(f"Two builds of {one.name} from the same commit differ.")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout
