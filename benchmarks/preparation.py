# SPDX-License-Identifier: Apache-2.0
"""Has the peers that take part installed; one that cannot be is told, and left out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.contestants import SYSTEMS
from devtools.steps import StepFailed, say

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.options import Options
    from benchmarks.report import Report

#: By the key of the system that needs them.
PEERS = {"fedora": peers.FEDORA} | {s.key: s.peer for s in SYSTEMS.values() if s.peer is not None}


def prepare_peers(report: Report, log: Path) -> Options:
    """Install what is missing; return the options without those that are not to be had."""
    options = report.options
    left_out = set()
    for key in sorted(options.taking_part & PEERS.keys()):
        try:
            PEERS[key].prepare(log)
        except peers.NoPython as error:
            say(f"{error}, which is not here: it is left out.")
            report.facts[f"without {key}"] = f"{error}"
            left_out.add(key)
        except StepFailed as error:
            report.failures.append(f"{key} could not be installed: {error}")
            say(f"FAILED: {key} could not be installed: {error}")
            left_out.add(key)
    return replace(options, systems=tuple(s for s in options.systems if s not in left_out))
