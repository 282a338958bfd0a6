# SPDX-License-Identifier: Apache-2.0
"""The page to log in, where the service serves the monitor by itself.

A project that serves it has a page of its own: this one is then no way around that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth.views import LoginView

from carrot_twisted.monitor.page import alone

if TYPE_CHECKING:
    from django.http import HttpResponse


class Login(LoginView):
    """Django's, in the monitor's clothes."""

    next_page = "carrot-monitor"

    def render_to_response(self, context: Any, **_kwargs: Any) -> HttpResponse:
        """The page with the form."""
        return alone(self.request, "login.html", context)
