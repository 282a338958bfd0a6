# SPDX-License-Identifier: Apache-2.0
"""The page of one task: its life, its arguments, what came of it, and its log."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.db.models import QuerySet, Subquery
from django.http import HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.translation import gettext

from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import log_lines, redaction, time_line, traceback_lines
from carrot_twisted.monitor.page import CONTENT_SECURITY_POLICY, Page, rendered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from django.http import HttpRequest

#: Characters of a text that are shown, until somebody asks for all of them.
CROP = 20_000
#: How many of the newest rows are looked through for the one that has replaced another.
NEWEST = 5_000


def rows_to_read() -> QuerySet[MessageLog]:
    """The rows, for looking at them."""
    return MessageLog.objects.using(router.db_for_read(MessageLog))


def gone(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The page of a row that is not there, with the row that has replaced it, if it is found."""
    # No index knows that; and who looks for the row mostly has its page open still.
    newest = rows_to_read().order_by("-pk").values("pk")[:NEWEST]
    again = rows_to_read().filter(pk__in=Subquery(newest), retry_of=pk).only("pk", "task").first()
    context = {"pk": pk, "again": again, "section": TaskPage.section, "live": False}
    return rendered(request, "task_gone.html", context, 404)


class TaskPage(Page):
    """One task. It keeps itself current until the task has come to its end."""

    template: ClassVar[str] = "task_page.html"
    section: ClassVar[str] = "carrot-tasks"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the row; a page that says so where it is gone."""
        row = rows_to_read().filter(pk=kwargs["pk"]).first()
        if row is None:
            return gone(request, kwargs["pk"])
        return self.render(self.context(request, row))

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Everything of one row."""
        row: MessageLog = args[0]
        everything = "all" in request.GET
        part = partial(_part, everything=everything)
        if row.is_task:
            parts = [
                part(gettext("Positional arguments"), redaction.positional_text(row)),
                part(gettext("Keyword arguments"), redaction.keyword_text(row)),
            ]
        else:
            parts = [
                part(gettext("Body"), redaction.shown_text(row.content)),
                part(gettext("Properties"), redaction.shown_text(row.task_args)),
            ]
        parts.append(part(gettext("Result"), redaction.shown_text(row.output or "")))
        return {
            "row": row,
            "live": row.status in MessageLog.UNFINISHED,
            "final": row.status in MessageLog.FINAL,
            "steps": time_line.steps_of(row, attempts_of(row)),
            "parts": [each for each in parts if each["text"]],
            "hides_positional": redaction.hides_positional(row),
            "traceback": _traceback(row.traceback or ""),
            "log": _log(request, row.log or ""),
        }


def attempts_of(row: MessageLog) -> Sequence[time_line.Attempt]:
    """The attempts that the row does not tell of any more: none are kept."""
    return ()


class TaskLog(Page):
    """The log of a task as a file."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """All lines of all levels."""
        row = rows_to_read().filter(pk=kwargs["pk"]).only("pk", "log").first()
        if row is None:
            return gone(request, kwargs["pk"])
        return HttpResponse(
            (row.log or "").encode("utf-8", "backslashreplace"),
            headers={
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Disposition": f'attachment; filename="{row.pk}.txt"',
                "Content-Security-Policy": CONTENT_SECURITY_POLICY,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "private, no-cache",
            },
        )


def _part(title: str, text: str, *, everything: bool) -> dict[str, Any]:
    cropped = len(text) > CROP and not everything
    return {"title": title, "text": text[:CROP] if cropped else text, "cropped": cropped}


def _traceback(text: str) -> str:
    if not text:
        return ""
    lines = [(line.kind, line.text) for line in traceback_lines.lines_of(text)]
    return format_html_join("\n", '<span class="frame-{}">{}</span>', lines)


def _log(request: HttpRequest, text: str) -> dict[str, Any]:
    level = request.GET.get("level", "").upper()
    if level not in log_lines.LEVELS:
        level = log_lines.DEFAULT_LEVEL
    wanted = request.GET.get("find", "")[:200]
    lines = log_lines.lines_of(text)
    chosen = log_lines.chosen(lines, level, wanted)
    more = {"find": wanted} if wanted else {}
    return {
        "total": len(lines),
        "shown": len(chosen),
        "find": wanted,
        "level": level,
        "levels": [
            {
                "name": name,
                "count": count,
                "current": name == level,
                "query": urlencode({"level": name, **more}),
            }
            for name, count in log_lines.counts(lines).items()
        ],
        "lines": format_html_join("\n", "{}", ((line,) for line in _marked_up(chosen, wanted))),
    }


def _marked_up(lines: Sequence[log_lines.Line], wanted: str) -> Iterator[str]:
    """Each line as HTML. A template would take ten times as long for thousands of them."""
    for line in lines:
        text = _marked(line.text, wanted) if wanted else line.text
        kind = line.level.lower() or "none"
        if line.time:
            yield format_html(
                '<div class="line level-{}" data-number="{}"><span class="line-time" title="{}">{}'
                '</span> <span class="level">{}</span> <span class="text">{}</span></div>',
                kind,
                line.number,
                line.thread,
                line.time,
                line.name,
                text,
            )
        else:
            yield format_html(
                '<div class="line more level-{}" data-number="{}">'
                '<span class="text">{}</span></div>',
                kind,
                line.number,
                text,
            )


def _marked(text: str, wanted: str) -> str:
    """The text, with what was searched for marked."""
    plain, word = text.casefold(), wanted.casefold()
    if len(plain) != len(text):
        # Some letters become two: the places would not be the same.
        return text
    parts: list[tuple[str, str]] = []
    at = 0
    while (found := plain.find(word, at)) >= 0:
        end = found + len(word)
        parts.append((text[at:found], text[found:end]))
        at = end
    return format_html(
        "{}{}", format_html_join("", "{}<mark>{}</mark>", parts), text[at:]
    )
