# SPDX-License-Identifier: Apache-2.0
"""What people do to one schedule: run it now, switch it on or off, delete it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router, transaction
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import OperatorAction, ScheduledTask
from carrot_twisted.monitor import access, schedule_times
from carrot_twisted.monitor.confirming import Confirmed, Question
from carrot_twisted.monitor.page import Action, back
from carrot_twisted.monitor.schedule_page import gone, read_now

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase


class ScheduleAction(Action):
    """One that is done to one schedule: ``schedule``."""

    permission: ClassVar[str] = access.SCHEDULE
    schedule: ScheduledTask

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer; where the schedule is gone, with the page that says so."""
        schedule = read_now(kwargs["pk"])
        if schedule is None:
            return gone(request)
        self.schedule = schedule
        return super().dispatch(request, *args, **kwargs)

    @property
    def url(self) -> str:
        """The page of the schedule."""
        return reverse("carrot-schedule", args=[self.schedule.pk])

    def returned(self, notice: str) -> HttpResponse:
        """Back to the list from which somebody acted, else to the page of the schedule."""
        url = self.request.GET.get("back", "")
        # A page of the monitor: nobody is to be led elsewhere.
        known = url.startswith(reverse("carrot-monitor"))
        if not known or not url_has_allowed_host_and_scheme(url, allowed_hosts=None):
            url = self.url
        return back(self.request, url, notice % {"name": self.schedule.task_name})


class ScheduleRun(ScheduleAction):
    """Publish its task once, now. When it is due next does not change."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        schedule = self.schedule
        try:
            with transaction.atomic(using=_using()):
                row = schedule.publish()
                OperatorAction.note(
                    request.user, "run schedule", f"{schedule.task_name} as {row.pk}"
                )
        except (ImportError, AttributeError) as error:
            raise InvalidMessage(f"{schedule.task_name} cannot run: {error}.") from None
        return self.returned(_("The task of %(name)s is published."))


class ScheduleOn(ScheduleAction):
    """Let it run."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        schedule = self.schedule
        if schedule_times.first(schedule) is None:
            raise InvalidMessage(
                _("%(name)s is over: no run is to come. Change when it runs, then switch it on.")
                % {"name": schedule.task_name}
            )
        _switch(schedule, request.user, active=True)
        return self.returned(_("%(name)s is switched on."))


class ScheduleOff(ScheduleAction):
    """Keep it from running, and leave it as it is."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        _switch(self.schedule, request.user, active=False)
        return self.returned(_("%(name)s is switched off."))


class ScheduleDelete(ScheduleAction, Confirmed):
    """Delete the row."""

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        text = _("It runs no more. Tasks that it has published stay. This cannot be undone.")
        if self.schedule.declaration:
            text = _(
                "The code declares it with @periodic_task: it is made again when a service starts. "
                "To keep it from running, switch it off instead."
            )
        return Question(
            title=_("Delete schedule %(name)s?") % {"name": self.schedule.task_name},
            text=text,
            button=_("Delete it"),
            cancel=self.url,
        )

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        name = self.schedule.task_name
        with transaction.atomic(using=_using()):
            self.schedule.delete()
            OperatorAction.note(request.user, "delete schedule", name)
        notice = _("Schedule %(name)s is deleted.") % {"name": name}
        return back(request, reverse("carrot-schedules"), notice)


def _using() -> str:
    return router.db_for_write(ScheduledTask)


def _switch(schedule: ScheduledTask, user: object, *, active: bool) -> None:
    with transaction.atomic(using=_using()):
        rows = ScheduledTask.objects.using(_using()).filter(pk=schedule.pk)
        if rows.exclude(active=active).update(active=active):
            word = "switch on schedule" if active else "switch off schedule"
            OperatorAction.note(user, word, schedule.task_name)
