# SPDX-License-Identifier: Apache-2.0
"""Asks before something is done that cannot be undone: a page with the question and one button.

By GET the address of such an action asks, by POST it does it: without scripts, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carrot_twisted.monitor import access
from carrot_twisted.monitor.page import Action, rendered

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked."""

    title: str
    text: str
    """What is going to happen, and what not."""
    button: str
    cancel: str
    """Where those go who would rather not."""


class Confirmed(Action):
    """An action that asks first."""

    def question(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Question:
        """What is asked."""
        raise NotImplementedError

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Ask."""
        return self.guarded(request, lambda: self._ask(request, *args, **kwargs))

    def _ask(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        access.demand(request, self.permission)
        question = self.question(request, *args, **kwargs)
        return rendered(request, "question.html", {"question": question, "live": False})
