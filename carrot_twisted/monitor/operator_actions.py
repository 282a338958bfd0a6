# SPDX-License-Identifier: Apache-2.0
"""Who did what in the monitor, the newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router

from carrot_twisted.models import OperatorAction
from carrot_twisted.monitor.page import Page

if TYPE_CHECKING:
    from django.http import HttpRequest

ROWS = 100


class OperatorActions(Page):
    """Pages of ROWS actions: ``before`` is the number of the last one on the page before."""

    template: ClassVar[str] = "operator_actions.html"
    section: ClassVar[str] = "carrot-actions"

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Those before the one that is given, or the newest."""
        rows = OperatorAction.objects.using(router.db_for_read(OperatorAction)).order_by("-pk")
        before = request.GET.get("before", "")
        if before.isdecimal() and len(before) < 19:
            rows = rows.filter(pk__lt=int(before))
        found = list(rows[: ROWS + 1])
        more = len(found) > ROWS
        return {"rows": found[:ROWS], "before": found[ROWS - 1].pk if more else None}
