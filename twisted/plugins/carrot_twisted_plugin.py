# SPDX-License-Identifier: Apache-2.0
"""Makes ``twistd carrot`` known. Imports nothing else: an error in the package shows as itself."""

from __future__ import annotations

from twisted.application.service import ServiceMaker

carrot = ServiceMaker(
    "carrot",
    "carrot_twisted.tap",
    "Runs a Django project's tasks from RabbitMQ.",
    "carrot",
)
