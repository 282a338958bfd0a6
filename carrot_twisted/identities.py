# SPDX-License-Identifier: Apache-2.0
"""Keys that nobody else has, made without asking anybody."""

from __future__ import annotations

import os
import random
import time
import uuid


def message_id() -> uuid.UUID:
    """A new time-ordered UUID (version 7): rows of one time stand together in the index.

    To a quarter of a microsecond, so that those made one after another are in order.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    noise = int.from_bytes(os.urandom(8), "big")
    return uuid.UUID(
        int=(milliseconds & 0xFFFFFFFFFFFF) << 80
        | 0x7 << 76
        | (rest * 0x1000 // 1_000_000) << 64
        | 0b10 << 62
        | noise & 0x3FFFFFFFFFFFFFFF
    )


def new_token() -> int:
    """Tells one batch of messages, or of runs, from all others."""
    return random.getrandbits(62)
