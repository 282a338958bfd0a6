# SPDX-License-Identifier: Apache-2.0
"""The virtual environment in the checkout, made once and again when setup.py changes.

Programs of others that pin what we use, too, get environments of their own inside it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.metadata import distributions
from pathlib import Path

from devtools.steps import run_quietly, step

TOP = Path(__file__).resolve().parent.parent
VENV = TOP / ".venv"
PYTHON = VENV / "bin" / "python"


def prepare_environment(extras: str, *, log: Path) -> None:
    """Have the package with these extras installed, editable, in the environment."""
    # A moved checkout or another Python makes the whole environment useless.
    base = _digest(sys.version, sys.base_prefix, str(VENV))
    if not _is_current("base", base):
        with step(f"Making the virtual environment {VENV}"):
            run_quietly([sys.executable, "-m", "venv", "--clear", str(VENV)], log=log)
            _stamp("base").write_text(base)
    wanted = _digest(base, extras, (TOP / "setup.py").read_text(encoding="utf-8"))
    if not _is_current(extras, wanted):
        what = f".[{extras}]" if extras else "."
        pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
        with step(f"Installing {what} and what it needs with pip"):
            run_quietly([*pip, "--editable", f"{TOP}{what[1:]}"], log=log)
            _stamp(extras).write_text(wanted)


def prepare_peer(package: str, requirement: str, *, log: Path) -> None:
    """Have a package of others installed, in an environment of its own.

    Args:
        package: its name.
        requirement: the package with its version, as pip takes it.
        log: for pip's output.
    """
    folder = _peer_folder(package)
    wanted = _digest(sys.version, str(folder), requirement)
    if not _is_current(package, wanted):
        with step(f"Installing {requirement} into an environment of its own"):
            run_quietly([sys.executable, "-m", "venv", "--clear", str(folder)], log=log)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", requirement]
            run_quietly([*pip, "--disable-pip-version-check"], log=log)
            _stamp(package).write_text(wanted)


def peer_program(package: str) -> str:
    """The program of that package that has its name."""
    return str(_peer_folder(package) / "bin" / package)


def peer_version(package: str) -> str | None:
    """The version of that package; None: it is not installed."""
    folders = _peer_folder(package).glob("lib/python*/site-packages")
    found = distributions(name=package, path=[str(folder) for folder in folders])
    return next((one.version for one in found), None)


def environment_variables(**more: str) -> dict[str, str]:
    """Return what a program of the environment is started with."""
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    active = {"PATH": path, "VIRTUAL_ENV": str(VENV), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **active, **more}


def _peer_folder(package: str) -> Path:
    return VENV / "peers" / package


def _stamp(name: str) -> Path:
    return VENV / f"installed-{name or 'plain'}"


def _is_current(name: str, digest: str) -> bool:
    return _stamp(name).exists() and _stamp(name).read_text() == digest


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
