# SPDX-License-Identifier: Apache-2.0
"""The callbacks: both read the body, count the message, and do nothing else."""

from __future__ import annotations

from typing import Any

from benchmarks.tally import Tally

_tally = Tally.of_environment()


def carrot(message: Any) -> None:
    """Called by carrot-twisted."""
    _tally.handled(message.content["number"])


def fedora(message: Any) -> None:
    """Called by fedora-messaging."""
    _tally.handled(message.body["number"])
