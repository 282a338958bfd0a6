# SPDX-License-Identifier: Apache-2.0
"""The records, where Django looks for them: of tasks, schedules, services and people's actions.

And what was counted of them.

Every time that is compared with another is the database's clock.
"""

from __future__ import annotations

from carrot_twisted.attempt import Attempt
from carrot_twisted.begun_message import BegunMessage
from carrot_twisted.flow import Flow
from carrot_twisted.identities import message_id
from carrot_twisted.limit_state import LimitState

# message_id: the first migration names it here.
from carrot_twisted.message_log import MessageLog
from carrot_twisted.operator_action import OperatorAction
from carrot_twisted.paused_queue import PausedQueue
from carrot_twisted.rollups import QueueStatistics, TaskStatistics
from carrot_twisted.schedule_run import ScheduleRun
from carrot_twisted.scheduled_task import ScheduledTask
from carrot_twisted.worker import Worker

__all__ = [
    "Attempt",
    "BegunMessage",
    "Flow",
    "LimitState",
    "MessageLog",
    "OperatorAction",
    "PausedQueue",
    "QueueStatistics",
    "ScheduleRun",
    "ScheduledTask",
    "TaskStatistics",
    "Worker",
    "message_id",
]
