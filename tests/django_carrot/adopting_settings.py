# SPDX-License-Identifier: Apache-2.0
"""The tests' project in the middle of its move: old publishers, new service."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import CARROT as _CARROT

CARROT = {
    **_CARROT,
    "queues": [
        {
            "name": "default",
            "concurrency": 4,
            "consumer_class": "carrot_twisted.adopting.AdoptingConsumer",
        }
    ],
}
