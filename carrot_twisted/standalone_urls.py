# SPDX-License-Identifier: Apache-2.0
"""URLs for a service that serves the monitor by itself (``--web``), instead of the project's.

The monitor is at ``/``, and has pages of its own to log in and out.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import views
from django.urls import include, path

from carrot_twisted.monitor.page import engine


class Login(views.LoginView):
    """Django's, with a template of ours: the project's TEMPLATES have nothing to do with it."""

    next_page = "carrot-monitor"

    def get_template_names(self) -> Any:
        """Django takes a template as well as names."""
        return engine().get_template("carrot_twisted/login.html")


urlpatterns = [
    path("login/", Login.as_view(), name="carrot-login"),
    path("logout/", views.LogoutView.as_view(next_page="carrot-login"), name="carrot-logout"),
    path("", include("carrot_twisted.urls")),
]
