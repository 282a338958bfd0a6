# SPDX-License-Identifier: Apache-2.0
"""The flow that a task is a part of, as the task's page shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import router
from django.utils.translation import gettext

from carrot_twisted.models import Flow

if TYPE_CHECKING:
    from uuid import UUID

    from carrot_twisted.flow import StepProgress

#: Steps that are shown before and after the one that the flow is at.
BEFORE, AFTER = 20, 30


def of_flow(key: UUID) -> dict[str, Any] | None:
    """What a page shows of a flow; None: its row is gone."""
    flow = Flow.objects.using(router.db_for_read(Flow)).defer("plan").filter(pk=key).first()
    if flow is None:
        return None
    first = max(flow.step - BEFORE, 0)
    try:
        steps = flow.progress()[first : flow.step + AFTER]
    except (ValueError, TypeError, LookupError):
        # Somebody has written into the row.
        steps = []
    return {
        "pk": flow.pk,
        "state": flow.get_status_display(),
        "error": flow.error,
        "number": flow.step + 1,
        "count": len(flow.shape),
        "steps": [_shown(one) for one in steps],
    }


def _shown(one: StepProgress) -> dict[str, Any]:
    return {
        "number": one.number,
        "task": one.step.task or gettext("no task"),
        "size": one.step.size,
        "done": one.done,
        "failed": one.failed,
        "percent": one.percent,
        "only": one.only,
        "kind": _kind(one),
    }


def _kind(one: StepProgress) -> str:
    """How the time line's signs show it."""
    if one.failed:
        return "bad"
    if one.completed == one.step.size:
        return "good"
    return "running" if one.running or one.done else "waiting"
