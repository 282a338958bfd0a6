# SPDX-License-Identifier: Apache-2.0
"""Tasks that the tests publish."""

from __future__ import annotations


def noop() -> None:
    """Nothing."""
