# SPDX-License-Identifier: Apache-2.0
"""What people do to many tasks: to those they have selected, or to all that a filter finds.

For all that a filter finds there is first a page that says how many these are and what will happen
to them. Then each POST works for about a second, in chunks of one transaction each, and answers
with how far it is; the page goes on by itself, or by its button. It goes from the oldest row to the
one that was the newest when that page was shown: what is added meanwhile does not prolong it.
Whoever closes the page ends it there, and what was done is recorded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from django.core import signing
from django.db import router
from django.http import Http404, QueryDict
from django.urls import reverse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from carrot_twisted import housekeeping
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import access, keyset
from carrot_twisted.monitor.page import Action, Page, back, refusal
from carrot_twisted.monitor.recorded import on_rows
from carrot_twisted.monitor.task_filter import TaskFilter
from carrot_twisted.templatetags.carrot_twisted import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.http import HttpRequest, HttpResponse
    from django.utils.functional import _StrPromise

    from carrot_twisted.message_log_set import MessageLogQuerySet

#: Seconds that one request works.
STRETCH = 1.0
#: Up to how many rows are counted before, and for how many seconds.
MANY, COUNTING = 100_000, 0.25
#: How many rows can be selected at once.
MAX_SELECTED = 1000
_SALT = "carrot_twisted.many_tasks"
#: Seconds for which a page can be gone on from.
_MAX_AGE = 86_400


@dataclass(frozen=True, kw_only=True)
class Deed:
    """One thing that is done to many rows."""

    name: str
    button: _StrPromise
    question: _StrPromise
    text: _StrPromise
    """What will happen to which of them."""
    done: Callable[[int], str]
    """Says it of so many rows."""
    states: tuple[str, ...]
    """It is done to rows of these; others are left alone."""
    chunk: int
    """Rows per transaction."""
    do: Callable[[MessageLogQuerySet], int]
    """Does it, in the caller's transaction; returns to how many."""
    is_danger: bool = False


def _cancel(rows: MessageLogQuerySet) -> int:
    # Who has one locked claims it, or sends it: to wait for that, holding others, makes deadlocks.
    free = rows.unfinished().select_for_update(skip_locked=True)
    keys = list(free.values_list("pk", flat=True))
    # Which of them it was is in the record of what operators do.
    return MessageLog.objects.using(rows.db).filter(pk__in=keys).cancel(by="an operator")


def _requeued(count: int) -> str:
    text = ngettext("%(count)s task runs again.", "%(count)s tasks run again.", count)
    return text % {"count": whole(count)}


def _cancelled(count: int) -> str:
    text = ngettext(
        "%(count)s task is cancelled, or asked to end.",
        "%(count)s tasks are cancelled, or asked to end.",
        count,
    )
    return text % {"count": whole(count)}


def _deleted(count: int) -> str:
    text = ngettext("%(count)s row is deleted.", "%(count)s rows are deleted.", count)
    return text % {"count": whole(count)}


DEEDS = {
    deed.name: deed
    for deed in (
        Deed(
            name="requeue",
            button=_("Run again"),
            question=_("Run these tasks again?"),
            text=_(
                "Tasks that have come to their end are published again as new tasks, with the same "
                "arguments, and their old rows are deleted. Tasks that wait or run are left alone, "
                "and so are messages of handlers."
            ),
            done=_requeued,
            states=MessageLog.FINAL,
            chunk=housekeeping.REQUEUE_CHUNK,
            do=lambda rows: housekeeping.requeue_tasks(rows).count,
        ),
        Deed(
            name="cancel",
            button=_("Cancel"),
            question=_("Cancel these tasks?"),
            text=_(
                "Tasks that wait will not run. Tasks that run are asked to end, and interrupted. "
                "Tasks that have come to their end are left alone."
            ),
            done=_cancelled,
            states=MessageLog.UNFINISHED,
            chunk=housekeeping.CHUNK,
            do=_cancel,
        ),
        Deed(
            name="delete",
            button=_("Delete"),
            question=_("Delete these rows?"),
            text=_(
                "Rows of tasks that have come to their end are deleted, with their arguments, "
                "results and logs. This cannot be undone. Tasks that wait or run are left alone."
            ),
            done=_deleted,
            states=MessageLog.FINAL,
            chunk=housekeeping.CHUNK,
            do=housekeeping.delete_tasks,
            is_danger=True,
        ),
    )
}


def deeds(listing: str) -> list[Deed]:
    """What can be done to some of a list's rows."""
    states = keyset.LISTINGS[listing].states
    return [deed for deed in DEEDS.values() if not states or set(states) & set(deed.states)]


def _deed(name: str) -> Deed:
    try:
        return DEEDS[name]
    except KeyError:
        raise Http404("There is no such action.") from None


def _left_alone(count: int) -> str:
    if not count:
        return ""
    text = ngettext(
        " %(count)s was left alone: it is not in a state for that, or cannot be run again; its "
        "page tells.",
        " %(count)s were left alone: they are not in a state for that, or cannot be run again; "
        "their pages tell.",
        count,
    )
    return text % {"count": whole(count)}


