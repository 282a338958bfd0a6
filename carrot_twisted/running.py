# SPDX-License-Identifier: Apache-2.0
"""What a task can ask, and tell, of the run that it is: known by a context variable."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

#: The run of this thread, or of this coroutine; see ``execution.Run``.
current: ContextVar[Any] = ContextVar("carrot_run", default=None)
