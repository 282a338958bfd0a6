# SPDX-License-Identifier: Apache-2.0
"""The records, where Django looks for them: one of each task, of each schedule, of each service.

And what was counted of them.

Every time that is compared with another is the database's clock.
"""

from __future__ import annotations

# message_id: the first migration names it here.
from carrot_twisted.attempt import Attempt
from carrot_twisted.message_log import MessageLog, message_id
from carrot_twisted.rollups import QueueStatistics, TaskStatistics
from carrot_twisted.scheduled_task import ScheduledTask
from carrot_twisted.worker import Worker

__all__ = [
    "Attempt",
    "MessageLog",
    "QueueStatistics",
    "ScheduledTask",
    "TaskStatistics",
    "Worker",
    "message_id",
]
