# SPDX-License-Identifier: Apache-2.0
"""Pages of the API's lists of tasks: in django-carrot's form, and quick with millions of rows.

A page has a number, as in django-carrot, near the beginning of its list; anywhere it is found by a
position, as those of the monitor are (``keyset``), which is what ``next`` and ``previous`` lead to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _
from rest_framework.exceptions import NotFound
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

from carrot_twisted.api.endpoint import PAGE_SIZE, Pages
from carrot_twisted.monitor import keyset

if TYPE_CHECKING:
    from rest_framework.request import Request

    from carrot_twisted.models import MessageLog
    from carrot_twisted.monitor.keyset import Found, Position, Prepare, Query

#: Rows are counted up to here, and pages up to here have numbers.
MANY = 10_000
#: Seconds of a request that a search takes, and the count of what it finds.
SEARCHING, COUNTING = 0.5, 0.2
#: Where pages begin or end.
AFTER, BEFORE = "after", "before"


class TaskPages(Pages):
    """``{count, is_exact, next, previous, results}``: one for each request."""

    def page_of(
        self, query: Query, request: Request, using: str, prepare: Prepare
    ) -> list[MessageLog]:
        """The rows of the page that a request asks for.

        Raises:
            NotFound: there is no such page or position, or a search has not come that far in time.
        """
        self._url = request.build_absolute_uri()
        before, after = (_position(request, name, using) for name in (BEFORE, AFTER))
        if before is not None:
            found = _find(query.backwards, PAGE_SIZE, before, using, prepare)
            if found.position is not None:
                rows = found.rows[::-1]
                self._previous = self._link(BEFORE, found.position)
                self._next = self._link(AFTER, keyset.place_of(rows[-1]) if rows else before)
                return self._counted(query, using, rows)
            # So near to the beginning that the first page is meant.
            after = None
        elif after is None:
            after = self._numbered(query, request, using)
        found = _find(query, PAGE_SIZE, after, using, prepare)
        start = keyset.place_of(found.rows[0]) if found.rows else after
        self._previous = None if after is None else self._link(BEFORE, start)
        self._next = self._link(AFTER, found.position)
        return self._counted(query, using, found.rows)

    def get_paginated_response(self, data: Any) -> Response:
        """The answer."""
        return Response(
            {
                "count": self._count.count,
                "is_exact": self._count.is_exact,
                "next": self._next,
                "previous": self._previous,
                "results": data,
            }
        )

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        """The form of that, as OpenAPI."""
        described: dict[str, Any] = super().get_paginated_response_schema(schema)
        properties = described["properties"]
        properties["count"]["description"] = f"Counted up to {MANY:,}."
        properties["is_exact"] = {
            "type": "boolean",
            "description": "Whether there are no more than were counted.",
        }
        for name in ("next", "previous"):
            properties[name]["example"] = f"http://api.example.org/message-logs/failed/?{AFTER}=…"
        described["required"].append("is_exact")
        return described

    def _counted(self, query: Query, using: str, rows: list[MessageLog]) -> list[MessageLog]:
        self._count = keyset.count(query, MANY, using=using, budget=COUNTING)
        return rows

    def _numbered(self, query: Query, request: Request, using: str) -> Position | None:
        """Where the page of a number begins; None: at the beginning of the list."""
        text = request.query_params.get(self.page_query_param, "1")
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
        if not 1 <= number <= MANY // PAGE_SIZE:
            raise NotFound(_("Invalid page."))
        skipped = (number - 1) * PAGE_SIZE
        if not skipped:
            return None
        found = _find(query, skipped, None, using, keyset.bare)
        if found.position is None:
            raise NotFound(_("Invalid page."))
        if not found.is_full:
            raise NotFound(_('The search has not come that far in time: follow "next".'))
        return found.position

    def _link(self, name: str, place: Position | None) -> str | None:
        if place is None:
            return None
        url = self._url
        for one in (AFTER, BEFORE, self.page_query_param):
            url = remove_query_param(url, one)
        return str(replace_query_param(url, name, str(place)))


def _find(query: Query, limit: int, after: Position | None, using: str, prepare: Prepare) -> Found:
    return keyset.find(query, limit, after=after, using=using, budget=SEARCHING, prepare=prepare)


def _position(request: Request, name: str, using: str) -> Position | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    place = keyset.position(text, using)
    if place is None:
        told = _('This is no position: take it from "next" or "previous" of another page.')
        raise NotFound(told)
    return place
