# SPDX-License-Identifier: Apache-2.0
"""The list of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from carrot_twisted.models import MessageLog
from carrot_twisted.monitor.page import Page

if TYPE_CHECKING:
    from django.http import HttpRequest

ROWS = 50


class TaskList(Page):
    """All tasks, the newest first."""

    template: ClassVar[str] = "task_list.html"
    section: ClassVar[str] = "carrot-tasks"

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The first rows."""
        return {"rows": MessageLog.objects.order_by("-pk")[:ROWS]}