class SelectedTasks(Action):
    """Do it to the rows that are selected on a page."""

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Do it, and go back to the list."""
        deed = _deed(kwargs["deed"])
        form = TaskFilter(request.GET)
        here = {name: request.GET.get(name, "") for name in ("after", "before")}
        url = reverse("carrot-tasks") + form.address(**here)
        keys = _keys(request.POST.getlist("selected")[:MAX_SELECTED])
        if not keys:
            return back(request, url, gettext("Select some rows first."))
        named = ", ".join(str(key) for key in keys)
        count = those_selected(deed.name, keys, f"selected tasks: {named}", request.user)
        return back(request, url, deed.done(count) + _left_alone(len(keys) - count))


def _keys(texts: list[str]) -> list[UUID]:
    keys = []
    for text in texts:
        try:
            keys.append(UUID(text))
        except ValueError:
            continue
    return list(dict.fromkeys(keys))


class MatchingTasks(Page):
    """Do it to all that a filter finds: the question, and the pages that tell how far it is."""

    template: ClassVar[str] = "many_tasks.html"
    section: ClassVar[str] = "carrot-tasks"
    live: ClassVar[bool] = False
    permission: ClassVar[str] = access.ACT

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Ask."""
        deed = _deed(kwargs["deed"])
        form = TaskFilter(request.GET)
        if not form.is_valid():
            return refusal(request, gettext("The filter has a mistake: mend it first."), 400)
        using = router.db_for_write(MessageLog)
        query = form.query
        newest = keyset.newest(query.listing, using)
        due = query.narrowed(states=deed.states, newest=None)
        counted = keyset.count(due, MANY, using=using, budget=COUNTING)
        work = Asked(
            deed=deed.name,
            filter=form.address(),
            newest=str(newest or ""),
            total=counted.count,
            is_exact=counted.is_exact,
        )
        return self.answer(deed, form, work, is_question=True)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Do some of it, and tell how far it is."""
        deed = _deed(kwargs["deed"])
        try:
            work = Asked(**signing.loads(request.POST["work"], salt=_SALT, max_age=_MAX_AGE))
        except (KeyError, TypeError, signing.BadSignature):
            text = gettext("This page is too old to go on from: begin again at the list.")
            return refusal(request, text, 400)
        if work.deed != deed.name:
            raise Http404("There is no such action.")
        form = TaskFilter(QueryDict(work.filter.removeprefix("?")))
        is_done = work.go_on(deed, form.query, form.words, request.user)
        if not is_done:
            return self.answer(deed, form, work)
        url = reverse("carrot-tasks") + form.address()
        return back(request, url, deed.done(work.done) + _left_alone(work.left))

    def answer(
        self, deed: Deed, form: TaskFilter, work: Asked, *, is_question: bool = False
    ) -> HttpResponse:
        """The page."""
        return self.render(
            {
                "deed": deed,
                "words": form.words,
                "work": work,
                "token": signing.dumps(vars(work), salt=_SALT, compress=True),
                "is_question": is_question,
                "list_url": reverse("carrot-tasks") + form.address(),
            }
        )


@dataclass(kw_only=True)
class Work:
    """A deed on all that a query finds, and how far it is."""

    newest: str
    """The newest row when it began."""
    after: str = ""
    """The last row that was looked at."""
    done: int = 0
    left: int = 0
    """How many were found and left alone."""
    record: int | None = None
    """Of the OperatorAction."""

    @property
    def seen(self) -> int:
        """How many were found until now."""
        return self.done + self.left

    def go_on(self, deed: Deed, query: keyset.Query, target: str, user: object) -> bool:
        """Work for a while; returns whether that was all.

        Args:
            deed: what is done.
            query: to which rows; of these, to those of the deed's states, the oldest first.
            target: the same for people, as the record says it.
            user: who does it.
        """
        using = router.db_for_write(MessageLog)
        newest = keyset.position(self.newest, using)
        if newest is None:
            return True
        due = query.narrowed(states=deed.states, newest=newest)
        end = time.monotonic() + STRETCH
        while True:
            found = keyset.find(
                due,
                deed.chunk,
                after=keyset.position(self.after, using),
                using=using,
                budget=end - time.monotonic(),
                prepare=keyset.bare,
            )
            if found.rows:
                rows = MessageLog.objects.using(using)
                count, self.record = on_rows(
                    deed.do,
                    rows.filter(pk__in=[row.pk for row in found.rows]),
                    user=user,
                    action=deed.name,
                    target=target,
                    record=self.record,
                )
                self.done += count
                self.left += len(found.rows) - count
            if found.position is None:
                return True
            self.after = str(found.position)
            if time.monotonic() > end:
                return False


@dataclass(kw_only=True)
class Asked(Work):
    """That of a page, which carries it on, signed."""

    deed: str
    filter: str
    total: int
    is_exact: bool


def all_found(name: str, query: keyset.Query, target: str, user: object) -> None:
    """Do it to all that a query finds, however long that takes; see ``Work.go_on``."""
    newest = keyset.newest(query.listing, router.db_for_write(MessageLog))
    work = Work(newest=str(newest or ""))
    while not work.go_on(DEEDS[name], query, target, user):
        pass


def those_selected(name: str, keys: Sequence[UUID], target: str, user: object) -> int:
    """Do it to these rows, in chunks; returns to how many."""
    deed = DEEDS[name]
    rows = MessageLog.objects.using(router.db_for_write(MessageLog))
    done, record = 0, None
    for start in range(0, len(keys), deed.chunk):
        count, record = on_rows(
            deed.do,
            rows.filter(pk__in=keys[start : start + deed.chunk]),
            user=user,
            action=name,
            target=target,
            record=record,
        )
        done += count
    return done
