# SPDX-License-Identifier: Apache-2.0
"""What people do to one task: have it run again, keep it from running, delete its row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import router, transaction
from django.urls import reverse
from django.utils.translation import gettext as _

from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.flow import kept_for_flows
from carrot_twisted.models import MessageLog, OperatorAction
from carrot_twisted.monitor.confirming import Confirmed, Question
from carrot_twisted.monitor.page import Action, back, refusal
from carrot_twisted.monitor.task_page import gone

if TYPE_CHECKING:
    from uuid import UUID

    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase


class TaskAction(Action):
    """One that is done to one row: ``row``."""

    row: MessageLog

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer; where the row is gone, with the page that says so."""
        # As it is now, also where pages are read from a replica.
        row = MessageLog.objects.using(_using()).filter(pk=kwargs["pk"]).first()
        if row is None:
            return gone(request, kwargs["pk"])
        self.row = row
        return super().dispatch(request, *args, **kwargs)

    @property
    def url(self) -> str:
        """The page of the row."""
        return reverse("carrot-task", args=[self.row.pk])


class TaskRequeue(TaskAction, Confirmed):
    """Publish the task again, as a new row."""

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        texts = {
            MessageLog.PUBLISHED: _("It has not run yet: it is published anew, and runs once."),
            MessageLog.IN_PROGRESS: _(
                "It is running just now. The new one may run beside it, and what this one "
                "returns is not kept."
            ),
        }
        return Question(
            title=_("Run this task again?"),
            text=_about(self.row) + texts.get(self.row.status, _("It gets the same arguments.")),
            button=_("Run again"),
            cancel=self.url,
        )

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # The row forgets it with its deletion.
        pk: UUID = self.row.pk
        try:
            with transaction.atomic(using=_using()):
                again = self.row.requeue()
                target = f"{self.row.task} {pk} as {again.pk}"
                OperatorAction.note(request.user, "requeue", target)
        except MessageLog.DoesNotExist:
            return gone(request, pk)
        except InvalidMessage as error:
            # Its text quotes arguments, which may be such as are not shown.
            text = _("The arguments of this row cannot be read, so it cannot run again.")
            return refusal(request, text if self.row.is_task else str(error), 400)
        url = reverse("carrot-task", args=[again.pk])
        return back(request, url, _("It was published again: this is the new task."))


class TaskRun(TaskAction):
    """Let a task start at once that waits for a later time."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        with transaction.atomic(using=_using()):
            changed = self.row.run_now()
            if changed:
                OperatorAction.note(request.user, "run now", f"{self.row.task} {self.row.pk}")
        if not changed:
            return back(request, self.url, _("It does not wait for a later time any more."))
        return back(request, self.url, _("It is sent to its queue now."))


class TaskCancel(TaskAction):
    """Keep a task that waits from running; ask one that runs to end."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        with transaction.atomic(using=_using()):
            cancelled = self.row.cancel(by=str(request.user))
            if cancelled:
                OperatorAction.note(request.user, "cancel", f"{self.row.task} {self.row.pk}")
        if not cancelled:
            text = _("Too late to cancel it: it has come to its end.")
            return back(request, self.url, text)
        if self.row.status == MessageLog.IN_PROGRESS:
            return back(request, self.url, _("It is asked to end, and interrupted in a moment."))
        return back(request, self.url, _("It is cancelled, and will not run."))


class TaskDelete(TaskAction, Confirmed):
    """Delete the row of a task that has come to its end."""

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        return Question(
            title=_("Delete this row?"),
            text=_about(self.row)
            + _(
                "Its arguments, result, traceback and log are deleted with it. This cannot be "
                "undone."
            ),
            button=_("Delete"),
            cancel=self.url,
        )

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        rows = MessageLog.objects.using(_using()).filter(pk=self.row.pk)
        with transaction.atomic(using=_using()):
            final = rows.filter(status__in=MessageLog.FINAL)
            _count, deleted = final.exclude(kept_for_flows(_using())).delete()
            if MessageLog._meta.label in deleted:
                OperatorAction.note(request.user, "delete", f"{self.row.task} {self.row.pk}")
                return back(request, reverse("carrot-tasks"), _("The row is deleted."))
        if not rows.exists():
            return gone(request, self.row.pk)
        text = _("It has not come to its end yet. A task that waits can be cancelled first.")
        if rows.filter(status__in=MessageLog.FINAL).exists():
            text = _("Its flow is not over, and needs it.")
        return refusal(request, text, 400)


def _about(row: MessageLog) -> str:
    return f"{row.task} ({row.get_status_display()}). "


def _using() -> str:
    return router.db_for_write(MessageLog)
