# SPDX-License-Identifier: Apache-2.0
"""Task queue and message consumer for Django on RabbitMQ, run by Twisted."""

from __future__ import annotations

__version__ = "0.1.0"

#: The broker where no setting names one: a RabbitMQ on this machine, as it is after installing.
DEFAULT_BROKER = "amqp://guest:guest@localhost:5672/"
