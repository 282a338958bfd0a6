# SPDX-License-Identifier: Apache-2.0
"""The list of schedules, by name."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.db.models import Q
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.monitor import schedule_times
from carrot_twisted.monitor.page import Page

if TYPE_CHECKING:
    from django.http import HttpRequest

ROWS = 50
#: So late a run is that should have been published.
LATE = timedelta(minutes=1)
STATES = {
    "": (_("All"), Q()),
    "active": (_("Active"), Q(active=True)),
    "off": (_("Off"), Q(active=False)),
    "problem": (_("With a problem"), ~Q(problem="")),
}


class ScheduleList(Page):
    """Pages of ROWS schedules: ``after`` is the last name of the page before."""

    template: ClassVar[str] = "schedule_list.html"
    section: ClassVar[str] = "carrot-schedules"

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Those of a state, whose name or task has a text in it."""
        state, text, after = (request.GET.get(name, "") for name in ("state", "q", "after"))
        state = state if state in STATES else ""
        # A database refuses texts with this.
        text, after = text.strip().replace("\0", ""), after.replace("\0", "")
        rows = ScheduledTask.objects.using(router.db_for_read(ScheduledTask))
        rows = rows.filter(STATES[state][1]).order_by("task_name")
        if text:
            rows = rows.filter(Q(task_name__icontains=text) | Q(task__icontains=text))
        if after:
            rows = rows.filter(task_name__gt=after)
        found = [*rows[: ROWS + 1]]
        shown = found[:ROWS]
        last = runs_of(shown)
        late = timezone.now() - LATE
        asked = {name: value for name, value in (("state", state), ("q", text)) if value}
        return {
            "rows": [
                {
                    "schedule": one,
                    "words": schedule_times.words(one),
                    "zone": schedule_times.zone_name(one) if one.cron else "",
                    "next": schedule_times.next_text(one),
                    "late": one.next_run_time is not None and one.next_run_time < late,
                    "log": last.get(one.last_log),
                }
                for one in shown
            ],
            "states": [
                (name, title, urlencode({**asked, "state": name}))
                for name, (title, _rows) in STATES.items()
            ],
            "state": state,
            "q": text,
            "first": urlencode(asked) if after else None,
            "next": urlencode({**asked, "after": shown[-1].task_name})
            if len(found) > ROWS
            else None,
        }


def runs_of(schedules: list[ScheduledTask]) -> dict[Any, MessageLog]:
    """The rows of their last runs by key, as far as they are there still."""
    keys = [one.last_log for one in schedules if one.last_log is not None]
    rows = MessageLog.objects.using(router.db_for_read(MessageLog))
    return {row.pk: row for row in rows.filter(pk__in=keys).only("pk", "status", "run_after")}
