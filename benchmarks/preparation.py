# SPDX-License-Identifier: Apache-2.0
"""Has the peers that take part installed; one that cannot be is told, and left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.contestants import SYSTEMS
from devtools.steps import StepFailed, say

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: By the key of the system that needs them.
PEERS = {"fedora": peers.FEDORA} | {s.key: s.peer for s in SYSTEMS.values() if s.peer is not None}


def left_out(
    systems: Iterable[str], *, log: Path, facts: dict[str, str], failures: list[str]
) -> set[str]:
    """Install what is missing; return those of the systems that are not to be had.

    Args:
        systems: those that take part.
        log: for the programs that install.
        facts: is told what this machine cannot have.
        failures: is told what has failed.
    """
    missing = set()
    for key in sorted(PEERS.keys() & set(systems)):
        try:
            PEERS[key].prepare(log)
        except peers.NotHere as error:
            say(f"{error}, which is not here: it is left out.")
            facts[f"without {key}"] = f"{error}"
            missing.add(key)
        except StepFailed as error:
            failures.append(f"{key} could not be installed: {error}")
            say(f"FAILED: {key} could not be installed: {error}")
            missing.add(key)
    return missing
