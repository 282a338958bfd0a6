# SPDX-License-Identifier: Apache-2.0
"""What the machine needs from its distribution, and how it gets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from devtools.servers import find_missing
from devtools.steps import StepFailed, run_quietly, say, step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# A package that brings a service starts it at once. policy-rc.d is Debian's way to say no; a
# machine that has one already has its own opinion, and keeps it.
INSTALL = """\
trap '' HUP INT TERM  # half an installation helps nobody
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    cat > "$policy" <<'POLICY'
#!/bin/sh
# Written by run.py of carrot-twisted while it installs packages. If that is over, delete this.
exit 101
POLICY
    chmod 755 "$policy"
fi
apt-get update || echo 'Some package lists could not be fetched; going on with what is there.'
apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "$@"
"""

EXISTING_SERVERS = """\
Servers that already run can be used instead:
    CARROT_BROKER_URL=amqp://user:password@host:5672/vhost
    CARROT_DATABASE_URL=postgres://user:password@host:5432/name   (tests and benchmark)"""
#: Packages of those servers; of another one there is no way around.
WITH_URLS = {"rabbitmq-server", "postgresql"}


def prepare_machine(
    *, rabbitmq: bool, postgresql: bool, log: Path, redis: bool = False, tools: bool = False
) -> None:
    """Install the distribution's packages that are missing."""
    wanted = {"rabbitmq": rabbitmq, "postgresql": postgresql, "redis": redis, "tools": tools}
    missing = find_missing(**wanted)
    if not missing:
        return
    install(missing, log=log)
    still_missing = find_missing(**wanted)
    if still_missing:
        raise StepFailed(f"Installed, but not found: {', '.join(still_missing)}. See {log}.")


def install(packages: Sequence[str], *, log: Path) -> None:
    """Install packages of the distribution.

    Raises:
        StepFailed: that is not possible here; the text says what an administrator can do.
    """
    root = _root_prefix(packages)
    with step(f"Installing {', '.join(packages)} (a few minutes; no service is started)"):
        run_quietly([*root, "sh", "-c", INSTALL, "sh", *packages], log=log)


def _root_prefix(missing: Sequence[str]) -> list[str]:
    """Return what makes a command run as root: nothing, or sudo. Raise if there is no way."""
    names = " ".join(missing)
    way_around = f"\n{EXISTING_SERVERS}" if WITH_URLS & {*missing} else ""
    if shutil.which("apt-get") is None:
        raise StepFailed(
            f"Please install what these Debian packages hold: {names}. "
            f"This system has no apt-get, so it cannot be done for you.{way_around}"
        )
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        if sys.stdin.isatty():
            say(f"These packages are missing: {names}. Installing them needs your password.")
        # Without a terminal nobody could type a password: -n fails at once then.
        ask = ["sudo", "-v"] if sys.stdin.isatty() else ["sudo", "-n", "true"]
        if subprocess.run(ask, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return ["sudo", "-n"]
    raise StepFailed(
        "Some packages are missing, and installing them needs root or sudo. "
        "Please have an administrator run\n"
        f"    apt-get update && apt-get install --yes {names}\n"
        f"and start this again.{way_around}"
    )
