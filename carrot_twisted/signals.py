# SPDX-License-Identifier: Apache-2.0
"""Facts that the package tells. Receivers are called with ``send_robust``: none can stop a task.

``task_started`` and ``task_finished`` are sent in the worker thread that runs the task.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Rows were committed and wait for the broker. ``rows``: MessageLogs, ``using``: database alias.
rows_committed = Signal()
#: A task's function is about to be called. ``sender``: dotted path, ``run``: execution.Run.
task_started = Signal()
#: A task's function has ended. ``sender``: dotted path, ``run``: execution.Run,
#: ``result``: outcomes.Result.
task_finished = Signal()
