# SPDX-License-Identifier: Apache-2.0
"""What people do to one task: have it run again, keep it from running, delete its row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.urls import reverse
from django.utils.translation import gettext

from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog, OperatorAction
from carrot_twisted.monitor import access
from carrot_twisted.monitor.page import Action, back, refusal, rendered
from carrot_twisted.monitor.task_page import TaskPage, gone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django.http import HttpRequest, HttpResponse


class TaskAction(Action):
    """One that is done to one row."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Do it, unless the row is gone."""
        row = _row(kwargs["pk"])
        return gone(request, kwargs["pk"]) if row is None else self.act_on(request, row)

    def act_on(self, request: HttpRequest, row: MessageLog) -> HttpResponse:
        """Do it to this row, with a note of it in the same transaction."""
        raise NotImplementedError


class ConfirmedTaskAction(TaskAction):
    """One that first asks, on a page of its own: no script is needed for that."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Ask."""
        try:
            access.demand(request, self.permission)
        except PermissionDenied as error:
            return refusal(request, str(error))
        row = _row(kwargs["pk"])
        if row is None:
            return gone(request, kwargs["pk"])
        context = {"row": row, "section": TaskPage.section, "live": False, **self.question(row)}
        return rendered(request, "task_confirm.html", context)

    def question(self, row: MessageLog) -> Mapping[str, Any]:
        """``title`` and ``text`` of the page, and ``answer``: the text of its button."""
        raise NotImplementedError


class TaskRequeue(ConfirmedTaskAction):
    """Publish the task again, as a new row."""

    def question(self, row: MessageLog) -> Mapping[str, Any]:
        """What it means for a row in this state."""
        texts = {
            MessageLog.PUBLISHED: gettext(
                "It has not run yet: it will be published anew, and run once."
            ),
            MessageLog.IN_PROGRESS: gettext(
                "It is running just now. The new one may run beside it, and what this one "
                "returns will not be kept."
            ),
        }
        return {
            "title": gettext("Run this task again?"),
            "text": texts.get(row.status, gettext("It runs with the same arguments.")),
            "answer": gettext("Run again"),
        }

    def act_on(self, request: HttpRequest, row: MessageLog) -> HttpResponse:
        """Publish it, and go to the new row."""
        try:
            with transaction.atomic(using=_using()):
                again = row.requeue()
                OperatorAction.note(request.user, "requeue", _target(row, again))
        except MessageLog.DoesNotExist:
            return gone(request, row.pk)
        except InvalidMessage as error:
            # Its text quotes arguments, which may be such as are not shown.
            text = gettext("The arguments of this row cannot be read, so it cannot run again.")
            return refusal(request, text if row.is_task else str(error), 400)
        url = reverse("carrot-task", args=[again.pk])
        return back(request, url, gettext("It was published again: this is the new task."))


class TaskCancel(TaskAction):
    """Keep a task that waits from running."""

    def act_on(self, request: HttpRequest, row: MessageLog) -> HttpResponse:
        """Cancel it, if that is in time."""
        with transaction.atomic(using=_using()):
            cancelled = row.cancel()
            if cancelled:
                OperatorAction.note(request.user, "cancel", _target(row))
        url = reverse("carrot-task", args=[row.pk])
        if not cancelled:
            text = gettext("Too late to cancel it: it runs already, or has come to its end.")
            return back(request, url, text)
        return back(request, url, gettext("It is cancelled, and will not run."))


class TaskDelete(ConfirmedTaskAction):
    """Delete the row of a task that has come to its end."""

    def question(self, row: MessageLog) -> Mapping[str, Any]:
        """What is lost."""
        return {
            "title": gettext("Delete this row?"),
            "text": gettext(
                "Its arguments, result, traceback and log are deleted with it. This cannot be "
                "undone."
            ),
            "answer": gettext("Delete"),
            "danger": True,
        }

    def act_on(self, request: HttpRequest, row: MessageLog) -> HttpResponse:
        """Delete it, and go to the list."""
        final = MessageLog.objects.using(_using()).filter(pk=row.pk, status__in=MessageLog.FINAL)
        with transaction.atomic(using=_using()):
            _, deleted = final.delete()
            if MessageLog._meta.label in deleted:
                OperatorAction.note(request.user, "delete", _target(row))
                return back(request, reverse("carrot-tasks"), gettext("The row is deleted."))
        if _row(row.pk) is None:
            return gone(request, row.pk)
        text = gettext("It has not come to its end yet. A task that waits can be cancelled first.")
        return refusal(request, text, 400)


def _using() -> str:
    return router.db_for_write(MessageLog)


def _row(pk: Any) -> MessageLog | None:
    """The row as it is now, also where pages are read from a replica."""
    return MessageLog.objects.using(_using()).filter(pk=pk).first()


def _target(row: MessageLog, again: MessageLog | None = None) -> str:
    return f"{row.task} {row.pk}" + (f" as {again.pk}" if again is not None else "")
