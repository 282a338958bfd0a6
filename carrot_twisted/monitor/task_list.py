# SPDX-License-Identifier: Apache-2.0
"""The lists of tasks: by state, filtered and searched, a page at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.db.models import Case, TextField, When
from django.db.models.functions import Left, Length
from django.http import HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from carrot_twisted import conf
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.monitor import access, keyset, many_tasks
from carrot_twisted.monitor.page import Page, is_partial, rendered
from carrot_twisted.monitor.redaction import MAX_READ, shown_arguments
from carrot_twisted.monitor.task_filter import NEWEST, OLDEST, STATES, TaskFilter

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

    from carrot_twisted.message_log_set import MessageLogQuerySet
    from carrot_twisted.monitor.keyset import Found, Position

#: Rows of a page.
ROWS = 50
#: Tabs count up to here.
MANY = 10_000
#: Seconds of a search that goes on by itself, on a page that is already there.
FURTHER_BUDGET = 0.5
#: Newest rows whose tasks and queues the filter bar offers.
OFFERED = 300
#: Characters of an exception that are read for a list.
MAX_EXCEPTION = 300
#: Stands for the place of a page's first row until one is found.
UNKNOWN = "-"
#: What each list shows beside the task, its arguments and its queue.
COLUMNS = {
    "all": {"state", "waited", "ran", "attempts"},
    "queued": {"state", "priority", "attempts"},
    "running": {"priority", "worker", "waited", "attempts"},
    "failed": {"exception", "waited", "ran", "attempts"},
    "completed": {"waited", "ran", "attempts"},
    "cancelled": {"exception", "priority"},
}
#: The head of the column with the list's time.
TIMES = {
    "publish_time": _("Published"),
    "start_time": _("Started"),
    "failure_time": _("Failure time"),
    "completion_time": _("Completion time"),
}
_SHOWN = (
    *("pk", "status", "task", "queue", "priority", "attempts", "worker"),
    *("publish_time", "start_time", "completion_time", "failure_time", "run_after"),
    *("cancel_request", "progress", "waits_for"),
)


class TaskList(Page):
    """One page of one list."""

    template: ClassVar[str] = "task_list.html"
    section: ClassVar[str] = "carrot-tasks"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the page; the task itself for its id; the next part of a search for its page."""
        form = TaskFilter(request.GET)
        key = form.key
        if key is not None and MessageLog.objects.filter(pk=key).exists():
            return HttpResponseRedirect(reverse("carrot-task", args=[key]))
        if is_partial(request) and "found" in request.GET:
            return rendered(request, "task_more.html", self.further(form))
        return super().get(request, *args, **kwargs)

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The rows, and what is around them."""
        form = TaskFilter(request.GET)
        context = self.page(form)
        if not is_partial(request):
            context |= {"form": form, **_offers(form)}
        return context

    def page(self, form: TaskFilter) -> dict[str, Any]:
        """The live part."""
        using = router.db_for_read(MessageLog)
        before = keyset.position(form.data.get("before", ""), using)
        after = keyset.position(form.data.get("after", ""), using)
        if before is not None:
            found = _find(form, ROWS, before, keyset.BUDGET, backwards=True)
            if found.position is not None:
                return self.shown(form, found, before, backwards=True)
            # So near to the beginning that the first page is meant.
            after = None
        return self.shown(form, _find(form, ROWS, after, keyset.BUDGET), after)

    def further(self, form: TaskFilter) -> dict[str, Any]:
        """More of a page whose first part is there."""
        using = router.db_for_read(MessageLog)
        after = keyset.position(form.data.get("after", ""), using)
        already, looked = (_number(form.data.get(name, "")) for name in ("found", "looked"))
        limit = max(ROWS - already, 1)
        found = _find(form, limit, after, FURTHER_BUDGET)
        return self.shown(
            form, found, after, already=already, looked=looked, top=form.data.get("top", "")
        )

    def shown(
        self,
        form: TaskFilter,
        found: Found,
        at: Position | None,
        *,
        backwards: bool = False,
        already: int = 0,
        looked: int = 0,
        top: str | None = None,
    ) -> dict[str, Any]:
        """What the templates show of what was found.

        Args:
            form: the filter.
            found: the page, or what there is of it.
            at: where it begins; None: at the beginning of the list.
            backwards: it was looked for from ``at`` towards the beginning.
            already: how many rows of this page were shown before.
            looked: through how many rows the search went before.
            top: what was shown before: UNKNOWN, or where the first row of the page stands; "": the
                page begins with the list. None: nothing was.
        """
        time = keyset.LISTINGS[form.listing].time or "publish_time"
        deeds = many_tasks.deeds(form.listing)
        rows = found.rows[::-1] if backwards else found.rows
        looked += found.looked
        if top is None:
            top = UNKNOWN if at is not None else ""
        if top == UNKNOWN and rows:
            top = str(keyset.place_of(rows[0]))
        # From either end of what is shown; what is left to look through is beyond that.
        start, end = top, found.position
        if backwards:
            start = "" if end is None else str(end)
            end = keyset.place_of(rows[-1]) if rows else None
        context = {
            "rows": [_for_template(row, time) for row in rows],
            "found": already + len(rows),
            "time_title": TIMES[time],
            "shows": dict.fromkeys(COLUMNS[form.listing], True),
            "listing": form.listing,
            "is_filtered": form.is_filtered,
            "first": form.address() if top else None,
            "previous": form.address(before=start) if start not in ("", UNKNOWN) else None,
            "next": form.address(after=str(end)) if end is not None else None,
            "looked": looked,
            "unfinished": None,
            "tabs": _tabs(form),
            "deeds": deeds,
            "selects": deeds and access.may(self.request, access.ACT),
            "address": form.address(
                after=form.data.get("after", ""), before=form.data.get("before", "")
            ),
            "filter": form.address(),
            # What is put together in parts would begin anew each time.
            "live": found.is_full and form.is_valid(),
        }
        if not found.is_full and found.position is not None:
            where = "before" if backwards else "after"
            on = {where: str(found.position)}
            so_far = {"found": str(context["found"]), "looked": str(looked), "top": top}
            context["unfinished"] = {
                "until": found.position.when,
                "address": form.address(**on),
                "further": None if backwards else form.address(**on, **so_far),
            }
        return context


def _find(
    form: TaskFilter,
    limit: int,
    after: Position | None,
    budget: float,
    *,
    backwards: bool = False,
) -> Found:
    query = form.query.backwards if backwards else form.query
    return keyset.find(query, limit, after=after, budget=budget, prepare=_for_list)


def _for_list(rows: MessageLogQuerySet) -> MessageLogQuerySet:
    """Load what a list shows: arguments may be large, results and logs even more so."""
    rows = rows.annotate(size=Length("task_args") + Length("content"))
    read = {
        f"read_{name}": Case(
            When(size__lte=MAX_READ, then=name),
            default=Left(name, 1),
            output_field=TextField(),
        )
        for name in ("task_args", "content")
    }
    return rows.only(*_SHOWN).annotate(**read, error=Left("exception", MAX_EXCEPTION))


def _for_template(row: Any, time: str) -> MessageLog:
    row.time = getattr(row, time)
    module, dot, row.function = row.task.rpartition(".")
    row.module = module + dot
    row.task_args, row.content = row.read_task_args, row.read_content
    if row.size > MAX_READ:
        row.arguments = gettext("… (%(size)s characters)") % {"size": row.size}
    else:
        row.arguments = shown_arguments(row)
    return row  # type: ignore[no-any-return]


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0


def _tabs(form: TaskFilter) -> list[dict[str, Any]]:
    tabs = []
    for name, title in STATES:
        counted = None
        # What they would count are not the rows that the filter leaves.
        if not form.is_filtered:
            counted = keyset.count(keyset.Query(listing=name), MANY)
        address = form.address(state="" if name == "all" else name)
        tabs.append({"name": name, "title": title, "address": address, "counted": counted})
    return tabs


def _offers(form: TaskFilter) -> dict[str, Any]:
    """What the filter bar offers to choose from."""
    seen = keyset.sample(form.listing, OFFERED, "task", "queue")
    return {
        "tasks": sorted({task for task, _queue in seen}),
        "queues": sorted({*conf.current().queues, *(queue for _task, queue in seen)}),
        "workers": Worker.objects.order_by("name").values_list("name", flat=True)[:100],
        "zone": timezone.get_current_timezone_name(),
        "orders": ((NEWEST, _("Newest first")), (OLDEST, _("Oldest first"))),
    }
