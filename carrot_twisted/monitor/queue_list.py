# SPDX-License-Identifier: Apache-2.0
"""The queues: what waits in them and for how long, who works on it; pause, resume, purge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.urls import reverse
from django.utils.translation import gettext as _

from carrot_twisted import housekeeping, status
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import access, recorded
from carrot_twisted.monitor.confirming import Confirmed, Question
from carrot_twisted.monitor.page import Action, Page, back

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

#: Characters of a reason.
MAX_REASON = 200


class QueueList(Page):
    """All queues of the settings, and those that only rows know."""

    template: ClassVar[str] = "queue_list.html"
    section: ClassVar[str] = "carrot-queues"

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the tables tell: the broker is not asked."""
        now = status.read(router.db_for_read(MessageLog))
        paused = {one.name: one for one in now.paused}
        tasks = {one.name for one in now.queues}
        return {
            "status": now,
            "queues": [(one, paused.get(one.name)) for one in now.queues],
            # Of messages with handlers: no rows tell what waits there.
            "handled": [
                (name, paused.get(name))
                for name in housekeeping.known_queues()
                if name not in tasks
            ],
        }


class Pause(Action):
    """Let no service take messages off a queue."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        name = kwargs["name"]
        reason = request.POST.get(f"reason-{name}", "").strip()[:MAX_REASON]
        recorded.pause_queue(request.user, name, reason)
        notice = _("Services take nothing more off queue %(name)s in a moment.") % {"name": name}
        return back(request, reverse("carrot-queues"), notice)


class Resume(Action):
    """Let services take messages off a queue again."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        name = kwargs["name"]
        recorded.resume_queue(request.user, name)
        notice = _("Services take messages off queue %(name)s again in a moment.") % {"name": name}
        return back(request, reverse("carrot-queues"), notice)


class Purge(Confirmed):
    """Throw away all that waits, or runs, in a queue of tasks."""

    permission: ClassVar[str] = access.PURGE

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        name = kwargs["name"]
        now = status.read(router.db_for_read(MessageLog))
        count = "0"
        for one in now.queues:
            if one.name == name:
                more = "" if one.waiting_is_exact else "+"
                count = f"{one.waiting + one.running:,}{more}"
        return Question(
            title=_("Purge queue %(name)s?") % {"name": name},
            text=_(
                "%(count)s tasks that wait or run are deleted, and their messages with them. What "
                "a service has begun goes on, but its result goes nowhere. This cannot be undone."
            )
            % {"count": count},
            button=_("Delete them all"),
            cancel=reverse("carrot-queues"),
        )

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        name = kwargs["name"]
        deleted = recorded.purge_queue(request.user, name)
        notice = _("%(count)s tasks of queue %(name)s were deleted.") % {
            "count": f"{deleted:,}",
            "name": name,
        }
        return back(request, reverse("carrot-queues"), notice)
