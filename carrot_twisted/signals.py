# SPDX-License-Identifier: Apache-2.0
"""Facts that the package tells. Receivers are called with ``send_robust``: none can stop a task,
but for those of ``rows_enqueued``.

``task_started`` and ``task_finished`` are sent in the worker thread that runs the task.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Rows were inserted, in a transaction that may still be rolled back. What a receiver raises comes
#: out of the publishing call. ``rows``: MessageLogs, ``using``: database alias.
rows_enqueued = Signal()
#: Rows were committed and wait for the broker. ``rows``: MessageLogs, ``using``: database alias.
rows_committed = Signal()
#: A task's function is about to be called. ``sender``: dotted path, ``run``: execution.Run.
task_started = Signal()
#: A task's function has ended. ``sender``: dotted path, ``run``: execution.Run,
#: ``result``: outcomes.Result.
task_finished = Signal()
