# SPDX-License-Identifier: Apache-2.0
"""The handler."""

from __future__ import annotations

from typing import Any

from benchmarks.settings import QUEUE
from benchmarks.tally import Tally
from carrot_twisted.handlers import message_handler

_tally = Tally.of_environment()


@message_handler(QUEUE)
def handle(body: Any) -> None:
    """Count the message."""
    _tally.handled(body["number"])
