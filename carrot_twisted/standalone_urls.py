# SPDX-License-Identifier: Apache-2.0
"""URLs for a service that serves the monitor by itself (``--web``), instead of the project's.

The monitor is at ``/``, and has pages of its own to log in and out.
"""

from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import include, path

from carrot_twisted.monitor.login import Login

urlpatterns = [
    path("login/", Login.as_view(), name="carrot-login"),
    path("logout/", LogoutView.as_view(next_page="carrot-login"), name="carrot-logout"),
    path("", include("carrot_twisted.urls")),
]
