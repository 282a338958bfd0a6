# SPDX-License-Identifier: Apache-2.0
"""The root of another Debian release with its RabbitMQ: how newer ones than this machine's are had.

Made once by debootstrap, in two minutes and 400 MB, and kept in the user's cache for all checkouts.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from devtools.machine import install
from devtools.rabbitmq import version_of
from devtools.steps import StepFailed, run_quietly, step

if TYPE_CHECKING:
    from collections.abc import Iterator

#: debootstrap's rules for all of Debian's present releases; this machine's may not know the names
#: of later ones.
RULES = "/usr/share/debootstrap/scripts/sid"


def cache() -> Path:
    """Where the roots are."""
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else Path.home() / ".cache"


def debian_root(release: str, *, log: Path) -> Path:
    """Return the root of a Debian release, for example trixie; make it if there is none.

    Raises:
        StepFailed: it cannot be made here; the text says why.
    """
    root = cache() / "carrot-twisted" / "debian" / release
    if version_of(root):
        return root
    _check_machine(release)
    with _alone(root):
        if not version_of(root):
            _make(root, release, log)
    return root


def _check_machine(release: str) -> None:
    if platform.freedesktop_os_release().get("ID") != "debian":
        problem = "this system is no Debian"
    elif os.geteuid() != 0:
        problem = "debootstrap and chroot need root: start it as root or with sudo"
    else:
        return
    raise StepFailed(f"RabbitMQ of Debian {release!r} cannot be had here: {problem}.")


def _make(root: Path, release: str, log: Path) -> None:
    """Make it beside its place, so that half a root is never taken for a whole one."""
    if shutil.which("debootstrap") is None:
        install(["debootstrap"], log=log)
    packages = root.with_name("packages")
    packages.mkdir(parents=True, exist_ok=True)
    unfinished = root.with_name(f"{release}.unfinished")
    with step(f"Fetching Debian {release} with its RabbitMQ into {root} (two minutes, 400 MB)"):
        shutil.rmtree(unfinished, ignore_errors=True)
        # The packages of an attempt that was interrupted are not fetched again.
        command = ["debootstrap", "--variant=minbase", f"--cache-dir={packages}"]
        command += ["--include=rabbitmq-server", release, str(unfinished), _mirror(), RULES]
        run_quietly(command, log=log)
        hosts = unfinished / "etc" / "hosts"
        if not hosts.exists():
            hosts.write_text("127.0.0.1 localhost\n")
        if version_of(unfinished) is None:
            raise StepFailed(f"Debian {release!r} was fetched, but has no RabbitMQ. See {log}.")
        unfinished.rename(root)
        shutil.rmtree(packages)


def _mirror() -> str:
    """The mirror of this machine's own packages."""
    template = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", template, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    release = platform.freedesktop_os_release().get("VERSION_CODENAME")
    for uri, codename, component in map(str.split, listed.splitlines()):
        if (codename, component) == (release, "main"):
            return uri
    raise StepFailed(f"The apt sources name no mirror of Debian {release!r}.")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep others, in other checkouts, from making the same root at the same time."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
