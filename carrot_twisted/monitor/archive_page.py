# SPDX-License-Identifier: Apache-2.0
"""The archive of one queue: messages that could not be handled, why not, and what to do with them.

The broker is asked, and nobody else sees the messages while they are looked at; so this page does
not keep itself current, and looks at no more than the first ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from carrot_twisted import archive, conf, copies, housekeeping, showing
from carrot_twisted.exceptions import CarrotConfigException, CarrotError
from carrot_twisted.handler_topology import ARCHIVED_SUFFIX
from carrot_twisted.models import OperatorAction
from carrot_twisted.monitor import access
from carrot_twisted.monitor.confirming import Confirmed, Question
from carrot_twisted.monitor.page import Action, Page, back, refusal
from carrot_twisted.topology import DEAD_SUFFIX

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, HttpResponse

    from carrot_twisted.archive import Archive, Archived

#: Messages that the page shows.
ROWS = 50
#: Messages that one action goes through; the rest waits for the next.
MAX_MESSAGES = 1000
#: Characters of a body.
MAX_BODY = 2000
#: Seconds that the broker gets to answer.
PATIENCE = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One message, as the page shows it."""

    key: str
    """Tells it from the others, in this look and in the next."""
    message_id: str
    routing_key: str
    failed_at: datetime | None
    reason: str
    traceback: str
    body: str
    size: int


class ArchivePage(Page):
    """The first messages of an archive."""

    template: ClassVar[str] = "archive_page.html"
    section: ClassVar[str] = "carrot-queues"
    live: ClassVar[bool] = False

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().get(request, *args, **kwargs)
        except CarrotError as error:
            return refusal(request, str(error), 503)

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A look at the archive."""
        where = archive_of(kwargs["name"])
        with archive.opened(where, PATIENCE) as look:
            rows = [_row(one) for one in islice(look, ROWS)]
            total = look.total
        return {"archive": where, "rows": rows, "total": total, "shown": len(rows)}


class _ArchiveAction(Action):
    """Something done to the messages that are selected, or to all."""

    word: ClassVar[str]

    def do(self, look: archive.Pass, one: Archived) -> None:
        """With one message."""
        raise NotImplementedError

    def told(self, count: int, queue: str) -> str:
        """What was done, for people."""
        raise NotImplementedError

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        name = kwargs["name"]
        where = archive_of(name)
        wanted = set(request.POST.getlist("selected"))
        everything = "all" in request.GET
        count = 0
        action = None
        try:
            with archive.opened(where, PATIENCE) as look:
                for one in islice(look, MAX_MESSAGES):
                    if everything or key_of(one) in wanted:
                        # First: killed in between, it says that somebody began.
                        action = action or OperatorAction.note(
                            request.user, self.word, where.name, 0
                        )
                        self.do(look, one)
                        count += 1
        finally:
            # Also of what was done until the broker went away.
            if action is not None:
                OperatorAction.add(action.pk, count)
        return back(request, reverse("carrot-archive", args=[name]), self.told(count, where.queue))


class ReplayArchived(_ArchiveAction):
    """Back to the queue, to be tried again as if for the first time."""

    word: ClassVar[str] = "replay"

    def do(self, look: archive.Pass, one: Archived) -> None:
        look.replay(one)

    def told(self, count: int, queue: str) -> str:
        return ngettext(
            "%(count)s message went back to queue %(queue)s.",
            "%(count)s messages went back to queue %(queue)s.",
            count,
        ) % {"count": count, "queue": queue}


class DeleteArchived(_ArchiveAction):
    """Those that are selected, away for good."""

    permission: ClassVar[str] = access.PURGE
    word: ClassVar[str] = "delete archived"

    def do(self, look: archive.Pass, one: Archived) -> None:
        look.delete(one)

    def told(self, count: int, queue: str) -> str:
        return ngettext(
            "%(count)s message was deleted.", "%(count)s messages were deleted.", count
        ) % {"count": count}


class DeleteAllArchived(DeleteArchived, Confirmed):
    """All of them, away for good."""

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        name = kwargs["name"]
        return Question(
            title=_("Delete the messages of %(name)s?") % {"name": archive_of(name).name},
            text=_(
                "The first %(count)s messages of the archive are deleted, those that do not stand "
                "on the page, too. This cannot be undone."
            )
            % {"count": f"{MAX_MESSAGES:,}"},
            button=_("Delete them"),
            cancel=reverse("carrot-archive", args=[name]),
        )


def archive_of(name: str) -> Archive:
    """The archive of a queue of tasks, or of a handler.

    Raises:
        CarrotConfigException: there is no such queue.
    """
    if name not in housekeeping.known_queues():
        raise CarrotConfigException(_("There is no queue %(name)s.") % {"name": name})
    settings = conf.current()
    suffix = DEAD_SUFFIX if name in settings.queues else ARCHIVED_SUFFIX
    return archive.archives(settings, [f"{name}{suffix}"])[0]


def key_of(one: Archived) -> str:
    """Tells a message from others; not from one that is the same in everything."""
    parts = [
        str(one.properties.message_id),
        str(one.headers.get(copies.FIRST_FAILURE_HEADER)),
        str(one.headers.get(copies.LAST_FAILURE_HEADER)),
        one.routing_key,
    ]
    digest = hashlib.sha256("\0".join(parts).encode(errors="backslashreplace"))
    digest.update(one.body)
    return digest.hexdigest()[:24]


def _row(one: Archived) -> Row:
    traceback = one.headers.get(copies.TRACEBACK_HEADER)
    return Row(
        key=key_of(one),
        message_id=str(one.properties.message_id or ""),
        routing_key=one.routing_key,
        failed_at=one.failed_at,
        reason=one.reason,
        traceback=traceback if isinstance(traceback, str) else "",
        body=showing.readable(one.body, one.properties.content_encoding, MAX_BODY),
        size=len(one.body),
    )
