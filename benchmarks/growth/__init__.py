# SPDX-License-Identifier: Apache-2.0
"""Whether speed and memory stay as they are while rows, backlogs, queues and schedules grow."""
