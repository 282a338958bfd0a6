# SPDX-License-Identifier: Apache-2.0
"""The services: what their threads run, whether they live, and what operators want of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from carrot_twisted import housekeeping, status
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import recorded
from carrot_twisted.monitor.confirming import Confirmed, Question
from carrot_twisted.monitor.page import Action, Page, back

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


class WorkerList(Page):
    """All services that have a row."""

    template: ClassVar[str] = "worker_list.html"
    section: ClassVar[str] = "carrot-workers"

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As their last heartbeats tell."""
        return {"status": status.read(router.db_for_read(MessageLog))}


class _WorkerAction(Action):
    """Something that a worker is told; it obeys with its next heartbeat."""

    word: ClassVar[str]

    tell: ClassVar[staticmethod[[str], None]]
    notice: ClassVar[Any]
    """What to expect, for people."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        name = kwargs["name"]
        recorded.tell_worker(request.user, self.word, self.tell, name)
        return back(request, reverse("carrot-workers"), self.notice % {"name": name})


class Quiet(_WorkerAction):
    """Take nothing more."""

    word: ClassVar[str] = "quiet"
    tell = staticmethod(housekeeping.quiet_worker)
    notice = gettext_lazy("%(name)s takes nothing more in a moment; what it runs goes on.")


class Unquiet(_WorkerAction):
    """Take tasks and messages again."""

    word: ClassVar[str] = "unquiet"
    tell = staticmethod(housekeeping.unquiet_worker)
    notice = gettext_lazy("%(name)s takes tasks and messages again in a moment.")


class Stop(_WorkerAction, Confirmed):
    """End, as by SIGTERM."""

    word: ClassVar[str] = "stop"
    tell = staticmethod(housekeeping.stop_worker)
    notice = gettext_lazy("%(name)s stops in a moment, when what it runs has ended.")

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        return Question(
            title=_("Stop %(name)s?") % {"name": kwargs["name"]},
            text=_(
                "It takes nothing more, lets what it runs come to its end, and is gone then. It "
                "is not started again by itself, unless something outside sees to that."
            ),
            button=_("Stop it"),
            cancel=reverse("carrot-workers"),
        )
