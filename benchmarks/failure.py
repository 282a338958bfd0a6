# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a benchmark."""

from __future__ import annotations


class BenchmarkFailed(Exception):
    """A number cannot be trusted, or there is none; the text says why."""
