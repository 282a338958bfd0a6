# SPDX-License-Identifier: Apache-2.0
"""The page of one schedule, and those on which one is made or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import IntegrityError, router, transaction
from django.db.models.functions import Left
from django.urls import reverse
from django.utils.translation import gettext as _

from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import MessageLog, OperatorAction, ScheduledTask, ScheduleRun
from carrot_twisted.monitor import access, redaction, registered_tasks, schedule_times
from carrot_twisted.monitor.page import Page, back, is_partial, refusal, rendered
from carrot_twisted.monitor.schedule_form import ScheduleForm, differences, version_of

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

    from carrot_twisted.monitor.schedule_times import Plan

#: Runs that the page of a schedule shows.
RUNS = 20
#: Characters of an exception there.
MAX_EXCEPTION = 200
_OF_RUN = ("status", "publish_time", "start_time", "completion_time", "failure_time")


def gone(request: HttpRequest) -> HttpResponse:
    """The page of a schedule that is not there."""
    text = _("There is no such schedule any more: somebody has deleted it, or its code is gone.")
    return refusal(request, text, 404)


def read_now(pk: int) -> ScheduledTask | None:
    """The schedule as it is now, also where pages are read from a replica."""
    return ScheduledTask.objects.using(router.db_for_write(ScheduledTask)).filter(pk=pk).first()


class SchedulePage(Page):
    """When it runs, what it publishes, how the last run went."""

    template: ClassVar[str] = "schedule_page.html"
    section: ClassVar[str] = "carrot-schedules"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show it; a page that says so where it is gone."""
        # Not from a replica: people come here from the form.
        schedule = read_now(kwargs["pk"])
        return gone(request) if schedule is None else self.render(self.context(request, schedule))

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All of one schedule."""
        schedule: ScheduledTask = args[0]
        is_planned = schedule.active and not schedule.problem
        row = MessageLog.new(
            task=schedule.task, task_args=schedule.task_args, content=schedule.content
        )
        rows = MessageLog.objects.using(router.db_for_read(MessageLog))
        last = schedule.last_log
        known = ScheduleRun.objects.using(rows.db).filter(schedule=schedule.pk)
        runs = list(known.order_by("-pk")[:RUNS])
        found = rows.filter(pk__in=[run.message for run in runs])
        by_key = found.only(*_OF_RUN).annotate(error=Left("exception", MAX_EXCEPTION)).in_bulk()
        return {
            "schedule": schedule,
            "plan": schedule_times.plan(schedule, schedule.next_run_time if is_planned else None),
            "next": schedule_times.next_text(schedule),
            "positional": redaction.positional_text(row),
            "keywords": redaction.keyword_text(row),
            "runs": [(run, by_key.get(run.message)) for run in runs],
            "row": None if last is None else rows.filter(pk=last).defer("log", "output").first(),
        }


class _Editor(Page):
    """A form, with the plan beside it that follows from what is typed."""

    template: ClassVar[str] = "schedule_editor.html"
    section: ClassVar[str] = "carrot-schedules"
    live: ClassVar[bool] = False
    permission: ClassVar[str] = access.SCHEDULE

    def show(self, form: ScheduleForm, status: int = 200, **context: Any) -> HttpResponse:
        """The page with the form in it."""
        if is_partial(self.request):
            # Somebody types.
            shown = {**_preview(form), "faults": form.faults(), "form": form, "partial": True}
            return rendered(self.request, "schedule_preview.html", shown)
        schedule = form.instance
        shown = {
            "form": form,
            "schedule": schedule,
            "version": version_of(schedule) if schedule.pk else "",
            "here": self.request.get_full_path(),
            "cancel": reverse("carrot-schedule", args=[schedule.pk])
            if schedule.pk
            else reverse("carrot-schedules"),
            **_preview(form),
            **context,
        }
        return self.render(shown, status)


class ScheduleNew(_Editor):
    """A schedule that is not there yet."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """A form to fill in."""
        # Not the model's every second: whoever forgets this field would get a flood.
        instance = ScheduledTask(interval_count=5, interval_type="minutes")
        return self.show(ScheduleForm(instance=instance))

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Save it, or show what it would do."""
        form = ScheduleForm(request.POST)
        if is_partial(request) or "preview" in request.POST or not form.is_valid():
            return self.show(form)
        try:
            with transaction.atomic(using=router.db_for_write(ScheduledTask)):
                schedule = form.save()
                OperatorAction.note(request.user, "create schedule", schedule.task_name)
        except IntegrityError:
            form.add_error("task_name", _("Somebody has just taken this name."))
            return self.show(form)
        notice = _("%(name)s is a schedule now.") % {"name": schedule.task_name}
        return back(request, reverse("carrot-schedule", args=[schedule.pk]), notice)


class ScheduleEdit(_Editor):
    """A schedule that is there, and may have been changed since the form was opened."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The form with what the schedule is now."""
        schedule = read_now(kwargs["pk"])
        return gone(request) if schedule is None else self.show(ScheduleForm(instance=schedule))

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Save it, unless somebody else has changed it; or show what it would do."""
        pk, opened = kwargs["pk"], request.POST.get("version", "")
        schedule = read_now(pk)
        if schedule is None:
            return self._lost(ScheduleForm(request.POST))
        form = ScheduleForm(request.POST, instance=schedule)
        if is_partial(request) or "preview" in request.POST or not form.is_valid():
            return self.show(form, version=opened)
        using = router.db_for_write(ScheduledTask)
        try:
            with transaction.atomic(using=using):
                rows = ScheduledTask.objects.using(using).select_for_update()
                current = rows.filter(pk=pk).first()
                if current is None:
                    return self._lost(ScheduleForm(request.POST))
                others = differences(form, current)
                if version_of(current) != opened:
                    return self.show(form, 409, version=version_of(current), others=others)
                form.save()
                changed = ", ".join(str(label) for label, _value in others)
                target = f"{current.task_name}: {changed}" if changed else current.task_name
                OperatorAction.note(request.user, "change schedule", target)
        except IntegrityError:
            form.add_error("task_name", _("Somebody has just taken this name."))
            return self.show(form, version=opened)
        notice = _("%(name)s is changed.") % {"name": schedule.task_name}
        return back(request, reverse("carrot-schedule", args=[pk]), notice)

    def _lost(self, form: ScheduleForm) -> HttpResponse:
        """What was typed, as a schedule that can be made anew."""
        form.is_valid()
        return self.show(form, 409, lost=True, here=reverse("carrot-schedule-new"))


def _preview(form: ScheduleForm) -> dict[str, Any]:
    """What the form would do, as far as it says."""
    if form.is_bound and not form.says_when:
        return {"plan": None, "call": ""}
    schedule = form.instance
    return {"plan": _plan(form), "call": registered_tasks.call_of(schedule.task)}


def _plan(form: ScheduleForm) -> Plan | None:
    schedule = form.instance
    try:
        is_new = form.is_replanned
        start = schedule_times.first(schedule) if is_new else schedule.next_run_time
    except CarrotError:
        return None
    return schedule_times.plan(schedule, start)
