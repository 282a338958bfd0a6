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
from typing import TYPE_CHECKING

from devtools.steps import run_quietly, step

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def prepare_peer(
    package: str,
    *requirements: str,
    log: Path,
    alone: Sequence[str] = (),
    python: str | None = None,
) -> None:
    """Have a package of others installed, in an environment of its own.

    Args:
        package: its name.
        requirements: the package with its version, and what else is wanted, as pip takes it.
        log: for pip's output.
        alone: more packages, installed without what they ask for.
        python: the program that makes the environment; None: this one.
    """
    folder = _peer_folder(package)
    wanted = _digest(sys.version, str(folder), *requirements, "alone", *alone, python or "")
    if not _is_current(package, wanted):
        with step(f"Installing {package} into an environment of its own"):
            run_quietly([python or sys.executable, "-m", "venv", "--clear", str(folder)], log=log)
            pip = [peer_python(package), "-m", "pip", "install", "--disable-pip-version-check"]
            run_quietly([*pip, *requirements], log=log)
            if alone:
                run_quietly([*pip, "--no-deps", *alone], log=log)
            _stamp(package).write_text(wanted)


def peer_python(package: str) -> str:
    """The Python of that package's environment."""
    return str(_peer_folder(package) / "bin" / "python")


def peer_program(package: str) -> str:
    """The program of that package that has its name."""
    return str(_peer_folder(package) / "bin" / package)


def peer_version(peer: str, package: str | None = None) -> str | None:
    """The version of a package in the environment of a peer; None: it is not installed.

    Args:
        peer: whose environment.
        package: which package; None: the one of that name.
    """
    folders = _peer_folder(peer).glob("lib/python*/site-packages")
    found = distributions(name=package or peer, path=[str(folder) for folder in folders])
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
