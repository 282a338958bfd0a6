# SPDX-License-Identifier: Apache-2.0
"""The page of one task: its life, its arguments, what came of it, and its log."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.db.models import QuerySet, Subquery
from django.http import HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.translation import gettext

from carrot_twisted.models import Attempt, MessageLog
from carrot_twisted.monitor import flow_part, log_lines, redaction, time_line, traceback_lines
from carrot_twisted.monitor.page import CONTENT_SECURITY_POLICY, Page, rendered
from carrot_twisted.task_limits import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from django.http import HttpRequest

#: Characters of a text that are shown, until somebody asks for all of them.
CROP = 20_000
#: Attempts that are listed.
ATTEMPTS = 20
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
        attempts = attempts_of(row) if row.attempts else []
        everything = "all" in request.GET
        part = partial(_part, everything=everything)
        if row.is_task:
            positional = redaction.positional_text(row)
            note = _why_hidden(row) if redaction.NOT_SHOWN in positional else ""
            parts = [
                part(gettext("Positional arguments"), positional, note=note),
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
            "went_wrong": row.exception and row.status != MessageLog.CANCELLED,
            "kept_for": None if row.retention is None else timedelta(seconds=row.retention),
            "limits": [words_of(name) for name in (row.slot_key, row.rate_key) if name],
            "steps": time_line.steps_of(row, attempts),
            "flow": None if row.flow is None else flow_part.of_flow(row.flow),
            "parts": [each for each in parts if each["text"]],
            "traceback": _traceback(row.traceback or ""),
            "log": _log(request, row, attempts),
        }


def attempts_of(row: MessageLog) -> list[Attempt]:
    """The last ATTEMPTS of those that came to nothing, in their order."""
    attempts = Attempt.objects.using(router.db_for_read(MessageLog)).filter(message=row.pk)
    return [*attempts.order_by("-number")[:ATTEMPTS]][::-1]


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


def _part(title: str, text: str, *, everything: bool, note: str = "") -> dict[str, Any]:
    cropped = len(text) > CROP and not everything
    shown = text[:CROP] if cropped else text
    return {"title": title, "text": shown, "cropped": cropped, "note": note}


def _why_hidden(row: MessageLog) -> str:
    return gettext(
        "Which of these are secret is told by the names of the function's parameters, and this web "
        'process does not know the function. Name its module in CARROT["task_modules"]: '
        "%(module)s."
    ) % {"module": row.task.rpartition(".")[0]}


def _traceback(text: str) -> str:
    if not text:
        return ""
    lines = [(line.kind, line.text) for line in traceback_lines.lines_of(text)]
    return format_html_join("\n", '<span class="frame-{}">{}</span>', lines)


def _log(request: HttpRequest, row: MessageLog, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The log of the row, or of an earlier attempt, as far as the address asks for it."""
    level = request.GET.get("level", "").upper()
    if level not in log_lines.LEVELS:
        level = log_lines.DEFAULT_LEVEL
    wanted = request.GET.get("find", "")[:200]
    number = request.GET.get("attempt", "")
    attempt = next((one for one in attempts if str(one.number) == number), None)
    lines = log_lines.lines_of((row.log or "") if attempt is None else attempt.log)
    chosen = log_lines.chosen(lines, level, wanted)

    def query(**other: Any) -> str:
        # What is as usual stays out of the address.
        asked = {"attempt": attempt and attempt.number, "level": level, "find": wanted, **other}
        return urlencode({name: value for name, value in asked.items() if value})

    return {
        "attempt": attempt,
        "total": len(lines),
        "shown": len(chosen),
        "find": wanted,
        "level": level,
        "everything": query(find=None),
        "attempts": [
            {
                "title": gettext("Attempt %(number)s") % {"number": one.number} if one else None,
                "current": one is attempt,
                "query": query(attempt=one and one.number),
            }
            for one in (*attempts, None)
        ],
        "levels": [
            {
                "name": name,
                "count": count,
                "current": name == level,
                "query": query(level=name),
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
    return format_html("{}{}", format_html_join("", "{}<mark>{}</mark>", parts), text[at:])
