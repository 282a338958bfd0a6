# SPDX-License-Identifier: Apache-2.0
"""The records, where Django looks for them: of tasks, schedules, services, and begun messages.

Every time that is compared with another is the database's clock.
"""

from __future__ import annotations

from carrot_twisted.begun_message import BegunMessage

# message_id: the first migration names it here.
from carrot_twisted.message_log import MessageLog, message_id
from carrot_twisted.scheduled_task import ScheduledTask
from carrot_twisted.worker import Worker

__all__ = ["BegunMessage", "MessageLog", "ScheduledTask", "Worker", "message_id"]
