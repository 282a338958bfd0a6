# SPDX-License-Identifier: Apache-2.0
"""As many handlers as the environment says, each with a queue of its own."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.settings import QUEUE
from carrot_twisted.handlers import message_handler

HANDLED = [
    f"{QUEUE}.handled.{number}" for number in range(int(os.environ.get("BENCHMARK_HANDLERS", "0")))
]


def handle(_body: Any) -> None:
    """Do nothing."""


for _name in HANDLED:
    message_handler(_name, log="all")(handle)
